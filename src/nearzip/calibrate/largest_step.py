"""The coarsest step whose divergence stays below a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from nearzip.errors import BudgetError

__all__ = ["largest_step"]

T = TypeVar("T")

_MAX_TRIES = 10
#: A divergence of this share of the target is near enough.
_NEAR = 0.9


def largest_step(
    first: float, target: float, attempt: Callable[[float], T], divergence: Callable[[T], float]
) -> tuple[float, T]:
    """Close in on `target` from both sides; divergence grows like the square of the step, more or less.

    Parameters
    ----------
    first : float
        The step to begin with.
    target : float
        The largest divergence allowed.
    attempt : callable
        From a step to a result.
    divergence : callable
        Of a result.

    Raises
    ------
    BudgetError
        No step that was tried stays below the target.
    """
    low: tuple[float, float, T] | None = None
    high: tuple[float, float] | None = None
    step = first
    for _ in range(_MAX_TRIES):
        result = attempt(step)
        found = max(divergence(result), 1e-300)
        if found > target or math.isnan(found):
            high = (step, found)
        elif low is None or step > low[0]:
            low = (step, found, result)
            if found >= _NEAR * target:
                break
        step = _next(low and low[:2], high, target)
    if low is None:
        raise BudgetError(
            f"a divergence of {target:g} cannot be kept; {high[1] if high else 0:.3g} is what was reached"
        )
    return low[0], low[2]


def _next(low: tuple[float, float] | None, high: tuple[float, float] | None, target: float) -> float:
    """Between the two on logarithmic axes; beyond the only one by the square root, at most eightfold."""
    aim = target * (1 + _NEAR) / 2
    if low and high:
        if math.isfinite(high[1]) and high[1] > low[1]:
            share = (math.log(aim) - math.log(low[1])) / (math.log(high[1]) - math.log(low[1]))
        else:
            share = 0.5
        share = min(0.9, max(0.1, share))
        return low[0] * math.pow(high[0] / low[0], share)
    step, found = low or high or (1.0, target)
    factor = math.sqrt(aim / found) if math.isfinite(found) else 1 / 8
    return step * min(8.0, max(1 / 8, factor if high is None else min(factor, 0.9)))
