"""Trials on disk are evidence only of the judge, the data and the release that made them."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from counting import Counting
from torch import nn

import nearzip as nz
from nearzip import calibrate, errors
from nearzip.budget import trial as filed
from nearzip.torch import evaluator

rng = np.random.default_rng(3)
NETWORK = {
    "a.weight": rng.normal(0, 0.1, (48, 32)).astype(np.float32),
    "a.bias": rng.normal(0, 0.02, 48).astype(np.float32),
    "b.weight": rng.normal(0, 0.3, (10, 48)).astype(np.float32),
}
INPUTS = rng.normal(0, 1, (100, 32)).astype(np.float32)


def forward(tensors, inputs=INPUTS):
    return np.maximum(inputs @ tensors["a.weight"].T + tensors["a.bias"], 0) @ tensors["b.weight"].T


def error(tensors):
    return -float(np.mean((forward(tensors) - forward(NETWORK)) ** 2))


def ten_times_as_strict(tensors):
    """Scores the original as `error` does."""
    return 10 * error(tensors)


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 6))


def batches(scale, n=2):
    generator = torch.Generator().manual_seed(5)
    return [scale * torch.randn(80, 20, generator=generator) for _ in range(n)]


# ---- who judged, and on what -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "max_loss"), [("kl", 1e-3), ("agreement", 0.02)])
def test_trials_judged_on_other_data_are_not_taken(tmp_path, metric, max_loss):
    """On either data the original agrees with itself: its score says nothing of them."""
    network = module()
    easy, hard = (evaluator(network, batches(scale), metric) for scale in (0.1, 3))
    nz.tune(network.state_dict(), evaluate=easy, max_loss=max_loss, trials=tmp_path)
    plan = nz.tune(network.state_dict(), evaluate=hard, max_loss=max_loss, trials=tmp_path)
    assert [t.restored_id for t in plan.trials] == [
        t.restored_id for t in nz.tune(network.state_dict(), evaluate=hard, max_loss=max_loss).trials
    ]
    restored = nz.compress(network.state_dict(), plan=plan).restored
    assert plan.original[metric] - hard(restored) == plan.losses[metric] <= max_loss


def test_trials_of_the_same_evaluator_made_anew_are_taken(tmp_path):
    network = module()
    first = nz.tune(network.state_dict(), evaluate=evaluator(network, batches(1), "kl"), max_loss=1e-3, trials=tmp_path)
    n = len(list(tmp_path.iterdir()))
    again = nz.tune(network.state_dict(), evaluate=evaluator(network, batches(1), "kl"), max_loss=1e-3, trials=tmp_path)
    assert len(list(tmp_path.iterdir())) == n
    assert [t.restored_id for t in again.trials] == [t.restored_id for t in first.trials]


def test_a_function_may_say_what_its_data_are(tmp_path):
    judges = []
    for identity in ("validation 1", "validation 1", "validation 2"):
        judge = Counting(error)
        judge.identity = identity
        nz.tune(NETWORK, evaluate=judge, max_loss=0.01, trials=tmp_path)
        judges.append(judge.calls)
    fresh = Counting(error)
    nz.tune(NETWORK, evaluate=fresh, max_loss=0.01)
    assert judges == [fresh.calls, 2, fresh.calls]  # the original once, what is chosen once


def test_an_identity_that_cannot_be_read_is_named(tmp_path):
    class Broken:
        @property
        def identity(self):
            raise OSError("the disk is gone")

        def __call__(self, tensors):
            return error(tensors)

    with pytest.raises(errors.Error, match="the identity of evaluate raised OSError: the disk is gone"):
        nz.tune(NETWORK, evaluate=Broken(), max_loss=0.01, trials=tmp_path)
    nz.tune(NETWORK, evaluate=Broken(), max_loss=0.01)  # without a folder nobody asks


# ---- what is chosen is measured here ---------------------------------------------------------------------------


def test_a_trial_that_another_judge_filed_is_not_chosen(tmp_path):
    nz.tune(NETWORK, evaluate=Counting(error), max_loss=0.01, trials=tmp_path)
    with pytest.raises(
        errors.UsageError, match=rf"{tmp_path.name}: the trial of .* another evaluate .* another release"
    ):
        nz.tune(NETWORK, evaluate=Counting(ten_times_as_strict), max_loss=0.01, trials=tmp_path)


@pytest.mark.parametrize(("field", "value"), [("bytes", 3), ("restored_id", "0" * 32)])
def test_a_trial_that_gave_another_archive_is_not_chosen(tmp_path, field, value):
    plan = nz.tune(NETWORK, evaluate=error, max_loss=0.01, trials=tmp_path)
    for path in tmp_path.iterdir():
        document = json.loads(path.read_text())
        if document.get("restored_id") == plan.chosen.restored_id:
            path.write_text(json.dumps({**document, field: value}))
    with pytest.raises(errors.UsageError, match="filed by another release"):
        nz.tune(NETWORK, evaluate=error, max_loss=0.01, trials=tmp_path)


def test_trials_of_another_release_are_not_taken(tmp_path, monkeypatch):
    nz.tune(NETWORK, evaluate=error, max_loss=0.01, trials=tmp_path)
    monkeypatch.setattr(filed, "__version__", "0.0.7")
    again = Counting(error)
    again.name = f"{__name__}:error"
    plan = nz.tune(NETWORK, evaluate=again, max_loss=0.01, trials=tmp_path)
    assert again.calls == 2 + len(plan.trials)


def test_last_digits_do_not_matter_but_what_is_stated_was_measured_here(tmp_path):
    plan = nz.tune(NETWORK, evaluate=Counting(error), max_loss=0.01, trials=tmp_path)
    again = nz.tune(NETWORK, evaluate=Counting(lambda t: error(t) * (1 + 1e-6)), max_loss=0.01, trials=tmp_path)
    assert again.chosen.restored_id == plan.chosen.restored_id
    assert again.losses["score"] == plan.losses["score"] * (1 + 1e-6)
    assert any(trial is again.chosen for trial in again.trials)


def test_what_is_over_the_budget_when_measured_again_is_not_chosen(tmp_path):
    plan = nz.tune(NETWORK, evaluate=Counting(error), max_loss=0.01, trials=tmp_path)
    just = plan.losses["score"]
    other = nz.tune(NETWORK, evaluate=Counting(lambda t: error(t) * (1 + 1e-6)), max_loss=just, trials=tmp_path)
    assert other.chosen.restored_id != plan.chosen.restored_id
    assert other.losses["score"] <= just


def test_of_a_judge_that_is_not_deterministic_the_archive_is_compared(tmp_path):
    noise = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="not deterministic"):
        first = nz.tune(NETWORK, evaluate=Counting(lambda t: error(t) + noise.normal(0, 1e-3)), max_loss=0.01,
                        trials=tmp_path)  # fmt: skip
    with pytest.warns(UserWarning, match="not deterministic"):
        again = nz.tune(NETWORK, evaluate=Counting(lambda t: error(t) + noise.normal(0, 1e-3)), max_loss=0.01,
                        trials=tmp_path)  # fmt: skip
    assert again.chosen.restored_id == first.chosen.restored_id
    assert again.chosen.metrics == first.chosen.metrics


@pytest.mark.parametrize("strategy", ["delta-dnn", "deepsz"])
def test_the_papers_searches_measure_what_they_recall(tmp_path, strategy):
    how = {"strategy": strategy, "max_loss": 0.01, "trials": tmp_path}
    first = nz.tune(NETWORK, evaluate=Counting(error), **how)
    again = Counting(error)
    assert nz.tune(NETWORK, evaluate=again, **how).chosen.restored_id == first.chosen.restored_id
    assert again.calls == 2
    with pytest.raises(errors.UsageError, match="scored by another evaluate"):
        nz.tune(NETWORK, evaluate=Counting(ten_times_as_strict), **how)


def test_calibrated_trials_are_measured_again_as_they_were_rounded(tmp_path):
    network, data = module(), batches(1, 4)
    how = {"max_loss": 0.05, "evaluations": 3, "trials": tmp_path}
    first = calibrate.tune(network, data, evaluate=evaluator(network, batches(2), "agreement"), **how)
    n = len(list(tmp_path.iterdir()))
    again = calibrate.tune(network, data, evaluate=evaluator(network, batches(2), "agreement"), **how)
    assert len(list(tmp_path.iterdir())) == n
    assert again.chosen.restored_id == first.chosen.restored_id


# ---- what is no number -----------------------------------------------------------------------------------------


def two(tensors):
    """A metric that breaks for every rounded network beside one that does not."""
    return {"error": error(tensors), "odd": 1.0 if error(tensors) == 0 else math.nan}


@pytest.mark.parametrize(
    ("max_loss", "says"),
    [({"error": 0.01}, "max_loss does not limit it"), ({"error": 0.01, "odd": 1.0}, "it counts as over the budget")],
)
def test_a_nan_says_whether_it_counts_and_is_said_again(tmp_path, max_loss, says):
    for judge in (Counting(two), Counting(two)):
        with pytest.warns(UserWarning, match=f"evaluate returned nan as 'odd' for the trial of nearzip abs.*; {says}"):
            plan = nz.tune(NETWORK, evaluate=judge, max_loss=max_loss, trials=tmp_path)
    assert plan.chosen.fits
    assert (plan.losses["odd"] == math.inf) == ("odd" not in max_loss)


def test_minus_infinity_is_a_loss_and_no_warning(tmp_path):
    def steep(tensors):
        return -math.inf if error(tensors) < -0.005 else error(tensors)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for judge in (Counting(steep), Counting(steep)):
            nz.tune(NETWORK, evaluate=judge, max_loss=0.01, trials=tmp_path)


@pytest.mark.parametrize("odd", [{"other": "nan"}, {"score": "0"}, {"score": 1}, {"score": []}, []])
def test_what_is_filed_about_numbers_is_not_believed(tmp_path, odd):
    nz.tune(NETWORK, evaluate=error, max_loss=0.01, trials=tmp_path)
    for path in tmp_path.glob("[!o]*"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "no_numbers": odd}))
    with pytest.raises(errors.CorruptError, match=tmp_path.name):
        nz.tune(NETWORK, evaluate=error, max_loss=0.01, trials=tmp_path)


# ---- plans that another release measured -----------------------------------------------------------------------

PLAN = nz.tune(NETWORK, evaluate=error, max_loss=0.01)


def forged(**changes):
    chosen = dataclasses.replace(PLAN.chosen, **changes)
    return dataclasses.replace(PLAN, chosen=chosen, trials=(*PLAN.trials, chosen))


def test_a_plan_whose_archive_is_another_one_warns(tmp_path):
    np.savez(tmp_path / "n.npz", **NETWORK)
    for plan, says in (
        (forged(restored_id="0" * 32), r"measured by another release.*gives 0{32}, this one .*was not measured here"),
        (forged(n_bytes=PLAN.nbytes - 1), rf"states {PLAN.nbytes - 1} bytes, this archive takes {PLAN.nbytes}"),
    ):
        with pytest.warns(UserWarning, match=says):
            nz.compress(NETWORK, plan=plan)
        with pytest.warns(UserWarning, match=says):
            nz.compress_file(tmp_path / "n.npz", tmp_path / "n.nz", plan=plan, force=True)


def test_other_bytes_by_metadata_or_order_are_no_reason_to_warn(tmp_path):
    backwards = {name: NETWORK[name] for name in reversed(NETWORK)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nz.compress(NETWORK, plan=PLAN)
        assert nz.compress(NETWORK, plan=PLAN, metadata={"epoch": "3"}).nbytes != PLAN.nbytes
        nz.compress(backwards, plan=PLAN)
        torch.save({name: torch.from_numpy(w) for name, w in NETWORK.items()}, tmp_path / "n.pt")
        nz.compress_file(tmp_path / "n.pt", tmp_path / "n.nz", plan=PLAN)
