"""What may be lost: relative losses, patterns, confidence; and what plans and trials say of it."""

from __future__ import annotations

import json
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.budget import Evaluation, Subject
from nearzip.budget.budgets import Budgets
from nearzip.budget.intervals import Interval, Mean, Quantile, interval
from nearzip.budget.search import search
from nearzip.budget.spaces import Options
from nearzip.budget.trial import trial_key
from nearzip.budget.trials import Runner
from nearzip.budget.tune import plan_of
from nearzip.coding import Coding, Codings
from nearzip.digests import digest

rng = np.random.default_rng(3)
NETWORK = {
    "a.weight": rng.normal(0, 0.1, (48, 32)).astype(np.float32),
    "b.weight": rng.normal(0, 0.3, (10, 48)).astype(np.float32),
}
PLANS = Path(__file__).parent / "plans"


def classes(tensors, n=400):
    inputs = np.random.default_rng(5).normal(0, 1, (n, 32)).astype(np.float32)
    return (np.maximum(inputs @ tensors["a.weight"].T, 0) @ tensors["b.weight"].T).argmax(1)


class Agreement:
    """An evaluator that has samples: whether each class is the original's."""

    name, identity, confidence = "agreement", "", None

    def __init__(self, n=400, statistics=True):
        self.n, self.statistics = n, statistics

    def evaluation(self, tensors):
        same = (classes(tensors, self.n) == classes(NETWORK, self.n)).astype(float)
        found = {"all/same": Mean(same, np.ones(self.n)), "half/same": Mean(same[::2], np.ones(self.n // 2))}
        metrics = {name: statistic.value for name, statistic in found.items()}
        return Evaluation(metrics, found if self.statistics else {})


# ---- budgets ---------------------------------------------------------------------------------------------------

SCORES = {"top1": 0.8, "kl": 0.0, "class/0": 0.9, "class/1": 0.5, "loss": -2.0}


@pytest.mark.parametrize(
    ("max_loss", "allowed"),
    [
        (0.1, dict.fromkeys(SCORES, 0.1)),
        ({"top1": "0.5%"}, {"top1": 0.004}),
        ({"loss": " 1 %"}, {"loss": 0.02}),
        ({"class/*": "10%", "class/1": 0.2}, {"class/0": 0.09, "class/1": 0.2}),
        ({"*": 1, "c*": 2, "class/*": 3}, {"top1": 1, "kl": 1, "class/0": 2, "class/1": 2, "loss": 1}),
        ({"top1": 0}, {"top1": 0}),
    ],
)
def test_a_budget_is_absolute_or_relative_by_name_or_pattern(max_loss, allowed):
    assert Budgets.of(max_loss, SCORES).allowed == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("max_loss", "says"),
    [
        ({"kl": "1%"}, "original's score, which is 0"),
        ({"acc*": 0.1}, r"no metric 'acc\*'; it returns class/0"),
        ({}, "nothing to be limited"),
        ({"top1": "-1%"}, "max_loss of top1"),
        ({"top1": "%"}, "max_loss of top1"),
        ({"top1": "nan%"}, "max_loss of top1"),
        ({"top1": "0.1"}, "max_loss of top1"),
    ],
)
def test_a_budget_that_means_nothing_is_named(max_loss, says):
    with pytest.raises(errors.UsageError, match=says):
        Budgets.of(max_loss, SCORES)


def test_a_relative_loss_is_a_share_of_the_originals_score():
    def score(tensors):
        return 50 + float((classes(tensors) == classes(NETWORK)).mean())

    plan = nz.tune(NETWORK, evaluate=score, max_loss="0.1%")
    assert plan.max_loss == {"score": pytest.approx(0.051)}
    assert 51 - score(nz.compress(NETWORK, plan=plan).restored) <= 0.051


# ---- intervals -------------------------------------------------------------------------------------------------


def test_bonett_and_price_by_hand():
    """Their formula, with other numbers than the code's names: b = 12 and c = 9 of 5000."""
    p12, p21 = 13 / 5002, 10 / 5002
    margin = 1.6448536269514722 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 5002)
    found = Interval.of_flips(5000, 12, 9, 0.95)
    assert (found.lower, found.upper) == pytest.approx((p12 - p21 - margin, p12 - p21 + margin))
    assert found.loss == 3 / 5000


@pytest.mark.parametrize(("worse", "better"), [(12, 9), (0, 0), (3, 0), (40, 39)])
def test_as_many_samples_as_are_said_to_do_would_do(worse, better):
    found = Interval.of_flips(5000, worse, better, 0.95)
    limit = found.loss + 0.0001
    assert found.verdict(limit) == "not shown"
    needed = found.samples_needed(limit)
    scale = needed / 5000
    fewer = 1 - 2 / needed
    for n, verdict in ((needed, "kept"), (int(needed * fewer), "not shown")):
        p, q = (worse * scale + 1) / (n + 2), (better * scale + 1) / (n + 2)
        upper = p - q + 1.6448536269514722 * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
        assert (upper <= limit * (1 + 1e-9)) == (verdict == "kept")
    assert Interval.of_flips(5000, 30, 9, 0.95).samples_needed(0.001) is None


def coverage(draw, truth, confidence=0.95, runs=2000):
    """Shares of samples whose upper and whose lower bound holds."""
    generator = np.random.default_rng(1)
    found = [draw(generator, confidence) for _ in range(runs)]
    return np.mean([f.upper >= truth for f in found]), np.mean([f.lower <= truth for f in found])


def skewed(generator, confidence, n=300):
    """A divergence: zero for the original, log-normal for the other."""
    values, ones = generator.lognormal(0, 1, n), np.ones(n)
    return interval(Mean(np.zeros(n), ones), Mean(-values, ones), confidence)


def documents(generator, confidence, n=60):
    """Tokens of a document share most of their loss."""
    counts = generator.integers(20, 80, n).astype(float)
    per_token = generator.normal(0.1, 0.2, n)
    return interval(Mean(np.zeros(n), counts), Mean(-per_token * counts, counts), confidence)


def perplexity(generator, confidence, n=400):
    own, change, ones = generator.gamma(2, 1, n), generator.exponential(0.1, n), np.ones(n)
    return interval(Mean(-own, ones, exponential=True), Mean(-own - change, ones, exponential=True), confidence)


def flips(generator, confidence, n=1000):
    first = generator.random(n) < 0.9
    second = np.where(generator.random(n) < 0.02, ~first, first)
    return interval(Mean(first.astype(float), np.ones(n)), Mean(second.astype(float), np.ones(n)), confidence)


def tail(generator, confidence, n=500):
    ones = np.arange(n)
    return interval(Quantile(np.zeros(n), ones, 0.9), Quantile(generator.exponential(1, n), ones, 0.9), confidence)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [(skewed, math.exp(0.5)), (documents, 0.1), (perplexity, math.exp(2.1) - math.exp(2)), (flips, 0.016),
     (tail, math.log(10))],
)  # fmt: skip
def test_bounds_hold_as_often_as_they_say(draw, truth):
    upper, lower = coverage(draw, truth)
    # 2000 runs: the standard error is 0.005.
    assert upper >= 0.93
    assert lower >= 0.93


def test_a_quantile_over_documents_is_bounded_by_documents():
    """Tokens of one document are alike: as many tokens, fewer documents, a wider interval."""
    generator = np.random.default_rng(2)
    level = np.repeat(generator.exponential(1, 100), 20)
    units = np.repeat(np.arange(100), 20)
    alike = interval(Quantile(np.zeros(2000), units, 0.9), Quantile(level, units, 0.9), 0.95)
    apart = interval(Quantile(np.zeros(2000), np.arange(2000), 0.9), Quantile(level, np.arange(2000), 0.9), 0.95)
    assert alike.n == 100
    assert alike.upper - alike.lower > 2 * (apart.upper - apart.lower)
    few = interval(
        Quantile(np.zeros(20), np.arange(20) % 4, 0.99), Quantile(np.ones(20), np.arange(20) % 4, 0.99), 0.95
    )
    assert (few.upper, few.verdict(5), few.samples_needed(5)) == (math.inf, "not shown", None)


def test_outputs_that_are_no_numbers_show_nothing():
    ones = np.ones(9)
    found = interval(Mean(np.zeros(9), ones), Mean(np.full(9, np.nan), ones), 0.95)
    assert (found.upper, found.verdict(1)) == (math.inf, "not shown")
    with pytest.raises(errors.UsageError, match="other samples"):
        interval(Mean(np.zeros(9), ones), Mean(np.zeros(8), np.ones(8)), 0.95)


# ---- searches with a confidence --------------------------------------------------------------------------------


def test_with_confidence_the_bound_is_within_the_budget():
    plan = nz.tune(NETWORK, evaluate=Agreement(2000), max_loss=0.03, confidence=0.95)
    unsure = nz.tune(NETWORK, evaluate=Agreement(2000), max_loss=0.03)
    assert unsure.nbytes < plan.nbytes
    # Two metrics under one limit: each has half of the risk.
    assert {name: found.confidence for name, found in plan.intervals.items()} == {
        "all/same": pytest.approx(0.975), "half/same": pytest.approx(0.975)
    }  # fmt: skip
    assert all(found.loss <= found.upper <= 0.03 for found in plan.intervals.values())
    assert plan.verdicts == {"all/same": "kept", "half/same": "kept"}
    assert (plan.confidence, unsure.confidence, unsure.verdicts) == (0.95, None, {})
    assert plan.intervals["all/same"].worse == round(2000 * plan.losses["all/same"])


def test_a_plan_keeps_its_bounds(tmp_path):
    plan = nz.tune(NETWORK, evaluate=Agreement(2000), max_loss={"all/*": 0.03}, confidence=0.9)
    plan.save(tmp_path / "p.json")
    again = nz.Plan.load(tmp_path / "p.json")
    assert again.to_json() == plan.to_json()
    assert again.verdicts == {"all/same": "kept"}
    document = json.loads((tmp_path / "p.json").read_text())
    for value in (None, {}, {"n": 3}, {**document["trials"][0]["intervals"]["all/same"], "worse": 10**6}):
        for trial in document["trials"]:
            trial["intervals"] = {"all/same": value}
        (tmp_path / "q.json").write_text(json.dumps(document))
        with pytest.raises(errors.CorruptError):
            nz.Plan.load(tmp_path / "q.json")


def test_an_evaluator_may_say_its_confidence():
    evaluator = Agreement(2000)
    evaluator.confidence = 0.95
    assert nz.tune(NETWORK, evaluate=evaluator, max_loss=0.03).confidence == 0.95


def test_too_few_samples_are_named_before_anything_is_tried():
    with pytest.raises(errors.NotShownError, match=r"200 samples of 'half/same' cannot show a loss of at most 0.01 .*; "
                       r"\d+ samples would do"):  # fmt: skip
        nz.tune(NETWORK, evaluate=Agreement(400), max_loss={"half/same": 0.01}, confidence=0.95)


def test_where_nothing_is_shown_the_message_says_how_many_samples_would_do():
    class Three(Agreement):
        """Three of 600 outputs change, whatever is done to the network."""

        def evaluation(self, tensors):
            same = np.ones(600)
            same[: 0 if np.array_equal(tensors["a.weight"], NETWORK["a.weight"]) else self.n] = 0
            return Evaluation({"same": same.mean()}, {"same": Mean(same, np.ones(600))})

    how = {"method": "delta-dnn", "max_loss": 0.006, "confidence": 0.95}
    with pytest.raises(errors.NotShownError, match=r"is shown to be within .* loses same 0\.005 .*about \d+ samp"):
        nz.tune(NETWORK, evaluate=Three(3), **how)
    with pytest.raises(errors.BudgetError, match="no setting of delta-dnn is within the budget") as caught:
        nz.tune(NETWORK, evaluate=Three(60), **how)
    assert (caught.value.exit_code, errors.NotShownError.exit_code) == (15, 1)


def test_confidence_needs_samples():
    with pytest.raises(errors.UsageError, match="confidence needs per-sample values of 'score'"):
        nz.tune(NETWORK, evaluate=lambda tensors: 1.0, max_loss=0.1, confidence=0.95)
    with pytest.raises(errors.UsageError, match="needs the samples behind"):
        nz.tune(NETWORK, evaluate=Agreement(statistics=False), max_loss=0.1, confidence=0.95)
    for odd in (0, 1, "95%", True, math.nan):
        with pytest.raises(errors.UsageError, match="confidence is a probability"):
            nz.tune(NETWORK, evaluate=Agreement(), max_loss=0.1, confidence=odd)


def test_a_network_that_is_kept_bit_for_bit_loses_nothing_for_certain():
    plan = nz.tune(NETWORK, evaluate=Agreement(2000), max_loss=0.0012, confidence=0.5, evaluations=1)
    lossless = [trial for trial in plan.trials if trial.restored_id == plan.network_id]
    assert all(found.upper == 0 for trial in lossless for found in trial.intervals.values())


def test_filed_trials_are_taken_at_the_same_confidence(tmp_path):
    def evaluations(confidence):
        calls = []

        class Counting(Agreement):
            def evaluation(self, tensors):
                calls.append(1)
                return super().evaluation(tensors)

        nz.tune(NETWORK, evaluate=Counting(2000), max_loss=0.03, confidence=confidence, trials=tmp_path)
        return len(calls)

    assert evaluations(0.95) > 2
    assert evaluations(0.95) == 2
    assert evaluations(0.9) > 2


# ---- what other releases wrote ---------------------------------------------------------------------------------


def test_plans_of_versions_1_and_2_are_read_and_applied():
    tensors = {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4) / 7, "b": np.array([0.5, -0.25, 1.0], np.float32)
    }  # fmt: skip
    first, second = (nz.Plan.load(PLANS / f"version-{n}.json") for n in (1, 2))
    assert (first.made_by, first.confidence, first.calibration) == ({"name": "nearzip.tune"}, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a later release that takes fewer bytes
        archive = nz.compress(tensors, plan=first)
    assert archive.id == first.chosen.restored_id
    assert second.made_by["name"] == "nearzip.calibrate"
    assert second.calibration.fit_biases is True
    assert second.calibration.n_batches == 8
    assert nz.Plan.from_json(second.to_json()) == second


def test_a_plan_of_another_maker_is_read_and_says_who_applies_it():
    plan = nz.Plan.load(PLANS / "version-1.json")
    document = {**plan.to_json(), "made_by": {"name": "some.maker", "quality": 3}}
    other = nz.Plan.from_json(document)
    assert other.made_by == {"name": "some.maker", "quality": 3}
    with pytest.raises(errors.UsageError, match=r"made by some\.maker"):
        nz.compress({"w": np.ones((3, 4), np.float32), "b": np.ones(3, np.float32)}, plan=other)


def test_keys_of_trials_stay():
    """Folders of trials written by release 0.1.0 are found again."""
    assignment = Codings(Coding("nearzip", {"step": 0.1}), {"x": Coding("nearzip", {}, nz.Absolute(1e-3))})
    if nz.__version__ == "0.1.0":
        assert trial_key("ab", "cd", assignment, "judge id") == "dc2681286fce8df3b279072dfc985f52"


# ---- other subjects --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures(Subject):
    """A subject that is no network: pictures whose values keep some of their bits."""

    images: np.ndarray
    evaluator: object
    seed: int = 0

    names = ("images",)

    @property
    def id(self):
        return digest(self.images.tobytes()).hex()

    @property
    def n_bytes(self):
        return self.images.nbytes

    def original(self):
        return {"images": self.images.copy()}

    def stored(self, candidate, threads):
        shift = 8 - candidate.default.options["bits"]
        kept = self.images >> shift << shift
        return len(zlib.compress(kept.tobytes())), digest(kept.tobytes()).hex(), {"images": kept}


def darkest(tensors):
    """Which row of each picture is darkest: what a network that reads them would see."""
    return tensors["images"].reshape(len(tensors["images"]), 8, -1).sum(2).argmin(1)


class Darkest:
    name, identity, confidence = "darkest", "", None

    def __init__(self, images):
        self.images = images

    def evaluation(self, tensors):
        same = (darkest(tensors) == darkest({"images": self.images})).astype(float)
        return Evaluation({"same": same.mean()}, {"same": Mean(same, np.ones(len(same)))})


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_a_dataset_is_one_more_subject(tmp_path, confidence):
    """The same runner, search, trials on disk and plan as for networks."""
    images = np.random.default_rng(0).integers(0, 256, (500, 8, 8), dtype=np.uint8)
    subject = Pictures(images, Darkest(images))
    space = Options(Coding("pictures"), "bits", tuple(range(8, 0, -1)))
    plans = []
    for _ in range(2):
        runner = Runner(subject, {"s*": 0.05}, tmp_path, None, confidence)
        chosen = runner.settled(lambda runner=runner: search(runner, space, 8))
        plans.append(plan_of(runner, chosen, "pictures", {"name": "nearzip"}, {"name": "pictures", "shape": [8, 8]}))
    first, again = plans
    assert again.chosen.restored_id == first.chosen.restored_id
    bits = first.codings["images"].options["bits"]
    losses = {
        b: 1 - float((darkest({"images": images >> (8 - b) << (8 - b)}) == darkest({"images": images})).mean())
        for b in range(1, 9)
    }
    assert first.losses["same"] == pytest.approx(losses[bits])
    assert losses[bits] <= 0.05
    assert 1 < bits < 8
    if confidence is None:
        assert losses[bits - 1] > 0.05
    else:
        assert first.verdicts == {"same": "kept"}
    first.save(tmp_path / "p.json")
    read = nz.Plan.load(tmp_path / "p.json")
    assert read.to_json() == first.to_json()
    assert read.made_by == {"name": "pictures", "shape": [8, 8]}
    with pytest.raises(errors.UsageError, match="the plan was made by pictures"):
        nz.compress({"images": images}, plan=read)
