"""Error bounds: what is promised for every element, and the check that it was kept.

A bound speaks about all tensors; resolved against one tensor it becomes a `Tolerance`. Integers, booleans and complex
numbers are always exact, and so are NaN and the infinities, payloads included.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

import nearzip._core as _core
from nearzip.errors import UsageError
from nearzip.tensors import Array, bits_of, is_float

__all__ = [
    "Absolute",
    "Bound",
    "Lossless",
    "NoPromise",
    "PointwiseRelative",
    "Relative",
    "Rms",
    "Statistics",
    "Tolerance",
    "parse_bound",
    "violations",
]


@dataclass(frozen=True)
class Statistics:
    """Of the finite values of one tensor or several, in float64: how many, smallest, largest, sum of squares."""

    finite: int = 0
    low: float = 0.0
    high: float = 0.0
    sum_squares: float = 0.0

    @staticmethod
    def of(values: Array) -> Statistics:
        """One pass over an array of any floating-point dtype."""
        working = values.reshape(-1)
        if working.dtype.itemsize < 4:
            working = working.astype(np.float32)
        return Statistics(*_core.statistics(working))

    def __add__(self, other: Statistics) -> Statistics:
        if not self.finite:
            return other
        if not other.finite:
            return self
        return Statistics(
            self.finite + other.finite,
            min(self.low, other.low),
            max(self.high, other.high),
            self.sum_squares + other.sum_squares,
        )

    @property
    def rms(self) -> float:
        return math.sqrt(self.sum_squares / self.finite) if self.finite else 0.0

    @property
    def largest(self) -> float:
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Tolerance:
    """What is promised for one tensor: bits, |x - x'| <= value, |x - x'| <= value |x|, or only that x' is finite where
    x is, and that bits are kept where it is not.
    """

    kind: Literal["exact", "absolute", "pointwise", "finite"]
    value: float = 0.0


EXACT = Tolerance("exact")
#: Above it, the roundings of 2^62 subnormal squares together are below 1e-13 of their sum.
_SMALLEST_SQUARES = 1e-290


# One object for all tensors of one promise: they are made and compared once a tensor.
@functools.lru_cache(maxsize=64)
def _tolerance(kind: Literal["absolute", "pointwise"], value: float) -> Tolerance:
    return Tolerance(kind, value) if 0 < value < math.inf else EXACT


@dataclass(frozen=True)
class Bound(ABC):
    """A promise about every element of every tensor. `str(bound)` is how the command line spells it."""

    key: ClassVar[str]
    #: Whether a tensor's statistics are needed to resolve it.
    needs_statistics: ClassVar[bool] = False

    @abstractmethod
    def tolerance(self, statistics: Statistics) -> Tolerance:
        """The promise for a tensor with these statistics."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.key, **vars(self)}


@dataclass(frozen=True)
class Lossless(Bound):
    """Every bit is kept.

    Examples
    --------
    >>> str(Lossless())
    'lossless'
    """

    key = "lossless"

    def tolerance(self, statistics: Statistics) -> Tolerance:
        return EXACT

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True)
class NoPromise(Bound):
    """Finite values stay finite, the others keep their bits: all that pruning and clustering can promise.

    It cannot be asked for; methods that promise nothing against their input have it.

    Examples
    --------
    >>> str(NoPromise())
    'no promise'
    """

    key = "no promise"

    def tolerance(self, statistics: Statistics) -> Tolerance:
        return Tolerance("finite")

    def __str__(self) -> str:
        return self.key


@dataclass(frozen=True)
class _Sized(Bound):
    value: float

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "value", float(self.value))
        except (TypeError, ValueError):
            raise UsageError(f"an error bound is a number, not {self.value!r}") from None
        if not 0 < self.value < math.inf:
            raise UsageError(f"an error bound is positive and finite, not {self.value!r}; to keep every bit: lossless")

    def __str__(self) -> str:
        return f"{self.key}:{self.value:g}"


@dataclass(frozen=True)
class Absolute(_Sized):
    """|x - x'| <= value, in the tensor's units.

    Examples
    --------
    >>> str(Absolute(1e-3))
    'abs:0.001'
    """

    key = "abs"

    def tolerance(self, statistics: Statistics) -> Tolerance:
        return _tolerance("absolute", self.value)


@dataclass(frozen=True)
class Relative(_Sized):
    """|x - x'| <= value (max - min), range over the finite values of the tensor."""

    key = "rel"
    needs_statistics = True

    def tolerance(self, statistics: Statistics) -> Tolerance:
        # Range and product are rounded, the promise is not; 2^-51 covers both, a step down what is subnormal.
        spread = statistics.high - statistics.low
        value = math.nextafter(self.value * spread * (1 - 2**-51), 0) if spread < math.inf else 0.0
        return _tolerance("absolute", value)


@dataclass(frozen=True)
class PointwiseRelative(_Sized):
    """|x - x'| <= value |x|; zeros stay zeros."""

    key = "pwrel"

    def tolerance(self, statistics: Statistics) -> Tolerance:
        return _tolerance("pointwise", self.value)


@dataclass(frozen=True)
class Rms(_Sized):
    """|x - x'| <= value sqrt(mean(x^2)), mean over the finite values of the tensor."""

    key = "rms"
    needs_statistics = True

    def tolerance(self, statistics: Statistics) -> Tolerance:
        # Each addition may be off by 2^-53 of the sum, and whoever sums in another order gets other digits. Squares
        # that are subnormal have lost theirs: exact, like squares beyond the largest double.
        if not _SMALLEST_SQUARES < statistics.sum_squares < math.inf:
            return EXACT
        margin = 1e-12 + statistics.finite * 2**-53
        return _tolerance("absolute", math.nextafter(self.value * statistics.rms * max(0.0, 1 - margin), 0))


_BOUNDS: dict[str, type[_Sized]] = {cls.key: cls for cls in (Absolute, Relative, PointwiseRelative, Rms)}


def parse_bound(text: str) -> Bound:
    """Read a bound as the command line spells it: lossless, abs:1e-3, rel:1e-3, pwrel:0.01, rms:0.01.

    Examples
    --------
    >>> parse_bound("rms:0.01")
    Rms(value=0.01)
    """
    kind, _, value = text.partition(":")
    if kind == "lossless" and not value:
        return Lossless()
    try:
        return _BOUNDS[kind](float(value))
    except (KeyError, ValueError):
        raise UsageError(
            f"cannot read the bound {text!r}; write lossless, abs:1e-3, rel:1e-3, pwrel:0.01 or rms:0.01"
        ) from None


def violations(original: Array, decoded: Array, tolerance: Tolerance) -> Array:
    """Where a promise is broken.

    Parameters
    ----------
    original, decoded : arrays, shape (n,), same dtype
    tolerance : Tolerance

    Returns
    -------
    array of int64
        Increasing indices of the elements outside. A non-finite original counts unless its bits were kept. Types up
        to 32 bits are compared in float64, float64 with an error-free difference.
    """
    if tolerance.kind == "exact" or not is_float(original.dtype):
        if _core.same_bytes(_bytes_of(original), _bytes_of(decoded)):
            return np.empty(0, np.int64)
        per_value = 2 if original.dtype.kind == "c" else 1
        differs = bits_of(original) != bits_of(decoded)
        return np.flatnonzero(differs.reshape(-1, per_value).any(axis=1)) if per_value > 1 else np.flatnonzero(differs)
    if tolerance.kind == "finite":
        return _not_finite(original, decoded)
    left, right = original, decoded
    if original.dtype.itemsize < 4:
        left, right = original.astype(np.float32), decoded.astype(np.float32)
    suspects = np.array(_core.outside(left, right, tolerance.value, tolerance.kind == "pointwise"), dtype=np.int64)
    if not suspects.size:
        return suspects
    broken: Array = suspects[bits_of(original)[suspects] != bits_of(decoded)[suspects]]
    return broken


def _bytes_of(values: Array) -> Array:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _not_finite(original: Array, decoded: Array) -> Array:
    """Where a value that is not finite lost its bits, or a finite one became something else."""
    with np.errstate(invalid="ignore"):
        was, stays = np.isfinite(original), np.isfinite(decoded)
    suspects = np.flatnonzero(~(was & stays))
    broken: Array = suspects[bits_of(original)[suspects] != bits_of(decoded)[suspects]]
    return broken
