"""The child process of `hdf5.py`: says where the datasets of an HDF5 file are. The library crashes on hostile files.

A script of its own that imports nothing of nearzip. It reads a request from its input and prints the answer, both JSON.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

try:
    import resource
except ImportError:  # Windows has no such limits; the parent's clock remains.
    resource = None  # type: ignore[assignment]

_MEMORY, _SECONDS = 4 << 30, 120
_MAX_DATASETS = 1_000_000


class _Window(io.RawIOBase):
    """Some bytes of a file, as a file of its own."""

    def __init__(self, path: str, start: int, n: int):
        self._file = open(path, "rb")  # noqa: SIM115 - closed with the process
        self._start, self._n, self._at = start, n, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._n)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._start + self._at)
        n = self._file.readinto(view[: max(0, min(len(view), self._n - self._at))])
        self._at += n
        return n


def _dtype(dataset: Any) -> str | None:
    """The name of a dtype of whole little-endian numbers; None for any other."""
    dtype = dataset.dtype
    if dtype.hasobject or dtype.subdtype is not None:
        return None
    # NumPy's ending of bfloat16 is lost in the file; Keras says it in an attribute.
    if dtype.kind == "V" and dtype.itemsize == 2 and dataset.attrs.get("dtype") in ("bfloat16", b"bfloat16"):
        return "bfloat16"
    if dtype.kind not in "biufc" or dtype.byteorder == ">":
        return None
    return str(dtype.newbyteorder("=").name)


def _described(file: Any, h5py: Any) -> dict[str, Any]:
    """Datasets that lie in one piece: name, dtype, shape, place; and the names and bytes of others."""
    found: list[Any] = []
    others: list[Any] = []

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if len(found) + len(others) >= _MAX_DATASETS:
            raise ValueError(f"holds more than {_MAX_DATASETS} datasets")
        n_bytes, offset, dtype = item.id.get_storage_size(), item.id.get_offset(), _dtype(item)
        if offset is None or n_bytes == 0:
            others.append([name, n_bytes])
        elif dtype is None:
            found.append([name, "uint8", [n_bytes], offset])
        else:
            found.append([name, dtype, list(item.shape), offset])

    file.visititems(visit)
    return {"found": found, "others": others}


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    sys.path[:] = request["path"]
    try:
        import h5py
    except ImportError as error:
        return {"missing": str(error)}
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        with h5py.File(_Window(request["file"], request["start"], request["n"]), "r") as file:
            return _described(file, h5py)
    except Exception as error:
        return {"error": str(error)[:300]}


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
