"""The search of strategy "nearzip": few evaluations, each where it is expected to save most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nearzip.budget.jobs import n_workers
from nearzip.budget.posterior import Posterior
from nearzip.budget.refine import refine
from nearzip.budget.spaces import Bounds, Space, Steps
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Runner
from nearzip.caching import cached_property
from nearzip.tensors import Array

__all__ = ["EVALUATIONS", "search"]

#: Maximum number of trials by default.
EVALUATIONS = 5
#: log2 of the usage expected at the start of a search, and its standard deviation.
_START, _START_SPREAD = 0.0, 4.0
#: log2 of usage per position: divergence and loss grow with the square of the error, lost accuracy with the error.
_SLOPE, _SLOPE_SPREAD = 1.5, 0.5
#: A search ends when no trial is expected to save this share of the best archive.
_WORTH = 0.002
#: The probability at which a setting counts as safe; where noise leaves none so high, this share of the highest.
_CERTAIN = 0.95
#: If the first trial of an update uses at most this share of the budget, the unchanged base is tried next.
_LITTLE = 0.5
#: Distance of the positions at which sizes are measured; they are interpolated between.
_SURVEY = 0.5
#: How much coarser a step other ways to round are tried at, each time: a quarter of an octave.
_COARSER = 0.25


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
    """Bytes of an archive by position: measured on demand, interpolated in between."""

    space: Space
    known: dict[float, float] = field(default_factory=dict)

    def at(self, position: float) -> float:
        """Expected bytes at a position."""
        below = min(self.space.high, max(self.space.low, math.floor(position / _SURVEY) * _SURVEY))
        above = min(self.space.high, below + _SURVEY)
        low, high = self._log(below), self._log(above)
        share = (position - below) / (above - below) if above > below else 0.0
        return math.exp(low + share * (high - low))

    def _log(self, position: float) -> float:
        if position not in self.known:
            self.known[position] = math.log(self.space.n_bytes(position))
        return self.known[position]


def search(runner: Runner, space: Space, evaluations: int) -> Trial | None:
    """The smallest trial within the budget, after at most `evaluations`; None if there is none.

    The next trial is the one with the largest expected saving: the probability that it is within the budget times the
    bytes that it would save. The probability comes from a line through the trials so far (log2 of usage over log2 of
    the bound) with noise as large as they show. With several workers, each round tries as many positions as there are
    workers. The remaining evaluations refine the bounds of single tensors (see `refine`).
    """
    sizes, tried = _Sizes(space), dict[float, Trial]()
    first = space.first[:evaluations]
    tried.update(zip(first, runner.run([space.at(x) for x in first], "search"), strict=True))
    most = min(evaluations, max(EVALUATIONS, n_workers())) if isinstance(space, (Bounds, Steps)) else evaluations
    while len(runner.trials) < most:
        positions = _proposals(_Around(space, tried), sizes, min(n_workers(), most - len(runner.trials)))
        if not positions:
            break
        trials = runner.run([space.at(x) for x in positions], "search")
        tried.update(zip(positions, trials, strict=True))
    if runner.best is None and space.exact is not None:
        runner.run([space.exact], "exact")
    elif isinstance(space, Bounds):
        refine(runner, space, tried, evaluations)
    elif isinstance(space, Steps):
        _try_roundings(runner, space, tried, evaluations)
    return runner.best


def _try_roundings(runner: Runner, space: Steps, tried: Mapping[float, Trial], evaluations: int) -> None:
    """Other ways to round, at steps ever coarser than the coarsest within the budget, until they exceed it."""
    fits = [x for x, trial in tried.items() if trial.fits]
    reached = [(rounding, max(fits)) for rounding in space.roundings] if fits else []
    while reached and len(runner.trials) < evaluations:
        coarser = [(rounding, min(x + _COARSER, space.high)) for rounding, x in reached]
        coarser = coarser[: evaluations - len(runner.trials)]
        trials = runner.run([rounding.at(x) for rounding, x in coarser], "search")
        reached = [
            each for each, trial in zip(coarser, trials, strict=True) if trial.fits and each[1] < space.high
        ]  # fmt: skip


@dataclass(frozen=True)
class _Around:
    """A space's positions: those that were tried, and the others."""

    space: Space
    tried: dict[float, Trial]

    @cached_property
    def free(self) -> Array:
        low, high = (round(end / self.space.grid) for end in (self.space.low, self.space.high))
        every = np.arange(low, high + 1) * self.space.grid
        return np.array([x for x in every if x not in self.tried])

    @cached_property
    def chances(self) -> Array:
        """Probability of being within the budget, for each position that was not tried."""
        usage = [trial.usage for trial in self.tried.values()]
        return Posterior(_Line(self.space.start), np.array(list(self.tried)), usage).chances(self.free)

    @property
    def may_be_dropped(self) -> bool:
        """Whether the unchanged base should be tried next, before any position in between.

        The accuracy lost does not grow steadily with the part of an update that is left out.
        """
        spared = self.tried[self.space.start].usage <= _LITTLE if self.space.start in self.tried else False
        return spared and self.space.droppable and self.space.high not in self.tried

    @property
    def farthest(self) -> float:
        """The highest position within the budget."""
        return max((x for x, trial in self.tried.items() if trial.fits), default=-math.inf)


def _proposals(around: _Around, sizes: _Sizes, n: int) -> list[float]:
    """Up to n positions not tried yet, the most promising first; none if nothing is worth a trial."""
    space = around.space
    if n == 1 and around.farthest < space.start and set(around.tried) <= {*space.first} - {space.start}:
        return [space.start]
    gains = _gains(around, sizes)
    chosen = [space.high] if around.may_be_dropped else []
    for x in sorted(gains, key=lambda x: -gains[x]):
        if len(chosen) < n and all(abs(x - other) > 2 * space.grid or space.grid == 1 for other in chosen):
            chosen.append(x)
    if not chosen and not math.isfinite(around.farthest):
        return [x for x in (space.low,) if x not in around.tried]
    return chosen


def _gains(around: _Around, sizes: _Sizes) -> dict[float, float]:
    """The expected saving in bytes of each position that is worth a trial."""
    free, chances, farthest = around.free, around.chances, around.farthest
    # While nothing fits, the setting that is almost certain to fit takes the place of the best.
    certain = min(_CERTAIN, _CERTAIN * float(chances.max(initial=0.0)))
    safe = max(free[chances >= certain].tolist(), default=around.space.low)
    best = sizes.at(farthest if math.isfinite(farthest) else safe)
    likely = [(x, p) for x, p in zip(free.tolist(), chances.tolist(), strict=True) if p > 0.02 and x > farthest]
    # Where nearly everything fits, only the highest position can be the best.
    gains = {x: p * (best - sizes.at(x)) for x, p in likely if p < 0.98 or x == likely[-1][0]}
    return {x: gain for x, gain in gains.items() if gain > _WORTH * best}
