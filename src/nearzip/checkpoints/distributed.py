"""PyTorch's distributed checkpoints (DCP): which tensors are where in the .distcp files, from the .metadata."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nearzip.checkpoints.base import mapped
from nearzip.checkpoints.builders import PickleError, TensorRef, Unknown
from nearzip.checkpoints.embedded import Checksum, Embedded
from nearzip.checkpoints.pickles import read_pickle, torch_storage
from nearzip.checkpoints.script import embedded_tensor
from nearzip.checkpoints.zips import stored_entries
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array

__all__ = ["distributed_tensors"]

Found = tuple[list[Embedded], list[Checksum]]
_METADATA = ".metadata"


def distributed_tensors(root: str, files: Sequence[str]) -> dict[str, Found | None]:
    """Tensors and checksums of each .distcp file among `files`; None for one that cannot be read.

    Raises CorruptError for damaged metadata.
    """
    found: dict[str, Found | None] = {}
    for file in files:
        folder, name = os.path.split(file)
        if name != _METADATA:
            continue
        for data_file, places in _places(os.path.join(root, file)).items():
            path = f"{folder}/{data_file}" if folder else data_file
            if path in files:
                found[path] = _tensors(os.path.join(root, path), places)
    return found


def _places(path: str) -> dict[str, list[tuple[str, int, int]]]:
    """Name, offset and length of what each data file holds."""
    try:
        with open(path, "rb") as stream:
            metadata = read_pickle(stream)
        stored = _field(metadata, "storage_data")
        counts: dict[str, int] = {}
        for index in stored:
            counts[_field(index, "fqn")] = counts.get(_field(index, "fqn"), 0) + 1
        places: dict[str, list[tuple[str, int, int]]] = {}
        for index, info in stored.items():
            name = _field(index, "fqn")
            offset = _fields(index).get("offset")
            if counts[name] > 1 and offset is not None:
                name = f"{name}@{','.join(str(int(n)) for n in offset)}"
            place = (str(name), int(_field(info, "offset")), int(_field(info, "length")))
            places.setdefault(str(_field(info, "relative_path")), []).append(place)
        return places
    except (PickleError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptError(f"{path}: is not the metadata of a distributed checkpoint: {error}") from None


def _fields(value: Any) -> Mapping[str, Any]:
    state = value.state if isinstance(value, Unknown) else None
    return state if isinstance(state, Mapping) else {}


def _field(value: Any, name: str) -> Any:
    return _fields(value)[name]


def _tensors(path: str, places: Sequence[tuple[str, int, int]]) -> Found | None:
    file = mapped(path)
    tensors, checksums = [], []
    try:
        for name, offset, length in places:
            if not 0 <= offset <= offset + length <= file.size:
                raise CorruptError(f"{path}: {name[:80]!r} ends after the end of the file")
            for tensor, checksum in _tensor(file[offset : offset + length], name, offset):
                tensors.append(tensor)
                checksums.append(checksum)
    except (UsageError, PickleError, zipfile.BadZipFile, ValueError, KeyError, NotImplementedError):
        return None  # compressed by an extension, or of another kind: kept as bytes
    return tensors, checksums


def _tensor(saved: Array, name: str, shift: int) -> Iterator[tuple[Embedded, Checksum]]:
    """The tensor that `torch.save` wrote into a part of a file; nothing for other objects, which stay as they are."""
    with zipfile.ZipFile(_Window(saved)) as zipped:
        main = next(entry for entry in zipped.namelist() if entry.endswith("data.pkl"))
        value = read_pickle(zipped.read(main), torch_storage)
        if not isinstance(value, TensorRef):
            return
        entry = stored_entries(saved, zipped, shift)[f"{main.removesuffix('data.pkl')}data/{value.storage.key}"]
        if entry.n:
            yield embedded_tensor(name, value, entry), entry.checksum


class _Window(io.RawIOBase):
    """Part of a mapped file as a file."""

    def __init__(self, data: Array):
        self._data = data
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._data.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: piece.size] = piece.tobytes()
        self._at += int(piece.size)
        return int(piece.size)
