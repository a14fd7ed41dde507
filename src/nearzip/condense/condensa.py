"""Condensa's search in two phases, by Bayesian optimization; off unless `strategy="condensa"` asks for it.

Joseph et al., "A Programmable Approach to Neural Network Compression", IEEE Micro 40(5), 2020. Phase 1 looks for the
sparsity at which the accuracy meets its limit, by domain-restricted upper confidence bounds (DR-UCB); phase 2 looks for
the best objective among sparsities below it, by upper confidence bounds. What the paper leaves open is read as
docs/condense.md says.

A fact to know before using it: US patent 12,417,403 B2, "Bayesian optimization of sparsity ratios in model compression"
(NVIDIA; priority 2019-08-26, granted 2025-09-16), claims a Bayesian optimizer that determines a sparsity ratio from an
accuracy limit and then selects a second one that optimizes an objective within it. Nothing else of this package imports
this file, and the default search uses neither a Bayesian optimizer nor a second search. This note states facts and is
no legal advice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.condense.runner import Runner
from nearzip.condense.trial import Trial
from nearzip.errors import UsageError

__all__ = ["SAMPLES", "Condensa", "Posterior"]

#: "At most 10 Bayesian optimization samples per search."
SAMPLES = 10
_LENGTHS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0)
_GRID = 400
_LEAST = 2.0**-10
#: On the axis log2, usages beyond it are cut off: one network that collapsed would spoil the posterior everywhere.
_CLIP = 4.0
#: The least standard error, as a share of the standard deviation of what was measured.
_JITTER = 1e-2


@dataclass(frozen=True)
class Condensa:
    """Parameters of the strategy.

    Parameters
    ----------
    coordinate : str
        "linear": sparsity and accuracy as they are, as the paper has it. "log2": the logarithm of the density, with the
        accuracy cut off far from the limit.
    accuracy_samples : float
        Share of the samples for phase 1.
    gamma : float
        Weight of the distance from the limit against the uncertainty, in phase 1.
    """

    coordinate: str = "linear"
    accuracy_samples: float = 0.7
    gamma: float = 0.95

    def __post_init__(self) -> None:
        if self.coordinate not in ("linear", "log2"):
            raise UsageError(f"coordinate is 'linear' or 'log2', not {self.coordinate!r}")
        for name in ("accuracy_samples", "gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise UsageError(f"{name} lies between 0 and 1, not {value!r}")

    def search(self, runner: Runner) -> Trial | None:
        """The best trial within the budget; None if there is none."""
        n_first = max(1, round(self.accuracy_samples * runner.most))
        axis = np.linspace(0.0, 1.0, _GRID + 1)[1:-1]
        while runner.left > 0 and (len(runner.trials) < n_first or not runner.feasible):
            at = self._first_phase(runner, axis)
            if at is None:
                break
            if not self._run(runner, at, "accuracy"):
                break
        limit = max((self._at(t.keep) for t in runner.feasible), default=None)
        while limit is not None and runner.left > 0:
            done = {self._at(trial.keep) for trial in runner.trials}
            free = np.array([x for x in axis if x < limit and min(abs(x - d) for d in done) > 0.5 / _GRID])
            if not free.size or not self._run(runner, self._second_phase(runner, free), "objective"):
                break
        return runner.best

    def keep_at(self, x: float) -> float:
        """The share kept at a point of the axis, which runs from 0 (all) to 1 (nothing, or the smallest share)."""
        return 1.0 - x if self.coordinate == "linear" else float(_LEAST**x)

    def _at(self, keep: float) -> float:
        return 1.0 - keep if self.coordinate == "linear" else math.log(keep) / math.log(_LEAST)

    def _run(self, runner: Runner, x: float, stage: str) -> bool:
        """Run a trial; returns whether its share was a new one."""
        before = len(runner.trials)
        runner.run([runner.prepared.snap(max(self.keep_at(x), _LEAST))], stage)
        return len(runner.trials) > before

    def _first_phase(self, runner: Runner, axis: Any) -> float | None:
        """The point with the largest (1 - gamma) sigma - gamma |mu - limit|, beyond all points within the budget."""
        trials = runner.trials
        within = max((self._at(trial.keep) for trial in runner.feasible), default=0.0)
        tried = {self._at(trial.keep) for trial in trials}
        free = np.array([x for x in axis if x > within and all(abs(x - t) > 0.5 / _GRID for t in tried)])
        if not free.size:
            return None
        if not trials:
            return float(free[len(free) // 2])
        # Accuracy as a share of what may be lost: 0 for the original, -1 at the limit.
        points = [0.0, *(self._at(trial.keep) for trial in trials)]
        levels = [0.0, *(-self._usage(trial) for trial in trials)]
        noise = [1e-3, *(trial.noise for trial in trials)]
        # Where nothing was measured the accuracy is taken to be at its limit, so that the uncertainty decides.
        mu, sigma = Posterior.of(points, levels, noise, mean=-1.0)(free)
        gain = (1 - self.gamma) * sigma - self.gamma * np.abs(mu + 1.0)
        return float(free[int(np.argmax(gain))])

    def _usage(self, trial: Trial) -> float:
        usage = trial.recovered if math.isfinite(trial.recovered) else 1e3
        return min(max(usage, -_CLIP), _CLIP) if self.coordinate == "log2" else usage

    def _second_phase(self, runner: Runner, free: Any) -> float:
        """The point with the largest upper confidence bound of the objective (GP-UCB)."""
        objective = runner.work.objective
        known = [trial for trial in runner.trials if trial.objective is not None]
        sign = -1.0 if objective.lower_is_better else 1.0
        values = [sign * float(trial.objective or 0.0) for trial in known]
        points = [self._at(trial.keep) for trial in known]
        size = max(1e-12, float(np.std(values)))
        mu, sigma = Posterior.of(points, values, [objective.noise * abs(v) + _JITTER * size for v in values])(free)
        t = len(runner.trials) + 1
        beta = 2 * math.log(t**2 * math.pi**2 / 6 / 0.1)
        return float(free[int(np.argmax(mu + math.sqrt(beta) * sigma))])


@dataclass(frozen=True)
class Posterior:
    """A Gaussian process through noisy points of one variable: Matern 5/2, its length by evidence.

    Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, algorithm 2.1.
    """

    points: Any
    weights: Any
    factor: Any
    length: float
    mean: float
    size: float

    @staticmethod
    def of(
        points: Sequence[float], values: Sequence[float], noise: Sequence[float], mean: float | None = None
    ) -> Posterior:
        """`noise`: standard errors of the values; `mean`: before anything is measured, that of the values if None."""
        x, y = np.asarray(points, np.float64), np.asarray(values, np.float64)
        mean, size = float(y.mean()) if mean is None else mean, float(y.std()) or 1.0
        scaled = (y - mean) / size
        errors = np.maximum(np.asarray(noise, np.float64) / size, _JITTER)
        fits = [_fit(x, scaled, errors, length) for length in _LENGTHS]
        _, factor, weights, length = max(fits, key=lambda fit: fit[0])
        return Posterior(x, weights, factor, length, mean, size)

    def __call__(self, at: Any) -> tuple[Any, Any]:
        """Mean and standard deviation at the points, shape (n,) each."""
        cross = _kernel(np.asarray(at, np.float64), self.points, self.length)
        solved = np.linalg.solve(self.factor, cross.T)
        variance = np.maximum(1.0 - (solved**2).sum(0), 0.0)
        return self.mean + self.size * (cross @ self.weights), self.size * np.sqrt(variance)


def _kernel(a: Any, b: Any, length: float) -> Any:
    distance = math.sqrt(5) * np.abs(a[:, None] - b[None, :]) / length
    return (1 + distance + distance**2 / 3) * np.exp(-distance)


def _fit(x: Any, y: Any, errors: Any, length: float) -> tuple[float, Any, Any, float]:
    """Log evidence, Cholesky factor, weights, and the length."""
    factor = np.linalg.cholesky(_kernel(x, x, length) + np.diag(errors**2))
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, y))
    evidence = -0.5 * float(y @ weights) - float(np.log(np.diag(factor)).sum())
    return evidence, factor, weights, length
