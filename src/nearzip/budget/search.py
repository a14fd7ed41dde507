"""Our search: few evaluations, each where it is expected to save most."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nearzip.budget.belief import Belief
from nearzip.budget.families import Bounds, Family
from nearzip.budget.plan import Trial
from nearzip.budget.refine import refine
from nearzip.budget.trials import Runner, n_workers
from nearzip.caching import cached_property
from nearzip.tensors import Array

__all__ = ["EVALUATIONS", "search"]

#: Most trials, unless the caller says otherwise.
EVALUATIONS = 5
#: log2 of usage where a search begins, and its spread there.
_START, _START_SPREAD = 0.0, 4.0
#: log2 of usage per position: divergence and loss grow with the square of the error, lost accuracy with the error.
_SLOPE, _SLOPE_SPREAD = 1.5, 0.5
#: A search ends when no trial is expected to save this share of the best.
_WORTH = 0.002
#: The chance of a setting that a search may count on; where noise leaves no chance so high, this share of the highest.
_CERTAIN = 0.95
#: Of an update that uses no more of the budget than this where the search begins, perhaps nothing is needed.
_LITTLE = 0.5
#: Sizes are measured this far apart, and interpolated between.
_SURVEY = 0.5


@dataclass(frozen=True)
class _Line:
    """log2 of usage as a straight line in the position."""

    start: float

    @property
    def mean(self) -> Array:
        return np.array([_START, _SLOPE])

    @property
    def covariance(self) -> Array:
        return np.diag([_START_SPREAD**2, _SLOPE_SPREAD**2])

    def log_usage(self, parameters: Array, settings: Array) -> tuple[Array, Array]:
        rows = math.log(2) * np.stack([np.ones_like(settings), settings - self.start], axis=1)
        return rows @ parameters, rows


@dataclass
class _Sizes:
    """Bytes of an archive by position, measured where they are asked for and interpolated between."""

    family: Family
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
            self.known[position] = math.log(self.family.n_bytes(position))
        return self.known[position]


def search(runner: Runner, family: Family, evaluations: int) -> Trial | None:
    """The smallest trial within the budget, after at most `evaluations`; None if there is none.

    The next trial is where it is expected to save most: the chance that it is within the budget, by a line through the
    trials so far (log2 of usage over log2 of the bound) and noise as large as they show, times the bytes that it would
    save. With several workers a round tries as many positions as there are workers. Evaluations beyond those are for
    bounds of single tensors (see `refine`).
    """
    sizes, tried = _Sizes(family), dict[float, Trial]()
    first = family.first[:evaluations]
    tried.update(zip(first, runner.run([family.at(x) for x in first], "search"), strict=True))
    most = min(evaluations, max(EVALUATIONS, n_workers())) if isinstance(family, Bounds) else evaluations
    while len(runner.trials) < most:
        positions = _proposals(_Around(family, tried), sizes, min(n_workers(), most - len(runner.trials)))
        if not positions:
            break
        trials = runner.run([family.at(x) for x in positions], "search")
        tried.update(zip(positions, trials, strict=True))
    if runner.best is None and family.exact is not None:
        runner.run([family.exact], "exact")
    elif isinstance(family, Bounds):
        refine(runner, family, tried, evaluations)
    return runner.best


@dataclass(frozen=True)
class _Around:
    """A family's positions that were tried, and those that were not."""

    family: Family
    tried: dict[float, Trial]

    @cached_property
    def free(self) -> Array:
        low, high = (round(end / self.family.grid) for end in (self.family.low, self.family.high))
        every = np.arange(low, high + 1) * self.family.grid
        return np.array([x for x in every if x not in self.tried])

    @cached_property
    def chances(self) -> Array:
        """Probability that a trial is within the budget, for each that is free."""
        usage = [trial.usage for trial in self.tried.values()]
        return Belief(_Line(self.family.start), np.array(list(self.tried)), usage).chances(self.free)

    @property
    def may_be_dropped(self) -> bool:
        """Whether an update of which the start spares much should be tried without, before anything between.

        What an accuracy loses does not grow steadily with what is left out of an update.
        """
        spared = self.tried[self.family.start].usage <= _LITTLE if self.family.start in self.tried else False
        return spared and self.family.droppable and self.family.high not in self.tried

    @property
    def farthest(self) -> float:
        """Of those within the budget."""
        return max((x for x, trial in self.tried.items() if trial.fits), default=-math.inf)


def _proposals(around: _Around, sizes: _Sizes, n: int) -> list[float]:
    """Up to n positions not tried yet, the most promising first; none if nothing is worth a trial."""
    family = around.family
    if n == 1 and around.farthest < family.start and set(around.tried) <= {*family.first} - {family.start}:
        return [family.start]
    gains = _gains(around, sizes)
    chosen = [family.high] if around.may_be_dropped else []
    for x in sorted(gains, key=lambda x: -gains[x]):
        if len(chosen) < n and all(abs(x - other) > 2 * family.grid or family.grid == 1 for other in chosen):
            chosen.append(x)
    if not chosen and not math.isfinite(around.farthest):
        return [x for x in (family.low,) if x not in around.tried]
    return chosen


def _gains(around: _Around, sizes: _Sizes) -> dict[float, float]:
    """Bytes that a trial is expected to save, where that is worth it."""
    free, chances, farthest = around.free, around.chances, around.farthest
    # While nothing fits, what is all but certain to fit stands for the best.
    certain = min(_CERTAIN, _CERTAIN * float(chances.max(initial=0.0)))
    safe = max(free[chances >= certain].tolist(), default=around.family.low)
    best = sizes.at(farthest if math.isfinite(farthest) else safe)
    likely = [(x, p) for x, p in zip(free.tolist(), chances.tolist(), strict=True) if p > 0.02 and x > farthest]
    # Where nearly everything fits, only the farthest can be the best.
    gains = {x: p * (best - sizes.at(x)) for x, p in likely if p < 0.98 or x == likely[-1][0]}
    return {x: gain for x, gain in gains.items() if gain > _WORTH * best}
