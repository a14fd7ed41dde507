"""Bits at a given divergence, read off a sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

#: Divergences at which methods are compared, nats per prediction.
TARGETS = (1e-4, 3e-4, 1e-3)
#: Bits of plain rounding at which others are compared with it.
RATES = (3.0, 1.5, 0.3)
#: Points whose step is within so many octaves of where a divergence is reached take part in its curve.
_REACH = 0.8

#: Of a dense sweep: "step", "bits", "kl", and maybe "error".
Point = dict[str, float]


def envelope(points: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(KL, bits) of the points that no other beats in both, by rising KL; those without a divergence are left out."""
    best: list[tuple[float, float]] = []
    for kl, bits in sorted((p["kl"], p["bits_per_parameter"]) for p in points if p["kl"] is not None):
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
    """Their bits over ours at the same divergence."""
    a, b = bits_at(theirs, kl), bits_at(ours, kl)
    return a / b if a is not None and b is not None else None


def at_divergence(points: Sequence[Point], kl: float, key: str = "kl") -> float | None:
    """Bits at a divergence in a dense sweep, or where another of its measures has that value; None outside.

    The logarithm of the divergence is a parabola over that of the step, through the points around; bits have no noise.
    """
    ordered = sorted(points, key=lambda p: p["step"])
    step, found, bits = (np.log2([max(p[name], 1e-300) for p in ordered]) for name in ("step", key, "bits"))
    above = found > math.log2(kl)
    if not above.any() or above.all():
        return None
    crossing = step[int(above.argmax())]
    near = np.abs(step - crossing) <= _REACH
    # The square of what each counts: near ones most, as in LOESS (Cleveland, 1979).
    counts = np.sqrt((1 - (np.abs(step[near] - crossing) / (1.01 * _REACH)) ** 3) ** 3)
    curve = np.polyfit(step[near] - crossing, found[near], max(1, min(2, int(near.sum()) - 2)), w=counts)
    finely = np.linspace(step[near].min(), step[near].max(), 1001)
    at = finely[np.abs(np.polyval(curve, finely - crossing) - math.log2(kl)).argmin()]
    return float(2 ** np.interp(at, step, bits))


def against(plain: Sequence[Point], points: Sequence[Point]) -> dict[str, Any]:
    """Bits over those of plain rounding: at the targets' divergences, and where plain rounding takes certain bits, at
    its divergence and at its mean square error there."""
    found: dict[str, Any] = {"kl": {f"{kl:g}": _quotient(plain, points, "kl", kl) for kl in TARGETS}, "rate": {}}
    for rate in RATES:
        level = {key: _at_rate(plain, key, rate) for key in ("kl", "error")}
        found["rate"][f"{rate:g}"] = {key: _quotient(plain, points, key, value) for key, value in level.items()}
    return found


def _bits(points: Sequence[Point], key: str, value: float) -> float | None:
    return at_divergence(points, value, key) if all(key in p for p in points) else None


def _quotient(plain: Sequence[Point], points: Sequence[Point], key: str, value: float | None) -> float | None:
    ours, theirs = (_bits(p, key, value) if value else None for p in (plain, points))
    return theirs / ours if ours and theirs else None


def _at_rate(points: Sequence[Point], key: str, bits: float) -> float | None:
    """The divergence or error where so many bits are taken."""
    ordered = sorted(points, key=lambda p: p["bits"])
    if not ordered[0]["bits"] <= bits <= ordered[-1]["bits"]:
        return None
    known = [math.log(p[key]) for p in ordered]
    return math.exp(float(np.interp(math.log(bits), [math.log(p["bits"]) for p in ordered], known)))
