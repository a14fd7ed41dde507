"""Whether a bound was kept, worked out without nearzip: rational numbers where it is close, integers for bits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def _native(array: Array) -> Array:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(-1)


def _bits(array: Array) -> Array:
    return array.view(np.uint8).reshape(array.size, -1)


def finite_values(array: Array) -> Array:
    with np.errstate(all="ignore"):
        wide = _native(array).astype(np.float64)
    return wide[np.isfinite(wide)]


def _allowed(kind: str, value: float, original: Array) -> Fraction | None:
    """The tolerance of a whole tensor; None: pointwise. In rational numbers, the square root from below."""
    if kind == "lossless":
        return Fraction(0)
    if kind == "abs":
        return Fraction(value)
    if kind == "pwrel":
        return None
    finite = [Fraction(v) for v in finite_values(original).tolist()]
    if not finite:
        return Fraction(0)
    if kind == "rel":
        return Fraction(value) * (max(finite) - min(finite))
    squares = Fraction(value) ** 2 * sum(v * v for v in finite) / len(finite)
    # floor(sqrt(p/q)) in units of 2^-1200: integers only
    return Fraction(math.isqrt((squares.numerator << 2400) // squares.denominator), 1 << 1200)


class Verdict:
    """What the oracle says of one tensor: places outside the bound, and the largest error over its tolerance."""

    def __init__(self) -> None:
        self.broken: list[int] = []
        self.worst = 0.0


def judge(original: Array, restored: Array, kind: str, value: float) -> Verdict:
    """`kind`, `value`: as on the command line, lossless, abs, rel, pwrel or rms."""
    verdict = Verdict()
    x, y = _native(original), restored.reshape(-1)
    if x.dtype != y.dtype or original.shape != restored.shape:
        verdict.broken = [-1]
        return verdict
    same = (_bits(x) == _bits(y)).all(axis=1) if x.size else np.ones(0, bool)
    differs = np.flatnonzero(~same)
    if kind == "lossless" or x.dtype.kind in "biuc" or not differs.size:
        verdict.broken = differs.tolist()
        return verdict
    # First in float64, which settles all that is not close: sums of this length are good to 1e-9.
    ratio = _ratio(x[differs], y[differs], kind, value, original)
    if ratio < 1 - 1e-6:
        verdict.worst = ratio
        return verdict
    tolerance = _allowed(kind, value, original)
    with np.errstate(all="ignore"):
        pairs = zip(differs.tolist(), x[differs].astype(float).tolist(), y[differs].astype(float).tolist(), strict=True)
    for i, one, other in pairs:
        if not (math.isfinite(one) and math.isfinite(other)):
            verdict.broken.append(i)
            continue
        allowed = Fraction(value) * abs(Fraction(one)) if tolerance is None else tolerance
        difference = abs(Fraction(one) - Fraction(other))
        if difference > allowed:
            verdict.broken.append(i)
        elif allowed:
            verdict.worst = max(verdict.worst, float(difference / allowed))
    return verdict


def _ratio(x: Array, y: Array, kind: str, value: float, original: Array) -> float:
    """The largest error over its tolerance in float64; infinite where that has no digits or is not finite."""
    finite = finite_values(original)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        error = np.abs(wide - y.astype(np.float64))
        allowed = {
            "abs": value,
            "rel": value * (finite.max() - finite.min()) if finite.size else 0.0,
            "rms": value * np.sqrt(np.mean(finite * finite)) if finite.size else 0.0,
            "pwrel": value * np.abs(wide),
        }[kind]
        allowed = np.broadcast_to(allowed, error.shape)
        # Squares below 1e-290 have lost digits.
        if not (np.isfinite(error).all() and (allowed > 1e-140).all() and (allowed < 1e140).all()):
            return math.inf
        return float((error / allowed).max())
