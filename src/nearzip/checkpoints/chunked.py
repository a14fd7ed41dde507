"""Arrays in chunks: folders of Orbax (OCDBT, zarr 2 and 3). Restored as the same arrays in chunks of the same kind.

tensorstore, which Orbax reads and writes with, decodes and encodes them, in a process of its own. All other files of
such a folder (`_METADATA` and the like) are kept byte for byte.
"""

from __future__ import annotations

import contextlib
import os
import re
import weakref
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nearzip.attached import attached_tree, files_of
from nearzip.checkpoints.base import CheckpointWriter
from nearzip.childprocess import ChildProcess
from nearzip.errors import CorruptError, Error, UsageError, missing_extra
from nearzip.parallel import ForkSafeLock
from nearzip.tensors import DTYPES, Array, Checkpoint, TensorSpec

__all__ = ["OCDBT", "ZARR", "ChunkedFormat", "Library", "chunked_files", "is_chunk_file"]

_SCRIPT = Path(__file__).with_name("chunked_child.py")
#: Elapsed seconds that a request may take: so many, and one for so many bytes.
_SECONDS, _BYTES_A_SECOND = 120, 2_000_000
#: Bytes of the text in front of a response: the names of all arrays.
_MAX_TEXT = 1 << 30
_MANIFEST = "manifest.ocdbt"
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}
#: Files of a database beside its manifest: data, and what processes wrote before it was merged.
_DATA = re.compile(r"(ocdbt\.process_\d+/)?(manifest\.ocdbt|d/[0-9a-f]{32})")
_OF_PROCESS = re.compile(r"(^|/)ocdbt\.process_\d+/")
_CHUNK = re.compile(r"(c|(c[./])?\d+([./]\d+)*)")
#: What the state of an optimizer is called in trees of Flax and optax.
_STATES = ("opt_state", "optimizer")


# ---- the process -----------------------------------------------------------------------------------------------


class Library:
    """tensorstore in a process of its own, started when first asked; one thread at a time talks to it."""

    def __init__(self) -> None:
        self._lock = ForkSafeLock()
        self._child: ChildProcess | None = None
        self._of = 0
        self._end: Any = None

    def close(self) -> None:
        if self._end is not None:
            self._end()

    def request(
        self, call: str, folder: str, ocdbt: bool, how: Sequence[Any], data: Any = b"", n_expected: int = 0
    ) -> tuple[dict[str, Any], Array]:
        """Raises CorruptError if it fails or takes too long, MissingExtraError."""
        document = {"call": call, "folder": os.path.abspath(folder), "ocdbt": ocdbt, "how": list(how)}
        seconds = _SECONDS + (len(data) + n_expected) / _BYTES_A_SECOND
        with self._lock:
            child = self._running()
            try:
                answer, result = child.request(document, data, n_expected, seconds)
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                self.close()
                raise CorruptError("tensorstore fails on it, or takes too long") from None
            except BaseException:  # interrupted between request and response
                self.close()
                raise
        if "missing" in answer:
            raise missing_extra("tensorstore", "orbax", "reading and writing Orbax and zarr folders")
        if "error" in answer:
            raise CorruptError(f"tensorstore: {answer['error'].splitlines()[0]}")
        return answer, np.frombuffer(result, np.uint8)

    def _running(self) -> ChildProcess:
        if self._child is not None and self._of == os.getpid() and self._end.alive:
            return self._child
        self._child = child = ChildProcess(_SCRIPT, "in which tensorstore runs", _MAX_TEXT)
        self._of = os.getpid()
        self._end = weakref.finalize(self, _end, child, self._of)
        return child


def _end(child: ChildProcess, pid: int) -> None:
    if os.getpid() == pid:
        child.close()
    else:  # in a forked copy, which must not end the other's process
        child.abandon()


# ---- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunked:
    """What of a folder is arrays in chunks.

    Parameters
    ----------
    members : dict
        Of each manifest or description: the name of a format, and its arrays.
    parts : set
        Files that hold their chunks.
    """

    members: Mapping[str, tuple[str, Checkpoint]]
    parts: frozenset[str]


def chunked_files(root: str, files: Sequence[str]) -> Chunked:
    """The arrays in chunks among the files of a folder.

    Raises
    ------
    CorruptError
        A database is damaged, or was not finished.
    MissingExtraError
    """
    databases = [file for file in files if os.path.basename(file) == _MANIFEST and not _OF_PROCESS.search(file)]
    described = [file for file in files if os.path.basename(file) in _DRIVERS]
    if not databases and not described:
        return Chunked({}, frozenset())
    library = Library()
    members: dict[str, tuple[str, Checkpoint]] = {}
    try:
        for file in databases:
            folder = os.path.dirname(file)
            found = _described(library, os.path.join(root, folder), True, None)
            members[file] = OCDBT.name, _checkpoint(library, os.path.join(root, folder), True, found)
        if described:
            found = _described(library, root, False, described)
            for array in found["arrays"]:
                file = array[0] + next(name for name, driver in _DRIVERS.items() if driver == array[1])
                members[file] = ZARR.name, _checkpoint(library, root, False, {"arrays": [array], "others": []})
    except BaseException:
        library.close()
        raise
    parts = {file for file in files if is_chunk_file(file, members)}
    return Chunked(members, frozenset(parts))


def is_chunk_file(file: str, members: Container[str]) -> bool:
    """Whether a file holds chunks of one of these databases or arrays (the manifest, or the description)."""
    parts = file.split("/")
    for i in range(1, len(parts)):
        above, rest = "/".join(parts[:i]), "/".join(parts[i:])
        if any(f"{above}/{name}" in members for name in _DRIVERS) and _CHUNK.fullmatch(rest):
            return True
        if f"{above}/{_MANIFEST}" in members and _DATA.fullmatch(rest) and rest != _MANIFEST:
            return True
    at_top = (_MANIFEST in members and _DATA.fullmatch(file)) or (
        any(name in members for name in _DRIVERS) and _CHUNK.fullmatch(file)
    )
    return bool(at_top) and file not in members


def _described(library: Library, folder: str, ocdbt: bool, wanted: Sequence[str] | None) -> dict[str, Any]:
    try:
        return library.request("describe", folder, ocdbt, [None if wanted is None else list(wanted)])[0]
    except CorruptError as error:
        raise CorruptError(f"{folder}: not a readable Orbax or zarr folder: {error}") from None


def _checkpoint(library: Library, folder: str, ocdbt: bool, found: Mapping[str, Any]) -> Checkpoint:
    specs: dict[str, TensorSpec] = {}
    sources: dict[str, tuple[str, list[Any], TensorSpec]] = {}
    arrays, others, exact = [], [], []
    for prefix, driver, dtype, itemsize, shape, text in found["arrays"]:
        # In a folder, the name of what is above it is put in front by the folder's reader.
        own = prefix.rstrip("/") if ocdbt else os.path.basename(prefix.rstrip("/"))
        name = _unique(own or "array", specs)
        if dtype not in DTYPES:
            dtype, shape = "uint8", [*shape, itemsize]
        specs[name] = TensorSpec(name, dtype, tuple(shape))
        sources[name] = "read", [prefix, driver], specs[name]
        arrays.append([name, driver, prefix if ocdbt else "", text])
        # Single numbers are steps and rates, which Python's own formats keep exactly too.
        if name.startswith(_STATES) or not shape:
            exact.append(name)
    for key, n_bytes in found["others"]:
        name = _unique(f"nearzip:value/{key}", specs)
        specs[name] = TensorSpec(name, "uint8", (n_bytes,))
        sources[name] = "value", [key], specs[name]
        others.append([name, key])

    def read(name: str) -> Array:
        call, how, spec = sources[name]
        try:
            raw = library.request(call, folder, ocdbt, how, n_expected=spec.n_bytes)[1]
        except CorruptError as error:
            raise CorruptError(f"{folder}: {name[:80]!r} cannot be read: {error}") from None
        if raw.size != spec.n_bytes:
            raise CorruptError(f"{folder}: {name[:80]!r} was changed while it was read")
        return raw.view(DTYPES[spec.dtype]).reshape(spec.shape)

    detail = {"arrays": arrays, "others": others}
    tree = attached_tree([name for name, _ in others], {"chunked": detail, **({"exact": exact} if exact else {})})
    return Checkpoint(specs, read, {}, tree, close=library.close)


def _unique(name: str, specs: Mapping[str, Any]) -> str:
    while name in specs:
        name += "_"
    return name


# ---- writing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkedFormat:
    """Arrays in chunks: a member of a folder, named by its manifest (OCDBT) or by its description (zarr)."""

    name: str
    endings: tuple[str, ...] = ()

    def recognizes(self, path: str, head: bytes) -> bool:
        return False

    def open(self, path: str) -> Checkpoint:
        raise UsageError(f"{path}: is part of an Orbax or zarr folder; give the folder")

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        self._layout(os.path.basename(path), specs, tree)

    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> contextlib.AbstractContextManager[CheckpointWriter]:
        raise UsageError("arrays in chunks are written as a folder")

    @contextlib.contextmanager
    def writing_folder(
        self, library: Library, path: Path, specs: Mapping[str, TensorSpec], tree: str | None
    ) -> Iterator[CheckpointWriter]:
        """A writer of the files around `path`, the manifest or the description."""
        layout = self._layout(path.name, specs, tree)
        ocdbt = self.name == OCDBT.name
        folder = os.fspath(path.parent)
        try:
            yield _Writer(library, folder, ocdbt, layout)
            library.request("commit", folder, ocdbt, [])
        except CorruptError as error:
            raise Error(f"{path}: cannot be written: {error}") from None

    def _layout(self, file: str, specs: Mapping[str, TensorSpec], tree: str | None) -> dict[str, tuple[str, list[str]]]:
        """The request that writes each tensor, checked: it comes from an untrusted document."""
        try:
            detail = files_of(tree)["chunked"]
            found = {name: ("write", [key, driver, text]) for name, driver, key, text in detail["arrays"]}
            found |= {name: ("put", [key]) for name, key in detail["others"]}
            texts = [text for _, how in found.values() for text in how]
            if set(found) != set(specs) or not all(isinstance(text, str) for text in texts):
                raise ValueError
            drivers = {driver for _, driver, *_ in detail["arrays"]}
            if not drivers <= set(_DRIVERS.values()):
                raise ValueError
            # Keys of a database are names in it; those of files would be paths.
            in_database = self.name == OCDBT.name and file == _MANIFEST
            if not in_database and ({_DRIVERS[file]} != drivers or [how[0] for _, how in found.values()] != [""]):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise CorruptError("the description of the arrays' chunks is damaged") from None
        return found


class _Writer:
    def __init__(self, library: Library, folder: str, ocdbt: bool, layout: Mapping[str, tuple[str, list[str]]]):
        self._library = library
        self._folder, self._ocdbt = folder, ocdbt
        self._layout = layout

    def write(self, name: str, array: Array) -> None:
        call, how = self._layout[name]
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self._library.request(call, self._folder, self._ocdbt, how, raw.data)


OCDBT = ChunkedFormat("OCDBT")
ZARR = ChunkedFormat("zarr")
