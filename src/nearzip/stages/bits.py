"""Whole numbers in few bits: one width for all, or the widths of SKCompress's adaptive prefix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, SYMBOLS, Coded, Context, Stage
from nearzip.stages.entropy import symbol_code, symbol_type
from nearzip.stages.huffman import Huffman
from nearzip.tensors import Array

__all__ = ["AdaptivePrefix", "FixedBits", "KeyHuffman", "pack_bits", "unpack_bits"]

_MAX_WIDTH = 32
#: Intervals of widths that SKCompress tries.
_INTERVALS = (1, 2, 4, 8, 16)


def pack_bits(values: Array, width: int) -> bytes:
    """The low `width` bits of each value, most significant first, filled up with zeros to a whole byte.

    Examples
    --------
    >>> pack_bits(np.array([1, 2, 3]), 2).hex()
    '6c'
    """
    shifts = np.arange(width - 1, -1, -1, dtype=np.uint64)
    bits = (values.astype(np.uint64)[:, None] >> shifts & np.uint64(1)).astype(np.uint8)
    return np.packbits(bits.reshape(-1)).tobytes()


def unpack_bits(data: bytes | memoryview, n: int, width: int) -> Array:
    """What `pack_bits` packed, shape (n,), int64. Raises CorruptError for another length, or bits behind the last."""
    if len(data) != -(-n * width // 8):
        raise CorruptError("packed numbers have another length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    if bits[n * width :].any():
        raise CorruptError("packed numbers have bits behind the last")
    out = np.zeros(n, np.int64)
    for column in range(width):
        out = out << 1 | bits[column : n * width : width]
    return out


def _folded(symbols: Array) -> Array:
    """int32 as 0, -1, 1, -2, 2 ..., unsigned ones as they are; int64. Raises UsageError for wider symbols."""
    if symbols.dtype.itemsize > 4:
        raise UsageError(f"symbols are {symbols.dtype}; this stage takes those of up to {_MAX_WIDTH} bits")
    wide = symbols.astype(np.int64)
    return wide << 1 ^ wide >> 63 if symbols.dtype.kind == "i" else wide


def _unfolded(folded: Array, code: bytes) -> Array:
    """Symbols of the type that the byte names. Raises CorruptError."""
    dtype = symbol_type(code)
    values = folded >> 1 ^ -(folded & 1) if dtype.kind == "i" else folded
    if dtype.itemsize > 4 or (
        values.size and not np.iinfo(dtype).min <= int(values.min()) <= int(values.max()) <= np.iinfo(dtype).max
    ):
        raise CorruptError("symbol too large for its type")
    return values.astype(dtype)


def _count(context: Context) -> int:
    return context.n * (2 if context.dtype.kind == "c" else 1)


@dataclass(frozen=True)
class FixedBits(Stage):
    """Every symbol in as many bits as the largest needs, 0 to 32; int32 as 0, -1, 1, -2, 2 ...

    Side data: the width, and the type of the symbols.

    Examples
    --------
    >>> FixedBits().encode(np.array([0, 3, 1, 2], np.uint8)).data.hex()
    '36'
    """

    id = "fixed-bits"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        code, folded = symbol_code(value.dtype), _folded(value)
        width = int(folded.max()).bit_length() if folded.size else 0
        return Coded(pack_bits(folded, width), bytes([width]) + code)

    def decode(self, coded: Coded, context: Context) -> Array:
        if not coded.side or coded.side[0] > _MAX_WIDTH:
            raise CorruptError("fixed-bits: malformed side data")
        return _unfolded(unpack_bits(coded.data, _count(context), coded.side[0]), coded.side[1:])


@dataclass(frozen=True)
class AdaptivePrefix(Stage):
    """SKCompress's code for distances between keys (Jiang et al., VLDB Journal 2020): a prefix says how wide each is.

    32 bits are divided into m intervals, m = 1, 2, 4, 8 or 16. A number that needs b bits is in interval
    j = ceil(b / (32 / m)) and takes 32 j / m bits; its prefix is j - 1, in log2 m bits, or j - 1 ones and a zero. Of
    these ten ways the one that makes the stream shortest is taken. All prefixes come first.

    Side data: one byte, log2 m, plus 8 for prefixes in ones; the type of the symbols. int32 counts as 0, -1, 1, -2 ...

    Examples
    --------
    >>> len(AdaptivePrefix().encode(np.array([5, 1, 70_000, 3], np.uint32)).data)
    5
    """

    id = "adaptive-prefix"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        code, folded = symbol_code(value.dtype), _folded(value)
        needed = np.maximum(1, np.ceil(np.log2(folded.astype(np.float64) + 1)).astype(np.int64))
        tried = []
        for m in _INTERVALS:
            intervals = -(-needed * m // _MAX_WIDTH)
            n_bits = int(intervals.sum()) * _MAX_WIDTH // m
            tried += [
                (n_bits + value.size * int(math.log2(m)), m, False, intervals),
                (n_bits + int(intervals.sum()), m, True, intervals),
            ]
        _, m, in_ones, intervals = min(tried, key=lambda one: one[0])
        log = m.bit_length() - 1
        prefixes = _ones(intervals) if in_ones else _columns(intervals - 1, np.full(value.size, log))
        stream = np.concatenate([prefixes, _columns(folded, intervals * (_MAX_WIDTH // m))])
        return Coded(np.packbits(stream).tobytes(), bytes([log + 8 * in_ones]) + code)

    def decode(self, coded: Coded, context: Context) -> Array:
        if not coded.side or coded.side[0] & 7 >= len(_INTERVALS) or coded.side[0] >= 16:
            raise CorruptError("adaptive-prefix: malformed side data")
        log, n = coded.side[0] & 7, _count(context)
        stream = np.unpackbits(np.frombuffer(coded.data, np.uint8))
        intervals, at = _intervals(stream, n, log) if coded.side[0] & 8 else _fixed(stream, n, log)
        widths = intervals * (_MAX_WIDTH >> log)
        ends = np.cumsum(widths) + at
        end = int(ends[-1]) if n else at
        if not 0 <= stream.size - end < 8 or stream[end:].any():
            raise CorruptError("adaptive-prefix: stream of another length")
        out, starts = np.zeros(n, np.int64), ends - widths
        for k in range(int(widths.max()) if n else 0):
            have = widths > k
            out[have] = out[have] << 1 | stream[starts[have] + k]
        return _unfolded(out, coded.side[1:])


def _columns(values: Array, widths: Array) -> Array:
    """The low bits of each value, most significant first, one after the other, uint8."""
    ends = np.cumsum(widths)
    out = np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    wide = values.astype(np.int64)
    for k in range(int(widths.max()) if widths.size else 0):
        have = widths > k
        out[(ends - widths)[have] + k] = wide[have] >> (widths[have] - 1 - k) & 1
    return out


def _ones(intervals: Array) -> Array:
    """j - 1 ones and a zero for each j."""
    out = np.ones(int(intervals.sum()), np.uint8)
    out[np.cumsum(intervals) - 1] = 0
    return out


def _fixed(stream: Array, n: int, log: int) -> tuple[Array, int]:
    if n * log > stream.size:
        raise CorruptError("adaptive-prefix: stream ends early")
    found = np.ones(n, np.int64)
    for column in range(log):
        found += stream[column : n * log : log].astype(np.int64) << (log - 1 - column)
    return found, n * log


def _intervals(stream: Array, n: int, log: int) -> tuple[Array, int]:
    """From prefixes in ones; a run is no longer than there are intervals."""
    zeros = np.flatnonzero(stream[: n << log] == 0)[:n]
    found = np.diff(zeros, prepend=-1)
    if zeros.size != n or (n and int(found.max()) > 1 << log):
        raise CorruptError("adaptive-prefix: stream ends early, or a prefix is too long")
    return found, int(zeros[-1]) + 1 if n else 0


@dataclass(frozen=True)
class KeyHuffman(Stage):
    """DeepReduce's Huffman index: distances as the keys that they lead to, four bytes each, in one Huffman code.

    Side data: 1, or 0 where a key has more than 32 bits and the symbols themselves are coded; the type of the symbols.

    Examples
    --------
    >>> len(KeyHuffman().encode(np.full(500, 9, np.uint32)).data) < 1500
    True
    """

    id = "key-huffman"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        code, folded = symbol_code(value.dtype), _folded(value)
        keys = np.cumsum(folded + 1) - 1
        are_keys = not keys.size or int(keys[-1]) < 1 << 32
        coded = Huffman().encode((keys if are_keys else folded).astype("<u4").view(np.uint8))
        return Coded(coded.data, bytes([are_keys]) + code)

    def decode(self, coded: Coded, context: Context) -> Array:
        if not coded.side or coded.side[0] > 1:
            raise CorruptError("key-huffman: malformed side data")
        raw = Huffman().decode(Coded(coded.data, b"\1"), Context(np.dtype(np.uint8), (4 * _count(context),)))
        folded = np.ascontiguousarray(raw).view("<u4").astype(np.int64)
        if coded.side[0]:
            folded = np.diff(folded, prepend=-1) - 1
            if folded.size and int(folded.min()) < 0:
                raise CorruptError("key-huffman: keys do not increase")
        return _unfolded(folded, coded.side[1:])
