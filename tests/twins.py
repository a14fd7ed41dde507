"""Plain twins of the native core: what each function means, in NumPy, fractions and pure Python.

The stream readers were written from the format (docs/format.md, "Token streams" and "Symbol streams"), not from the
C++, and share nothing with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LANES = 8
MANY_LANES = 32
LOW = 1 << 16
DIRECT = 128


# ---- passes over values ----------------------------------------------------------------------------------------


def quantize(x: Array, base: Array | None, step: float) -> Array:
    with np.errstate(all="ignore"):
        difference = x.astype(np.float64) - (0.0 if base is None else base.astype(np.float64))
        inverse = 1 / np.float64(step)
        ratio = difference * inverse if 1e-300 < inverse < 1e300 else difference / step
        kept = np.where(np.abs(ratio) < 2.0**30, ratio, 0.0)
    return np.rint(kept).astype(np.int32)


def dequantize(symbols: Array, base: Array | None, step: float, dtype: Any) -> Array:
    with np.errstate(all="ignore"):
        offset = symbols.astype(np.float64) * step
        return (offset if base is None else base.astype(np.float64) + offset).astype(dtype)


def _order(bits: int, width: int, floats: bool) -> int:
    """Integers that sort like the floats of these bits."""
    sign = 1 << (width - 1)
    if not floats:
        return bits
    return (2 * sign - 1) ^ bits if bits & sign else bits | sign


def _disorder(number: int, width: int, floats: bool) -> int:
    sign = 1 << (width - 1)
    if not floats:
        return number
    return number ^ sign if number & sign else (2 * sign - 1) ^ number


def ordered_delta(x: Array, base: Array, floats: bool) -> Array:
    width = 8 * x.itemsize
    out = []
    for one, other in zip(x.tolist(), base.tolist(), strict=True):
        difference = (_order(one, width, floats) - _order(other, width, floats)) % (1 << width)
        if difference >> (width - 1):
            difference -= 1 << width
        out.append(2 * difference if difference >= 0 else -2 * difference - 1)
    return np.array(out, x.dtype)


def undo_ordered_delta(symbols: Array, base: Array, floats: bool) -> Array:
    width = 8 * base.itemsize
    out = []
    for symbol, other in zip(symbols.tolist(), base.tolist(), strict=True):
        difference = symbol // 2 if symbol % 2 == 0 else -(symbol + 1) // 2
        out.append(_disorder((_order(other, width, floats) + difference) % (1 << width), width, floats))
    return np.array(out, base.dtype)


def turn(x: Array, left: bool) -> Array:
    width = 8 * x.itemsize
    by = 1 if left else width - 1
    return np.array([(v << by | v >> (width - by)) % (1 << width) for v in x.tolist()], x.dtype)


def outside(x: Array, y: Array, tolerance: float, relative: bool) -> list[int]:
    """In rational numbers, so without a rounding anywhere."""
    found = []
    for i, (one, other) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        if not (math.isfinite(one) and math.isfinite(other)):
            found.append(i)
            continue
        allowed = Fraction(tolerance) * (abs(Fraction(one)) if relative else 1)
        if abs(Fraction(one) - Fraction(other)) > allowed:
            found.append(i)
    return found


def change(x: Array, y: Array, base: Array) -> tuple[int, int, Fraction, Fraction]:
    """Values that differ from the base, those of them that y does not have as the base does, and the sums of squares,
    wherever differences are finite."""
    n_changed = n_kept = 0
    moved = off = Fraction(0)
    for one, restored, before in zip(x.tolist(), y.tolist(), base.tolist(), strict=True):
        if math.isfinite(one - before):
            moved += (Fraction(one) - Fraction(before)) ** 2
            n_changed += one != before
            n_kept += one != before and restored != before
        if math.isfinite(one - restored):
            off += (Fraction(one) - Fraction(restored)) ** 2
    return n_changed, n_kept, moved, off


def statistics(x: Array) -> tuple[int, float, float, Fraction]:
    finite = [value for value in x.tolist() if math.isfinite(value)]
    if not finite:
        return 0, 0.0, 0.0, Fraction(0)
    return len(finite), min(finite), max(finite), sum(Fraction(value) ** 2 for value in finite)


# ---- streams ---------------------------------------------------------------------------------------------------


#: Row, cell, row of a cell, start.
Grid = tuple[int, int, int, int]


class Malformed(Exception):  # noqa: N818
    """The twin refuses a stream."""


class Bits:
    """Least significant bit first."""

    def __init__(self, data: bytes):
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)
        self._size = 8 * len(data)

    def get(self, n: int) -> int:
        if n > self._left:
            raise Malformed("bits end early")
        value = self._value & ((1 << n) - 1)
        self._value >>= n
        self._left -= n
        return value

    def get_golomb(self) -> int:
        zeros = 0
        while not self.get(1):
            zeros += 1
        return (1 << zeros) + self.get(zeros) - 1

    def bytes_begun(self) -> int:
        if self.get(self._left % 8):
            raise Malformed("padding")
        return (self._size - self._left) // 8


class BitSink:
    def __init__(self) -> None:
        self._text: list[str] = []

    def put(self, value: int, n: int) -> None:
        if n:
            self._text.append(f"{value:0{n}b}"[::-1])

    def put_golomb(self, value: int) -> None:
        length = (value + 1).bit_length()
        self.put(0, length - 1)
        self.put(1, 1)
        self.put((value + 1) - (1 << (length - 1)), length - 1)

    def to_bytes(self) -> bytes:
        text = "".join(self._text)
        return int(text[::-1] or "0", 2).to_bytes((len(text) + 7) // 8, "little")


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def chunk_sizes(parts: Sequence[int], chunk_log: int) -> list[int]:
    size = 1 << chunk_log
    return [min(size, part - at) for part in parts for at in range(0, part, size)]


@dataclass(frozen=True)
class TokenHeader:
    """What stands before the states: where it ends, the frequencies of each table, the table of each chunk."""

    scale: int
    tables: list[list[int]]
    table_of: list[int]
    chunks: list[int]
    n_bytes: int
    table_bits: int
    lanes: int


def read_token_header(data: bytes, parts: Sequence[int]) -> TokenHeader | None:
    """None: the tokens are stored as they are."""
    if data[0] == 0:
        return None
    scale, lanes = data[0] % MANY_LANES, MANY_LANES if data[0] >= MANY_LANES else LANES
    chunk_log = data[1]
    n_tables, at = read_varint(data, 2)
    bits = Bits(data[at:])
    before = bits._left
    tables = [_read_table(bits, scale) for _ in range(n_tables)]
    table_bits = before - bits._left
    chunks = chunk_sizes(parts, chunk_log)
    table_of = [0] * len(chunks)
    if n_tables > 1:
        width = (n_tables - 1).bit_length()
        last = -1
        for i in range(len(chunks)):
            if bits.get(1):
                last = bits.get(width)
            table_of[i] = last
    return TokenHeader(scale, tables, table_of, chunks, at + bits.bytes_begun(), table_bits, lanes)


def table_bytes(data: bytes) -> float:
    """What a token stream spends on frequency tables."""
    if data[0] == 64:
        size, at = read_varint(data, 1)
        return table_bytes(data[at : at + size]) + table_bytes(data[at + size :])
    header = read_token_header(data[:200_000], [])  # big ints of pure Python are slow, and the header is short
    return header.table_bits / 8 if header else 0.0


def _read_table(bits: Bits, scale: int) -> list[int]:
    freqs = [0] * 256
    last = bits.get(8)
    t = 1
    while t <= last:
        freqs[t] = bits.get_golomb()
        t += 1
        if freqs[t - 1] == 0:
            t += bits.get_golomb()
    freqs[0] = (1 << scale) - sum(freqs)
    if min(freqs) < 0:
        raise Malformed("frequencies")
    return freqs


def decode_tokens(data: bytes, parts: Sequence[int], grids: Sequence[Grid] = ()) -> bytes:
    return decode_zeros_apart(data, parts, grids) if data[0] == 64 else decode_dense(data, parts, grids)


def decode_dense(data: bytes, parts: Sequence[int], grids: Sequence[Grid]) -> bytes:
    return decode_scaled(data, parts, grids) if data[0] == 128 else decode_plain(data, parts)


def decode_zeros_apart(data: bytes, parts: Sequence[int], grids: Sequence[Grid] = ()) -> bytes:
    size, at = read_varint(data, 1)
    masks = decode_dense(data[at : at + size], [-(-part // 4) for part in parts], [mask_grid(*grid) for grid in grids])
    flags: list[list[int]] = []
    for part in parts:
        n = -(-part // 4)
        bits = [mask >> k & 1 for mask in masks[:n] for k in range(4)]
        if max(masks[:n], default=0) > 15 or any(bits[part:]):
            raise Malformed("mask")
        flags.append(bits[:part])
        masks = masks[n:]
    nonzero = decode_plain(data[at + size :], [sum(bits) for bits in flags])
    if 0 in nonzero:
        raise Malformed("zero")
    values = iter(nonzero)
    return bytes(next(values) if bit else 0 for bits in flags for bit in bits)


def mask_grid(row: int, cell: int, width: int, start: int) -> Grid:
    if row % 4 or start % 4:
        return 0, 0, 0, 0
    cell = cell if cell and row // 4 % cell == 0 else row // 4
    return row // 4, cell, cell, start // 4


def decode_scaled(data: bytes, parts: Sequence[int], grids: Sequence[Grid]) -> bytes:
    scale, lanes = data[1] % 32, MANY_LANES if data[1] & 32 else LANES
    size, at = read_varint(data, 2)
    lattices = [_lattice(n, *grid) for n, grid in zip(parts, grids, strict=True)]
    counts = [
        (1 + rows * (rows > 1) + columns * (columns > 1)) if n else 0
        for n, (_, _, _, rows, columns) in zip(parts, lattices, strict=True)
    ]
    numbers = [z // 2 if z % 2 == 0 else -(z // 2) - 1 for z in decode_plain(data[at : at + size], counts)]
    bits = Bits(data[at + size :])
    classes = [_level_tables(bits, scale) for _ in range(8 if data[1] & 64 else 1)]
    payload = data[at + size + bits.bytes_begun() :]
    reader = _Rans(payload, scale, lanes)
    out = bytearray()
    for n, lattice, grid, count in zip(parts, lattices, grids, counts, strict=True):
        own, levels = _levels(n, *lattice, numbers[:count])
        numbers = numbers[count:]
        neighbours = _Neighbours(n, lattice[2], grid, own) if data[1] & 64 else None
        tokens = [0] * n
        for run in neighbours.runs() if neighbours else [range(n)]:
            # Without neighbours the parts together are one run.
            for lane, i in enumerate(run, 0 if neighbours else len(out)):
                of_class = neighbours.class_of(i, tokens) if neighbours else 0
                tokens[i] = reader.token(lane, classes[of_class][levels[i]])
        out += bytes(tokens)
    reader.close()
    return bytes(out)


def _lattice(n: int, row: int, cell: int, width: int, start: int) -> tuple[int, int, int, int, int]:
    """Row, cell, start, number of rows, number of columns."""
    if row < 8 or not n:
        return n, n, 0, 1, 1
    start %= row
    rows = -(-(start + n) // row)
    return (row, row, start, rows, 1) if rows < 4 else (row, cell, start, rows, row // cell)


def _levels(
    n: int, row: int, cell: int, start: int, rows: int, columns: int, numbers: list[int]
) -> tuple[int, list[int]]:
    if not n:
        return 0, []
    own, rest = numbers[0], numbers[1:]
    of_row, of_column = (rest[:rows], rest[rows:]) if rows > 1 else ([0], rest)
    of_column = of_column or [0] * columns
    limit = lambda level: max(-40, min(23, level))  # noqa: E731
    places = range(start, start + n)
    return own, [limit(limit(own + of_row[i // row]) + of_column[i % row // cell]) + 40 for i in places]


def _level_tables(bits: Bits, scale: int) -> list[list[int]]:
    """The table of each level."""
    n_tables = bits.get(6) + 1
    served = [bits.get_golomb() + 1 for _ in range(n_tables - 1)]
    served.append(64 - sum(served))
    return [table for n in served for table in [_read_table(bits, scale)] for _ in range(n)]


class _Neighbours:
    """Of one part: in which order its values stand, and the class of each."""

    def __init__(self, n: int, start: int, grid: Grid, own: int):
        row, self._cell, self._width, _ = grid
        self._n, self._lead, self._whole = n, n, 0
        if row >= 8 and 2 <= self._cell <= 64:
            lead = -start % self._cell
            if n >= lead and (n - lead) // self._cell >= 32:
                self._lead, self._whole = lead, (n - lead) // self._cell
        level = max(0, min(16, own))
        spacing = 41288 << level // 2
        self._spacing = max(93716, spacing * 92682 >> 16 if level % 2 else spacing)

    def runs(self) -> list[range]:
        end = self._lead + self._whole * self._cell
        places = [range(self._lead + place, end, self._cell) for place in range(self._cell if self._whole else 0)]
        return [range(self._lead), *places, range(end, self._n)]

    def class_of(self, i: int, tokens: list[int]) -> int:
        end = self._lead + self._whole * self._cell
        if not self._lead <= i < end:
            return 0
        place = (i - self._lead) % self._cell
        steps = [step for step, there in ((1, place % self._width > 0), (self._width, place >= self._width)) if there]
        if not steps:
            return 0
        value = sum(self._value(tokens[i - step]) for step in steps)
        rounded = (abs(value) * 65536 + self._spacing // 2) // self._spacing
        return 4 + max(-3, min(3, rounded if value > 0 else -rounded))

    @staticmethod
    def _value(token: int) -> int:
        return 0 if token >= 128 else token // 2 if token % 2 == 0 else -(token // 2) - 1


class _Rans:
    """States and words."""

    def __init__(self, payload: bytes, scale: int, lanes: int):
        self._scale, self._lanes = scale, lanes
        self._states = [int(state) for state in np.frombuffer(payload[: 4 * lanes], "<u4")]
        self._words = iter(np.frombuffer(payload[4 * lanes :], "<u2").tolist())

    def token(self, i: int, freqs: list[int]) -> int:
        lane, whole = i % self._lanes, 1 << self._scale
        state = self._states[lane]
        start = state % whole
        token = 0
        while start >= freqs[token]:
            start -= freqs[token]
            token += 1
        state = freqs[token] * (state >> self._scale) + start
        self._states[lane] = state << 16 | next(self._words) if state < LOW else state
        return token

    def close(self) -> None:
        if self._states != [LOW] * self._lanes or next(self._words, None) is not None:
            raise Malformed("does not close")


def decode_plain(data: bytes, parts: Sequence[int]) -> bytes:
    header = read_token_header(data, parts)
    if header is None:
        return data[1:]
    whole = 1 << header.scale
    constant = [max(freqs) == whole for freqs in header.tables]
    lanes = header.lanes
    states, words = [LOW] * lanes, iter(())
    if not all(constant):
        numbers = np.frombuffer(data[header.n_bytes : header.n_bytes + 4 * lanes], "<u4")
        states = [int(number) for number in numbers]
        words = iter(np.frombuffer(data[header.n_bytes + 4 * lanes :], "<u2").tolist())
    elif len(data) != header.n_bytes:
        raise Malformed("too long")
    starts = [np.concatenate([[0], np.cumsum(freqs)]).tolist() for freqs in header.tables]
    slots = [np.repeat(np.arange(256), freqs).tolist() for freqs in header.tables]
    out = bytearray()
    for size, k in zip(header.chunks, header.table_of, strict=True):
        if constant[k]:
            out += bytes([header.tables[k].index(whole)]) * size
            continue
        freqs, start, slot_of = header.tables[k], starts[k], slots[k]
        for i in range(size):
            state = states[i % lanes]
            slot = state % whole
            token = slot_of[slot]
            state = freqs[token] * (state // whole) + slot - start[token]
            if state < LOW:
                state = state << 16 | next(words)
            states[i % lanes] = state
            out.append(token)
    if states != [LOW] * lanes or next(words, None) is not None:
        raise Malformed("does not close")
    return bytes(out)


def encode_tokens(
    tokens: bytes,
    parts: Sequence[int],
    scale: int,
    chunk_log: int,
    tables: list[list[int]],
    table_of: list[int],
    lanes: int = LANES,
) -> bytes:
    """A stream that says exactly this, whether or not our encoder would choose so."""
    bits = BitSink()
    for freqs in tables:
        _write_table(bits, freqs)
    last = -1
    for k in table_of if len(tables) > 1 else ():
        bits.put(int(k != last), 1)
        if k != last:
            bits.put(k, (len(tables) - 1).bit_length())
        last = k
    head = (
        bytes([scale + (MANY_LANES if lanes == MANY_LANES else 0), chunk_log]) + varint(len(tables)) + bits.to_bytes()
    )
    whole = 1 << scale
    if all(max(freqs) == whole for freqs in tables):
        return head
    states = [LOW] * lanes
    words: list[int] = []
    end = len(tokens)
    for size, k in reversed(list(zip(chunk_sizes(parts, chunk_log), table_of, strict=True))):
        freqs = tables[k]
        start = np.concatenate([[0], np.cumsum(freqs)]).tolist()
        begin = end - size
        if max(freqs) != whole:
            for i in range(size - 1, -1, -1):
                token = tokens[begin + i]
                f, state = freqs[token], states[i % lanes]
                if state >= f << (32 - scale):
                    words.append(state & 0xFFFF)
                    state >>= 16
                states[i % lanes] = (state // f << scale) + state % f + start[token]
        end = begin
    return head + np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()


def _write_table(bits: BitSink, freqs: list[int]) -> None:
    last = max((t for t in range(256) if freqs[t]), default=0)
    bits.put(last, 8)
    t = 1
    while t <= last:
        bits.put_golomb(freqs[t])
        t += 1
        if freqs[t - 1] == 0:
            run = 0
            while freqs[t + run] == 0:
                run += 1
            bits.put_golomb(run)
            t += run


def decode_symbols(data: bytes, parts: Sequence[int], dtype: Any) -> Array:
    dtype = np.dtype(dtype)
    folded = _decode_planes(data[1:], parts, dtype.itemsize) if data[0] else _decode_magnitude(data[1:], parts)
    if dtype.kind == "i":
        folded = [z // 2 if z % 2 == 0 else -(z + 1) // 2 for z in folded]
    return np.array(folded, dtype)


def _decode_planes(data: bytes, parts: Sequence[int], n_planes: int) -> list[int]:
    values = [0] * sum(parts)
    at = 0
    for _ in range(n_planes):
        size, at = read_varint(data, at)
        plane = decode_tokens(data[at : at + size], parts)
        at += size
        values = [value << 8 | byte for value, byte in zip(values, plane, strict=True)]
    if at != len(data):
        raise Malformed("too long")
    return values


def _decode_magnitude(data: bytes, parts: Sequence[int]) -> list[int]:
    m = data[0]
    size, at = read_varint(data, 1)
    tokens = decode_tokens(data[at : at + size], parts)
    raw = Bits(data[at + size :])
    values = []
    for token in tokens:
        if token < DIRECT:
            values.append(token)
            continue
        above = token - DIRECT
        length = (above >> m) + 8
        rest = length - 1 - m
        leading = (1 << m) + (above & ((1 << m) - 1))
        values.append((leading << rest) + raw.get(rest))
    if raw.bytes_begun() != len(data) - at - size:
        raise Malformed("raw bits")
    return values


# ---- context streams -------------------------------------------------------------------------------------------

#: Bits behind the leading one that a token holds, by the width of the values.
LEAD = {8: 7, 16: 4, 32: 3, 64: 2}
CONTEXTS = 128


def decode_contexts(data: bytes, base: Array, floats: bool, mantissa_bits: int, parts: Sequence[int]) -> Array:
    width = 8 * base.itemsize
    if data[0] == 0:
        return np.frombuffer(data[1:], base.dtype)
    if data[0] == 1:
        return base.copy()
    chunk_log = 9
    if data[0] == 3:
        chunk_log, data = data[1], data[1:]
    scale, lanes = data[1] % MANY_LANES, MANY_LANES if data[1] >= MANY_LANES else LANES
    bits = Bits(data[2:])
    n_tables = bits.get(6) + 1
    lengths = [bits.get_golomb() + 1 for _ in range(n_tables - 1)]
    table_of = [k for k, length in enumerate(lengths) for _ in range(length)]
    table_of += [n_tables - 1] * (CONTEXTS - len(table_of))
    tables = [_read_table(bits, scale) for _ in range(n_tables)]
    chunks = chunk_sizes(parts, chunk_log)
    sizes = _read_sizes(bits, len(chunks))
    at = 2 + bits.bytes_begun()
    states = [int(state) for state in np.frombuffer(data[at : at + 4 * lanes], "<u4")]
    n_words, at = read_varint(data, at + 4 * lanes)
    words = iter(np.frombuffer(data[at : at + n_words], "<u2").tolist())
    raw = Bits(data[at + n_words :])
    slots = [np.repeat(np.arange(256), freqs).tolist() for freqs in tables]
    starts = [np.concatenate([[0], np.cumsum(freqs)]).tolist() for freqs in tables]
    out: list[int] = []
    old = base.tolist()
    for n, size in zip(chunks, sizes, strict=True):
        for i in range(n):
            value = old[len(out)]
            if size is None:
                out.append(value)
                continue
            exponent = (value % (1 << (width - 1))) >> mantissa_bits if floats else 0
            k = table_of[min(max(size - 2 * exponent + 16, 0), CONTEXTS - 1)]
            state, whole = states[i % lanes], 1 << scale
            token = slots[k][state % whole]
            state = tables[k][token] * (state // whole) + state % whole - starts[k][token]
            states[i % lanes] = state << 16 | next(words) if state < LOW else state
            z = _joined(token, LEAD[width], raw)
            difference = z // 2 if z % 2 == 0 else -(z + 1) // 2
            out.append(_disorder((_order(value, width, floats) + difference) % (1 << width), width, floats))
    if states != [LOW] * lanes or next(words, None) is not None:
        raise Malformed("does not close")
    if raw.bytes_begun() != len(data) - at - n_words:
        raise Malformed("raw bits")
    return np.array(out, base.dtype)


def _read_sizes(bits: Bits, n: int) -> list[int | None]:
    """Twice the logarithm of each chunk's differences; None: there are none."""
    sizes: list[int | None] = []
    last = 0
    for _ in range(n):
        code = bits.get_golomb()
        if code == 1:
            sizes.append(None)
            continue
        last += -(code // 2) if code % 2 else code // 2
        sizes.append(last)
    return sizes


def _joined(token: int, lead: int, raw: Bits) -> int:
    direct = 2 << lead
    if token < direct:
        return token
    rest = ((token - direct) >> lead) + 1
    return ((1 << lead) + (token - direct) % (1 << lead) << rest) + raw.get(rest)


# ---- Bloomier filter -------------------------------------------------------------------------------------------


def _mix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def _four_hashes(key: int, seed: int, bits: int, slots: int) -> tuple[tuple[int, int, int], int]:
    """Three places, one in each third of the table, and a mask."""
    golden, third = 0x9E3779B97F4A7C15, slots // 3
    one = _mix((seed * golden + key) % 2**64)
    two = _mix((one + golden) % 2**64)
    numbers = (one % 2**32, one >> 32, two % 2**32)
    places = tuple(i * third + (number * third >> 32) for i, number in enumerate(numbers))
    return places, (two >> 32) % 2**bits  # type: ignore[return-value]


def build_bloomier(keys: Sequence[int], values: Sequence[int], seed: int, bits: int, slots: int) -> list[int] | None:
    """Take away keys that alone point to some slot until none is left, then fill those slots in reverse order."""
    hashes = {key: _four_hashes(key, seed, bits, slots) for key in keys}
    left, order = set(keys), []
    while left:
        points: dict[int, list[int]] = {}
        for key in sorted(left):
            for slot in hashes[key][0]:
                points.setdefault(slot, []).append(key)
        free = {owners[0]: slot for slot, owners in points.items() if len(owners) == 1}
        if not free:
            return None
        order += free.items()
        left -= set(free)
    table = [0] * slots
    value_of = dict(zip(keys, values, strict=True))
    for key, slot in reversed(order):
        places, mask = hashes[key]
        others = [table[place] for place in places if place != slot]
        table[slot] = value_of[key] ^ mask ^ others[0] ^ others[1]
    return table


def query_bloomier(table: Sequence[int], seed: int, bits: int, n_values: int, n: int) -> list[int]:
    out = []
    for key in range(n):
        (a, b, c), mask = _four_hashes(key, seed, bits, len(table))
        value = table[a] ^ table[b] ^ table[c] ^ mask
        out.append(value + 1 if value < n_values else 0)
    return out
