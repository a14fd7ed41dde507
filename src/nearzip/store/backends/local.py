"""A store in a folder: every file is written aside, synced, and moved into place, and so is its folder.

fsspec's local driver syncs nothing, and its exclusive creation looks first and writes then; hence our own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from nearzip.errors import BusyError, Error, LimitError, NoSpaceError, NotFoundError, UsageError
from nearzip.framing import Source
from nearzip.store.backends.backend import Entry, Stored
from nearzip.store.backends.disk import Disk
from nearzip.store.backends.lease import Lease, hold

__all__ = ["LocalBackend"]

_BUFFER = 1 << 20
_FOLDERS = ("tmp", "objects", "versions", "hints", "staged", "lost")
#: A day: no shard takes longer to write.
_LONGEST = 86400.0
#: A file system without `flock` (Lustre, some NFS and FUSE mounts) says so by one of these.
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
#: Where the lock is a lease: how long it lasts unrenewed, and the age below which unnamed objects stay.
_LEASE_SECONDS = 120.0
_LEASE_GRACE = 3600.0
#: File systems round times to at most two seconds (FAT).
_ROUNDING_NS = 2_000_000_000


@contextlib.contextmanager
def _naming(verb: str, path: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: no such file or directory") from None
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"{path}: cannot {verb}: {reason}; what was committed is safe, 'nearzip store prune' frees space"
            ) from None
        raise Error(f"{path}: cannot {verb}: {reason}") from None


class _Sink:
    """An object on its way into the folder."""

    def __init__(self, backend: LocalBackend, staged: bool):
        self.stored: Stored | None = None
        self._backend = backend
        self._hash = hashlib.sha256()
        self._n_bytes = 0
        self._buffer = bytearray()
        self._path, self._handle = backend._open_aside("staged-" if staged else "")

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._n_bytes += len(data)
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()
        return len(data)

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        self._backend._write_all(self._handle, buffer, self._path)

    def finish(self) -> None:
        name = self._hash.hexdigest()
        self._flush()
        self._backend._put_aside(self._handle, self._path)
        target = self._backend._path(f"objects/{name}")
        with _naming("write", target):
            self._backend.disk.rename(self._path, target)
        self.stored = Stored(name, self._n_bytes)


class LocalBackend:
    """Files under a folder of this machine.

    Parameters
    ----------
    root : str
    disk : Disk
        The file operations.
    """

    can_write = True
    can_list = True
    commits_alone = True
    renames = True
    #: While the lock is held, no other commit is in progress; a lease can be lost.
    grace = 0.0

    def __init__(self, root: str, disk: Disk | None = None):
        self.root = os.path.abspath(root)
        self.url = root
        self.disk = disk or Disk()
        self._lease: Lease | None = None
        self._clock_offset = 0.0
        #: The stamp of the lock file, or the number of the lease, when this process last had the lock.
        self._seen: int | None = None
        self._changed = True

    def _path(self, path: str) -> str:
        return os.path.join(self.root, *path.split("/"))

    def make(self) -> None:
        """The folders of a store and those above it; what is there stays."""
        root = Path(self.root)
        if root.exists() and not root.is_dir():
            raise UsageError(f"{self.root}: is a file; a store is a folder")
        above = [folder for folder in reversed(root.parents) if not folder.is_dir()]
        for folder in (*above, root, *(root / name for name in _FOLDERS)):
            with _naming("create", str(folder)):
                try:
                    self.disk.make_folder(str(folder))
                except FileExistsError:
                    continue
        for folder in (root, *(folder.parent for folder in (root, *above))):
            with _naming("write", str(folder)):
                self.disk.sync_folder(str(folder))

    # reading

    def read(self, path: str, most: int) -> bytes:
        where = self._path(path)
        with _naming("read", where):
            data = self.disk.read(where, most + 1)
        if len(data) > most:
            raise LimitError(f"{where}: longer than {most} bytes")
        return data

    def source(self, path: str, n_bytes: int) -> Source:
        where = self._path(path)
        with _naming("read", where):
            return self.disk.source(where)

    def list(self, folder: str) -> list[Entry]:
        where = self._path(folder)
        with _naming("list", where):
            try:
                return self.disk.scan(where)
            except FileNotFoundError:
                return []

    # writing

    def create(self, path: str, data: bytes) -> bool:
        self._check_lease()
        target = self._path(path)
        aside = self._write_aside(data)
        try:
            with _naming("write", target):
                try:
                    self._link(aside, target)
                except FileExistsError:
                    return False
                self.disk.sync_folder(os.path.dirname(target))
            return True
        finally:
            self._forget(aside)

    def _link(self, aside: str, target: str) -> None:
        try:
            self.disk.link(aside, target)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without links: writers of this machine take turns under the lock, others do not.
            if os.path.lexists(target):
                raise FileExistsError from None
            self.disk.rename(aside, target)

    def claim(self, path: str, data: bytes) -> bool:
        target = self._path(path)
        with _naming("write", target):
            try:
                handle = self.disk.open_new(target)
            except FileExistsError:
                return False
            try:
                self._write_all(handle, data, target)
            finally:
                self.disk.close(handle)
        return True

    def replace(self, path: str, data: bytes, durable: bool = True) -> None:
        self._check_lease()
        target = self._path(path)
        aside = self._write_aside(data, durable)
        try:
            with _naming("write", target):
                self.disk.rename(aside, target)
        except BaseException:
            self._forget(aside)
            raise

    def retire(self, path: str, data: bytes) -> None:
        try:
            self.replace(path, data)
        except NoSpaceError:
            self._check_lease()
            target = self._path(path)
            with _naming("rename", target):
                self.disk.rename(target, f"{target}.pruned")
        self.settle("versions")

    @contextlib.contextmanager
    def new_object(self, staged: bool = False) -> Iterator[_Sink]:
        sink = _Sink(self, staged)
        try:
            yield sink
            sink.finish()
        finally:
            if sink.stored is None:
                with contextlib.suppress(OSError):
                    self.disk.close(sink._handle)
                self._forget(sink._path)

    def delete(self, path: str) -> bool:
        self._check_lease()
        where = self._path(path)
        with _naming("delete", where):
            try:
                self.disk.unlink(where)
            except FileNotFoundError:
                return False
        return True

    def settle(self, folder: str) -> None:
        where = self._path(folder)
        with _naming("write", where):
            self.disk.sync_folder(where)

    def _open_aside(self, prefix: str = "") -> tuple[str, int]:
        path = self._path(f"tmp/{prefix}{os.getpid()}-{secrets.token_hex(8)}")
        with _naming("write", path):
            return path, self.disk.open_new(path)

    def _write_all(self, handle: int, data: bytes | bytearray, path: str) -> None:
        view = memoryview(data)
        with _naming("write", path):
            while len(view):
                n = self.disk.write(handle, view)
                if n <= 0:
                    raise OSError(errno.EIO, "the disk takes no more bytes")
                view = view[n:]

    def _put_aside(self, handle: int, path: str, durable: bool = True) -> None:
        with _naming("write", path):
            if durable:
                self.disk.sync(handle)
            self.disk.close(handle)

    def _write_aside(self, data: bytes, durable: bool = True) -> str:
        path, handle = self._open_aside()
        try:
            self._write_all(handle, data, path)
            self._put_aside(handle, path, durable)
        except BaseException:
            with contextlib.suppress(OSError):
                self.disk.close(handle)
            self._forget(path)
            raise
        return path

    def _forget(self, aside: str) -> None:
        with contextlib.suppress(OSError):
            self.disk.unlink(aside)

    # locks

    @contextlib.contextmanager
    def committing(self, timeout: float) -> Iterator[None]:
        path = self._path("lock")
        busy = f"{self.url}: another process is writing to this store; try again later"
        with contextlib.ExitStack() as stack, _naming("lock", path):
            try:
                stack.enter_context(self.disk.lock(path, timeout))
                self._notice(self._stamp())
            except BlockingIOError:
                raise BusyError(busy) from None
            except OSError as error:
                if error.errno not in _NO_FLOCK:
                    raise
                stack.enter_context(self._leased(timeout, busy))
            held = stack.pop_all()
        with held:
            yield

    @contextlib.contextmanager
    def maintaining(self, timeout: float) -> Iterator[None]:
        with self.committing(timeout):
            if self._lease is None:
                self._leave_stamp()
            yield

    @contextlib.contextmanager
    def _leased(self, timeout: float, busy: str) -> Iterator[None]:
        """The lock where there is no `flock`: numbered files, as on object stores."""
        for folder in ("locks", "tmp"):
            with contextlib.suppress(FileExistsError):
                self.disk.make_folder(self._path(folder))
        self.grace = _LEASE_GRACE
        with hold(self, _LEASE_SECONDS, timeout, busy) as lease:
            if self._seen is not None:
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

    def _stamp(self) -> int:
        try:
            return self.disk.stamp(self._path("lock"))
        except FileNotFoundError:
            return 0

    def _leave_stamp(self) -> None:
        """Let others notice that versions may have changed: the time of the lock file grows, also on a full disk."""
        path = self._path("lock")
        with _naming("lock", path):
            self.disk.set_stamp(path, max(time.time_ns(), self._stamp() + _ROUNDING_NS))
            self._seen = self._stamp()

    def _notice(self, state: int) -> None:
        self._changed = self._changed or state != self._seen
        self._seen = state

    def changed(self) -> bool:
        changed, self._changed = self._changed, False
        return changed

    def now(self) -> float:
        return time.time() + self._clock_offset

    def sweep_litter(self) -> int:
        n = 0
        for entry in self.list("tmp"):
            # The lock excludes all others, except writers of shards and processes that lost a lease.
            longest = _LONGEST if entry.name.startswith("staged-") else self.grace
            if not longest or entry.modified < self.now() - longest:
                self.delete(f"tmp/{entry.name}")
                n += 1
        return n
