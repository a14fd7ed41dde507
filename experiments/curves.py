"""Bits at a given divergence, read off a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

#: Divergences at which methods are compared, nats per prediction.
TARGETS = (1e-4, 3e-4, 1e-3)


def envelope(points: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(KL, bits) of the points that no other beats in both, by rising KL."""
    best: list[tuple[float, float]] = []
    for kl, bits in sorted((p["kl"], p["bits_per_parameter"]) for p in points):
        if kl > 0 and (not best or bits < best[-1][1]):
            best.append((kl, bits))
    return best


def bits_at(points: Sequence[dict[str, Any]], kl: float) -> float | None:
    """Bits per parameter at a divergence, straight in log-log between neighbouring points; None outside the sweep.

    >>> sweep = [{"kl": 1e-4, "bits_per_parameter": 4.0}, {"kl": 1e-2, "bits_per_parameter": 1.0}]
    >>> round(bits_at(sweep, 1e-3), 6)
    2.0
    >>> bits_at(sweep, 1e-5) is None
    True
    """
    for (kl_0, bits_0), (kl_1, bits_1) in pairwise(envelope(points)):
        if kl_0 <= kl <= kl_1:
            share = math.log(kl / kl_0) / math.log(kl_1 / kl_0)
            return math.exp((1 - share) * math.log(bits_0) + share * math.log(bits_1))
    return None


def gap(theirs: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], kl: float) -> float | None:
    """How many times our bits they take at the same divergence."""
    a, b = bits_at(theirs, kl), bits_at(ours, kl)
    return a / b if a is not None and b is not None else None
