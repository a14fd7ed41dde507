"""The child process of `chunked.py`: tensorstore, which is C++ code, reads and writes arrays in chunks (zarr, OCDBT).

A script of its own that imports nothing of nearzip. Both ways: length of a JSON text (u32, little-endian), the text,
and as many bytes as it says.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
from typing import Any, BinaryIO

try:
    import resource
except ImportError:  # Windows has no such limits; the parent's clock remains.
    resource = None  # type: ignore[assignment]

_LENGTH = struct.Struct("<I")
#: Memory beyond what the child has: so much, and so many times the bytes of an array.
_FREE_MEMORY, _MEMORY_FACTOR = 2 << 30, 4
_MAX_CHUNKS = 1_000_000
#: Values that are collected before they are written.
_BATCH = 64 << 20
#: What describes an array, and the driver that reads it.
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}
_CHUNK = re.compile(r"(c|(c[./])?\d+([./]\d+)*)")


def _limit(n_bytes: int) -> None:
    if resource is None:
        return
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        wanted = used + _FREE_MEMORY + _MEMORY_FACTOR * n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    except (OSError, ValueError):
        return


class _Arrays:
    """Arrays in one place: a database (`ocdbt`), or a folder whose subfolders they are."""

    def __init__(self, tensorstore: Any, folder: str, ocdbt: bool):
        self._ts = tensorstore
        self._base: dict[str, Any] = {"driver": "file", "path": os.path.join(folder, "")}
        if ocdbt:
            self._base = {"driver": "ocdbt", "base": self._base}
        self._transactions = ocdbt
        self._values = self._ts.KvStore.open(self._base).result()
        self._batch: list[tuple[bytes, bytes]] = []
        self._n_batched = 0

    def _open(self, prefix: str, driver: str) -> Any:
        return self._ts.open({"driver": driver, "kvstore": {**self._base, "path": self._place(prefix)}}).result()

    def _place(self, prefix: str) -> str:
        return prefix if self._transactions else os.path.join(self._base["path"], prefix)

    def described(self, wanted: list[str] | None) -> dict[str, Any]:
        """Arrays that can be read, and the keys and lengths of all other values; `wanted`: only so described arrays."""
        keys = [key.decode() for key in self._values.list().result()] if wanted is None else wanted
        arrays, covered = [], set()
        for key in keys:
            prefix, _, name = key.rpartition("/")
            prefix += "/" if prefix else ""
            if name in _DRIVERS:
                text = bytes(self._values[key]).decode()
                try:
                    array = self._open(prefix, _DRIVERS[name])
                    dtype = array.dtype.numpy_dtype
                    shape = [int(n) for n in array.shape]
                except Exception:  # noqa: S112 - groups, fields: kept as they are
                    continue
                if dtype.hasobject:
                    continue
                arrays.append([prefix, _DRIVERS[name], dtype.name, dtype.itemsize, shape, text])
                covered.add(prefix)
        others = [] if wanted is not None else [key for key in keys if not _is_part(key, covered)]
        return {"arrays": arrays, "others": [[key, len(self._values[key])] for key in others]}

    def read(self, prefix: str, driver: str) -> Any:
        import numpy as np

        array = self._open(prefix, driver)
        _limit(array.dtype.numpy_dtype.itemsize * math.prod(array.shape))
        return np.ascontiguousarray(array.read().result()).reshape(-1).view(np.uint8).data

    def value(self, key: str) -> bytes:
        return bytes(self._values[key])

    def write(self, prefix: str, driver: str, text: str, data: bytes) -> None:
        """Encode an array as its metadata says, in memory, and take over the values that make it."""
        import numpy as np

        _limit(len(data))
        context = self._ts.Context()
        spec = {"driver": driver, "kvstore": {"driver": "memory"}, "metadata": json.loads(text), "create": True}
        # As Orbax writes: a reader must not have to guess what a chunk that is missing holds.
        array = self._ts.open({**spec, "store_data_equal_to_fill_value": True}, context=context).result()
        shapes = zip(array.shape, array.chunk_layout.write_chunk.shape or (), strict=True)
        if math.prod(-(-n // chunk) for n, chunk in shapes) > _MAX_CHUNKS:
            raise ValueError(f"an array of more than {_MAX_CHUNKS} chunks")
        array[...] = np.frombuffer(data, array.dtype.numpy_dtype).reshape(array.shape)
        for key in array.kvstore.list().result():
            name = key.decode()
            self.put(prefix + name, text.encode() if name in _DRIVERS else bytes(array.kvstore[key]))

    def put(self, key: str, value: bytes) -> None:
        self._batch.append((key.encode(), value))
        self._n_batched += len(value)
        if self._n_batched > _BATCH:
            self.commit()

    def commit(self) -> None:
        if self._transactions and self._batch:
            with self._ts.Transaction() as transaction:
                values = self._values.with_transaction(transaction)
                for key, value in self._batch:
                    values[key] = value
        else:
            for key, value in self._batch:
                self._values[key] = value
        self._batch, self._n_batched = [], 0


def _is_part(key: str, prefixes: set[str]) -> bool:
    """Whether a value is that of an array: its description, or a chunk."""
    prefix, _, name = key.rpartition("/")
    if name in _DRIVERS and f"{prefix}/" in prefixes:
        return True
    return any(key.startswith(prefix) and _CHUNK.fullmatch(key[len(prefix) :]) for prefix in _above(key) & prefixes)


def _above(key: str) -> set[str]:
    parts = key.split("/")
    return {"/".join(parts[:i]) + "/" for i in range(1, len(parts))}


def _read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    document = json.loads(stream.read(_LENGTH.unpack(head)[0]))
    data = stream.read(document["size"])
    return (document, data) if len(data) == document["size"] else None


def _write(stream: BinaryIO, document: dict[str, Any], data: Any = b"") -> None:
    text = json.dumps({**document, "size": len(data)}).encode()
    stream.write(_LENGTH.pack(len(text)) + text)
    stream.write(data)
    stream.flush()


class _Server:
    def __init__(self, tensorstore: Any):
        self._ts = tensorstore
        self._opened: dict[tuple[str, bool], _Arrays] = {}

    def _arrays(self, folder: str, ocdbt: bool) -> _Arrays:
        if (folder, ocdbt) not in self._opened:
            self._opened[folder, ocdbt] = _Arrays(self._ts, folder, ocdbt)
        return self._opened[folder, ocdbt]

    def answer(self, call: str, folder: str, ocdbt: bool, data: bytes, how: list[Any]) -> tuple[dict[str, Any], Any]:
        arrays = self._arrays(folder, ocdbt)
        if call == "describe":
            return arrays.described(*how), b""
        if call in ("read", "value"):
            return {}, getattr(arrays, call)(*how)
        if call in ("write", "put"):
            getattr(arrays, call)(*how, data)
        elif call == "commit":
            arrays.commit()
        return {}, b""


def main() -> None:
    # What a library prints must not get between the responses.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    first = _read(sys.stdin.buffer)
    if first is None:
        return
    sys.path[:] = first[0]["path"]
    missing, server = "", None
    try:
        import tensorstore
    except ImportError as error:
        missing = str(error)
    else:
        server = _Server(tensorstore)
    while (found := _read(sys.stdin.buffer)) is not None:
        if server is None:
            _write(out, {"missing": missing})
            continue
        request, data = found
        try:
            document, result = server.answer(request["call"], request["folder"], request["ocdbt"], data, request["how"])
        except Exception as error:
            _write(out, {"error": f"{type(error).__name__}: {error}"[:300]})
        else:
            _write(out, document, result)


if __name__ == "__main__":
    main()
