"""Fetching objects into a folder: several at a time, continued after an interruption, and digests checked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

from nearzip.errors import BusyError, CorruptError, Error, NoSpaceError, TruncatedError
from nearzip.fileio import naming_errors
from nearzip.store.backends.backend import Backend
from nearzip.store.backends.http import PAUSE, CutError, HttpBackend
from nearzip.store.backends.local import LocalBackend

__all__ = ["Cache", "Tally"]

_NAME = re.compile(r"[0-9a-f]{64}")
_PART = ".part"
#: Read at a time from what is no web host.
_PIECE = 1 << 20
_GOOD_PIECE = 1 << 20


class _StoppedError(Exception):
    """Another object failed."""


class Tally:
    """Bytes that came, over all connections, and those that were there before."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None = None):
        self.n_moved = 0
        self.n_resumed = 0
        self._total = total
        self._progress = progress
        self._lock = threading.Lock()

    def add(self, moved: int = 0, resumed: int = 0) -> None:
        with self._lock:
            self.n_moved += moved
            self.n_resumed += resumed
            if self._progress:
                self._progress(min(self.n_moved + self.n_resumed, self._total), self._total)


class Cache:
    """A folder of objects, whole ones under `objects`, begun ones with the ending .part; use while `locked`.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. Raises BusyError at once."""
        with naming_errors("write", self.folder):
            (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(LocalBackend(str(self.folder)).committing(0))
            except BusyError:
                raise BusyError(f"{self.folder}: another pull to this file is under way") from None
            if not (self.folder / "objects").is_dir():  # one that ended between our look and our lock removed it
                raise BusyError(f"{self.folder}: another pull to this file has just ended; try again")
            yield
        if not (self.folder / "objects").exists():  # some systems keep a file that is open, here the lock
            self.remove()

    def path(self, name: str) -> Path:
        return self.folder / "objects" / name

    def sweep(self, wanted: Mapping[str, int]) -> None:
        """Drop what is of no use for `wanted` objects, those included that are there but damaged."""
        with naming_errors("write", self.folder):
            self._sweep(wanted)

    def _sweep(self, wanted: Mapping[str, int]) -> None:
        for entry in self.folder.iterdir():
            if entry.is_file() and entry.name != "lock":
                entry.unlink()
        for entry in (self.folder / "objects").iterdir():
            name = entry.name.removesuffix(_PART)
            whole = name == entry.name
            if name not in wanted or entry.stat().st_size > wanted[name] or (whole and _sha256(entry) != name):
                entry.unlink()

    def remove(self) -> None:
        """The folder, with all that is in it; by who has it locked."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Remove the folder if it exists and is not in use."""
        if self.folder.is_dir():
            with contextlib.suppress(Error), self.locked():
                self.remove()

    def n_held(self, wanted: Mapping[str, int]) -> int:
        """Bytes of `wanted` objects that are there."""
        return sum(path.stat().st_size for name in wanted for path in self._files(name) if path.exists())

    def _files(self, name: str) -> tuple[Path, Path]:
        path = self.path(name)
        return path, path.with_name(name + _PART)

    def check_room(self, n_bytes: int) -> None:
        """Raise NoSpaceError if the disk cannot take so many bytes more."""
        free = shutil.disk_usage(self.folder).free
        if n_bytes > free:
            raise NoSpaceError(f"{self.folder}: the update takes {n_bytes} bytes and {free} are free; free some space")

    def fetch(self, backend: Backend, wanted: Mapping[str, int], connections: int, tally: Tally) -> None:
        """Have all `wanted` objects (name to length). What came stays when it fails.

        Raises
        ------
        NotFoundError, CorruptError, Error
            The host lacks one, sends another one, or fails.
        """
        stop = threading.Event()

        def one(item: tuple[str, int]) -> None:
            try:
                self._fetch(backend, *item, tally, stop)
            except _StoppedError:
                return
            except BaseException:
                stop.set()
                raise

        # The largest first, so that none is left at the end to be waited for.
        items = sorted(wanted.items(), key=lambda item: (-item[1], item[0]))
        with ThreadPoolExecutor(connections, thread_name_prefix="nearzip-pull") as pool:
            try:
                for future in [pool.submit(one, item) for item in items]:
                    future.result()
            finally:
                stop.set()

    def _fetch(self, backend: Backend, name: str, n_bytes: int, tally: Tally, stop: threading.Event) -> None:
        assert _NAME.fullmatch(name)
        whole, part = self._files(name)
        if whole.exists():
            tally.add(resumed=n_bytes)
            return
        continued = self._complete(backend, part, name, n_bytes, tally, stop)
        if continued and _sha256(part) != name:
            # Perhaps what was there before was torn; once more from the start.
            with naming_errors("write", part):
                part.unlink()
            self._complete(backend, part, name, n_bytes, tally, stop)
        if _sha256(part) != name:
            with naming_errors("write", part):
                part.unlink()
            raise CorruptError(f"{backend.url}/objects/{name}: the object is damaged (SHA-256 differs)")
        with naming_errors("write", whole):
            os.replace(part, whole)

    def _complete(
        self, backend: Backend, part: Path, name: str, n_bytes: int, tally: Tally, stop: threading.Event
    ) -> bool:
        """Bring a begun object to its length; whether something was there."""
        retries = backend.retries if isinstance(backend, HttpBackend) else 0
        # Unbuffered: what came is in the file, whatever happens to this process.
        with naming_errors("write", part), open(part, "ab", buffering=0) as stream:
            there = stream.tell()
            tally.add(resumed=there)
            failures = 0
            while (before := stream.tell()) < n_bytes:
                try:
                    _append(stream, _blocks(backend, f"objects/{name}", n_bytes, before), tally, stop)
                except CutError:  # noqa: PERF203
                    # A host that gives a good piece every time is given more time.
                    failures = 1 if stream.tell() - before >= _GOOD_PIECE else failures + 1
                    if failures > retries:
                        raise
                    if stop.wait(PAUSE * 2 ** min(failures, 6)):
                        raise _StoppedError from None
            return there > 0


def _append(stream: FileIO, blocks: Iterator[tuple[int, bytes]], tally: Tally, stop: threading.Event) -> None:
    for at, data in blocks:
        if at < stream.tell():  # the host starts from the beginning
            tally.add(resumed=at - stream.tell())
            stream.truncate(at)
            stream.seek(at)
        view = memoryview(data)
        while len(view):
            view = view[stream.write(view) :]
        tally.add(moved=len(data))
        if stop.is_set():
            raise _StoppedError


def _blocks(backend: Backend, path: str, n_bytes: int, start: int) -> Iterator[tuple[int, bytes]]:
    """Offsets and bytes of an object, from `start` or from 0."""
    if isinstance(backend, HttpBackend):
        yield from backend.blocks(path, n_bytes, start)
        return
    source = backend.source(path, n_bytes)
    try:
        if source.size != n_bytes:
            raise TruncatedError(f"{backend.url}/{path}: has {source.size} bytes instead of {n_bytes}")
        for at in range(start, n_bytes, _PIECE):
            yield at, bytes(source.read(at, min(_PIECE, n_bytes - at)))
    finally:
        source.close()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with naming_errors("read", path), open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
