"""Attributions, boundary and robustness beside the same figures computed another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("captum")
pytest.importorskip("foolbox")

from torch import nn  # noqa: E402

from nearzip.correctness import Attribution, Boundary, Robustness, jaccard, measures_of  # noqa: E402
from nearzip.errors import UsageError  # noqa: E402
from nearzip.torch import evaluator  # noqa: E402
from tests.correctness.networks import CLASSES, Tokens, arrays, noisy, picture_batches, pictures  # noqa: E402

NET = pictures()
BATCHES = picture_batches(NET)
INPUTS, TARGETS = (torch.cat(part) for part in zip(*BATCHES, strict=True))
DEEP = ("attribution/*", "boundary/*")


def module_of(tensors):
    module = pictures()
    module.load_state_dict({name: torch.from_numpy(w) for name, w in tensors.items()})
    return module


def test_an_identical_network_looks_at_the_same_and_is_as_far_from_the_boundary():
    before, after = evaluator(NET, BATCHES, [*DEEP, "robust"]).compared(arrays(NET))
    found = after.metrics
    assert found == before.metrics
    same = [value for name, value in found.items() if not name.startswith("robust")]
    assert same == [1.0] * 5
    assert found["robust/linf:2"] == found["robust/transfer:2"]


def test_saliency_is_compared_by_sign():
    """Beside gradients by hand, and the formula in NumPy."""
    tensors = noisy(NET)
    found = evaluator(NET, BATCHES, "attribution/saliency").evaluation(tensors)
    with torch.no_grad():
        classes = NET(INPUTS).argmax(-1)
    maps = []
    for module in (NET, module_of(tensors)):
        x = INPUTS.clone().requires_grad_(True)
        module(x)[torch.arange(len(x)), classes].sum().backward()
        maps.append(x.grad.sum(1).double().numpy().reshape(len(x), -1))
    a, b = maps
    signs = [(np.maximum(s * a, 0), np.maximum(s * b, 0)) for s in (1, -1)]
    least = sum(np.minimum(x, y).sum(1) for x, y in signs)
    most = sum(np.maximum(x, y).sum(1) for x, y in signs)
    assert found.metrics["attribution/saliency"] == pytest.approx(np.mean(least / most), rel=1e-5)
    absolute = np.minimum(abs(a), abs(b)).sum(1) / np.maximum(abs(a), abs(b)).sum(1)
    assert found.yardsticks["attribution/saliency/absolute"] == pytest.approx(absolute.mean(), rel=1e-5)
    assert found.yardsticks["attribution/saliency/chance"] < found.metrics["attribution/saliency"]


def test_the_printed_formula_leaves_its_range_where_ours_does_not():
    a, b = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[1.0, -1.0, -0.5]])
    printed = torch.minimum(a, b).sum() / torch.maximum(a, b).sum()
    assert printed == -3.0
    assert 0 <= float(jaccard(a, b)) <= 1
    assert float(jaccard(torch.zeros(1, 3), torch.zeros(1, 3))) == 1.0
    assert float(jaccard(a.abs(), b.abs())) == pytest.approx((1 + 1 + 0.5) / (1 + 2 + 0.5))
    assert float(jaccard(a, -a)) == 0.0


def test_integrated_gradients_add_up_to_the_difference_of_outputs():
    x, y = BATCHES[0]
    measure = Attribution("integrated-gradients", steps=64)
    classes = y.view(-1, 1)
    maps = measure.maps(NET, x, classes)
    with torch.no_grad():
        difference = (NET(x) - NET(torch.zeros_like(x))).gather(1, classes).flatten()
    assert torch.allclose(maps.flatten(1).sum(1), difference, atol=0.02)


def test_occlusion_takes_tokens_of_a_language_model():
    torch.manual_seed(0)
    model = Tokens()
    ids = torch.randint(7, (6, 9))
    batches = [{"input_ids": ids, "labels": ids}]
    judge = evaluator(model, batches, Attribution("occlusion", window=1, stride=1))
    assert judge(arrays(model)) == 1.0
    assert 0 < judge(noisy(model, 0.3)) < 1
    with pytest.raises(UsageError, match="needs inputs of real numbers; these are int64"):
        evaluator(model, batches, "attribution/saliency")(arrays(model))


def test_the_boundary_of_a_linear_classifier_is_where_its_margin_ends():
    torch.manual_seed(0)
    linear = nn.Linear(6, 2)
    x = torch.randn(80, 6)
    found = Boundary("worst").distances(linear, x)
    with torch.no_grad():
        logits = linear(x)
        margin = (logits[:, 0] - logits[:, 1]).abs()
        exact = margin / (linear.weight[0] - linear.weight[1]).norm()
    near = exact < 64
    assert torch.allclose(found[near].float(), exact[near], rtol=5e-3, atol=1e-4)
    scaled = {"weight": 2 * linear.weight.detach().numpy(), "bias": 2 * linear.bias.detach().numpy()}
    batches = [(x, torch.zeros(80, dtype=torch.int64))]
    assert evaluator(linear, batches, "boundary/worst")(scaled) == pytest.approx(1.0)


def test_a_boundary_half_as_far_scores_a_half():
    """A threshold on one input: t = |threshold| / |u| along any direction towards it."""
    layer = nn.Linear(1, 2)
    x = torch.zeros(40, 1)
    batches = [(x, torch.zeros(40, dtype=torch.int64))]

    def with_threshold(t):
        return {"weight": np.array([[1.0], [0.0]], np.float32), "bias": np.array([-t, 0.0], np.float32)}

    layer.load_state_dict({name: torch.from_numpy(w) for name, w in with_threshold(2.0).items()})
    found = evaluator(layer, batches, "boundary/random").evaluation(with_threshold(1.0))
    theirs, own = found.details["boundary/random"]
    towards = np.isfinite(theirs)
    assert theirs[towards] == pytest.approx(2.0, rel=5e-3)
    assert own[towards] == pytest.approx(1.0, rel=5e-3)
    share = towards.mean()
    assert 0.2 < share < 0.8
    assert found.metrics["boundary/random"] == pytest.approx(0.5 * share + (1 - share), rel=5e-3)
    assert found.yardsticks["boundary/random/censored/both"] == (~towards).sum()
    assert found.yardsticks["boundary/random/log2-ratio/median"] == pytest.approx(-1.0, abs=0.02)


def test_directions_do_not_depend_on_the_size_of_batches():
    tensors = noisy(NET)
    whole = [(INPUTS, TARGETS)]
    a, b = (evaluator(NET, data, Boundary("random", n=50))(tensors) for data in (BATCHES, whole))
    assert a == pytest.approx(b, abs=1e-6)


def test_a_network_that_gives_nan_is_as_close_as_can_be():
    broken = {name: np.full_like(w, np.nan) if w.dtype.kind == "f" else w for name, w in arrays(NET).items()}
    found = evaluator(NET, BATCHES, [*DEEP, "robust/gauss:0.04"])(broken)
    assert found["boundary/random"] == 0.0
    assert found["boundary/worst"] == 0.0
    assert found["robust/gauss:0.04"] == 0.0
    assert 0 <= found["attribution/saliency"] < 1


def test_attacks_are_within_their_size_and_hurt():
    judge = evaluator(NET, BATCHES, Robustness(["linf:1", "linf:8", "gauss:0.000001"]))
    found = judge(arrays(NET))
    assert found["robust/linf:8"] < found["robust/gauss:0.000001"]
    assert found["robust/linf:8"] <= found["robust/linf:1"]
    x, y = BATCHES[0]
    moved = Robustness(["linf:8"])._inputs("linf:8", lambda batch: NET(batch[0]), (x, y), y, 0)
    assert 0 < float((moved - x).abs().max()) <= 8 / 255 + 1e-6


def test_benign_perturbations_are_what_they_say():
    x, y = BATCHES[0]
    measure = Robustness()

    def moved(name):
        return measure._inputs(name, NET, (x, y), y, 0)

    assert torch.equal(moved("shift:2")[..., 2:, 2:], x[..., :-2, :-2])
    assert torch.allclose(moved("brightness:0.15")[0], (x[0] + 0.15).clamp(0, 1))
    assert torch.allclose(moved("brightness:0.15")[1], (x[1] - 0.15).clamp(0, 1))
    middle = x.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(moved("contrast:0.75"), middle + 0.75 * (x - middle))
    assert moved("blur:0.7").var() < x.var()
    assert float((moved("jpeg:95") - x).abs().mean()) < 0.1
    noise = moved("gauss:0.04") - x
    assert 0.02 < float(noise.std()) < 0.05


def test_normalized_inputs_are_perturbed_as_pixels():
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    shape = (1, 3, 1, 1)
    x, y = BATCHES[0]
    scaled = (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    moved = Robustness(mean=mean, std=std)._inputs("contrast:0.75", NET, (scaled, y), y, 0)
    back = moved * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    assert torch.allclose(back, Robustness()._inputs("contrast:0.75", NET, (x, y), y, 0), atol=1e-6)
    with pytest.raises(UsageError, match="give Robustness their mean= and std="):
        Robustness()._inputs("contrast:0.75", NET, (scaled, y), y, 0)


def test_names_of_measures():
    assert [str(measure) for measure in measures_of(["boundary/*", "attribution", "attribution/occlusion"])] == [
        "boundary/random", "boundary/worst", "attribution/saliency", "attribution/occlusion",
    ]  # fmt: skip
    assert [str(m) for m in measures_of(["robust/linf:2", "top1", "robust/blur:1"])] == [
        "top1", "robust/linf:2, robust/blur:1",
    ]  # fmt: skip
    for wrong in ("robust/linf", "robust/rain:3", "attribution/lime", "boundary/left"):
        with pytest.raises(UsageError):
            measures_of([wrong])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attribution("lime"), "an attribution is by saliency"),
        (lambda: Attribution(window=0), "window of an attribution is a whole number from 1 on, not 0"),
        (lambda: Boundary("left"), "a direction is 'random' or 'worst'"),
        (lambda: Robustness(["linf:x"]), "a perturbation is one such as"),
        (lambda: evaluator(NET, [x for x, _ in BATCHES], "robust")(arrays(NET)), "needs targets"),
        (lambda: evaluator(nn.Linear(4, 3), [(torch.zeros(2, 4), torch.zeros(2).long())],
                           "robust/blur:1")({}), "need pictures"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said_in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as found:
        make()
    assert "\n" not in str(found.value)


def test_the_original_is_attributed_once():
    judge = evaluator(NET, BATCHES, ["attribution/saliency", "boundary/random"])
    judge(noisy(NET))
    calls = 0
    reference = judge._borrowing

    def counted(tensors):
        nonlocal calls
        network = reference(tensors)

        def run(batch):
            nonlocal calls
            calls += not tensors
            return network(batch)

        return run

    judge._borrowing = counted
    judge(noisy(NET, seed=2))
    assert calls == 0


def test_classes_and_samples_of_a_single_row_have_no_chance_level():
    x, y = BATCHES[0]
    found = evaluator(NET, [(x[:1], y[:1])], "attribution/saliency").evaluation(noisy(NET))
    assert math.isnan(found.yardsticks["attribution/saliency/chance"])
    assert CLASSES == 5
