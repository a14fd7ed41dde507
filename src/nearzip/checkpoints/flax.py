"""Flax's `.msgpack` files: the arrays in them. Everything else of the file is kept as it is.

The file is walked as MessagePack, without any library. An array is an extension of type 1: shape, dtype and bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from nearzip.checkpoints.base import mapped
from nearzip.checkpoints.embedded import Checksum, Embedded
from nearzip.checkpoints.found import FoundFormat
from nearzip.errors import CorruptError
from nearzip.tensors import DTYPES, Array

__all__ = ["FLAX"]

_MAX_DEPTH, _MAX_RANK = 100, 32
_NDARRAY = 1
#: Values that are as many bytes as this, behind their type.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4,
          0xD3: 8}  # fmt: skip
#: Types whose length comes first, and the bytes of that length.
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}


class _Cursor:
    """Reads MessagePack's values between two offsets of a file. Raises CorruptError where they end early."""

    def __init__(self, file: Array, at: int, end: int):
        self._file = file
        self.at, self._end = at, end

    def skip(self, n: int) -> int:
        """Where the next `n` bytes begin."""
        if n > self._end - self.at:
            raise CorruptError("it ends early")
        self.at += n
        return self.at - n

    def take(self, n: int) -> bytes:
        start = self.skip(n)
        return self._file[start : start + n].tobytes()

    def number(self, n: int) -> int:
        return int.from_bytes(self.take(n), "big")

    def value(self) -> tuple[str, int, int]:
        """The next value's kind, its length, and where its bytes begin (in front of the items of a list or map).

        Kinds: "text", "bytes", "list", "map", "integer" (its length is its value), "other"; an extension's is its
        type's number.
        """
        kind = self.number(1)
        if kind < 0x80:
            return "integer", kind, self.at
        if kind < 0x90:
            return "map", kind & 0xF, self.at
        if kind < 0xA0:
            return "list", kind & 0xF, self.at
        if kind < 0xC0:
            return "text", kind & 0x1F, self.skip(kind & 0x1F)
        if 0xCC <= kind <= 0xCF:
            return "integer", self.number(_FIXED[kind]), self.at
        if kind >= 0xE0 or kind in _FIXED:
            return "other", 0, self.skip(_FIXED.get(kind, 0))
        return self._long(kind)

    def _long(self, kind: int) -> tuple[str, int, int]:
        for name, sizes in (("text", _TEXTS), ("bytes", _BYTES)):
            if kind in sizes:
                n = self.number(sizes[kind])
                return name, n, self.skip(n)
        for name, sizes in (("list", _LISTS), ("map", _MAPS)):
            if kind in sizes:
                return name, self.number(sizes[kind]), self.at
        if kind in _EXTENSIONS or kind in _FIXED_EXTENSIONS:
            n = self.number(_EXTENSIONS[kind]) if kind in _EXTENSIONS else _FIXED_EXTENSIONS[kind]
            which = self.number(1)
            return str(which), n, self.skip(n)
        raise CorruptError(f"a value of type {kind:#x}")

    def text(self, n: int, start: int) -> str:
        return self._file[start : start + n].tobytes().decode("utf-8", "replace")


def _ndarray(file: Array, name: str, start: int, n: int) -> Embedded | None:
    """The array that an extension holds; None for an empty one, and for a dtype that is not known."""
    cursor = _Cursor(file, start, start + n)
    kind, n_items, _ = cursor.value()
    if (kind, n_items) != ("list", 3):
        raise CorruptError(f"array {name[:80]!r} is damaged")
    kind, rank, _ = cursor.value()
    if kind != "list" or rank > _MAX_RANK:
        raise CorruptError(f"array {name[:80]!r} has no possible shape")
    dims = [cursor.value() for _ in range(rank)]
    kind, length, place = cursor.value()
    dtype = cursor.text(length, place)
    held, n_bytes, at = cursor.value()
    if {each for each, *_ in dims} - {"integer"} or (kind, held) != ("text", "bytes"):
        raise CorruptError(f"array {name[:80]!r} is damaged")
    if n_bytes == 0:
        return None
    if dtype not in DTYPES:
        return Embedded(name, "uint8", (n_bytes,), at)
    found = Embedded(name, dtype, tuple(dim for _, dim, _ in dims), at)
    if found.spec.n_bytes != n_bytes:
        raise CorruptError(f"array {name[:80]!r} holds {n_bytes} bytes, not {found.spec.n_bytes}")
    return found


def _arrays(file: Array) -> Iterator[Embedded]:
    cursor = _Cursor(file, 0, file.size)
    #: What is still to come, innermost last: kind, items left, name, and the number of the next one.
    work: list[tuple[str, int, str, int]] = [("list", 1, "", -1)]
    while work:
        holder, left, name, i = work.pop()
        if left == 0:
            continue
        work.append((holder, left - 1, name, i + 1))
        key = str(i)
        if holder == "map":
            kind, n, start = cursor.value()
            key = cursor.text(n, start) if kind == "text" else str(n)
        inner = key if not name else f"{name}.{key}"
        kind, n, start = cursor.value()
        if kind in ("list", "map"):
            if len(work) > _MAX_DEPTH:
                raise CorruptError("it is nested too deep")
            work.append((kind, n, "" if i < 0 else inner, 0))
        elif kind == str(_NDARRAY):
            found = _ndarray(file, inner, start, n)
            if found is not None:
                yield found
    if cursor.at != file.size:
        raise CorruptError("there are bytes behind its end")


def _find(path: str) -> tuple[list[Embedded], list[Checksum]]:
    found: dict[str, Embedded] = {}
    for each in _arrays(mapped(path)):
        name = each.name
        while name in found:
            name += "_"
        found[name] = Embedded(name, each.dtype, each.shape, each.offset)
    return list(found.values()), []


#: MessagePack has no magic number: told by the name, and by the map that it begins with.
FLAX = FoundFormat(
    "Flax",
    (".msgpack",),
    _find,
    lambda path, head: path.lower().endswith(".msgpack") and (head[0] >> 4 == 8 or head[0] in _MAPS),
    states=("opt_state.",),
)
