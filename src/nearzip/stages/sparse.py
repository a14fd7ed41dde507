"""A tensor that is mostly zero, as two streams: its other values, and the gaps between them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, SparseValues, get_varint, put_varint
from nearzip.stages.pipeline import Chain
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.stages.split import Split, Stream
from nearzip.tensors import Array, round_to

__all__ = ["DecodeTimes", "Sparse", "scatter"]

_MAX_GAP_BITS = 32


class DecodeTimes(NamedTuple):
    """Seconds of the three parts of decoding a sparse layer (DeepSZ, section 5.2.3).

    Attributes
    ----------
    gaps, values : float
        Undoing the stages of the two streams.
    matrix : float
        Making the dense array of them.
    """

    gaps: float
    values: float
    matrix: float


def scatter(sparse: SparseValues, n: int) -> Array:
    """The dense array, shape (n,)."""
    dense: Array = np.zeros(n, sparse.values.dtype)
    dense[sparse.indices] = sparse.values
    return dense


@dataclass(frozen=True)
class Sparse(Split):
    """Nonzero values, and for each the number of zeros in front of it (DeepSZ, section 3.2).

    A gap is a symbol below L = 2^gap_bits, in 8, 16 or 32 bits; longer gaps take padding symbols L - 1. With `fill` as
    DeepSZ has it: a padding means L zeros, with a 0.0 of its own among the values. As L - 1 may also be a value's
    own gap, the side data names those that are (their count, and the distances between them among all L - 1, as
    varints); so every padding is restored as an exact zero, whatever became of its 0.0. Without `fill` L - 1 is always
    a padding, means L - 1 zeros, and has no value.

    Parameters
    ----------
    values, gaps : Chain
        Stages of the two streams, from floats and from symbols to bytes.
    gap_bits : int
        1 to 32. DeepSZ stores a gap in a byte.
    fill : bool

    Examples
    --------
    >>> from nearzip.stages import RawBytes, SymbolBytes
    >>> x = np.array([0, 0, 1.5, 0, -2], np.float32)
    >>> stage = Sparse(Chain((RawBytes(),)), Chain((SymbolBytes(),)))
    >>> stage.split(x, Context.of(x))[0]
    [array([ 1.5, -2. ], dtype=float32), array([2, 1], dtype=uint8)]
    """

    id = "sparse"
    takes = FLOATS
    streams = {"values": Stream(FLOATS), "gaps": Stream(SYMBOLS, np.dtype(np.uint32))}  # noqa: RUF012

    values: Chain
    gaps: Chain
    gap_bits: int = 8
    fill: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.gap_bits <= _MAX_GAP_BITS:
            raise UsageError(f"a gap has 1 to {_MAX_GAP_BITS} bits, not {self.gap_bits}")

    @property
    def _padding(self) -> int:
        return (1 << self.gap_bits) - 1

    @property
    def _gap_type(self) -> np.dtype[Any]:
        return np.dtype(np.uint8 if self.gap_bits <= 8 else np.uint16 if self.gap_bits <= 16 else np.uint32)

    def split(self, value: Any, context: Context) -> tuple[Sequence[Any], bytes]:
        refuse_exact(value.dtype)
        typed = round_to(context.dtype, value)
        with np.errstate(invalid="ignore"):  # bfloat16 NaN
            indices = np.flatnonzero(typed != 0)
        gaps = np.diff(indices, prepend=-1) - 1
        n_paddings, rest = np.divmod(gaps, self._padding + self.fill)
        own = np.cumsum(n_paddings + 1) - 1
        n = int(own[-1]) + 1 if own.size else 0
        symbols = np.full(n, self._padding, self._gap_type)
        symbols[own] = rest
        if not self.fill:
            return [typed[indices], symbols], b""
        filled = np.zeros(n, typed.dtype)
        filled[own] = typed[indices]
        is_own = np.zeros(n, bool)
        is_own[own] = True
        return [filled, symbols], _put_numbers(np.flatnonzero(is_own[symbols == self._padding]))

    def join(self, streams: Sequence[Any], side: bytes, context: Context) -> Array:
        return scatter(self.pick(streams, side, context), context.n)

    def pick(self, streams: Sequence[Any], side: bytes, context: Context) -> SparseValues:
        """Indices and values of the elements that `join` scatters. Raises CorruptError."""
        require_rounded(context)
        values, symbols = streams
        if symbols.dtype != self._gap_type or (symbols.size and int(symbols.max()) > self._padding):
            raise CorruptError("a gap is out of range")
        at_limit = np.flatnonzero(symbols == self._padding)
        is_own = np.ones(symbols.size, bool)
        is_own[at_limit] = False
        if self.fill:
            is_own[at_limit[_read_numbers(side, at_limit.size)]] = True
            if values.size != symbols.size:
                raise CorruptError("as many gaps as values are needed")
            values = values[is_own]
        elif side or values.size != int(is_own.sum()):
            raise CorruptError("as many gaps as values are needed")
        steps = symbols.astype(np.int64) + (1 if self.fill else is_own)
        # In floating point first: a sum of hostile gaps must not wrap around.
        if steps.size and steps.sum(dtype=np.float64) > context.n:
            raise CorruptError("gaps lead beyond the block")
        return SparseValues((np.cumsum(steps) - 1)[is_own], values)

    def decode_sparse(self, coded: Coded, context: Context) -> SparseValues:
        """As `decode`, without the dense array."""
        return self.pick(self.read_streams(coded, context), coded.side, context)

    def decode_times(self, coded: Coded, context: Context) -> DecodeTimes:
        """Decode, and say how long each part took."""
        seconds: dict[str, float] = {}
        streams = self.read_streams(coded, context, seconds)
        begin = time.perf_counter()
        self.join(streams, coded.side, context)
        return DecodeTimes(seconds["gaps"], seconds["values"], time.perf_counter() - begin)


def _put_numbers(numbers: Array) -> bytes:
    """Increasing numbers: their count, then their distances less one as varints."""
    if not numbers.size:
        return b""
    distances = np.diff(numbers, prepend=-1) - 1
    return put_varint(numbers.size) + b"".join(put_varint(int(d)) for d in distances)


def _read_numbers(side: bytes, most: int) -> Array:
    """Increasing numbers below `most`. Raises CorruptError."""
    if not side:
        return np.empty(0, np.int64)
    n, at = get_varint(side, 0)
    if not 0 < n <= most:
        raise CorruptError("more gaps are named than there are")
    numbers, last = [], -1
    for _ in range(n):
        distance, at = get_varint(side, at)
        last += distance + 1
        numbers.append(last)
    if last >= most or at != len(side):
        raise CorruptError("gaps are named that do not exist")
    return np.array(numbers, np.int64)
