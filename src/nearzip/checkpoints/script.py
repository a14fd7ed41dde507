"""TorchScript: the parameters, buffers and constants of a saved module. Its code is kept as bytes and never run."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

from nearzip.checkpoints.base import mapped
from nearzip.checkpoints.builders import PickleError, TensorRef, Unknown
from nearzip.checkpoints.embedded import Checksum, Embedded
from nearzip.checkpoints.found import FoundFormat
from nearzip.checkpoints.pickles import read_pickle, torch_storage
from nearzip.checkpoints.pytorch import dtype_name, is_script, open_zip, read_entry, zip_names
from nearzip.checkpoints.zips import StoredEntry, stored_entries
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import dtype_of

__all__ = ["TORCHSCRIPT", "embedded_tensor", "named_tensors"]

#: Modules nest; more than this is no network.
_MAX_DEPTH = 200
_MAX_OBJECTS = 1_000_000


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, TensorRef]]:
    """All tensors in an object and the objects in it, under dotted names, each place once."""
    seen: set[int] = set()
    work = [(name, value, 0)]
    while work:
        name, value, depth = work.pop()
        if isinstance(value, TensorRef):
            yield name, value
            continue
        if id(value) in seen or depth > _MAX_DEPTH or len(seen) > _MAX_OBJECTS:
            continue
        seen.add(id(value))
        deeper = f"{name}." if name else ""
        work.extend((f"{deeper}{key}" if key else name, item, depth + 1) for key, item in reversed(_parts(value)))


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Unknown):
        return [("", value.state), *((str(i), item) for i, item in enumerate(_sequence(value.args)))]
    if isinstance(value, Mapping):
        return [(str(key), item) for key, item in value.items()]
    return [(str(i), item) for i, item in enumerate(_sequence(value))]


def _sequence(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else ()


def embedded_tensor(name: str, tensor: TensorRef, entry: StoredEntry) -> Embedded:
    """A tensor that fills its memory in order, or else that memory as one row of values."""
    dtype = dtype_name(tensor)
    size = dtype_of(dtype).itemsize
    n, expected = 1, []
    for length in reversed(tensor.shape):
        expected.append(n)
        n *= length
    in_order = all(
        step == wanted or length == 1
        for step, wanted, length in zip(tensor.strides, reversed(expected), tensor.shape, strict=True)
    )
    if in_order and tensor.offset == 0 and n * size == entry.n:
        return Embedded(name, dtype, tensor.shape, entry.start)
    if entry.n % size:
        raise CorruptError(f"the memory of tensor {name[:80]!r} is damaged")
    return Embedded(name, dtype, (entry.n // size,), entry.start)


def _find(path: str) -> tuple[list[Embedded], list[Checksum]]:
    zipped, prefix = open_zip(path)
    found: dict[str, Embedded] = {}
    checksums = []
    with zipped:
        entries = stored_entries(mapped(path), zipped)
        for pickle, folder, first in (("data.pkl", "data/", ""), ("constants.pkl", "constants/", "constants")):
            for name, tensor in _tensors(zipped, f"{prefix}{pickle}", first):
                key = f"{prefix}{folder}{tensor.storage.key}"
                if key in found or tensor.storage.n == 0:
                    continue
                if key not in entries:
                    raise UsageError(f"the memory of tensor {name!r} is compressed or not there; save the module again")
                found[key] = embedded_tensor(_free(name, found), tensor, entries[key])
                checksums.append(entries[key].checksum)
    return list(found.values()), checksums


def _tensors(zipped: zipfile.ZipFile, name: str, first: str) -> Iterator[tuple[str, TensorRef]]:
    if name not in zipped.namelist():
        return
    try:
        value = read_pickle(read_entry(zipped, name), torch_storage)
    except PickleError as error:
        raise CorruptError(f"entry {name!r}: {error}") from None
    yield from named_tensors(value, first)


def _free(name: str, found: Mapping[str, Embedded]) -> str:
    taken = {each.name for each in found.values()}
    while name in taken or not name:
        name += "_"
    return name


#: Modules that `torch.jit.save` wrote.
TORCHSCRIPT = FoundFormat(
    "TorchScript",
    (".pt", ".pth", ".ts", ".torchscript", ".jit", ".ptl", ".bin"),
    _find,
    lambda path, head: head.startswith(b"PK") and is_script(zip_names(path)),
)
