"""What cannot be meant is said in one line, before it becomes a wrong number."""

from __future__ import annotations

import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import UsageError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from nearzip.correctness import (  # noqa: E402
    Attribution,
    Boundary,
    ClassAccuracy,
    Cost,
    Embedding,
    Objective,
    Robustness,
    certify,
)
from nearzip.torch import evaluator  # noqa: E402
from tests.correctness.networks import CLASSES, arrays, picture_batches, pictures  # noqa: E402

NET = pictures()
BATCHES = picture_batches(NET, 80)
ARRAYS = arrays(NET)
ARCHIVE = nz.compress(ARRAYS, bound=nz.Absolute(0.002))
D = np.ones((CLASSES, CLASSES)) - np.eye(CLASSES)
LINE = nn.Linear(4, 1)
NUMBERS = [(torch.randn(20, 4), torch.randn(20))]
NAN = [(x * float("nan"), y) for x, y in BATCHES]


def certified(**changed):
    return certify(**{"archive": ARCHIVE, "network": NET, "fresh_data": BATCHES, "limits": {"top1": 0.2}, **changed})


def measured(metric, data=BATCHES, **options):
    return evaluator(NET, data, metric, **options)(ARRAYS)


def relabelled(change):
    return [(x, change(y)) for x, y in BATCHES]


def in_one_line(make, message):
    with pytest.raises(UsageError, match=message) as found:
        make()
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("d", "message"),
    [
        (np.ones((3, 3)) - np.eye(3), r"the cost d is \[3, 3\], the network has 5 classes"),
        (np.ones((2, 3)), r"square matrix, classes by classes, not \[2, 3\]"),
        ([[0, 1], [1]], "square matrix of numbers"),
        ("costs.csv", "square matrix of numbers"),
        (-D, "finite and not negative"),
        (D * np.nan, "finite and not negative"),
        (np.ones((5, 5)), "0 on the diagonal"),
    ],
)
def test_costs(d, message):
    in_one_line(lambda: measured(Cost(d)), message)


@pytest.mark.parametrize(
    ("mu", "message"),
    [
        ([1.0, 2.0], "mu is a function"),
        (lambda _: torch.ones(3), "a weight from 0 on for each of the 40"),
        (lambda seen: -torch.ones(len(seen.logits)), "a weight from 0 on"),
        (lambda _: None, "a weight from 0 on"),
        (lambda seen: torch.zeros(len(seen.logits)), "gives every prediction the weight 0"),
    ],
)
def test_weights(mu, message):
    in_one_line(lambda: measured(Cost(D, mu=mu)), message)


@pytest.mark.parametrize(
    ("parents", "classes", "message"),
    [
        ({"cat": "animal", "dog": "animal"}, ["cat", "dgo"], "class 'dgo' is not in the tree"),
        ({"cat": "dog", "dog": "cat"}, ["cat", "dog"], "form a cycle"),
        ([("cat", "animal")], ["cat"], "a mapping from child to parent"),
        ({}, [["cat"], ["dog"]], "names or numbers"),
        ({}, ["cat", "cat"], "distinct"),
    ],
)
def test_trees(parents, classes, message):
    in_one_line(lambda: Cost.from_tree(parents, classes), message)


@pytest.mark.parametrize(
    "metric", ["top1", "class/*", "flips", "loss", "perplexity", "top5", Cost(D, against="targets")]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y + 9, "targets lie between .* the network has 5 classes"),
        (lambda y: y - 9, "targets lie between .* the network has 5 classes"),
        (lambda y: y.float(), "needs class numbers as targets; these are float32"),
        (lambda y: y > 2, "needs class numbers as targets; these are bool"),
        (lambda y: y[:3], "40 predictions and 3 targets"),
        (lambda y: y.tolist(), "targets are a tensor, one for each prediction, not tuple"),
    ],
)
def test_labels(metric, change, message):
    in_one_line(lambda: measured(metric, relabelled(change)), message)


@pytest.mark.parametrize("metric", ["kl", "agreement", "churn", "flips", "cost", "top1", "class/*", "boundary/random"])
def test_one_output_has_no_classes(metric):
    """The most likely of one class is always the same: every limit would seem kept."""
    in_one_line(lambda: evaluator(LINE, NUMBERS, metric)({}), "compares classes, the network has one output")


def test_a_certificate_of_a_regressor_measures_distances():
    archive = nz.compress(arrays(LINE), bound=nz.Absolute(1e-5))
    found = certify(archive, LINE, NUMBERS, limits={"distance": 0.1})
    assert found.verdicts == {"distance": "kept"}
    # No prediction of it is said to agree: it has no classes.
    assert found.measurement["counts"]["all"] == {"n": 20, "not_a_number": 0}
    others = [(x, y + 1) for x, y in NUMBERS]
    again = certify(archive, LINE, others, limits={"distance": 0.1})
    assert found.part("samples")["annotations"]["targets"] != again.part("samples")["annotations"]["targets"]


def test_the_page_of_a_regressor_counts_no_changes(tmp_path):
    pytest.importorskip("jinja2")
    archive = nz.compress(arrays(LINE), bound=nz.Absolute(1e-5))
    certify(archive, LINE, NUMBERS, limits={"distance": 0.1}).page(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "20" in text
    assert "changed</div>" not in text
    assert "No prediction." not in text


@pytest.mark.parametrize("metric", ["attribution", "boundary/random"])
def test_an_original_that_gives_nan(metric):
    in_one_line(lambda: measured(metric, NAN), "the original gives NaN for 40 of 40 predictions")
    in_one_line(lambda: Objective(NET, {"kl": 0.1})(NET, NAN[0]), "the original gives NaN")
    in_one_line(lambda: certified(fresh_data=NAN), "the original gives NaN for 80 of 80")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: measured("top1", [(x.numpy(), y) for x, y in BATCHES]), "a NumPy array, networks take tensors"),
        (lambda: measured("embedding", features="no.such"), "no layer 'no.such'; it has 0, 1"),
        (lambda: measured("top1", features="no.such"), "no layer 'no.such'"),
        (lambda: measured("embedding", features=""), "no layer ''"),
        (lambda: measured("embedding", features=3), "no layer 3"),
        (lambda: Objective(NET, {"kl": 0.1}, features="no.such"), "no layer 'no.such'"),
        (lambda: measured("top1", predict=lambda *_: None), "predict= returns logits"),
        (lambda: evaluator(lambda x: x, BATCHES, "top1"), "is a torch.nn.Module, not function"),
        (lambda: measured(3), "a metric is one of"),
        (lambda: measured(["top1", "tpo1"]), "not 'tpo1'"),
        (lambda: measured(ClassAccuracy(["cat", "dog"])), "2 names are given for 5 classes"),
        (lambda: Attribution(n="5"), "n of an attribution is a whole number from 1 on, not '5'"),
        (lambda: Attribution(steps=0), "steps of an attribution"),
        (lambda: Boundary(n=True), "n of a boundary"),
        (lambda: Embedding(k=0), "k of neighbours"),
        (lambda: Robustness("linf:2"), "perturbations are a list"),
        (lambda: Robustness([]), "perturbations are a list"),
        (lambda: Robustness(std=0), "std of robustness is positive"),
        (lambda: Robustness(bounds=(1, 0)), "bounds of robustness"),
        (lambda: measured(Robustness(["gauss:0.1"], mean=[0.1, 0.2])), "have 2 channels, the inputs 3"),
        (lambda: Objective(3, {"kl": 0.1}), "is a torch.nn.Module, not int"),
        (lambda: Objective(NET, {"kl": 0.1}, start="x"), "start is a number"),
        (lambda: Objective(NET, {"kl": 0.1}, start=-1), "start is a number"),
        (lambda: Objective(NET, {"kl": 0.1}, rows=0), "rows of an objective"),
        (lambda: Objective(NET, {"cost": 1}, measures=[Cost([[0, 1], [1, 0]])])(NET, BATCHES[0]), "the cost d is"),
        (lambda: Objective(NET, {"kl": 1})(NET, (BATCHES[0][0], BATCHES[0][1] + 9)), "targets lie between"),
        (lambda: Objective(NET, {"class/9": 0.1}, data=BATCHES).update(NET), "no metric 'class/9'"),
    ],
)
def test_measures_and_objectives(make, message):
    in_one_line(make, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        # 0 is a number, not the lack of one.
        ({"confidence": 0}, "confidence is a probability from 0.5 to below 1, such as 0.95, not 0"),
        ({"confidence": 0.0}, "not 0.0"),
        ({"confidence": "0.95"}, "not '0.95'"),
        ({"network": 3}, "is a torch.nn.Module, not int"),
        ({"network": nn.Linear(3, 2)}, "the module has none of that name"),
        ({"fresh_data": None}, "the loader is read at every call"),
        ({"fresh_data": {}}, "no data set is given"),
        ({"fresh_data": iter(BATCHES)}, "the loader is read at every call"),
        ({"plan": {"version": 1}}, "plan= is what nearzip.tune or Plan.load returned, not dict"),
        ({"tuned_on": 3}, "tuned_on= takes batches or digests"),
        ({"tuned_on": []}, "tuned_on= is empty"),
        ({"classes": ["cat", "dog"]}, "2 names are given for 5 classes"),
        ({"classes": "abcde"}, "classes= are names"),
        ({"show": 3}, "show= is a function"),
        ({"seed": "x"}, "seed= is a whole number"),
        ({"features": "no.such"}, "no layer 'no.such'"),
    ],
)
def test_certificates(changed, message):
    in_one_line(lambda: certified(**changed), message)
