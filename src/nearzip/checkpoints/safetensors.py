"""safetensors files: the library checks the header, tensors are views of the mapped file."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import safetensors

from nearzip.checkpoints.base import CheckpointWriter, mapped
from nearzip.checkpoints.embedded import Embedded, open_embedded
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = ["Safetensors"]

_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F4": "float4_e2m1fn_x2",
}  # fmt: skip
_TO_FILE = {ours: theirs for theirs, ours in _DTYPES.items()}


@dataclass(frozen=True)
class Safetensors:
    """Hugging Face's safetensors."""

    name: str = "safetensors"
    endings: tuple[str, ...] = (".safetensors",)

    def recognizes(self, path: str, head: bytes) -> bool:
        return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32

    def open(self, path: str) -> Checkpoint:
        try:
            # The library checks the header: sizes, holes, overlaps. It copies tensors, so they are read by mapping.
            with safetensors.safe_open(path, "numpy"):
                pass
        except safetensors.SafetensorError as error:
            raise CorruptError(f"{path}: not a readable safetensors file: {error}") from None
        file = mapped(path)
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        header = json.loads(file[8:start].tobytes())
        metadata = header.pop("__metadata__", {})
        found = [
            _entry(name, entry, start)
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        ]
        if not all(known for _, known in found):
            # A type that this release does not know: its bytes are kept, and so is the header that names it.
            return open_embedded(path, "safetensors", [each for each, _ in found])
        specs = {each.name: TensorSpec(each.name, each.dtype, each.shape) for each, _ in found}
        offsets = {each.name: each.offset for each, _ in found}

        def read(name: str) -> Array:
            spec = specs[name]
            flat = np.asarray(file[offsets[name] : offsets[name] + spec.n_bytes])
            dtype = spec.numpy_dtype
            aligned = flat.ctypes.data % dtype.itemsize == 0
            return (flat if aligned else flat.copy()).view(dtype).reshape(spec.shape)

        return Checkpoint(specs, read, metadata)

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        if "__metadata__" in specs:
            raise UsageError(f"{path}: .safetensors cannot hold a tensor of the name '__metadata__'")
        for spec in specs.values():
            if spec.dtype not in _TO_FILE or (spec.dtype == "float4_e2m1fn_x2" and not spec.shape):
                raise UsageError(
                    f"{path}: .safetensors cannot hold tensor {spec.name!r} of dtype {spec.dtype}; write .pt"
                )

    @contextlib.contextmanager
    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> Iterator[CheckpointWriter]:
        yield _Writer(stream, specs, metadata)


def _entry(name: str, entry: Mapping[str, Any], start: int) -> tuple[Embedded, bool]:
    """A tensor's place, and whether its type is known; otherwise it is kept as raw bytes."""
    begin, end = entry["data_offsets"]
    dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    if dtype == "float4_e2m1fn_x2":  # counted in numbers, of which a byte holds two
        if not shape or shape[-1] % 2:
            dtype = None
        else:
            shape = (*shape[:-1], shape[-1] // 2)
    if dtype is None:
        return Embedded(name, "uint8", (end - begin,), start + begin), False
    return Embedded(name, dtype, shape, start + begin), True


class _Writer:
    """Header first, then every tensor at its place. The library's own writer wants all tensors in memory."""

    def __init__(self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]):
        self._stream = stream
        self._offsets: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        for spec in _in_order(specs):
            halved = spec.dtype == "float4_e2m1fn_x2"
            header[spec.name] = {
                "dtype": _TO_FILE[spec.dtype],
                "shape": [*spec.shape[:-1], 2 * spec.shape[-1]] if halved else list(spec.shape),
                "data_offsets": [at, at + spec.n_bytes],
            }
            self._offsets[spec.name] = at
            at += spec.n_bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        stream.write(struct.pack("<Q", len(text)) + text)
        self._start = 8 + len(text)
        stream.truncate(self._start + at)

    def write(self, name: str, array: Array) -> None:
        self._stream.seek(self._start + self._offsets[name])
        self._stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _in_order(specs: Mapping[str, TensorSpec]) -> list[TensorSpec]:
    """As given if everything is aligned then, so that a file comes back as it was; else widest first."""
    at = 0
    for spec in specs.values():
        if at % spec.numpy_dtype.itemsize:
            return sorted(specs.values(), key=lambda each: -each.numpy_dtype.itemsize)
        at += spec.n_bytes
    return list(specs.values())
