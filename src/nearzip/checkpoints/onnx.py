"""ONNX: the initializers and constants of a graph that are stored as bytes or packed floats. The rest is kept as it is.

The file is walked as protobuf, field by field, without ONNX's library. Tensors in files of their own (external data)
are read with the folder that holds both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nearzip.checkpoints.base import mapped
from nearzip.checkpoints.embedded import Checksum, Embedded
from nearzip.checkpoints.found import FoundFormat
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array, dtype_of

__all__ = ["ONNX", "external_tensors", "inner_tensors"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 16
#: Fields of ONNX's messages that lead to tensors: message to field to message.
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
}
#: ONNX's numbers of types that are whole bytes.
_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn",
    18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
}  # fmt: skip

#: Fields of packed numbers that lie in the file as they do in memory, and the type that they are for.
_PACKED = {4: 1, 10: 11}


def _varint(file: Array, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = int(file[at])
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise CorruptError("a number ends early")


def _fields(file: Array, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a message: number, wire type, and value or where its bytes begin and end."""
    while at < end:
        key, at = _varint(file, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(file, at, end)
            yield number, wire, value, at
            continue
        if wire == _BYTES:
            n, at = _varint(file, at, end)
        elif wire in (_FIXED64, _FIXED32):
            n = 8 if wire == _FIXED64 else 4
        else:
            raise CorruptError(f"a field of wire type {wire}")
        if n > end - at:
            raise CorruptError("a field ends after its message")
        yield number, wire, at, at + n
        at += n


@dataclass
class _Tensor:
    """A TensorProto, as far as it matters here."""

    name: str = ""
    dtype: int = 0
    dims: list[int] = field(default_factory=list)
    raw: tuple[int, int] | None = None
    pieces: int = 0
    external: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def read(file: Array, at: int, end: int) -> _Tensor:
        found = _Tensor()
        for number, wire, start, stop in _fields(file, at, end):
            if number == 1 and wire == _VARINT:
                found.dims.append(start)
            elif number == 1 and wire == _BYTES:  # packed
                while start < stop:
                    dim, start = _varint(file, start, stop)
                    found.dims.append(dim)
            elif number == 2 and wire == _VARINT:
                found.dtype = start
            elif number == 8 and wire == _BYTES:
                found.name = file[start:stop].tobytes().decode("utf-8", "replace")
            elif wire == _BYTES and (number == 9 or (number in _PACKED and _PACKED[number] == found.dtype)):
                found.pieces += 1
                found.raw = (start, stop) if found.pieces == 1 else None  # in pieces: rare, and left as it is
            elif number == 13 and wire == _BYTES:
                pair = {n: file[a:b].tobytes().decode("utf-8", "replace") for n, _, a, b in _fields(file, start, stop)}
                found.external[pair.get(1, "")] = pair.get(2, "")
        return found

    def embedded(self, name: str, start: int, n_bytes: int) -> Embedded:
        """The tensor in its shape, or as bytes if its type is not one of whole bytes (4-bit integers, say)."""
        dtype = _DTYPES.get(self.dtype)
        if dtype is not None and all(0 <= n < 1 << 48 for n in self.dims):
            each = Embedded(name, dtype, tuple(self.dims), start)
            if each.spec.n_bytes == n_bytes:
                return each
        return Embedded(name, "uint8", (n_bytes,), start)


def _tensors(file: Array) -> Iterator[_Tensor]:
    work = [("model", 0, file.size, 0)]
    while work:
        kind, at, end, depth = work.pop()
        if depth > _MAX_DEPTH:
            raise CorruptError("its graphs are nested too deep")
        if kind == "tensor":
            yield _Tensor.read(file, at, end)
            continue
        inside = [
            (_INSIDE[kind][number], start, stop, depth + 1)
            for number, wire, start, stop in _fields(file, at, end)
            if wire == _BYTES and number in _INSIDE[kind]
        ]
        work.extend(reversed(inside))


def _find(path: str) -> tuple[list[Embedded], list[Checksum]]:
    for tensor in _tensors(mapped(path)):
        if tensor.external:
            raise UsageError(
                f"{path}: tensor {tensor.name[:80]!r} is in a file of its own ({tensor.external.get('location')!r}); "
                "give the folder that holds both"
            )
    return inner_tensors(path), []


def inner_tensors(path: str) -> list[Embedded]:
    """The tensors of a graph that are in the file itself. Raises CorruptError."""
    found: dict[str, Embedded] = {}
    for tensor in _tensors(mapped(path)):
        if tensor.raw is not None and tensor.raw[1] > tensor.raw[0]:
            name = _free(tensor.name or "constant", found)
            found[name] = tensor.embedded(name, tensor.raw[0], tensor.raw[1] - tensor.raw[0])
    return list(found.values())


def external_tensors(path: str) -> dict[str, list[Embedded]]:
    """The tensors of a graph that are in other files, by the name of the file. Raises CorruptError."""
    found: dict[str, list[Embedded]] = {}
    taken: dict[str, Embedded] = {}
    for tensor in _tensors(mapped(path)):
        if not tensor.external:
            continue
        try:
            offset, length = int(tensor.external.get("offset") or 0), int(tensor.external.get("length") or -1)
        except ValueError:
            raise CorruptError(f"{path}: tensor {tensor.name[:80]!r} has no data") from None
        if length < 0:
            length = _n_bytes(tensor)
        members = found.setdefault(tensor.external.get("location", ""), [])
        if length and all(offset != each.offset for each in members):  # tied tensors are one
            name = _free(tensor.name, taken)
            taken[name] = tensor.embedded(name, offset, length)
            members.append(taken[name])
    return found


def _n_bytes(tensor: _Tensor) -> int:
    if tensor.dtype not in _DTYPES:
        raise UsageError(f"tensor {tensor.name[:80]!r} has a type that is not known")
    n = dtype_of(_DTYPES[tensor.dtype]).itemsize
    for dim in tensor.dims:
        n *= dim
    return n


def _free(name: str, taken: dict[str, Embedded]) -> str:
    while name in taken or not name:
        name += "_"
    return name


#: Protobuf has no magic number: told by the name, and by the first field, the version of ONNX's format.
ONNX = FoundFormat("ONNX", (".onnx",), _find, lambda path, head: path.lower().endswith(".onnx") and head[:1] == b"\x08")
