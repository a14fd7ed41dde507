"""Error bounds: what is promised for every element, and the check that it was kept.

A bound speaks about all tensors; resolved against one tensor it becomes a `Tolerance`. Integers, booleans and complex
numbers are always exact, and so are NaN and the infinities, payloads included.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

import nearzip._core as _core
from nearzip.changes import Change
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
    "Update",
    "bound_spelling",
    "broken",
    "parse_bound",
    "violations",
    "violations_and_changes",
]


class Statistics(NamedTuple):  # one a tensor: a frozen dataclass takes three times as long to make
    """Statistics of finite values, in float64: their number, minimum, maximum and sum of squares."""

    finite: int = 0
    low: float = 0.0
    high: float = 0.0
    sum_squares: float = 0.0

    @staticmethod
    def of(values: Array) -> Statistics:
        """One pass over an array of any floating-point dtype."""
        return Statistics._make(_core.statistics(_at_least_single(values.reshape(-1))))

    @staticmethod
    def of_difference(values: Array, base: Array) -> Statistics:
        """Statistics of values - base: number of finite ones and sum of squares; minimum and maximum are 0."""
        one, other = _at_least_single(values.reshape(-1)), _at_least_single(base.reshape(-1))
        finite, sum_squares = _core.difference(one, other)
        return Statistics(finite, 0.0, 0.0, sum_squares)

    @staticmethod
    def sum(rows: Iterable[Statistics]) -> Statistics:
        """Statistics of several tensors together, added in order."""
        known = [row for row in rows if row.finite]
        sum_squares = 0.0
        for row in known:  # not by `sum`, whose roundings differ between releases of Python
            sum_squares += row.sum_squares
        if not known:
            return Statistics()
        finite, low, high = (
            sum(row.finite for row in known),
            min(row.low for row in known),
            max(row.high for row in known),
        )
        return Statistics(finite, low, high, sum_squares)

    def __add__(self, other: Statistics) -> Statistics:  # type: ignore[override]
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


class Tolerance(NamedTuple):
    """What is promised for one tensor: bits, |x - x'| <= value, |x - x'| <= value |x|, or only that x' is finite where
    x is, and that bits are kept where it is not.
    """

    kind: Literal["exact", "absolute", "pointwise", "finite"]
    value: float = 0.0


def _at_least_single(values: Array) -> Array:
    """Types below 32 bits as float32, which holds all their values."""
    return values.astype(np.float32) if values.dtype.itemsize < 4 else values


EXACT = Tolerance("exact")
#: Values of less than 32 bits that are converted together.
_CONVERTED = 1 << 16
#: Above it, the roundings of 2^62 subnormal squares together are below 1e-13 of their sum.
_SMALLEST_SQUARES = 1e-290


# One object for all tensors of one promise: it is compared once a tensor.
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
        return _of_rms(self.value, statistics)


def _of_rms(share: float, statistics: Statistics) -> Tolerance:
    """|x - x'| <= share times the root mean square of the statistics."""
    # Each addition may be off by 2^-53 of the sum, and a sum in another order has other digits. Squares
    # that are subnormal have lost theirs: exact, like squares beyond the largest double.
    if not _SMALLEST_SQUARES < statistics.sum_squares < math.inf:
        return EXACT
    margin = 1e-12 + statistics.finite * 2**-53
    return _tolerance("absolute", math.nextafter(share * statistics.rms * max(0.0, 1 - margin), 0))


#: Over what the change is measured that an `Update` bound is a share of.
Scope = Literal["network", "tensor"]


@dataclass(frozen=True)
class Update(_Sized):
    """|x - x'| <= value sqrt(mean((x - b)^2)), b the base's values: a share of the change. Needs a base.

    Parameters
    ----------
    value : float
    per : {"network", "tensor"}
        Over what the mean is taken: all floating-point tensors that the base has with the same dtype and shape, or each
        of them by itself. Only differences that are finite count.

    Notes
    -----
    Tensors that the base does not have, or has with another dtype or shape, are exact. So is everything if nothing
    changed.

    Examples
    --------
    >>> str(Update(0.1)), str(Update(0.1, per="tensor"))
    ('upd:0.1', 'upd:0.1:tensor')
    """

    key = "upd"
    needs_statistics = True

    per: Scope = "network"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in get_args(Scope):
            raise UsageError(f"an update bound is per 'network' or per 'tensor', not {self.per!r}")

    def tolerance(self, statistics: Statistics) -> Tolerance:
        """The promise for a tensor; the statistics are those of the change (`Statistics.of_difference`)."""
        return _of_rms(self.value, statistics)

    def __str__(self) -> str:
        return super().__str__() + (":tensor" if self.per == "tensor" else "")


_BOUNDS: dict[str, type[_Sized]] = {cls.key: cls for cls in (Absolute, Relative, PointwiseRelative, Rms, Update)}


def parse_bound(text: str) -> Bound:
    """Read a bound as the command line spells it: lossless, abs:1e-3, rel:1e-3, pwrel:0.01, rms:0.01, upd:0.1, or
    upd:0.1:tensor.

    Examples
    --------
    >>> parse_bound("rms:0.01")
    Rms(value=0.01)
    >>> parse_bound("upd:0.1:tensor")
    Update(value=0.1, per='tensor')
    """
    kind, _, rest = text.partition(":")
    if kind == "lossless" and not rest:
        return Lossless()
    value, *scope = rest.split(":")
    bound_of: Callable[[float], Bound] | None = _BOUNDS.get(kind)
    if scope:
        bound_of = functools.partial(Update, per="tensor") if (kind, scope) == (Update.key, ["tensor"]) else None
    try:
        number = float(value)
    except ValueError:
        bound_of = None
    if bound_of is None:
        raise UsageError(
            f"cannot read the bound {text!r}; write lossless, abs:1e-3, rel:1e-3, pwrel:0.01, rms:0.01 or upd:0.1"
        )
    return bound_of(number)


def bound_spelling(bound: Bound) -> str:
    """The bound as text with all digits: `parse_bound` returns an equal bound. `str` rounds to six digits.

    Examples
    --------
    >>> bound_spelling(Update(0.123456789, per="tensor"))
    'upd:0.123456789:tensor'
    """
    if not isinstance(bound, _Sized):
        return bound.key
    scope = f":{bound.per}" if isinstance(bound, Update) and bound.per != "network" else ""
    return f"{bound.key}:{bound.value!r}{scope}"


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
    left, right = _at_least_single(original), _at_least_single(decoded)
    return broken(_core.outside(left, right, tolerance.value, tolerance.kind == "pointwise"), original, decoded)


def violations_and_changes(
    original: Array, decoded: Array, base: Array, tolerance: Tolerance, parts: Sequence[int]
) -> tuple[Array, list[Change]]:
    """`violations` of floating-point values that may be rounded, and in the same pass the change of each part.

    Parameters
    ----------
    original, decoded, base : arrays, shape (n,), same dtype
    tolerance : Tolerance
        Any but "exact".
    parts : sequence of int
        Sizes of the parts, which follow each other; their sum is n.
    """
    if original.dtype.itemsize < 4 and len(parts) == 1 and original.size > _CONVERTED:
        return _in_pieces(original, decoded, base, tolerance)
    x, y, b = (_at_least_single(each) for each in (original, decoded, base))
    # What promises only finite values has no tolerance to compare with.
    value = tolerance.value if tolerance.kind != "finite" else math.inf
    suspects, changes = _core.outside_and_changes(x, y, b, value, tolerance.kind == "pointwise", parts)
    outside = _not_finite(original, decoded) if tolerance.kind == "finite" else broken(suspects, original, decoded)
    return outside, [Change(*change) for change in changes]


def _in_pieces(original: Array, decoded: Array, base: Array, tolerance: Tolerance) -> tuple[Array, list[Change]]:
    """As `violations_and_changes` of one part, in pieces small enough that their conversion stays in the cache."""
    found: list[Array] = []
    changes: list[Change] = []
    for at in range(0, original.size, _CONVERTED):
        x, y, b = (values[at : at + _CONVERTED] for values in (original, decoded, base))
        outside, more = violations_and_changes(x, y, b, tolerance, [x.size])
        found.append(outside + at)
        changes += more
    return np.concatenate(found), [Change.sum(changes)]


def broken(suspects: Sequence[int], original: Array, decoded: Array) -> Array:
    """The indices among `suspects` whose bits differ."""
    found = np.array(suspects, dtype=np.int64)
    if not found.size:
        return found
    broken: Array = found[bits_of(original)[found] != bits_of(decoded)[found]]
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
