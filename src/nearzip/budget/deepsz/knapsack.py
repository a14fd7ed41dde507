"""Which error bound for which layer: DeepSZ's Algorithm 2, a knapsack over losses on a grid.

Jin et al., HPDC 2019, section 3.4. docs/methods/deepsz.md says how its gaps are filled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearzip.errors import BudgetError, UsageError

__all__ = ["Option", "best_accuracy", "smallest"]

#: Algorithm 2 counts losses in hundredths of the expected one.
GRID = 100
#: The expected-ratio mode counts bytes in as many steps.
_SIZE_GRID = 4096


@dataclass(frozen=True)
class Option:
    """One way to store a layer, as assessed: its error bound, what it loses on its own, and its bytes.

    Parameters
    ----------
    bound : float
        Absolute error bound; what an option is called in the result. Any other number that names it does as well.
    loss : float
        Accuracy lost with this layer alone compressed; a gain is negative and counts as zero.
    n_bytes : int
    """

    bound: float
    loss: float
    n_bytes: int


Layers = Mapping[str, Sequence[Option]]


def smallest(layers: Layers, max_loss: float) -> dict[str, Option]:
    """The options of least size whose losses add up to at most `max_loss` (expected-accuracy mode).

    Algorithm 2 on a grid of max_loss / 100: losses are clipped at zero and rounded up, so that the sum is never
    underestimated. `max_loss=0` is the zero-loss setting: only options that lose nothing.

    Parameters
    ----------
    layers : mapping of layer name to its options
    max_loss : float
        At least 0, in units of the options' losses.

    Returns
    -------
    dict of layer name to option
        Of equal sizes the one of less loss.

    Raises
    ------
    BudgetError
        No choice is within the loss.
    UsageError
        A layer without options, or a negative `max_loss`.

    Examples
    --------
    >>> fine, coarse = Option(1e-3, 0.0, 100), Option(1e-2, 0.15, 40)
    >>> [option.bound for option in smallest({"a": [fine, coarse], "b": [fine, coarse]}, 0.2).values()]
    [0.01, 0.001]
    """
    _check(layers, max_loss)
    costs = {name: [_steps(o.loss, max_loss) for o in options] for name, options in layers.items()}
    chosen = _least(
        [[(cost, float(o.n_bytes)) for cost, o in zip(costs[name], layers[name], strict=True)] for name in layers], GRID
    )
    if chosen is None:
        raise BudgetError(f"no choice of error bounds is expected to lose at most {max_loss:g}; assess smaller ones")
    return {name: layers[name][i] for name, i in zip(layers, chosen, strict=True)}


def best_accuracy(layers: Layers, max_bytes: int) -> dict[str, Option]:
    """The options of least expected loss that take at most `max_bytes` together (expected-ratio mode).

    Algorithm 2 with the roles of size and loss exchanged: sizes are rounded up to a grid of max_bytes / 4096.
    Parameters and errors are those of `smallest`.

    Examples
    --------
    >>> fine, coarse = Option(1e-3, 0.0, 100), Option(1e-2, 0.15, 40)
    >>> [option.bound for option in best_accuracy({"a": [fine, coarse], "b": [fine, coarse]}, 150).values()]
    [0.01, 0.001]
    """
    _check(layers, max_bytes)
    rows = [
        # A loss that is no number is none to choose.
        [(-(-o.n_bytes * _SIZE_GRID // max(1, max_bytes)), max(0.0, o.loss) if o.loss < math.inf else math.inf)
         for o in options]
        for options in layers.values()
    ]  # fmt: skip
    chosen = _least(rows, _SIZE_GRID)
    if chosen is None:
        least = sum(min(o.n_bytes for o in options) for options in layers.values())
        raise BudgetError(f"no choice of error bounds takes at most {max_bytes} bytes; the smallest takes {least}")
    return {name: layers[name][i] for name, i in zip(layers, chosen, strict=True)}


def _check(layers: Layers, budget: float) -> None:
    if not 0 <= budget < math.inf:
        raise UsageError(f"a budget is a number from 0 on, not {budget!r}")
    for name, options in layers.items():
        if not options:
            raise UsageError(f"layer {name!r} has no assessed error bound to choose from")


def _steps(loss: float, max_loss: float) -> int:
    """Grid steps that a loss takes, rounded up; beyond the grid if it is over the budget or no number."""
    if loss <= 0:
        return 0
    if not loss <= 2 * max_loss:
        return GRID + 1
    # A loss of exactly k steps must not become k + 1 by a rounding of the quotient.
    return math.ceil(loss / max_loss * GRID - 1e-9)


def _least(rows: Sequence[Sequence[tuple[int, float]]], grid: int) -> list[int] | None:
    """For each row the (cost, value) that makes the sum of values least with costs adding up to at most `grid`.

    Returns None if there is no such choice. Ties go to the lower sum of costs.
    """
    best = np.full(grid + 1, np.inf)
    best[0] = 0.0
    chosen = []
    for row in rows:
        candidates = np.full((len(row), grid + 1), np.inf)
        for i, (cost, value) in enumerate(row):
            if cost <= grid:
                candidates[i, cost:] = best[: grid + 1 - cost] + value
        chosen.append(candidates.argmin(axis=0))
        best = candidates.min(axis=0)
    at = int(best.argmin())
    if not np.isfinite(best[at]):
        return None
    # Back from the last layer to the first.
    picks = []
    for row, choice in zip(reversed(rows), reversed(chosen), strict=True):
        picks.append(int(choice[at]))
        at -= row[picks[-1]][0]
    return picks[::-1]
