"""Integers as bytes for general-purpose compressors: packed, or with runs of zeros counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, FLOATS, SYMBOLS, Coded, Context, Stage, check_booleans
from nearzip.tensors import Array, bits_of

__all__ = ["PackIntegers", "RawBytes", "RunLengths", "SymbolBytes"]


@dataclass(frozen=True)
class RawBytes(Stage):
    """A tensor's own bytes, little-endian.

    Examples
    --------
    >>> RawBytes().encode(np.array([1, 2], np.int16)).data
    b'\\x01\\x00\\x02\\x00'
    """

    id = "raw-bytes"
    takes, gives = FLOATS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        return Coded(value.tobytes())

    def decode(self, coded: Coded, context: Context) -> Array:
        if len(coded.data) != context.n * context.dtype.itemsize:
            raise CorruptError("stream holds another number of values")
        values = np.frombuffer(coded.data, bits_of(np.empty(0, context.dtype)).dtype).copy()
        check_booleans(values, context.dtype)
        typed: Array = values.view(context.dtype)
        return typed


def _require_int32(value: Array) -> None:
    if value.dtype != np.int32:
        raise UsageError(f"symbols are {value.dtype}; this stage takes int32")


@dataclass(frozen=True)
class PackIntegers(Stage):
    """Signed integers in the narrowest of 8, 16 and 32 bits that holds them all.

    Examples
    --------
    >>> PackIntegers().encode(np.array([0, -1, 5], np.int32)).data
    b'\\x00\\xff\\x05'
    """

    id = "pack-integers"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        _require_int32(value)
        low, high = (int(value.min()), int(value.max())) if value.size else (0, 0)
        width = next(w for w in (1, 2, 4) if -(1 << (8 * w - 1)) <= low and high < 1 << (8 * w - 1))
        return Coded(value.astype(f"<i{width}").tobytes(), bytes([width]))

    def decode(self, coded: Coded, context: Context) -> Array:
        if coded.side not in (b"\1", b"\2", b"\4") or len(coded.data) != coded.side[0] * context.n:
            raise CorruptError("packed integers have another length")
        return np.frombuffer(coded.data, f"<i{coded.side[0]}").astype(np.int32)


_SYMBOLS = {b"i": np.dtype("<i4"), **{bytes([w]): np.dtype(f"<u{w}") for w in (1, 2, 4, 8)}}


@dataclass(frozen=True)
class SymbolBytes(Stage):
    """Symbols in the width that they have, little-endian.

    Examples
    --------
    >>> SymbolBytes().encode(np.array([1, 255], np.uint8)).data
    b'\\x01\\xff'
    """

    id = "symbol-bytes"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        for code, dtype in _SYMBOLS.items():
            if value.dtype == dtype:
                return Coded(value.astype(dtype, copy=False).tobytes(), code)
        raise UsageError(f"symbols are {value.dtype}; this stage takes int32 and unsigned integers")

    def decode(self, coded: Coded, context: Context) -> Array:
        dtype = _SYMBOLS.get(coded.side)
        n = context.n * (2 if context.dtype.kind == "c" else 1)
        if dtype is None or len(coded.data) != dtype.itemsize * n:
            raise CorruptError("symbols have another width or number")
        return np.frombuffer(coded.data, dtype).astype(dtype.newbyteorder("="))


def _varints(values: Array) -> bytes:
    """All values (uint64 below 2^35) in base 128."""
    lengths = 1 + sum((values >> np.uint64(7 * k) > 0).astype(np.int64) for k in range(1, 5))
    ends = np.cumsum(lengths)
    out = np.zeros(int(ends[-1]) if values.size else 0, np.uint8)
    for k in range(5):
        have = lengths > k
        digit = (values[have] >> np.uint64(7 * k) & np.uint64(127)).astype(np.uint8)
        more = (lengths[have] > k + 1).astype(np.uint8) << 7
        out[(ends - lengths)[have] + k] = digit | more
    return out.tobytes()


def _read_varints(data: bytes | memoryview) -> Array:
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 128) + 1
    if raw.size and (not ends.size or ends[-1] != raw.size):
        raise CorruptError("run lengths end early")
    lengths = np.diff(ends, prepend=0)
    if ends.size and int(lengths.max()) > 5:
        raise CorruptError("malformed run length")
    values = np.zeros(ends.size, np.uint64)
    for k in range(5):
        have = lengths > k
        digit = raw[(ends - lengths)[have] + k]
        if k and (digit[lengths[have] == k + 1] == 0).any():
            raise CorruptError("malformed run length")
        values[have] |= (digit & 127).astype(np.uint64) << np.uint64(7 * k)
    return values


@dataclass(frozen=True)
class RunLengths(Stage):
    """Signed 32-bit integers as bytes: zigzag coded in base 128, a zero followed by the length of its run.

    Only zeros form runs. Counting runs of every value helps where nearly all are zero and costs more elsewhere.

    Examples
    --------
    >>> RunLengths().encode(np.array([0, 0, 0, -1, 2], np.int32)).data
    b'\\x00\\x03\\x01\\x04'
    """

    id = "run-lengths"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        _require_int32(value)
        wide = value.astype(np.int64)
        folded = ((wide << 1) ^ (wide >> 63)).astype(np.uint64)
        zero = folded == 0
        first = np.flatnonzero(zero & ~np.concatenate([[False], zero[:-1]]))
        last = np.flatnonzero(zero & ~np.concatenate([zero[1:], [False]]))
        kept = ~zero
        kept[first] = True
        tokens = folded[kept]
        places = np.flatnonzero(tokens == 0) + 1
        return Coded(_varints(np.insert(tokens, places, (last - first + 1).astype(np.uint64))))

    def decode(self, coded: Coded, context: Context) -> Array:
        values = _read_varints(coded.data)
        # A run length is never 0, so every 0 is a symbol and what follows it is its run.
        zero = values == 0
        if zero.any() and (zero[-1] or (zero[1:] & zero[:-1]).any()):
            raise CorruptError("a run has no length")
        counts = np.ones(values.size, np.int64)
        runs = np.flatnonzero(zero) + 1
        counts[runs - 1] = values[runs].astype(np.int64)
        counts[runs] = 0
        if int(counts.sum()) != context.n:
            raise CorruptError("stream holds another number of values")
        if values.size and int(values[counts > 0].max(initial=0)) >= 1 << 32:
            raise CorruptError("symbol too large for its type")
        folded = np.repeat(values, counts).astype(np.int64)
        return ((folded >> 1) ^ -(folded & 1)).astype(np.int32)
