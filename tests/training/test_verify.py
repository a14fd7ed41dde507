"""Equivalence of a resume: the statistics are right, and a real training agrees with itself."""

from __future__ import annotations

import random

import pytest
import torch
from torch import optim

from nearzip import errors
from nearzip.torch import Moments, TrainingState, capture, restore, verify_resume
from nearzip.torch.verify import _quantile
from tests.training.small import small_model, train


def test_quantiles_of_t():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 7, 30, 31, 60, 500):
        assert _quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-4)


def noisy(shift, noise):
    def run(state, seed):
        rng = random.Random(f"{seed} {state}")
        return [1.0, random.Random(seed).gauss(0, 1) + (state == "restored") * (shift + rng.gauss(0, noise))]

    return run


@pytest.mark.parametrize(
    ("shift", "noise", "equivalent"), [(0, 0, True), (0.5, 0, False), (0, 0.1, True), (0, 3, False)]
)
def test_what_counts_as_equivalent(shift, noise, equivalent):
    report = verify_resume(noisy(shift, noise), "original", "restored", seeds=20)
    assert report.equivalent == equivalent
    assert report.interval[0] <= report.difference <= report.interval[1]
    assert ("not shown" in str(report)) != equivalent
    assert report.to_json()["equivalent"] == equivalent


def test_recovery_epochs():
    losses = {"original": [1.0, 0.9, 0.8], "restored": [1.5, 1.1, 1.0]}
    report = verify_resume(lambda state, seed: losses[state], "original", "restored", seeds=[4, 5])
    assert report.recovery_epochs == (2, 2)
    losses["restored"] = [1.5, 1.4, 1.3]
    assert verify_resume(lambda s, _: losses[s], "original", "restored", 2).recovery_epochs == (None, None)


def test_bad_input():
    with pytest.raises(errors.UsageError, match="two seeds"):
        verify_resume(lambda state, seed: [1, 1], 0, 0, seeds=1)
    for bad in ([1.0], [], [1.0, float("nan")]):
        with pytest.raises(errors.UsageError, match="for seed 0"):
            verify_resume(lambda state, seed, bad=bad: bad, 0, 0, seeds=2)


def test_a_training_from_coarse_moments():
    model = small_model(0)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, None, 20)
    state = TrainingState.from_arrays({n: a.copy() for n, a in capture(model, optimizer).to_arrays().items()})
    restored = state.shrunk(Moments(0.25, 0.25), {}).expanded()

    def on(start, seed):
        model = small_model(1)
        optimizer = optim.Adam(model.parameters(), 1e-2)
        restore(start, model, optimizer, rng=False)
        torch.manual_seed(seed)
        losses = [train(model.eval(), optim.SGD(model.parameters(), 0.0), None, 1)]
        model.train()
        return losses + [train(model, optimizer, None, 5) for _ in range(2)]

    report = verify_resume(on, state, restored, seeds=4)
    assert abs(report.difference) < 0.1
    same = verify_resume(on, state, state, seeds=2)
    assert same.differences == (0.0, 0.0)
