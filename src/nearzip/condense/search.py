"""The search for the smallest share within the budget: a root finder between what fits and what does not.

Neither a Bayesian optimizer nor a second search: what a share is worth is measured on networks that are thinned and
not trained, so that all trainings go into the accuracy. The line through the bracket runs over log2 of the share and
log2 of the budget's usage, because accuracy falls within a few percent of the sparsest networks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

from nearzip.condense.objectives import Objective
from nearzip.condense.recovery import load_values, marked
from nearzip.condense.runner import Runner
from nearzip.condense.schemes import Prepared
from nearzip.condense.trial import Trial, Work
from nearzip.errors import UsageError

__all__ = ["SAMPLES", "candidates", "search"]

#: Trainings of one search.
SAMPLES = 5
#: Shares whose objective is measured, and the least of them.
_GRID, _LEAST = 40, 2.0**-10
#: Of a timing of an untrained network.
_ROUNDS = 5
#: A bracket this narrow is not divided further: its ends differ by less than 7 %.
_NARROW = 0.1
#: In a bracket this narrow a near miss is repeated; in a wider one another share says more.
_REPEATED = 0.3
#: Usages beyond these say nothing about the slope near 1.
_CLIP = 4.0
#: One-shot pruning that loses so many times the budget is about where training just recovers it.
_FIRST_USAGE = 10.0
#: Octaves of usage per octave of density, until two trials say how steep it is.
_SLOPE = 2.0


def candidates(work: Work, prepared: Prepared) -> list[float]:
    """Shares that are worth a training, falling: each has a better objective than all larger ones.

    The objective is measured on copies that are thinned and not trained. Raises UsageError if no share improves it.
    """
    grid: dict[object, float] = {}
    for i in range(1, _GRID + 1):
        keep = prepared.snap(_LEAST ** (i / _GRID))
        if keep < 1:
            grid.setdefault(prepared.key(keep), keep)
    if work.objective.name in ("bytes", "nonzeros16"):
        return list(grid.values())
    # Many are measured, and the one that is chosen once more.
    quick = replace(work.objective, rounds=_ROUNDS)
    best = quick.original(work.module).value
    found = []
    for keep in grid.values():
        value = _untrained(work, prepared, keep, quick)
        if quick.better(value, best):
            best = value
            found.append(keep)
    if not found:
        raise UsageError(
            f"no share of {work.scheme} improves the objective {work.objective.name!r}; take another objective or "
            "another scheme"
        )
    return found


def _untrained(work: Work, prepared: Prepared, keep: float, objective: Objective) -> float:
    module = copy.deepcopy(work.module)
    load_values(module, prepared.project(marked(module, prepared), keep))
    return objective.measure(prepared.thin(module, keep), work.module).value


def search(runner: Runner, worth: Sequence[float]) -> Trial | None:
    """The best trial within the budget; None if there is none. `worth`: shares that may be trained, falling."""
    finder = _Finder(runner, worth)
    while runner.left > 0:
        near = finder.near_miss()
        if near is not None:
            # One image more or less would have made the difference: another seed decides.
            runner.run([near.keep], "again", again=1)
            continue
        points = finder.next(runner.workers())
        if not points:
            break
        runner.run(points, "search")
    return runner.best


class _Finder:
    """The bracket: the smallest share that fits, and the largest below it that does not, in log2."""

    def __init__(self, runner: Runner, worth: Sequence[float]):
        self._runner, self._worth = runner, list(worth)
        # Unstructured shares are continuous: any of them may be tried, not only those of the grid.
        self._continuous = runner.work.objective.name in ("bytes", "nonzeros16") and not isinstance(
            runner.prepared.key(0.5), tuple
        )

    def next(self, n: int) -> list[float]:
        """The next shares to try, none if the bracket is narrow enough."""
        high, low = self._bracket()
        if low is None and high is None:
            first = self._first()
            return self._tried([first + (i - (n - 1) / 2) for i in range(n)], -math.inf, 0.0)
        top, under = (
            (0.0 if high is None else math.log2(high.keep)),
            (-math.inf if low is None else math.log2(low.keep)),
        )
        if top - under < _NARROW:
            return []
        if n > 1 and math.isfinite(under):
            return self._tried([under + (top - under) * (i + 1) / (n + 1) for i in range(n)], under, top)
        return self._tried([self._line(high, low) - i * 0.5 for i in range(n)], under, top)

    def near_miss(self) -> Trial | None:
        """The lower end of a narrow bracket, if it missed the budget by less than its noise and was tried once."""
        high, low = self._bracket()
        if low is None or not low.nearly or sum(t.keep == low.keep for t in self._runner.trials) > 1:
            return None
        top = 0.0 if high is None else math.log2(high.keep)
        return low if top - math.log2(low.keep) < _REPEATED else None

    def _bracket(self) -> tuple[Trial | None, Trial | None]:
        feasible = self._runner.feasible
        high = min(feasible, key=lambda t: t.keep, default=None)
        fitting = {t.keep for t in feasible}
        over = [t for t in self._runner.trials if t.keep not in fitting and (high is None or t.keep < high.keep)]
        return high, max(over, key=lambda t: t.keep, default=None)

    def _line(self, high: Trial | None, low: Trial | None) -> float:
        """Where the usage is about 1, in log2 of the share."""
        if high is None:
            assert low is not None
            return math.log2(low.keep) + min(max(_level(low) / _SLOPE, 0.4), 2.0)
        x, y = math.log2(high.keep), _level(high)
        if low is None:
            return x - min(max(-y / _SLOPE, 0.3), 1.5)
        x_low, y_low = math.log2(low.keep), max(_level(low), 0.05)
        at = x_low + (x - x_low) * y_low / max(y_low - y, 1e-9)
        width = x - x_low
        return min(max(at, x_low + 0.15 * width), x - 0.15 * width)

    def _first(self) -> float:
        """The least share at which pruning without training loses about ten times the budget, in log2.

        Or half of all there is to lose, if that is less.
        """
        work, prepared = self._runner.work, self._runner.prepared
        low, high = 0, len(self._worth) - 1
        most = min(_FIRST_USAGE, work.one_shot(self._worth[high], prepared) / 2)
        while low < high:
            middle = (low + high + 1) // 2
            if work.one_shot(self._worth[middle], prepared) <= most:
                low = middle
            else:
                high = middle - 1
        return math.log2(self._worth[low])

    def _tried(self, points: Sequence[float], low: float, high: float) -> list[float]:
        """Shares at or near these points in log2, inside the bracket, each once and none twice."""
        done = {trial.keep for trial in self._runner.trials}
        found: list[float] = []
        for point in points:
            if self._continuous:
                keep = self._runner.prepared.snap(min(2.0**point, 0.99))
            else:
                free = [k for k in self._worth if k not in done and k not in found and low < math.log2(k) < high]
                if not free:
                    continue
                keep = min(free, key=lambda k: abs(math.log2(k) - point))
            if keep not in done and keep not in found:
                found.append(keep)
        return found


def _level(trial: Trial) -> float:
    """log2 of the usage, clipped: a network that collapsed says no more than that it did."""
    if trial.recovered <= 0:
        return -_CLIP
    return min(max(math.log2(max(trial.recovered, 1e-9)), -_CLIP), _CLIP)
