"""Evaluate functions made of a module, a loader and metrics, beside the same figures computed the long way."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import nearzip as nz
from nearzip.errors import UsageError
from nearzip.torch import evaluator
from nearzip.torch.evaluator import predict_classes


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 9))


torch.manual_seed(1)
INPUTS, TARGETS = torch.randn(70, 12), torch.randint(9, (70,))
BATCHES = list(zip(INPUTS.split(32), TARGETS.split(32), strict=True))
EVERY = ("top1", "top5", "loss", "perplexity", "agreement", "kl")


def arrays(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def noisy(module, size=0.1):
    rng = np.random.default_rng(0)
    found = {}
    for name, w in arrays(module).items():
        found[name] = (w + rng.normal(0, size, w.shape)).astype(w.dtype) if w.dtype.kind == "f" else w
    found["1.running_var"] = np.abs(found["1.running_var"])
    return found


def outputs(module, tensors):
    other = network()
    other.load_state_dict({name: torch.from_numpy(w) for name, w in tensors.items()})
    with torch.no_grad():
        return other.eval()(INPUTS).double()


def test_metrics_are_what_they_say():
    module = network()
    tensors = noisy(module)
    found = evaluator(module, BATCHES, EVERY)(tensors)
    logits, original = outputs(module, tensors), outputs(module, arrays(module))
    loss = float(functional.cross_entropy(logits, TARGETS))
    p, q = original.softmax(-1), logits.softmax(-1)
    expected = {
        "top1": float((logits.argmax(-1) == TARGETS).double().mean()),
        "top5": float((logits.argsort(-1, descending=True)[:, :5] == TARGETS[:, None]).any(-1).double().mean()),
        "loss": -loss,
        "perplexity": -float(np.exp(loss)),
        "agreement": float((logits.argmax(-1) == original.argmax(-1)).double().mean()),
        "kl": -float((p * (p / q).log()).sum(-1).mean()),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_the_original_is_its_own_best():
    module = network()
    found = evaluator(module, BATCHES, EVERY)(arrays(module))
    assert (found["kl"], found["agreement"]) == (0, 1)


def test_one_metric_is_a_float_and_the_module_stays_as_it_was():
    module = network().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    judge = evaluator(module, BATCHES, "top1")
    first = judge(noisy(module))
    assert type(first) is float
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        module[0].weight.zero_()
    assert judge(noisy(network())) == first


def test_part_of_the_tensors_is_enough():
    module = network()
    judge = evaluator(module, BATCHES, "loss")
    assert judge({}) == judge(arrays(module)) != judge({"4.bias": np.ones(9, np.float32)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_float_type_is_judged(dtype):
    module = network().to(dtype)
    batches = [(x.to(dtype), y) for x, y in BATCHES]
    plan = nz.tune(module.state_dict(), evaluate=evaluator(module, batches, "kl"), max_loss=0.01)
    assert 0 <= plan.losses["kl"] <= 0.01


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_a_target_of_divergence_is_met_beside_each_other(backend):
    module = network()
    judge = evaluator(module, BATCHES, ["kl", "top1"])
    with joblib.parallel_config(backend, n_jobs=2):
        plan = nz.tune(module.state_dict(), evaluate=judge, max_loss={"kl": 1e-3})
    restored = nz.compress(module.state_dict(), plan=plan).restored
    # A worker's number of threads may change the last digits.
    assert -judge(restored)["kl"] == pytest.approx(plan.losses["kl"], rel=1e-4)
    assert 0 < plan.losses["kl"] <= 1e-3
    assert plan.evaluate == "nearzip.torch.evaluator(kl, top1)"


def test_pickled_and_back():
    module = network()
    judge = evaluator(module, BATCHES, EVERY)
    assert pickle.loads(pickle.dumps(judge))(noisy(module)) == judge(noisy(module))  # noqa: S301


def identity(module=None, batches=BATCHES, metric="kl", **how):
    return evaluator(network() if module is None else module, batches, metric, **how).identity


def test_an_identity_is_that_of_module_batches_and_metrics():
    assert identity() == identity() == pickle.loads(pickle.dumps(evaluator(network(), BATCHES, "kl"))).identity  # noqa: S301
    trained, other_layer = network(), network()
    with torch.no_grad():
        trained[4].bias[0] += 1e-6
    other_layer[2] = nn.Tanh()
    others = [
        identity(trained), identity(other_layer), identity(metric=["kl", "top1"]), identity(metric="agreement"),
        identity(batches=BATCHES[:2]), identity(batches=[(x, y + 1) for x, y in BATCHES]),
        identity(batches=[(x.reshape(-1, 12), y) for x, y in BATCHES[::-1]]),
        identity(batches=[{"input": x, "labels": y} for x, y in BATCHES], predict=by_keyword),
        identity(batches=[{"input": x, "labels": y, "id": "a"} for x, y in BATCHES], predict=by_keyword),
    ]  # fmt: skip
    assert len({identity(), *others}) == len(others) + 1


def test_identities_of_this_releases_trials_stay():
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(torch.arange(p.numel(), dtype=torch.float32).reshape(p.shape) / 8 - i)
    batches = [(torch.arange(15.0).reshape(5, 3) / 4, torch.tensor([0, 1, 0, 1, 1]))]
    assert identity(module, batches) == "a617a2e4688e2e860283dcc9ae0ccd3c"
    assert identity(module, batches, ["top1", "kl"]) == "66f0d01946d50ce18869c89bfb5bbb43"


def by_keyword(module, batch):
    return predict_classes(module, (batch["input"], batch["labels"]))


def test_an_identity_is_read_from_the_loader_where_no_metric_has_done_so():
    top1 = evaluator(network(), BATCHES, "top1")
    assert top1.identity == identity(metric="top1") != identity(metric="top1", batches=BATCHES[1:])


class Tied(nn.Module):
    """A language model in little: tied embeddings, an answer with `logits`."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(self.embed(input_ids))}


def test_dicts_tied_weights_and_ignored_targets():
    module = Tied()
    ids = torch.randint(11, (4, 6))
    labels = ids.clone()
    labels[:, :3] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    judge = evaluator(module, [batch], ["loss", "kl"])
    with torch.no_grad():
        logits = module(ids)["logits"][:, :-1]
        expected = functional.cross_entropy(logits.reshape(-1, 11), labels[:, 1:].reshape(-1))
    assert judge(arrays(module))["loss"] == pytest.approx(-float(expected), rel=1e-5)
    zeros = {"embed.weight": np.zeros((11, 8), np.float32), "head.weight": np.zeros((11, 8), np.float32)}
    assert judge(zeros)["loss"] == pytest.approx(-np.log(11))


def test_predict_in_place_of_the_default():
    def first_half(module, batch):
        logits, targets = predict_classes(module, batch)
        return logits[:10], targets[:10]

    judge = evaluator(network(), BATCHES, "top1", predict=first_half)
    assert (judge({}) * 26) == pytest.approx(round(judge({}) * 26))  # 10 + 10 + 6 predictions


class Shuffled:
    def __iter__(self):
        return iter([BATCHES[i] for i in torch.randperm(3).tolist()])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: evaluator(m, BATCHES, "f1"), "a metric is one of top1"),
        (lambda m: evaluator(m, BATCHES, []), "a metric is one of"),
        (lambda m: evaluator(m, iter(BATCHES)), "not an iterator|read at every call"),
        (lambda m: evaluator(m, [])({}), "gave no samples"),
        (lambda m: evaluator(m, BATCHES)({"nope": np.ones(3, np.float32)}), "'nope': the module has none"),
        (lambda m: evaluator(m, BATCHES)({"4.bias": np.ones(3, np.float32)}), r"'4\.bias' is \[3\]"),
        (lambda m: evaluator(m, [INPUTS], "top1")({}), "needs targets"),
        (lambda m: evaluator(m, [(INPUTS, TARGETS[:3])])({}), "70 predictions and 3 targets"),
        (lambda m: [evaluator(m, Shuffled(), "kl")({}) for _ in range(20)], "shuffle=False"),
        (lambda m: evaluator(nn.Flatten(0), BATCHES)({}), "does not return logits"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(call, says):
    with pytest.raises(UsageError, match=says):
        call(network())


def test_targets_are_not_needed_for_divergence():
    judge = evaluator(network(), list(INPUTS.split(30)), ["kl", "agreement"])
    assert judge({}) == {"kl": 0, "agreement": 1}
