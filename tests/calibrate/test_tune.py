"""Calibrated rounding under an accuracy budget."""

from __future__ import annotations

import json

import joblib
import numpy as np
import pytest
import torch
from torch import nn

import nearzip as nz
from nearzip import calibrate, errors
from nearzip.torch import evaluator
from tests.calibrate.networks import Tied, Turned, words

torch.manual_seed(0)
MIX = torch.randn(6, 32)
NETWORK = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
BATCHES = [torch.randn(64, 6) @ MIX for _ in range(4)]
HELD_OUT = [torch.randn(500, 6) @ MIX]
KL, AGREEMENT = (evaluator(NETWORK, HELD_OUT, metric) for metric in ("kl", "agreement"))
STATE = {name: value.numpy() for name, value in NETWORK.state_dict().items()}


def older(scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: (w + rng.normal(0, scale, w.shape)).astype(np.float32) for name, w in STATE.items()}


def loss(judge, tensors) -> float:
    return judge(STATE) - judge(tensors)


@pytest.mark.parametrize("base", [None, older(0.02)], ids=["alone", "update"])
@pytest.mark.parametrize(("judge", "max_loss"), [(KL, 1e-3), (AGREEMENT, 0.01)], ids=["kl", "agreement"])
def test_the_plan_keeps_its_budget_and_gives_its_archive_again(base, judge, max_loss, tmp_path):
    plan = calibrate.tune(NETWORK, BATCHES, base, evaluate=judge, max_loss=max_loss)
    assert len(plan.trials) <= 5
    plan.save(tmp_path / "p.json")
    assert nz.Plan.load(tmp_path / "p.json").to_json() == plan.to_json()
    archive = calibrate.compress(NETWORK, BATCHES, base, plan=nz.Plan.load(tmp_path / "p.json"))
    assert (archive.nbytes, archive.id) == (plan.nbytes, plan.chosen.restored_id)
    assert loss(judge, nz.decompress(archive.to_bytes(), base)) == plan.losses[judge.metric] <= max_loss + 1e-12


def test_at_one_budget_calibrated_archives_are_smaller():
    plain = nz.tune(STATE, evaluate=KL, max_loss=1e-3)
    assert calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3).nbytes < 0.8 * plain.nbytes


def test_every_tensor_has_the_step_that_the_archive_has():
    plan = calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3)
    archive = calibrate.compress(NETWORK, BATCHES, plan=plan)
    steps = {name: coding.options["step"] for name, coding in plan.codings.items()}
    assert set(steps) == set(STATE)
    assert len(set(steps.values())) > 1
    levels = {name: archive.restored[name].astype(np.float64) / steps[name] for name in STATE}
    assert all(np.abs(each - np.rint(each)).max() < 1e-3 for each in levels.values())


def test_an_ordinary_compress_refuses_it():
    plan = calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3)
    with pytest.raises(errors.UsageError, match="calibrated rounding"):
        nz.compress(STATE, plan=plan)
    with pytest.raises(errors.UsageError, match="not both"):
        calibrate.compress(NETWORK, BATCHES, plan=plan, step=0.1)
    with pytest.raises(errors.UsageError, match=r"comes from nearzip\.calibrate\.tune"):
        calibrate.compress(NETWORK, BATCHES, plan="plan.json")


def test_an_update_of_which_nothing_is_needed_takes_one_trial_and_no_calibration():
    base = older(1e-6)
    plan = calibrate.tune(NETWORK, BATCHES, base, evaluate=KL, max_loss=1e-3)
    assert len(plan.trials) == 1
    assert plan.calibration is None
    n_bytes = nz.tune(STATE, base, evaluate=KL, max_loss=1e-3).nbytes
    for apply in (
        lambda: nz.compress(STATE, base, plan=plan),
        lambda: calibrate.compress(NETWORK, BATCHES, base, plan=plan),
    ):
        with pytest.warns(errors.UpdateLostWarning, match="4 of 4 tensors"):
            archive = apply()
        assert archive.nbytes == plan.nbytes == n_bytes
        assert archive.update_kept.share == 0


def test_a_budget_of_nothing_keeps_every_bit():
    plan = calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=0.0)
    assert plan.calibration is None
    restored = calibrate.compress(NETWORK, BATCHES, plan=plan).restored
    assert all(np.array_equal(restored[name], w) for name, w in STATE.items())


@pytest.mark.filterwarnings("error")
def test_other_batches_another_network_or_base_are_named():
    plan = calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3)
    with pytest.warns(UserWarning, match="measured with other batches"):
        calibrate.compress(NETWORK, BATCHES[::-1], plan=plan)
    with pytest.warns(UserWarning, match="against the base None"):
        calibrate.compress(NETWORK, BATCHES, older(0.1), plan=plan)


def test_every_trial_keeps_a_bound(tmp_path):
    plan = calibrate.tune(NETWORK, BATCHES, older(0.02), evaluate=AGREEMENT, max_loss=0.3, bound="abs:0.004")
    assert all(trial.codings.default.bound == nz.Absolute(0.004) for trial in plan.trials)
    archive = calibrate.compress(NETWORK, BATCHES, older(0.02), plan=plan)
    assert archive.nbytes == plan.nbytes
    assert all(np.abs(archive.restored[name] - w).max() <= 0.004 for name, w in STATE.items())
    with pytest.raises(errors.UsageError, match="keeps absolute, relative, rms and"):
        calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3, bound=nz.Lossless())


@pytest.mark.parametrize("make", [Tied, Turned], ids=["tied", "hidden from the calibration"])
def test_networks_of_any_kind(make):
    torch.manual_seed(3)
    network = make().eval()
    batches = words() if make is Tied else [torch.randn(16, 8) for _ in range(4)]
    judge = evaluator(network, batches, "kl")
    plan = calibrate.tune(network, batches, evaluate=judge, max_loss=1e-3)
    archive = calibrate.compress(network, batches, plan=plan)
    assert 0 <= -judge(nz.decompress(archive.to_bytes())) == plan.losses["kl"] <= 1e-3


def test_an_interrupted_search_goes_on_and_other_batches_trials_are_not_taken(tmp_path):
    calls = []

    def judge(tensors):
        calls.append(1)
        return KL(tensors)

    def evaluations(batches) -> int:
        calls.clear()
        calibrate.tune(NETWORK, batches, evaluate=judge, max_loss=1e-3, trials=tmp_path)
        return len(calls)

    first = evaluations(BATCHES)
    again = evaluations(BATCHES)
    assert again < first
    # The original's first evaluation is filed. How many trials other batches take may differ by some.
    assert again + 1 < evaluations(BATCHES[::-1]) <= first


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_trials_run_where_the_caller_says(backend):
    with joblib.parallel_config(backend, n_jobs=2):
        plan = calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3)
    assert plan.losses["kl"] <= 1e-3
    assert calibrate.compress(NETWORK, BATCHES, plan=plan).nbytes == plan.nbytes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"evaluations": 0}, "positive number"),
        ({"max_loss": -1}, "from 0 on"),
        ({"seed": 1.5}, "integer"),
        ({"n_batches": 0}, "n_batches"),
        ({"evaluate": 3}, "function"),
        ({"batches": []}, "at least one batch"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments, says):
    arguments = {"batches": BATCHES, "evaluate": KL, "max_loss": 1e-3, **arguments}
    with pytest.raises(errors.UsageError, match=says):
        calibrate.tune(NETWORK, **arguments)


@pytest.mark.parametrize("value", [None, True, -1, 0, 1e308, "x", [], {}, KeyError], ids=repr)
@pytest.mark.parametrize("field", ["name", "step", "fit_biases", "inputs", "gradients", "n_batches"])
@pytest.mark.filterwarnings("ignore")
def test_hostile_plans_give_named_errors(tmp_path, field, value):
    document = PLAN.to_json()
    assert document["made_by"]["name"] == "nearzip.calibrate"
    if value is KeyError:
        del document["made_by"][field]
    else:
        document["made_by"][field] = value
    (tmp_path / "p.json").write_text(json.dumps(document))
    try:
        plan = nz.Plan.load(tmp_path / "p.json")
        calibrate.compress(NETWORK, BATCHES, plan=plan)
    except errors.Error:
        pass


PLAN = calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3)


def test_a_base_whose_tensors_are_called_otherwise():
    base = older(0.02)
    renamed = {f"first.{name}" if name.startswith("0.") else f"b.{name}": array for name, array in base.items()}
    renamed["b.other.weight"] = np.zeros_like(base["0.weight"])
    rename = {"first.": "", "b.2": "2"}
    expected = calibrate.tune(NETWORK, BATCHES, base, evaluate=KL, max_loss=1e-3)
    plan = calibrate.tune(NETWORK, BATCHES, renamed, evaluate=KL, max_loss=1e-3, rename=rename)
    assert plan.nbytes < expected.nbytes + 300  # the names of what was matched
    archive = calibrate.compress(NETWORK, BATCHES, renamed, plan=plan, rename=rename)
    assert archive.nbytes == plan.nbytes
    assert loss(KL, nz.decompress(archive.to_bytes(), renamed)) <= 1e-3
    with pytest.raises(errors.UsageError, match="give a base"):
        calibrate.tune(NETWORK, BATCHES, evaluate=KL, max_loss=1e-3, rename=rename)
