"""Our search: few evaluations, each where it is expected to save most."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nearzip.api import compress
from nearzip.budget.families import Bounds, Family
from nearzip.budget.plan import Trial
from nearzip.budget.refine import refine
from nearzip.budget.trials import Runner, n_workers
from nearzip.tensors import Array

__all__ = ["EVALUATIONS", "search"]

#: Most trials, unless the caller says otherwise.
EVALUATIONS = 5
#: log2 of usage per position: divergence and loss grow with the square of the error, lost accuracy with the error.
_SLOPE, _SLOPE_SPREAD = 1.5, 0.5
#: How far log2 of usage is off the line, near the budget: the rounding of every setting is another draw.
_NOISE = 0.3
#: Trials farther from the budget than this, in log2 of usage, count for little: the line is straight only near it.
_NEAR = 2.0
#: log2 of usage of a trial that lost next to nothing, or everything.
_NOTHING, _EVERYTHING = -4.0, 6.0
#: A search ends when no trial is expected to save this share of the best.
_WORTH = 0.002
#: The chance of a setting that a search may count on.
_CERTAIN = 0.95
#: Sizes are measured this far apart, and interpolated between.
_SURVEY = 0.5


@dataclass
class _Line:
    """What is believed about log2 of usage, a straight line in the position, after some trials.

    Bayesian linear regression: y = intercept + slope (x - start), Gaussian prior and noise.
    """

    family: Family
    trials: dict[float, Trial] = field(default_factory=dict)

    def chances(self, positions: Array) -> Array:
        """Probability that a trial there is within the budget, (n,)."""
        precision = np.diag([1 / 4.0**2, 1 / _SLOPE_SPREAD**2])
        information = precision @ np.array([0.0, _SLOPE])
        for x, trial in self.trials.items():
            y = _logarithm(trial.usage)
            row = np.array([1.0, x - self.family.start])
            weight = 1 / (_NOISE**2 * (1 + (y / _NEAR) ** 2) ** 2)
            precision += weight * np.outer(row, row)
            information += weight * y * row
        covariance = np.linalg.inv(precision)
        rows = np.stack([np.ones_like(positions), positions - self.family.start], axis=1)
        mean = rows @ (covariance @ information)
        spread = np.sqrt(np.einsum("ni,ij,nj->n", rows, covariance, rows) + _NOISE**2)
        return np.array([0.5 * math.erfc(m / (s * math.sqrt(2))) for m, s in zip(mean, spread, strict=True)])


def _logarithm(usage: float) -> float:
    if usage <= 0:
        return _NOTHING
    return min(max(math.log2(usage), _NOTHING), _EVERYTHING) if math.isfinite(usage) else _EVERYTHING


@dataclass
class _Sizes:
    """Bytes of an archive by position, measured where they are asked for and interpolated between."""

    family: Family
    measured: Callable[[float], int]
    known: dict[float, float] = field(default_factory=dict)

    def at(self, position: float) -> float:
        """Expected bytes there."""
        below = min(self.family.high, max(self.family.low, math.floor(position / _SURVEY) * _SURVEY))
        above = min(self.family.high, below + _SURVEY)
        low, high = self._log(below), self._log(above)
        share = (position - below) / (above - below) if above > below else 0.0
        return math.exp(low + share * (high - low))

    def _log(self, position: float) -> float:
        if position not in self.known:
            self.known[position] = math.log(self.measured(position))
        return self.known[position]


def _sizes(runner: Runner, family: Family) -> _Sizes:
    """Compressing is cheap beside evaluating; for options, whose methods may be slow, a quarter less for each step."""
    subject = runner.subject
    if isinstance(family, Bounds):
        return _Sizes(family, lambda x: compress(subject.tensors, subject.base, plan=family.at(x)).nbytes)
    return _Sizes(family, lambda x: max(1, round(1e9 * 0.75**x)))


def search(runner: Runner, family: Family, evaluations: int) -> Trial | None:
    """The smallest trial within the budget, after at most `evaluations`; None if there is none.

    The next trial is where it is expected to save most: the chance that it is within the budget, by a line through the
    trials so far (log2 of usage over log2 of the bound), times the bytes that it would save. With several workers a
    round tries as many positions as there are workers. Evaluations beyond those are for bounds of single tensors (see
    `refine`).
    """
    line, sizes = _Line(family), _sizes(runner, family)
    most = min(evaluations, max(EVALUATIONS, n_workers())) if isinstance(family, Bounds) else evaluations
    while len(runner.trials) < most:
        positions = _proposals(line, sizes, min(n_workers(), most - len(runner.trials)))
        if not positions:
            break
        trials = runner.run([family.at(x) for x in positions], "search")
        line.trials.update(zip(positions, trials, strict=True))
    if runner.best is None and family.exact is not None:
        runner.run([family.exact], "exact")
    elif isinstance(family, Bounds):
        refine(runner, family, evaluations)
    return runner.best


def _proposals(line: _Line, sizes: _Sizes, n: int) -> list[float]:
    """Up to n positions not tried yet, the most promising first; none if nothing is worth a trial."""
    family = line.family
    if not line.trials and n == 1:
        return [family.start]
    every = np.arange(round(family.low / family.grid), round(family.high / family.grid) + 1) * family.grid
    free = np.array([x for x in every if x not in line.trials])
    chances = line.chances(free)
    fitting = [x for x, trial in line.trials.items() if trial.fits]
    # While nothing fits, what is all but certain to fit stands for the best.
    safe = free[chances > _CERTAIN]
    best = sizes.at(max(fitting) if fitting else float(safe.max()) if safe.size else family.low)
    likely = [
        (x, p) for x, p in zip(free.tolist(), chances, strict=True) if p > 0.02 and (not fitting or x > max(fitting))
    ]
    # Where nearly everything fits, only the farthest can be the best.
    gains = {x: p * (best - sizes.at(x)) for x, p in likely if p < 0.98 or x == likely[-1][0]}
    gains = {x: gain for x, gain in gains.items() if gain > _WORTH * best}
    chosen: list[float] = []
    for x in sorted(gains, key=lambda x: -gains[x]):
        if len(chosen) < n and all(abs(x - other) > 2 * family.grid or family.grid == 1 for other in chosen):
            chosen.append(x)
    if not chosen and not fitting:
        return [x for x in (family.low,) if x not in line.trials]
    return chosen
