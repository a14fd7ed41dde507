"""Files of any kind that hold tensors as plain bytes: the tensors, and the frame of all other bytes around them.

A format says where its tensors are; everything else of the file is kept as one array of bytes. The file comes back byte
for byte, or, where tensors were rounded, with the checksums that cover them recomputed.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from nearzip.attached import attached_tree, files_of
from nearzip.checkpoints.base import CheckpointWriter, mapped
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array, Checkpoint, TensorSpec, dtype_of

__all__ = ["Checksum", "Embedded", "EmbeddedFormat", "open_embedded"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Embedded:
    """A tensor's place in a file: contiguous, in row-major order, little-endian."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.dtype, self.shape)


@dataclass(frozen=True)
class Checksum:
    """A CRC-32 of `n` bytes from `start`, written at the offsets `places` as four bytes, little-endian."""

    start: int
    n: int
    places: tuple[int, ...]


def open_embedded(
    path: str,
    kind: str,
    tensors: Sequence[Embedded],
    checksums: Sequence[Checksum] = (),
    exact: Sequence[str] = (),
) -> Checkpoint:
    """The tensors of a file, and its frame. Raises CorruptError where they overlap or end after the end of the file.

    `exact`: tensors that keep every bit unless a bound names them.
    """
    file = mapped(path)
    found = sorted(tensors, key=lambda each: (each.offset, each.spec.n_bytes))
    gaps, at = [], 0
    for each in found:
        if each.offset < at or each.offset + each.spec.n_bytes > file.size:
            raise CorruptError(f"{path}: not a readable {kind} file: tensor {each.name[:80]!r} is out of place")
        gaps.append((at, each.offset))
        at = each.offset + each.spec.n_bytes
    gaps.append((at, file.size))
    names = {each.name: each for each in found}
    if len(names) != len(found):
        raise CorruptError(f"{path}: not a readable {kind} file: two tensors have one name")
    frame = "nearzip:frame"
    while frame in names:
        frame += "_"
    specs = {each.name: each.spec for each in found}
    specs[frame] = TensorSpec(frame, "uint8", (sum(end - start for start, end in gaps),))

    def read(name: str) -> Array:
        if name == frame:
            return np.concatenate([file[start:end] for start, end in gaps])
        each = names[name]
        dtype = dtype_of(each.dtype)
        flat = np.asarray(file[each.offset : each.offset + each.spec.n_bytes])
        return (flat if flat.ctypes.data % dtype.itemsize == 0 else flat.copy()).view(dtype).reshape(each.shape)

    detail = {
        "kind": kind,
        "frame": frame,
        "tensors": [[each.name, each.offset] for each in found],
        "checksums": [[sum_.start, sum_.n, list(sum_.places)] for sum_ in checksums],
    }
    return Checkpoint(
        specs, read, {}, attached_tree([frame], {"embedded": detail, **({"exact": list(exact)} if exact else {})})
    )


@dataclass(frozen=True)
class EmbeddedFormat:
    """Files that `open_embedded` took apart, of whatever kind: how they are written."""

    name: str = "embedded"
    endings: tuple[str, ...] = ()

    def recognizes(self, path: str, head: bytes) -> bool:
        return False

    def open(self, path: str) -> Checkpoint:
        raise UsageError(f"{path}: is not a kind of file that is known")

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        _Layout.of(specs, tree)

    @contextlib.contextmanager
    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> Iterator[CheckpointWriter]:
        layout = _Layout.of(specs, tree)
        yield _Writer(stream, layout)
        for checksum in layout.checksums:
            _write_checksum(stream, checksum)


@dataclass(frozen=True)
class _Layout:
    """Where everything goes, checked: it comes from an untrusted document."""

    n_bytes: int
    offsets: Mapping[str, int]
    frame: str
    gaps: tuple[tuple[int, int], ...]
    checksums: tuple[Checksum, ...]

    @staticmethod
    def of(specs: Mapping[str, TensorSpec], tree: str | None) -> _Layout:
        try:
            return _Layout._of(specs, files_of(tree)["embedded"])
        except (KeyError, TypeError, ValueError):
            raise CorruptError("the description of the file's layout is damaged") from None

    @staticmethod
    def _of(specs: Mapping[str, TensorSpec], detail: Mapping[str, Any]) -> _Layout:
        gaps, offsets, at = [], {}, 0
        for name, offset in detail["tensors"]:
            if type(offset) is not int or offset < at or name in offsets:
                raise ValueError
            gaps.append((at, offset))
            offsets[name] = offset
            at = offset + specs[name].n_bytes
        frame = specs[detail["frame"]]
        rest = frame.n_bytes - sum(end - start for start, end in gaps)
        if rest < 0 or frame.dtype != "uint8" or set(specs) != {*offsets, frame.name}:
            raise ValueError
        checksums = tuple(Checksum(start, n, tuple(places)) for start, n, places in detail["checksums"])
        total = at + rest
        for checksum in checksums:
            numbers = (checksum.start, checksum.n, *checksum.places)
            if not all(type(n) is int and 0 <= n <= total for n in numbers) or checksum.start + checksum.n > total:
                raise ValueError
            if any(place > total - 4 for place in checksum.places):
                raise ValueError
        return _Layout(total, offsets, frame.name, (*gaps, (at, total)), checksums)


class _Writer:
    def __init__(self, stream: BinaryIO, layout: _Layout):
        self._stream = stream
        self._layout = layout
        stream.truncate(layout.n_bytes)

    def write(self, name: str, array: Array) -> None:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if name != self._layout.frame:
            self._put(self._layout.offsets[name], raw)
            return
        at = 0
        for start, end in self._layout.gaps:
            self._put(start, raw[at : at + end - start])
            at += end - start

    def _put(self, offset: int, raw: Array) -> None:
        self._stream.seek(offset)
        self._stream.write(raw.data)


def _write_checksum(stream: BinaryIO, checksum: Checksum) -> None:
    stream.seek(checksum.start)
    value, left = 0, checksum.n
    while left:
        piece = stream.read(min(left, _CHUNK))
        if not piece:
            raise CorruptError("a checksum reaches past the end of the file")
        value = zlib.crc32(piece, value)
        left -= len(piece)
    for place in checksum.places:
        stream.seek(place)
        stream.write(value.to_bytes(4, "little"))


def tree_kind(tree: str | None) -> str | None:
    """Of what kind the file was that a tree describes; None if it is not embedded."""
    with contextlib.suppress(KeyError, TypeError, ValueError, json.JSONDecodeError):
        return str(files_of(tree)["embedded"]["kind"])
    return None
