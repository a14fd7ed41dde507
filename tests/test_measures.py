"""Measures beside the same figures computed the long way, on identical, changed and broken networks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import UsageError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nearzip import correctness  # noqa: E402
from nearzip.budget.intervals import Mean  # noqa: E402
from nearzip.correctness import Cost, Measure, TopK, measures_of  # noqa: E402
from nearzip.torch import evaluator  # noqa: E402

N, CLASSES = 300, 5
EVERY = ("top1", "top3", "class/*", "loss", "perplexity", "agreement", "churn", "flips", "kl/*", "cost", "embedding",
         "distance")  # fmt: skip


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, CLASSES))


torch.manual_seed(1)
INPUTS = torch.randn(N, 12)
with torch.no_grad():
    TARGETS = torch.where(torch.rand(N) < 0.7, network()(INPUTS).argmax(-1), torch.randint(CLASSES, (N,)))
BATCHES = list(zip(INPUTS.split(64), TARGETS.split(64), strict=True))


def arrays(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def noisy(size=0.1):
    rng = np.random.default_rng(0)
    return {name: (w + rng.normal(0, size, w.shape)).astype(w.dtype) for name, w in arrays(network()).items()}


def outputs(tensors):
    """Logits and features in float64."""
    hidden = np.tanh(INPUTS.numpy() @ tensors["0.weight"].T + tensors["0.bias"]).astype(np.float64)
    return hidden @ tensors["2.weight"].T + tensors["2.bias"], hidden


def test_an_identical_network_is_said_to_be_so_exactly():
    found = evaluator(network(), BATCHES, EVERY).evaluation(arrays(network()))
    exact = {
        "agreement": 1, "churn": 0, "flips/worse": 0, "flips/better": 0, "kl": 0, "kl/median": 0, "kl/p99": 0,
        "kl/p99.9": 0, "cost": 0, "embedding/cosine": 1, "embedding/distance": 0, "embedding/neighbours": 1,
        "embedding/structure": 1, "distance": 0,
    }  # fmt: skip
    assert {name: found.metrics[name] for name in exact} == exact


def test_measures_are_what_they_say():
    tensors = noisy()
    found = evaluator(network(), BATCHES, EVERY)(tensors)
    (own, features), (first, first_features) = outputs(tensors), outputs(arrays(network()))
    targets = TARGETS.numpy()
    f, g = first.argmax(1), own.argmax(1)
    log_p = first - np.log(np.exp(first).sum(1, keepdims=True))
    log_q = own - np.log(np.exp(own).sum(1, keepdims=True))
    kl = np.sort((np.exp(log_p) * (log_p - log_q)).sum(1))
    ce = -log_q[np.arange(N), targets]
    expected = {
        "top1": np.mean(g == targets),
        "top3": np.mean([t in row for t, row in zip(targets, own.argsort(1)[:, -3:], strict=True)]),
        **{f"class/{k}": np.mean(g[targets == k] == k) for k in range(CLASSES)},
        "loss": -ce.mean(),
        "perplexity": -np.exp(ce.mean()),
        "agreement": np.mean(f == g),
        "churn": -np.mean(f != g),
        "cost": -np.mean(f != g),
        "flips/worse": -np.mean((f == targets) & (g != targets)),
        "flips/better": np.mean((f != targets) & (g == targets)),
        "kl": -kl.mean(), "kl/median": -kl[149], "kl/p99": -kl[296], "kl/p99.9": -kl[299],
        "distance": -np.mean(np.linalg.norm(own - first, axis=1) / np.linalg.norm(first, axis=1)),
        "embedding/distance": -np.mean(
            np.linalg.norm(features - first_features, axis=1) / np.linalg.norm(first_features, axis=1)
        ),
        "embedding/cosine": np.mean(
            (features * first_features).sum(1)
            / np.linalg.norm(features, axis=1) / np.linalg.norm(first_features, axis=1)
        ),
        "embedding/neighbours": np.mean([
            len(set(a[1:11]) & set(b[1:11])) / 10 for a, b in zip(by_distance(features), by_distance(first_features),
                                                                  strict=True)
        ]),
        "embedding/structure": np.corrcoef(apart(features, targets), apart(first_features, targets))[0, 1],
    }  # fmt: skip
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-9), name
    assert 0 < found["flips/better"] < 1


def by_distance(features):
    return np.linalg.norm(features[:, None] - features[None], axis=-1).argsort(1)


def apart(features, targets):
    means = np.stack([features[targets == k].mean(0) for k in range(CLASSES)])
    return [np.linalg.norm(means[i] - means[j]) for i in range(CLASSES) for j in range(i)]


def test_every_metric_has_samples_that_give_it():
    found = evaluator(network(), BATCHES, EVERY).evaluation(noisy())
    assert set(found.metrics) - set(found.statistics) == {"embedding/structure"}
    assert {name: statistic.value for name, statistic in found.statistics.items()} == {
        name: value for name, value in found.metrics.items() if name in found.statistics
    }


# ---- costs -----------------------------------------------------------------------------------------------------


def test_a_cost_is_not_symmetric_and_samples_have_weights():
    rng = np.random.default_rng(0)
    d = rng.random((CLASSES, CLASSES))
    np.fill_diagonal(d, 0)

    def mu(predictions):
        return predictions.original_classes + 1.0

    tensors = noisy()
    f, g = (outputs(each)[0].argmax(1) for each in (arrays(network()), tensors))
    weights = f + 1.0
    expected = -(weights * d[g, f]).sum() / weights.sum()
    assert evaluator(network(), BATCHES, Cost(d, mu))(tensors) == pytest.approx(expected)
    assert evaluator(network(), BATCHES, Cost(d.T, mu))(tensors) != pytest.approx(expected)
    truth = evaluator(network(), BATCHES, Cost(d, against="targets"))
    assert truth.metrics == ("cost-to-truth",)
    assert truth(tensors) == pytest.approx(-d[g, TARGETS.numpy()].mean())


def test_costs_of_a_tree_are_paths_over_the_longest():
    parents = {"tabby": "cat", "siamese": "cat", "cat": "animal", "dog": "animal", "truck": "thing"}
    cost = Cost.from_tree(parents, ["tabby", "siamese", "dog", "truck"])
    # tabby - cat - siamese; tabby - cat - animal - dog; tabby - cat - animal - (root) - thing - truck
    assert (cost.d * 5).round(9).tolist() == [[0, 2, 3, 5], [2, 0, 3, 5], [3, 3, 0, 4], [5, 5, 4, 0]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Cost(np.ones((3, 4))), "square"),
        (lambda: Cost(np.ones((3, 3))), "0 on the diagonal"),
        (lambda: Cost(-1 + np.eye(3)), "not negative"),
        (lambda: Cost([[0, np.nan], [1, 0]]), "finite"),
        (lambda: Cost(against="me"), "'original' or 'targets'"),
        (lambda: Cost.from_tree({"a": "b", "b": "a"}, ["a", "c"]), "cycle"),
        (lambda: Cost.from_tree({}, ["a", "a"]), "distinct"),
        (lambda: evaluator(network(), BATCHES, Cost(1 - np.eye(3)))({}), r"d is \[3, 3\], the network has 5 classes"),
        (lambda: evaluator(network(), BATCHES, Cost(mu=lambda p: p.logits))({}), "mu returns a weight"),
        (lambda: evaluator(network(), BATCHES, Cost(mu=lambda p: -torch.ones(len(p.logits))))({}), "from 0 on"),
    ],
)
def test_costs_that_mean_nothing_are_named(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_evaluators_of_other_costs_have_another_identity():
    d = 1 - np.eye(CLASSES)
    found = [evaluator(network(), BATCHES, cost).identity for cost in (Cost(), Cost(d), Cost(2 * d), "cost")]
    assert found[0] == found[3]
    assert len(set(found)) == 3


# ---- data sets, documents, gates -------------------------------------------------------------------------------


def test_several_data_sets_have_names():
    judge = evaluator(network(), {"code": BATCHES[:2], "chat": BATCHES[2:]}, ["kl", "top1"])
    found = judge(noisy())
    assert set(found) == {"code/kl", "code/top1", "chat/kl", "chat/top1"}
    whole = evaluator(network(), BATCHES, "top1")(noisy())
    assert (128 * found["code/top1"] + 172 * found["chat/top1"]) / 300 == pytest.approx(whole)
    plan = nz.tune(arrays(network()), evaluate=judge, max_loss={"*/kl": 0.01, "chat/top1": 0.05})
    assert plan.max_loss == {"code/kl": 0.01, "chat/kl": 0.01, "chat/top1": 0.05}
    assert judge.identity != evaluator(network(), {"a": BATCHES[:2], "b": BATCHES[2:]}, ["kl", "top1"]).identity


def test_classes_have_names_and_limits():
    measure = correctness.ClassAccuracy(["cat", "dog", "car", "bus", "tree"])
    plan = nz.tune(
        arrays(network()), evaluate=evaluator(network(), BATCHES, [measure, "top1"], confidence=0.9),
        max_loss={"class/*": 0.25},
    )  # fmt: skip
    assert set(plan.max_loss) == {"class/cat", "class/dog", "class/car", "class/bus", "class/tree"}
    assert all(plan.intervals[name].confidence == pytest.approx(0.98) for name in plan.max_loss)
    assert set(plan.verdicts.values()) == {"kept"}
    assert plan.intervals["class/cat"].n == int((TARGETS == 0).sum())


def test_classes_without_samples_have_no_metric():
    found = evaluator(network(), [(INPUTS[TARGETS != 2], TARGETS[TARGETS != 2])], "class/*")
    assert set(found({})) == {"class/0", "class/1", "class/3", "class/4"}
    with pytest.raises(UsageError, match="no metric 'class/2'"):
        nz.tune(arrays(network()), evaluate=found, max_loss={"class/2": 0.1})


class Words(nn.Module):
    """A language model in little."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, input_ids):
        return {"logits": self.head(self.embed(input_ids))}


def documents(batch):
    return (batch["input_ids"][:, 0] % 4).tolist()


def test_tokens_of_a_document_are_one_sample():
    torch.manual_seed(5)
    ids = [torch.randint(11, (8, 6)) for _ in range(3)]
    batches = [{"input_ids": each, "labels": each} for each in ids]
    module = Words()
    changed = {name: w + 0.1 * torch.randn(w.shape, generator=torch.Generator().manual_seed(1)).numpy()
               for name, w in arrays(module).items()}  # fmt: skip
    rows = evaluator(module, batches, ["kl", "embedding", "kl/p99"]).evaluation(changed)
    by_document = evaluator(module, batches, ["kl"], documents=documents).evaluation(changed)
    assert rows.metrics["kl"] == pytest.approx(by_document.metrics["kl"])
    assert [len(each.statistics["kl"].counts) for each in (rows, by_document)] == [24, 4]
    assert (rows.statistics["kl"].counts == 5).all()
    assert by_document.statistics["kl"].counts.sum() == 120
    with pytest.raises(UsageError, match="2 documents for the 8 rows"):
        evaluator(module, batches, "kl", documents=lambda batch: [0, 1])({})


def test_a_point_estimate_that_fits_may_not_be_shown():
    judge = evaluator(network(), BATCHES, "churn")
    plan = nz.tune(arrays(network()), evaluate=judge, max_loss=0.03)
    sure = nz.tune(arrays(network()), evaluate=judge, max_loss=0.03, confidence=0.95)
    assert sure.intervals["churn"].upper <= 0.03
    assert plan.nbytes <= sure.nbytes


# ---- training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [m for m in measures_of(EVERY) if m.trainable], ids=str)
def test_what_is_trained_on_grows(measure):
    """One object is the report, the gate and the loss."""
    judge = evaluator(network(), BATCHES, [measure])
    module = network()
    module.load_state_dict({name: torch.from_numpy(w) for name, w in noisy(0.3).items()})
    before = judge.evaluation(arrays(module)).metrics
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for _ in range(30):
        for batch in BATCHES:
            optimizer.zero_grad()
            measure.loss(judge.observed(module, batch)).backward()
            optimizer.step()
    after = judge.evaluation(arrays(module)).metrics
    assert sum(after.values()) > sum(before.values())


class Saliency(Measure):
    """A measure of gradients with respect to the inputs, as a user writes it."""

    needs_gradients = True
    needs_targets = True

    def __init__(self):
        self.reset()

    def reset(self):
        self.values = []

    def __repr__(self):
        return "saliency"

    def update(self, batch):
        maps = []
        for network_ in (batch.network, batch.reference):
            inputs = batch.batch[0].clone().requires_grad_(True)
            network_((inputs, batch.batch[1])).gather(1, batch.targets[:, None]).sum().backward()
            maps.append(inputs.grad)
        self.values.append(torch.cosine_similarity(*maps, dim=-1).double())

    def result(self):
        values = torch.cat(self.values).numpy()
        return {"saliency": Mean(values, np.ones(len(values)))}


def test_a_measure_may_call_the_networks_itself():
    judge = evaluator(network(), BATCHES, Saliency())
    assert judge({}) == pytest.approx(1)
    assert 0.3 < judge(noisy()) < 0.999
    assert pickle.loads(pickle.dumps(judge))(noisy()) == judge(noisy())  # noqa: S301
    with pytest.raises(UsageError, match="Saliency cannot be trained on"):
        Saliency().loss(judge.observed(network(), BATCHES[0]))


# ---- bad input -------------------------------------------------------------------------------------------------


def test_outputs_that_are_no_numbers_are_wrong():
    broken = {name: np.full_like(w, np.nan) for name, w in arrays(network()).items()}
    metrics = ["top1", "top3", "agreement", "flips", "cost", "class/*", "kl"]
    found = evaluator(network(), BATCHES, metrics)(broken)
    assert (found["top1"], found["top3"], found["agreement"], found["cost"], found["class/0"]) == (0, 0, 0, -1, 0)
    assert np.isnan(found["kl"])


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: evaluator(network(), [(INPUTS, TARGETS + 1)])({}), "targets lie between 1 and 5; the network has 5"),
        (lambda: evaluator(network(), [(INPUTS, TARGETS - 1)])({}), "targets lie between -1 and 3"),
        (lambda: evaluator(network(), {})({}), "no data set"),
        (lambda: evaluator(network(), BATCHES, "embedding", features="7"), "no layer '7'; it has 0, 1, 2"),
        (lambda: evaluator(nn.Sequential(nn.Conv1d(1, 1, 1)), BATCHES, "embedding"), "no linear layer"),
        (lambda: evaluator(network(), BATCHES, correctness.ClassAccuracy(["a"]))({}), "1 names are given for 5"),
        (lambda: correctness.ClassAccuracy(["a", "a"]), "not distinct"),
        (lambda: evaluator(network(), BATCHES, "kl/p42"), "divergences are kl"),
        (lambda: evaluator(network(), BATCHES, "top0"), "a metric is one of"),
        (lambda: TopK(0), "k of top-k is a whole number from 1 on"),
        (lambda: evaluator(network(), BATCHES, confidence=95), "confidence is a probability"),
        (lambda: evaluator(network(), [INPUTS], "flips")({}), "needs targets"),
    ],
)
def test_bad_input_is_one_clear_line(call, says):
    with pytest.raises(UsageError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_regressors_have_a_distance():
    module = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
    judge = evaluator(module, list(INPUTS.split(100)), "distance")
    plan = nz.tune(arrays(module), evaluate=judge, max_loss=0.01)
    assert 0 < plan.losses["distance"] <= 0.01


class Bright(Measure):
    """A measure as a user writes it: the mean of one output, beyond an option."""

    def __init__(self, threshold):
        self.threshold = threshold
        self.reset()

    def reset(self):
        self._values = []

    def update(self, batch):
        self._values.append((batch.logits[:, 0] > self.threshold).double().mean().item())

    def result(self):
        return {"bright": float(np.mean(self._values))}


def test_a_measure_without_repr_has_the_same_identity_in_every_process():
    # Two objects stand in for two processes: the default repr of Python would show their addresses.
    one, same, other = (evaluator(network(), BATCHES, [Bright(threshold)]) for threshold in (0.0, 0.0, 0.5))
    assert repr(Bright(0.5)) == "Bright(threshold=0.5)"
    assert one.identity == same.identity != other.identity


def test_what_was_measured_is_not_part_of_a_measures_identity():
    measure = Bright(0.0)
    before = measure.identity
    measure.update(evaluator(network(), BATCHES, "top1").observed(network(), BATCHES[0]))
    assert measure._values
    assert measure.identity == before
    assert not measure.fresh()._values


@pytest.mark.parametrize("name", correctness.MEASURES)
def test_every_listed_name_makes_a_measure(name):
    if name.startswith(("attribution", "robust")):
        pytest.importorskip("captum")
        pytest.importorskip("foolbox")
    made = measures_of([name])
    assert made
    assert all(isinstance(measure, Measure) for measure in made)
