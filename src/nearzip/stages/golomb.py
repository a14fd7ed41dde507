"""Golomb-Rice coding of where the few nonzero symbols are, as SBC and STC send it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, SYMBOLS, Coded, Context, Stage, get_varint, put_varint
from nearzip.stages.entropy import symbol_code, symbol_type
from nearzip.tensors import Array

__all__ = ["Golomb", "golomb_bits"]

_MAX_BITS = 30


def golomb_bits(keep: float) -> int:
    """The best number of low bits where a share `keep` is nonzero (Sattler et al., IJCNN 2019, section III-D).

    Examples
    --------
    >>> golomb_bits(0.01), golomb_bits(0.001)
    (6, 9)
    """
    if not 1e-9 < keep < 0.5:
        return 0 if keep >= 0.5 else _MAX_BITS
    golden = (math.sqrt(5) + 1) / 2
    return min(_MAX_BITS, max(0, 1 + math.floor(math.log2(math.log(golden - 1) / math.log(1 - keep)))))


#: What the nonzero symbols are: 1 or 2 all of them, both, or others, which follow as they are.
_BOTH, _OTHERS = 3, 4


def _kinds(symbols: Array) -> int:
    if symbols.dtype != np.uint8 or (symbols.size and int(symbols.max()) > 2):
        return _OTHERS
    if not symbols.size:
        return 0
    return int(symbols[0]) if symbols.min() == symbols.max() else _BOTH


@dataclass(frozen=True)
class Golomb(Stage):
    """Distances between nonzero symbols in Golomb-Rice code, then what tells the nonzero symbols apart.

    A distance d, at least 1, is q = (d - 1) >> bits ones, a zero, and the low `bits` bits of d - 1. For symbols 1 and 2
    in uint8 one bit each follows, or none where all are equal; other symbols follow as they are, from the next byte.
    The side data holds the number of nonzero symbols, one byte that says which of these, and for other symbols their
    type.

    Parameters
    ----------
    bits : int
        0 to 30; `golomb_bits` gives the best for a share of nonzero symbols.

    Examples
    --------
    >>> x = np.array([0, 0, 1, 0, 2], np.uint8)
    >>> Golomb(1).encode(x, Context.of(x)).data.hex()
    '8a'
    """

    id = "golomb"
    takes, gives = SYMBOLS, BYTES

    bits: int

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= _MAX_BITS:
            raise UsageError(f"golomb takes 0 to {_MAX_BITS} low bits, not {self.bits}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        indices = np.flatnonzero(value)
        rest = np.ascontiguousarray(value[indices])
        kinds = _kinds(rest)
        signs = rest - 1 if kinds == _BOTH else rest[:0]
        gaps = np.diff(indices, prepend=-1) - 1
        ones = gaps >> self.bits
        ends = np.cumsum(ones + 1 + self.bits)  # where each code word ends
        total = int(ends[-1]) if ends.size else 0
        stream = np.ones(total + signs.size, np.uint8)
        zeros = ends - self.bits - 1
        stream[zeros] = 0
        for bit in range(self.bits):
            stream[zeros + 1 + bit] = (gaps >> (self.bits - 1 - bit)) & 1
        stream[total:] = signs
        side = put_varint(indices.size) + bytes([kinds])
        if kinds == _OTHERS:
            return Coded(np.packbits(stream).tobytes() + rest.tobytes(), side + symbol_code(rest.dtype))
        return Coded(np.packbits(stream).tobytes(), side)

    def decode(self, coded: Coded, context: Context) -> Array:
        n, kinds, dtype = self._side(coded.side, context.n)
        data = memoryview(coded.data)
        n_rest = n * dtype.itemsize if kinds == _OTHERS else 0
        if n_rest > len(data):
            raise CorruptError("golomb: stream ends early")
        rest = np.frombuffer(data[len(data) - n_rest :], dtype)
        stream = np.unpackbits(np.frombuffer(data[: len(data) - n_rest], np.uint8))
        zeros, end = self._zeros(stream, n, context.n)
        ones = np.diff(zeros, prepend=-1 - self.bits) - 1 - self.bits
        gaps = ones << self.bits
        for bit in range(self.bits):
            gaps += stream[zeros + 1 + bit].astype(np.int64) << (self.bits - 1 - bit)
        indices = np.cumsum(gaps + 1) - 1
        if n and int(indices[-1]) >= context.n:
            raise CorruptError("golomb: a distance leads beyond the end")
        n_signs = n if kinds == _BOTH else 0
        if stream.size - end - n_signs not in range(8) or stream[end + n_signs :].any():
            raise CorruptError("golomb: stream of another length")
        out = np.zeros(context.n, dtype)
        out[indices] = 1 + stream[end : end + n] if kinds == _BOTH else rest if kinds == _OTHERS else kinds
        return out

    def _side(self, side: bytes, limit: int) -> tuple[int, int, np.dtype[Any]]:
        """How many nonzero symbols, which, and the type of all symbols."""
        n, at = get_varint(side, 0)
        if n > limit or at >= len(side) or side[at] > _OTHERS or (n == 0 and side[at] not in (0, _OTHERS)):
            raise CorruptError("golomb: malformed side data")
        if side[at] == _OTHERS:
            return n, _OTHERS, symbol_type(side[at + 1 :])
        if len(side) != at + 1 or (n > 0 and side[at] == 0):
            raise CorruptError("golomb: malformed side data")
        return n, side[at], np.dtype(np.uint8)

    def _zeros(self, stream: Array, n: int, limit: int) -> tuple[Array, int]:
        """Where the zero of each of n code words is, and where the last one ends.

        Runs of ones are bounded: together they cannot lead beyond `limit` values.
        """
        text = stream.tobytes()
        found = np.empty(n, np.int64)
        at, left = 0, limit >> self.bits
        for i in range(n):
            end = text.find(b"\0", at, at + left + 1)
            if end < 0 or end + 1 + self.bits > len(text):
                raise CorruptError("golomb: stream ends early, or a distance leads beyond the end")
            found[i] = end
            left -= end - at
            at = end + 1 + self.bits
        return found, at
