"""A store at a URL that fsspec opens: memory, S3 and other object stores.

Writers need one primitive: to create a file only if there is none. S3 and GCS have it as a conditional write, which
`probe` tries out. Commits hold no lock; those who re-encode or drop versions take turns by numbered lock files.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from nearzip.errors import BusyError, CorruptError, Error, LimitError, NotFoundError, StoreError, UsageError
from nearzip.framing import Source
from nearzip.sources import BytesSource, extra_for
from nearzip.store.backends.backend import Entry, Stored
from nearzip.store.backends.lease import Lease, hold

__all__ = ["RemoteBackend"]

#: Objects up to this size are fetched whole, in one request, and their SHA-256 is checked.
_WHOLE = 256 << 20
#: Objects up to this size are made in memory.
_SPOOL = 64 << 20
#: In-flight objects are younger; see docs/store.md.
_GRACE = 86400.0
#: A lock that was not renewed for so long belongs to a process that ended.
_LOCK_SECONDS = 120.0
_READ_ONLY = ("http", "https")
#: Where drivers say when a file was written.
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")

#: fsspec's memory has no exclusive creation between threads; they take turns, store by store.
_memory_locks: dict[str, Any] = {}
#: How often each of them was maintained.
_memory_rounds: dict[str, int] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_memory_locks.clear)  # a thread that held one is not in the child


@contextlib.contextmanager
def _naming(verb: str, url: str) -> Iterator[None]:
    """Drivers raise what they like; we do not."""
    try:
        yield
    except (Error, FileExistsError, KeyboardInterrupt):
        raise
    except FileNotFoundError:
        raise NotFoundError(f"{url}: no such file") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise Error(f"{url}: cannot {verb}: {reason}") from None


class _Sink:
    def __init__(self, stream: BinaryIO):
        self.stored: Stored | None = None
        self.stream = stream
        self.hash = hashlib.sha256()
        self.n_bytes = 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.n_bytes += len(data)
        return self.stream.write(data)


class RemoteBackend:
    """Files under a URL.

    Parameters
    ----------
    url : str
    storage_options : dict
        fsspec's, for this scheme.
    """

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None):
        self.url = url.rstrip("/")
        self._scheme = url.split("://")[0].lower()
        self.can_write = self.can_list = self._scheme not in _READ_ONLY
        self.commits_alone = self._scheme == "memory"
        self.renames = False
        self.grace = 0.0 if self.commits_alone else _GRACE
        options = dict(storage_options or {})
        if self._scheme in ("s3", "s3a", "gs", "gcs"):
            options.setdefault("use_listings_cache", False)
        try:
            self._fs, root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError:
            raise extra_for(self._scheme, self.url) from None
        except (ValueError, OSError) as error:
            raise UsageError(f"{url}: {error}") from None
        self._root = root.rstrip("/")
        self._lease: Lease | None = None
        self._clock_offset = 0.0
        #: The number of the lease, or the round in memory, when this process last maintained the store.
        self._seen = -1
        self._changed = True

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _name(self, path: str) -> str:
        return f"{self.url}/{path}"

    def make(self) -> None:
        """Folders come with their files."""

    # reading

    def read(self, path: str, most: int) -> bytes:
        with _naming("read", self._name(path)):
            data = bytes(self._fs.cat_file(self._path(path)))
        if len(data) > most:
            raise LimitError(f"{self._name(path)}: longer than {most} bytes")
        return data

    def source(self, path: str, n_bytes: int) -> Source:
        name = self._name(path)
        if n_bytes > _WHOLE:
            return cast(Source, _RangedSource(self, path, n_bytes))
        # A host that sends more than was asked for is cut off.
        with _naming("read", name):
            data = bytes(self._fs.cat_file(self._path(path)))
        if len(data) != n_bytes or hashlib.sha256(data).hexdigest() != path.rpartition("/")[2]:
            raise CorruptError(f"{name}: the object is damaged (SHA-256 differs)")
        return BytesSource(data, name)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        name = self._name(path)
        with _naming("read", name):
            data = bytes(self._fs.cat_file(self._path(path), start=start, end=stop))
        if len(data) != stop - start:
            raise Error(f"{name}: cannot read: got {len(data)} bytes of {stop - start}")
        return data

    def list(self, folder: str) -> list[Entry]:
        with _naming("list", self._name(folder)):
            try:
                found = self._fs.ls(self._path(folder), detail=True, **self._fresh())
            except FileNotFoundError:
                return []
        return [
            Entry(str(item["name"]).rpartition("/")[2], int(item["size"] or 0), _modified(item))
            for item in found
            if item["type"] == "file"
        ]

    def _fresh(self) -> dict[str, Any]:
        return {} if self._scheme == "memory" else {"refresh": True}

    # writing

    def create(self, path: str, data: bytes) -> bool:
        self._check_lease()
        with self._turn(), _naming("write", self._name(path)):
            try:
                self._fs.pipe_file(self._path(path), data, mode="create")
                return True
            except Exception as error:
                if not _says_exists(error):
                    raise
        # A driver that retries after a lost response finds its own file there.
        return self.read(path, len(data) + 1 << 20) == data

    def claim(self, path: str, data: bytes) -> bool:
        return self.create(path, data)

    def replace(self, path: str, data: bytes, durable: bool = True) -> None:
        self._check_lease()
        with _naming("write", self._name(path)):
            self._fs.pipe_file(self._path(path), data)

    def retire(self, path: str, data: bytes) -> None:
        self.replace(path, data)

    @contextlib.contextmanager
    def new_object(self, staged: bool = False) -> Iterator[_Sink]:
        with tempfile.SpooledTemporaryFile(_SPOOL) as stream:
            sink = _Sink(cast(BinaryIO, stream))
            yield sink
            name = sink.hash.hexdigest()
            where = self._path(f"objects/{name}")
            stream.seek(0)
            with _naming("write", self._name(f"objects/{name}")):
                if sink.n_bytes <= _SPOOL:
                    self._fs.pipe_file(where, stream.read())
                else:
                    stream.flush()
                    with self._fs.open(where, "wb") as target:
                        while block := stream.read(16 << 20):
                            target.write(block)
            sink.stored = Stored(name, sink.n_bytes)

    def delete(self, path: str) -> bool:
        self._check_lease()
        with _naming("delete", self._name(path)):
            try:
                self._fs.rm_file(self._path(path))
            except FileNotFoundError:
                return False
        return True

    def settle(self, folder: str) -> None:
        """Nothing to do: object stores respond once a file is durable."""

    def probe(self) -> None:
        """Try whether creation is exclusive. Raises StoreError if it is not."""
        path = f"probe-{secrets.token_hex(8)}"
        try:
            first, second = self.create(path, b"one"), self.create(path, b"two")
        finally:
            self.delete(path)
        if not first or second:
            raise StoreError(
                f"{self.url}: overwrites a file that was to be created only if there is none, so two writers could "
                "lose each other's versions; with one writer only, say exclusive='single-writer' (--single-writer)"
            )

    # locks

    @contextlib.contextmanager
    def committing(self, timeout: float) -> Iterator[None]:
        with self._turn(timeout):
            yield

    @contextlib.contextmanager
    def _turn(self, timeout: float = -1) -> Iterator[None]:
        if self._scheme != "memory":
            yield
            return
        lock = _memory_locks.setdefault(self._root, threading.RLock())
        if not lock.acquire(timeout=timeout):
            raise BusyError(f"{self.url}: another thread is writing to this store; try again later")
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def maintaining(self, timeout: float) -> Iterator[None]:
        if self._scheme == "memory":
            with self._turn(timeout):
                rounds = _memory_rounds.get(self._root, 0)
                self._notice(rounds)
                _memory_rounds[self._root] = self._seen = rounds + 1
                yield
            return
        busy = f"{self.url}: another process is pruning, re-encoding or repairing this store; try again later"
        with hold(self, _LOCK_SECONDS, timeout, busy) as lease:
            self._seen += 1
            self._notice(lease.number)
            self._lease, self._clock_offset = lease, lease.clock_offset
            try:
                yield
            finally:
                self._lease = None

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _notice(self, state: int) -> None:
        self._changed = self._changed or state != self._seen
        self._seen = state

    def changed(self) -> bool:
        if self._scheme == "memory":
            self._notice(_memory_rounds.get(self._root, 0))
        changed, self._changed = self._changed, False
        return changed

    def now(self) -> float:
        return time.time() + self._clock_offset

    def sweep_litter(self) -> int:
        """Unfinished uploads are the host's to drop."""
        return 0


class _RangedSource:
    def __init__(self, backend: RemoteBackend, path: str, n_bytes: int):
        self._backend, self._path = backend, path
        self.name = f"{backend.url}/{path}"
        self.size = n_bytes

    def read(self, offset: int, length: int) -> bytes:
        return self._backend.read_range(self._path, offset, offset + length) if length else b""

    def close(self) -> None:
        """Nothing to do."""


def _says_exists(error: Exception) -> bool:
    """Whether a driver means that the file is there already; each says it in its own way."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, FileExistsError):
            return True
        text = str(seen)
        if "PreconditionFailed" in text or "pre-conditions" in text or "ConditionalRequestConflict" in text:
            return True
        if "conditionNotMet" in text or " 412" in text:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _modified(item: dict[str, Any]) -> float:
    value = next((item[key] for key in _TIMES if item.get(key)), None)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime.datetime):
        return value.timestamp() if value.tzinfo else value.replace(tzinfo=datetime.timezone.utc).timestamp()
    # Unknown: as if it were new, so that nothing in the making is dropped.
    return float(value) if isinstance(value, (int, float)) else time.time()
