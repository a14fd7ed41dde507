"""The operations on files that a store in a folder is made of."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator

from nearzip.framing import Source
from nearzip.sources import FileSource
from nearzip.store.backends.backend import Entry

__all__ = ["Disk"]

#: Seconds between two attempts to take a lock that another process holds.
_PATIENCE = 0.005
#: File systems that cannot sync folders (SMB, some FUSE mounts) say so by one of these; their renames are the server's.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Disk:
    """The operations on files that a store is made of. Tests put failing ones in their place."""

    def open_new(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, handle: int, data: bytes | memoryview) -> int:
        return os.write(handle, data)

    def sync(self, handle: int) -> None:
        os.fsync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def link(self, path: str, new: str) -> None:
        os.link(path, new)

    def rename(self, path: str, new: str) -> None:
        os.replace(path, new)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def make_folder(self, path: str) -> None:
        os.mkdir(path)

    def sync_folder(self, path: str) -> None:
        if os.name == "nt":  # Windows cannot open directories, and its renames are journaled
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(handle)

    def stamp(self, path: str) -> int:
        """When a file was changed, in nanoseconds."""
        return os.stat(path).st_mtime_ns

    def set_stamp(self, path: str, stamp: int) -> None:
        """Let `stamp` change to something later, `stamp` if that is allowed."""
        try:
            os.utime(path, ns=(stamp, stamp))
        except PermissionError:  # another user's file, whose time we can only set to now
            before = self.stamp(path)
            while self.stamp(path) == before:
                time.sleep(_PATIENCE)
                os.utime(path)

    def read(self, path: str, most: int) -> bytes:
        with open(path, "rb") as stream:
            return stream.read(most)

    def source(self, path: str) -> Source:
        return FileSource(path)

    def scan(self, path: str) -> list[Entry]:
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # gone since
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_file(follow_symlinks=False):
                        found.append(Entry(entry.name, status.st_size, status.st_mtime))
        return found

    @contextlib.contextmanager
    def lock(self, path: str, timeout: float) -> Iterator[None]:
        """The lock ends with the process that holds it, however that ends."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _wait_for(handle, timeout)
            yield
        finally:
            os.close(handle)


def _wait_for(handle: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _try_lock(handle):
        if time.monotonic() >= deadline:
            raise BlockingIOError
        time.sleep(_PATIENCE)


def _try_lock(handle: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
