"""tune(knob="step"): steps without a bound, and the ways to round that promise nothing."""

from __future__ import annotations

import numpy as np
import pytest

import nearzip as nz
from nearzip.budget.spaces import Steps, space_of
from nearzip.budget.subject import Network
from nearzip.errors import UsageError

rng = np.random.default_rng(5)
OLD = {"w": rng.normal(0, 0.05, (128, 256)).astype(np.float32), "b": rng.normal(0, 0.05, 16).astype(np.float32)}
NEW = {name: (w + rng.laplace(0, 1e-3, w.shape)).astype(np.float32) for name, w in OLD.items()}


def length(tensors):
    """How near the update's length along its own direction is to what it was."""
    d, q = NEW["w"].astype(np.float64) - OLD["w"], tensors["w"].astype(np.float64) - OLD["w"]
    return -abs(1 - float((d * q).sum() / (d * d).sum()))


def error(tensors):
    return -float(np.sqrt(np.mean((tensors["w"].astype(np.float64) - NEW["w"]) ** 2))) * 1e3


@pytest.mark.parametrize("evaluate", [length, error])
def test_the_budget_is_kept_without_a_bound(evaluate):
    plan = nz.tune(NEW, OLD, evaluate=evaluate, max_loss=0.2, knob="step", evaluations=12)
    assert len(plan.trials) <= 12
    archive = nz.compress(NEW, OLD, plan=plan)
    assert archive.nbytes == plan.nbytes
    assert evaluate(NEW) - evaluate(nz.decompress(archive.to_bytes(), base=OLD)) <= 0.2
    coding = plan.chosen.codings.default
    assert coding.options["step"] > 0
    assert coding.bound is None or str(coding.bound) == "none"


def test_evaluations_beyond_five_find_the_rounding_that_helps():
    few, more = (nz.tune(NEW, OLD, evaluate=length, max_loss=0.1, knob="step", evaluations=n) for n in (5, 14))
    assert "unbiased" not in few.chosen.codings.default.options
    assert more.chosen.codings.default.options["unbiased"] is True
    assert more.nbytes < 0.9 * few.nbytes


def test_plans_are_the_same_every_time_and_survive_being_filed(tmp_path):
    first, second = (nz.tune(NEW, OLD, evaluate=length, max_loss=0.1, knob="step", evaluations=12) for _ in range(2))
    assert first.chosen.codings == second.chosen.codings
    first.save(tmp_path / "plan.json")
    assert nz.compress(NEW, OLD, plan=nz.Plan.load(tmp_path / "plan.json")).nbytes == first.nbytes


def test_options_that_are_given_stay():
    plan = nz.tune(NEW, OLD, evaluate=length, max_loss=0.1, knob="step", evaluations=9, options={"lattice": False})
    assert not any(trial.codings.default.options.get("lattice") for trial in plan.trials)


def test_roundings_leave_out_what_is_given():
    network = Network.of(NEW, OLD, length, 0)

    def options(given):
        space = space_of(network, "nearzip", given, "step")
        assert isinstance(space, Steps)
        return [rounding.at(0.0).default.options for rounding in space.roundings]

    step = space_of(network, "nearzip", None, "step").at(0.0).default.options["step"]
    both = {"unbiased": True, "lattice": True, "step": step}
    assert options(None) == [{"unbiased": True, "step": step}, {"lattice": True, "step": step}, both]
    assert options({"unbiased": True}) == [{"unbiased": True, "lattice": True, "step": step}]
    assert options({"unbiased": True, "lattice": True}) == []


def test_nothing_fits_but_every_bit():
    plan = nz.tune(NEW, OLD, evaluate=lambda tensors: -float((tensors["w"] != NEW["w"]).any()), max_loss=0.0,
                   knob="step", evaluations=6)  # fmt: skip
    assert str(plan.chosen.codings.default.bound) == "lossless"


@pytest.mark.parametrize(("method", "options"), [("nearzip", {"step": 0.1}), ("delta-dnn", None)])
def test_a_step_to_turn(method, options):
    with pytest.raises(UsageError, match="knob"):
        nz.tune(NEW, OLD, method, length, 0.1, options=options, knob="step")
