"""Canonical Huffman coding."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip._core as _core
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, SYMBOLS, Coded, Context, Stage, get_varint, put_varint
from nearzip.tensors import Array

__all__ = ["Huffman"]

#: The decoder looks at this many bits at once, in a table of 2^16 entries.
_LONGEST = 16
_MAX_SYMBOLS = 1 << 12
#: Stretches of symbols whose first bit is noted (in bytes of length, 0.2 % to 0.4 %), so that a reader may decode them
#: side by side.
_STRETCH = 1 << 12
_RAW, _CODED = 0, 1
_TYPES = {b"i": np.dtype("<i4"), **{bytes([w]): np.dtype(f"<u{w}") for w in (1, 2, 4, 8)}}
_CODES = {dtype: code for code, dtype in _TYPES.items()}


@dataclass(frozen=True)
class Huffman(Stage):
    """Huffman coding with one canonical table a block; codes have at most 16 bits.

    A block of more than 4096 distinct symbols, or one that would not become smaller, is kept as it is.

    Examples
    --------
    >>> x = np.repeat(np.array([0, 3, 7], np.uint8), [80, 15, 5])
    >>> len(Huffman().encode(x, Context.of(x)).data)
    22
    """

    id = "huffman"
    takes, gives = SYMBOLS, BYTES

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        symbols = np.ascontiguousarray(value)
        if symbols.dtype not in _CODES:
            raise UsageError(f"symbols are {symbols.dtype}; huffman takes int32 and unsigned integers")
        side = _CODES[symbols.dtype]
        raw = bytes([_RAW]) + symbols.tobytes()
        alphabet, places, counts = np.unique(symbols, return_inverse=True, return_counts=True)
        if alphabet.size > _MAX_SYMBOLS:
            return Coded(raw, side)
        lengths = _code_lengths(counts)
        coded = bytes([_CODED]) + _put_table(alphabet, lengths) + _put_codes(places.reshape(-1), lengths)
        return Coded(min(coded, raw, key=len), side)

    def decode(self, coded: Coded, context: Context) -> Array:
        dtype = _TYPES.get(coded.side)
        data = bytes(coded.data)
        if dtype is None or not data or data[0] > _CODED:
            raise CorruptError("symbols of an unknown type")
        n = context.n * (2 if context.dtype.kind == "c" else 1)
        if data[0] == _RAW:
            if len(data) != 1 + n * dtype.itemsize:
                raise CorruptError("stream holds another number of values")
            return np.frombuffer(data, dtype, offset=1).astype(dtype.newbyteorder("="))
        alphabet, lengths, at = _get_table(data, dtype)
        places = _get_codes(data, at, n, lengths)
        symbols: Array = alphabet[places]
        return symbols


# ---- codes -----------------------------------------------------------------------------------------------------


def _code_lengths(counts: Array) -> Array:
    """Bits for each symbol, at most `_LONGEST`; a lone symbol needs none."""
    weights = counts.astype(np.int64)
    while True:
        lengths = _unlimited_lengths(weights)
        if not lengths.size or int(lengths.max()) <= _LONGEST:
            return lengths
        # Flatter weights make shorter codes; with equal ones 4096 symbols have 12 bits.
        weights = (weights + 1) // 2


def _unlimited_lengths(weights: Array) -> Array:
    """Huffman's algorithm; ties go to what was made first, so the result is the same everywhere."""
    n = weights.size
    lengths = np.zeros(n, np.int64)
    if n < 2:
        return lengths
    heap = [(int(w), i) for i, w in enumerate(weights)]
    heapq.heapify(heap)
    parents = [0] * (2 * n - 1)
    for node in range(n, 2 * n - 1):
        one, other = heapq.heappop(heap), heapq.heappop(heap)
        parents[one[1]] = parents[other[1]] = node
        heapq.heappush(heap, (one[0] + other[0], node))
    depths = [0] * (2 * n - 1)
    for node in range(2 * n - 3, -1, -1):
        depths[node] = depths[parents[node]] + 1
    lengths[:] = depths[:n]
    return lengths


def _canonical(lengths: Array) -> Array:
    """Codes by length, then by symbol, counting up."""
    codes = np.zeros(lengths.size, np.int64)
    code = previous = 0
    for i in np.lexsort((np.arange(lengths.size), lengths)).tolist():
        code <<= int(lengths[i]) - previous
        previous = int(lengths[i])
        codes[i] = code
        code += 1
    return codes


# ---- the table -------------------------------------------------------------------------------------------------


def _put_table(alphabet: Array, lengths: Array) -> bytes:
    """Number of symbols, the first one, distances to the next less one, and lengths of codes, four bits each."""
    values = [int(v) for v in alphabet]
    out = [put_varint(len(values))]
    if values:
        first = values[0]
        out.append(put_varint(first << 1 if first >= 0 else (-first << 1) - 1))
        out += [put_varint(b - a - 1) for a, b in itertools.pairwise(values)]
    if len(values) > 1:
        nibbles = np.append(lengths - 1, [0] * (len(values) % 2)).astype(np.uint8)
        out.append((nibbles[::2] << 4 | nibbles[1::2]).tobytes())
    return b"".join(out)


def _get_table(data: bytes, dtype: np.dtype[Any]) -> tuple[Array, Array, int]:
    size, at = get_varint(data, 1)
    if size > min(_MAX_SYMBOLS, len(data)):
        raise CorruptError("huffman table is too long")
    values: list[int] = []
    for i in range(size):
        number, at = _get_wide_varint(data, at)
        if i:
            values.append(values[-1] + number + 1)
        else:
            values.append(-(number + 1 >> 1) if number & 1 else number >> 1)
    info = np.iinfo(dtype)
    if values and not (info.min <= values[0] and values[-1] <= info.max):
        raise CorruptError("a symbol is too large for its type")
    lengths = np.zeros(size, np.int64)
    if size > 1:
        packed = np.frombuffer(data[at : at + (size + 1) // 2], np.uint8)
        at += (size + 1) // 2
        nibbles = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
        if nibbles.size < size or nibbles[size:].any():
            raise CorruptError("huffman table ends early")
        lengths[:] = nibbles[:size].astype(np.int64) + 1
        if int((1 << (_LONGEST - lengths)).sum()) != 1 << _LONGEST:
            raise CorruptError("huffman table is no code")
    return np.array(values, dtype.newbyteorder("=")), lengths, at


def _get_wide_varint(data: bytes, at: int) -> tuple[int, int]:
    """Like `get_varint`, up to the 65 bits that distances of uint64 and their sign take."""
    value = shift = 0
    while at < len(data) and shift <= 63:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if shift and not byte:
                break
            return value, at
        shift += 7
    raise CorruptError("malformed integer")


# ---- the codes of all symbols ----------------------------------------------------------------------------------


def _put_codes(places: Array, lengths: Array) -> bytes:
    """Bits of every stretch but the last (each from its own byte on), as lengths in bytes, and then all of them."""
    if lengths.size < 2:
        return b""
    codes = _canonical(lengths)
    out = []
    for at in range(0, places.size, _STRETCH):
        stretch = places[at : at + _STRETCH]
        out.append(_packed(codes[stretch], lengths[stretch]))
    return b"".join([put_varint(len(part)) for part in out[:-1]] + out)


def _packed(codes: Array, lengths: Array) -> bytes:
    """Codes one after the other, most significant bit first, filled up with zeros to a whole byte."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    bits = np.zeros(int(ends[-1]), np.uint8)
    for k in range(int(lengths.max())):
        have = lengths > k
        bits[starts[have] + k] = codes[have] >> (lengths[have] - 1 - k) & 1
    return np.packbits(bits).tobytes()


def _get_codes(data: bytes, at: int, n: int, lengths: Array) -> Array:
    """The index of each symbol in the alphabet, shape (n,)."""
    if lengths.size < 2:
        if len(data) != at or (n and not lengths.size):
            raise CorruptError("huffman table does not fit its symbols")
        return np.zeros(n, np.uint16)
    n_stretches = -(-n // _STRETCH)
    sizes = []
    for _ in range(n_stretches - 1):
        size, at = get_varint(data, at)
        sizes.append(size)
    rest = len(data) - at - sum(sizes)
    if rest < 0 or (not n and rest):
        raise CorruptError("huffman stream ends early")
    sizes = [*sizes, rest][:n_stretches]
    ends = 8 * np.cumsum(sizes, dtype=np.int64)
    starts = (ends - 8 * np.array(sizes, np.int64)).astype(np.uint64)
    bits = np.frombuffer(data, np.uint8, offset=at)
    places, stops = np.empty(n, np.uint16), np.empty_like(starts)
    _core.decode_huffman(bits, starts, _STRETCH, _lookup(lengths), places, stops)
    spare = ends - stops.astype(np.int64)
    if (spare < 0).any() or (spare > 7).any() or _stray_bits(bits, stops, spare):
        raise CorruptError("huffman codes do not end where they should")
    return places


def _stray_bits(bits: Array, stops: Array, spare: Array) -> bool:
    """Whether bits that only fill up a byte are set."""
    open_ones = spare > 0
    last = bits[stops[open_ones] >> np.uint64(3)]
    return bool((last & ((1 << spare[open_ones]) - 1)).any())


def _lookup(lengths: Array) -> Array:
    """For every window of `_LONGEST` bits the symbol it begins with, and above 16 bits its length, uint32. Canonical
    codes count up, so each symbol's windows follow those of the one before.
    """
    order = np.lexsort((np.arange(lengths.size), lengths))
    entries = (order | lengths[order] << 16).astype(np.uint32)
    return np.repeat(entries, 1 << (_LONGEST - lengths[order]))
