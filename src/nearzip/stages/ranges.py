"""Linear quantization of a tensor's range to a given number of bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.bounds import Statistics
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["Levels", "RangeQuantize"]

#: Values that are worked on together: float64 copies of a large tensor would be several times its size.
_PIECE = 1 << 18


@dataclass(frozen=True)
class Levels:
    """QD-Compressor's quantization constants (equations 4 and 5) for values from `low` to `high` on `bits` bits.

    Q_min is 0 and Q_max is 2^bits - 1. A range without extent has S = 1, so that every value restores to `low`.
    """

    low: float
    high: float
    bits: int

    @property
    def scale(self) -> float:
        """S; divided before it is subtracted, because the range of finite doubles may not be finite."""
        top = float((1 << self.bits) - 1)
        return (self.high / top - self.low / top) or 1.0

    @property
    def zero(self) -> float:
        """Z."""
        return -self.low / self.scale

    def quantize(self, values: Array) -> Array:
        """Equation 3, ties to even, shape (n,), int32. Values outside the range get its ends, NaN gets 0."""
        with np.errstate(invalid="ignore", over="ignore"):
            wide = values.astype(np.float64)
            levels = np.rint(wide / self.scale + self.zero)
        levels[~np.isfinite(wide)] = 0
        return np.clip(levels, 0, (1 << self.bits) - 1).astype(np.int32)

    def restore(self, levels: Array) -> Array:
        """Equation 9, float64."""
        restored: Array = self.scale * (levels - self.zero)
        return restored


def _range_of(values: Array) -> tuple[float, float]:
    """Smallest and largest finite value; zeros if there is none."""
    found = Statistics.of(np.ascontiguousarray(values))
    return found.low, found.high


@dataclass(frozen=True)
class RangeQuantize(Stage):
    """Each tensor's range in 2^bits levels (QD-Compressor, equations 3 to 5 and 9), modulo the base's (equation 8).

    Parameters
    ----------
    bits : int
        B, 1 to 16. Symbols are uint8 up to 8 bits, uint16 above.
    delta : bool
        Whether the base is quantized likewise, by its own range, and subtracted modulo 2^bits.
    low, high, base_low, base_high : float
        One range for all tensors. If `high` is not above `low`, every tensor has its own, which is side data; that of
        its base is taken from the base.

    Examples
    --------
    >>> x = np.array([-1.0, 0.0, 0.5, 1.0], np.float32)
    >>> RangeQuantize(4, delta=False).encode(x, Context.of(x)).symbols
    array([ 0,  8, 11, 15], dtype=uint8)
    >>> RangeQuantize(4, delta=True).encode(x, Context.of(x, x[::-1])).symbols
    array([ 1, 13,  3, 15], dtype=uint8)
    """

    id = "range-quantize"
    takes, gives = FLOATS, SYMBOLS

    bits: int
    delta: bool
    low: float = 0.0
    high: float = 0.0
    base_low: float = 0.0
    base_high: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise UsageError(f"a range is quantized to 1 to 16 bits, not {self.bits}")

    @property
    def needs_base(self) -> bool:
        return self.delta

    def without_base(self) -> tuple[Stage, ...]:
        return (dataclasses.replace(self, delta=False, base_low=0.0, base_high=0.0),)

    @property
    def _symbol(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    @property
    def _own_ranges(self) -> bool:
        return not self.high > self.low

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        context = context or Context.of(value)
        ranges = self._ranges(value, context) if self._own_ranges else np.empty((0, 2))
        symbols = np.empty(value.size, self._symbol)
        mask = (1 << self.bits) - 1
        for piece, levels, base_levels in self._pieces(context, ranges):
            quantized = levels.quantize(value[piece])
            if base_levels is not None:
                quantized -= base_levels.quantize(context.require_base()[piece])
            symbols[piece] = quantized & mask
        return Coded(symbols, ranges.tobytes())

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        symbols = coded.symbols
        if symbols.dtype != self._symbol or symbols.size != context.n:
            raise CorruptError("stream holds other symbols than levels of a range")
        mask = (1 << self.bits) - 1
        if symbols.size and int(symbols.max()) > mask:
            raise CorruptError("a level lies beyond its range")
        out = np.empty(context.n, np.float64)
        for piece, levels, base_levels in self._pieces(context, self._read_ranges(coded.side, context)):
            quantized = symbols[piece].astype(np.int32)
            if base_levels is not None:
                quantized = (quantized + base_levels.quantize(context.require_base()[piece])) & mask
            out[piece] = levels.restore(quantized)
        return out

    # ranges: shape (parts, 2), float64 for tensors of that type, else float32

    def _ranges(self, values: Array, context: Context) -> Array:
        kind = _range_type(context)
        ranges = np.array([_range_of(values[part]) for part in _parts(context)], np.float64).reshape(-1, 2)
        return np.clip(ranges, np.finfo(kind).min, np.finfo(kind).max).astype(kind)

    def _read_ranges(self, side: bytes, context: Context) -> Array:
        kind = _range_type(context)
        n = len(context.parts) if self._own_ranges else 0
        if len(side) != 2 * n * kind.itemsize:
            raise CorruptError("ranges of tensors are missing or too many")
        ranges = np.frombuffer(side, kind).reshape(-1, 2)
        if not (np.isfinite(ranges).all() and (ranges[:, 0] <= ranges[:, 1]).all()):
            raise CorruptError("a range of values makes no sense")
        return ranges

    def _pieces(self, context: Context, ranges: Array) -> Iterator[tuple[slice, Levels, Levels | None]]:
        for i, part in enumerate(_parts(context)):
            low, high = ranges[i].tolist() if self._own_ranges else (self.low, self.high)
            levels = Levels(low, high, self.bits)
            base_levels = None
            if self.delta:
                base_levels = Levels(*self._base_range(context.require_base()[part]), self.bits)
            for at in range(part.start, part.stop, _PIECE):
                yield slice(at, min(part.stop, at + _PIECE)), levels, base_levels

    def _base_range(self, base: Array) -> tuple[float, float]:
        return _range_of(base) if self._own_ranges else (self.base_low, self.base_high)


def _range_type(context: Context) -> np.dtype[Any]:
    return np.dtype("<f8" if context.dtype.itemsize == 8 else "<f4")


def _parts(context: Context) -> Iterator[slice]:
    at = 0
    for n in context.parts:
        yield slice(at, at + n)
        at += n
