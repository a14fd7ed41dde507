"""The step (distance between levels) of each tensor, from one Lagrangian.

A value that is coded with step s costs about -log2 s bits, and its rounding s^2 c / 24 nats of divergence, c being what
a unit of error costs there. So at the best steps s^2 c is the same everywhere; where most levels are zero, a finer
step costs matrices less than a bit, and the others get a coarser one to match. Steps lie on a grid, so that tensors
with equal ones share a stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Cost", "Steps"]

#: Two steps an octave.
_PER_OCTAVE = 2
#: Tensors that are not calibrated get at most the network's step, and at least this share of it.
_FINEST = 1 / 32
#: Buffers have no gradient to go by.
_UNKNOWN = 1 / 8


@dataclass(frozen=True)
class Cost:
    """A tensor's cost: the logarithm of the cost of a unit of error (None: unknown), and the number of values.

    `carried`: whether its error is carried to later columns; the network's step is defined over those tensors.
    """

    log_cost: float | None
    n: int
    carried: bool


@dataclass(frozen=True)
class Steps:
    """Steps of a network's tensors for any step of the network as a whole, the geometric mean over carried values."""

    costs: Mapping[str, Cost]

    @property
    def _carried(self) -> list[Cost]:
        return [cost for cost in self.costs.values() if cost.carried]

    @property
    def _mean(self) -> float:
        """Logarithm of the cost, mean over carried values."""
        n = sum(cost.n for cost in self._carried)
        return sum((cost.log_cost or 0.0) * cost.n for cost in self._carried) / n if n else 0.0

    def divergence(self, step: float) -> float:
        """Estimated, in nats per prediction."""
        return sum(cost.n for cost in self._carried) * step**2 * math.exp(self._mean) / 24

    def for_divergence(self, divergence: float) -> float | None:
        """The step estimated to lead to that divergence; None if nothing is known."""
        unit = self.divergence(1.0)
        return math.sqrt(divergence / unit) if unit > 0 else None

    def of(self, name: str, step: float, price: float = 1.0) -> float:
        """A tensor's own step. `price`: bits that half the step costs a carried value; it is a bit for the others."""
        cost = self.costs[name]
        if cost.log_cost is None:
            return step * (1.0 if cost.carried else _UNKNOWN)
        share = math.exp((self._mean - cost.log_cost) / 2)
        if not cost.carried:
            share = min(1.0, max(_FINEST, share / math.sqrt(price)))
        return step * math.pow(2, round(_PER_OCTAVE * math.log2(share)) / _PER_OCTAVE)
