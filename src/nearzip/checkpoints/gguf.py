"""GGUF: llama.cpp's files. Floats are tensors of their type, quantized blocks are kept bit for bit as rows of bytes."""

from __future__ import annotations

import struct

from nearzip.checkpoints.base import mapped
from nearzip.checkpoints.embedded import Checksum, Embedded
from nearzip.checkpoints.found import FoundFormat
from nearzip.errors import CorruptError
from nearzip.tensors import Array

__all__ = ["GGUF"]

_MAGIC = b"GGUF"
#: Types of metadata that have a fixed size, in bytes; 8 is a string, 9 an array.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_MAX_COUNT, _MAX_RANK, _MAX_NESTING = 1 << 24, 8, 4
#: ggml's types that are plain numbers.
_PLAIN = {
    0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16",
}  # fmt: skip
#: ggml's quantized types: values in a block, and its bytes.
_BLOCKS = {
    2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84), 11: (256, 110),
    12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98),
    19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip


class _Cursor:
    """Reads fields of a header, one after the other. Raises CorruptError where it ends."""

    def __init__(self, file: Array):
        self._file = file
        self.at = 0

    def take(self, n: int) -> bytes:
        if not 0 <= n <= self._file.size - self.at:
            raise CorruptError("the header ends early")
        self.at += n
        return self._file[self.at - n : self.at].tobytes()

    def skip(self, n: int) -> None:
        if not 0 <= n <= self._file.size - self.at:
            raise CorruptError("the header ends early")
        self.at += n

    def number(self, form: str = "Q") -> int:
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0])

    def count(self) -> int:
        n = self.number()
        if n > _MAX_COUNT:
            raise CorruptError(f"a count of {n}")
        return n

    def text(self) -> str:
        try:
            return self.take(self.count()).decode()
        except UnicodeDecodeError:
            raise CorruptError("a name that is no text") from None


def _skip_value(cursor: _Cursor, kind: int, depth: int = 0) -> None:
    if kind in _SIZES:
        cursor.skip(_SIZES[kind])
    elif kind == _STRING:
        cursor.skip(cursor.count())
    elif kind == _ARRAY and depth < _MAX_NESTING:
        inner, n = cursor.number("I"), cursor.count()
        if inner in _SIZES:
            cursor.skip(n * _SIZES[inner])
        else:
            for _ in range(n):
                _skip_value(cursor, inner, depth + 1)
    else:
        raise CorruptError(f"a value of type {kind}")


def _alignment(cursor: _Cursor, n: int) -> int:
    """Skips the metadata; where tensors begin is a multiple of what it says."""
    alignment = 32
    for _ in range(n):
        name, kind = cursor.text(), cursor.number("I")
        if name == "general.alignment" and kind == _UINT32:
            alignment = cursor.number("I")
        else:
            _skip_value(cursor, kind)
    if not 0 < alignment <= 1 << 20:
        raise CorruptError(f"an alignment of {alignment}")
    return alignment


def _tensor(cursor: _Cursor) -> tuple[int, str, str | None, tuple[int, ...]]:
    """One entry: offset, name, dtype (None for a type that is not known) and shape."""
    name, rank = cursor.text(), cursor.number("I")
    if rank > _MAX_RANK:
        raise CorruptError(f"tensor {name[:80]!r} has rank {rank}")
    # ggml counts the innermost dimension first.
    shape = tuple(cursor.number() for _ in range(rank))[::-1] or (1,)
    kind, offset = cursor.number("I"), cursor.number()
    if any(n >= 1 << 48 for n in shape):
        raise CorruptError(f"tensor {name[:80]!r} has no possible shape")
    return offset, name, *_as_array(name, kind, shape)


def _as_array(name: str, kind: int, shape: tuple[int, ...]) -> tuple[str | None, tuple[int, ...]]:
    if kind in _PLAIN:
        return _PLAIN[kind], shape
    if kind not in _BLOCKS:
        return None, shape
    values, n_bytes = _BLOCKS[kind]
    if shape[-1] % values:
        raise CorruptError(f"tensor {name[:80]!r}: its rows are not whole blocks")
    return "uint8", (*shape[:-1], shape[-1] // values * n_bytes)


def _find(path: str) -> tuple[list[Embedded], list[Checksum]]:
    file = mapped(path)
    cursor = _Cursor(file)
    if cursor.take(4) != _MAGIC or cursor.number("I") not in (2, 3):
        raise CorruptError("not of version 2 or 3")
    n_tensors, n_values = cursor.count(), cursor.count()
    alignment = _alignment(cursor, n_values)
    entries = sorted((_tensor(cursor) for _ in range(n_tensors)), key=lambda entry: entry[0])
    start = -(-cursor.at // alignment) * alignment
    ends = [*(start + offset for offset, *_ in entries[1:]), file.size]
    found = []
    for (offset, name, dtype, shape), end in zip(entries, ends, strict=True):
        at = start + offset
        if dtype is None:  # of a newer ggml: as bytes, up to the next tensor
            found.append(Embedded(name, "uint8", (max(0, end - at),), at))
        elif 0 not in shape:
            found.append(Embedded(name, dtype, shape, at))
    return found, []


GGUF = FoundFormat("GGUF", (".gguf",), _find, lambda path, head: head.startswith(_MAGIC))
