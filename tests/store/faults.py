"""Disks that fail, end the process, or forget what was not synced."""

from __future__ import annotations

import contextlib
import errno
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from nearzip.store.backends.backend import Entry
from nearzip.store.backends.disk import Disk
from nearzip.store.backends.local import LocalBackend

OPERATIONS = (
    "open_new", "write", "sync", "close", "link", "rename", "unlink", "make_folder", "sync_folder", "read", "source",
    "scan",
)  # fmt: skip
#: What takes room on a disk.
GROWING = ("open_new", "write", "link", "make_folder")


class EndedError(BaseException):
    """The process ends here: nothing of ours runs any more."""


class FaultyDisk(Disk):
    """A disk on which something happens at one operation.

    Parameters
    ----------
    at : int or None
        The operation, from 0; None: none, only count.
    fault : str
        "end": the process ends, half of a write done, and nothing works afterwards. An errno's name: that operation
        fails once. "full": from there on, nothing grows. "short": that write takes half of its bytes.
    """

    def __init__(self, at: int | None = None, fault: str = "end"):
        self.count = 0
        self.at = at
        self.fault = fault
        self.ended = False
        self.handles: list[int] = []

    def _before(self, name: str) -> None:
        if self.ended:
            raise EndedError
        number = self.count
        self.count += 1
        if self.at is None or number < self.at:
            return
        if self.fault == "full":
            if name in GROWING:
                raise OSError(errno.ENOSPC, "No space left on device")
        elif number == self.at:
            if self.fault == "end":
                self.ended = True
                raise EndedError
            if self.fault not in ("short",):
                raise OSError(getattr(errno, self.fault), f"injected {self.fault}")

    def write(self, handle: int, data: Any) -> int:
        short = self.at is not None and self.count == self.at and self.fault in ("short", "end")
        if short and len(data) > 1:
            Disk.write(self, handle, memoryview(data)[: len(data) // 2])
            if self.fault == "end":
                self.ended = True
                raise EndedError
            self.count += 1
            return len(data) // 2
        self._before("write")
        return Disk.write(self, handle, data)


def _wrapped(name: str) -> Callable[..., Any]:
    def operation(self: FaultyDisk, *arguments: Any) -> Any:
        self._before(name)
        return getattr(Disk, name)(self, *arguments)

    return operation


for _name in OPERATIONS:
    if _name != "write":
        setattr(FaultyDisk, _name, _wrapped(_name))


def backend(root: Any, disk: Disk) -> LocalBackend:
    return LocalBackend(str(root), disk)


# ---- power loss ------------------------------------------------------------------------------------------------


class _File:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced = b""


class ModelDisk:
    """A file system in memory that tells what was synced from what was not.

    `crash` gives what may be found after the power failed: names as they were when their folder was last synced, or
    with any of the changes since; data as it was when its file was last synced, or torn.
    """

    def __init__(self, folders: dict[str, dict[str, _File]] | None = None):
        self.folders = folders if folders is not None else {"/": {}}
        self.synced: dict[str, dict[str, _File]] = {path: dict(names) for path, names in self.folders.items()}
        self.synced_folders = set(self.folders)
        self.open: dict[int, _File] = {}
        self.handles = itertools.count(3)
        self.count = 0
        self.stop_at: int | None = None

    def _step(self) -> None:
        if self.stop_at is not None and self.count >= self.stop_at:
            raise EndedError
        self.count += 1

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        folder, _, name = path.rpartition("/")
        return folder or "/", name

    def _folder(self, path: str) -> dict[str, _File]:
        if path not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no folder", path)
        return self.folders[path]

    def _file(self, path: str) -> _File:
        folder, name = self._split(path)
        found = self._folder(folder).get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no file", path)
        return found

    def open_new(self, path: str) -> int:
        self._step()
        folder, name = self._split(path)
        if name in self._folder(folder):
            raise FileExistsError(errno.EEXIST, "exists", path)
        handle = next(self.handles)
        self.open[handle] = self._folder(folder)[name] = _File()
        return handle

    def write(self, handle: int, data: Any) -> int:
        self._step()
        self.open[handle].data += data
        return len(data)

    def sync(self, handle: int) -> None:
        self._step()
        self.open[handle].synced = bytes(self.open[handle].data)

    def close(self, handle: int) -> None:
        self._step()
        self.open.pop(handle, None)

    def link(self, path: str, new: str) -> None:
        self._step()
        folder, name = self._split(new)
        if name in self._folder(folder):
            raise FileExistsError(errno.EEXIST, "exists", new)
        self._folder(folder)[name] = self._file(path)

    def rename(self, path: str, new: str) -> None:
        self._step()
        file = self._file(path)
        folder, name = self._split(path)
        del self.folders[folder][name]
        folder, name = self._split(new)
        self._folder(folder)[name] = file

    def unlink(self, path: str) -> None:
        self._step()
        self._file(path)
        folder, name = self._split(path)
        del self.folders[folder][name]

    def make_folder(self, path: str) -> None:
        self._step()
        if path in self.folders:
            raise FileExistsError(errno.EEXIST, "exists", path)
        self._folder(self._split(path)[0])
        self.folders[path] = {}
        self.synced[path] = {}

    def sync_folder(self, path: str) -> None:
        self._step()
        self.synced[path] = dict(self._folder(path))
        self.synced_folders.add(path)
        self.synced_folders |= {other for other in self.folders if self._split(other)[0] == path}

    def stamp(self, path: str) -> int:
        raise FileNotFoundError

    def set_stamp(self, path: str, stamp: int) -> None:
        """Locks are not modelled."""

    def read(self, path: str, most: int) -> bytes:
        return bytes(self._file(path).data[:most])

    def source(self, path: str) -> Any:
        from nearzip.sources import BytesSource

        return BytesSource(bytes(self._file(path).data), path)

    def scan(self, path: str) -> list[Entry]:
        return [Entry(name, len(file.data), 0.0) for name, file in self._folder(path).items()]

    @contextlib.contextmanager
    def lock(self, path: str, timeout: float) -> Iterator[None]:
        yield

    def crash(self, mode: str, seed: int) -> ModelDisk:
        """What is there when the power is back. mode: "drop" all unsynced, "torn" data under all names, "mixed"."""
        rng = random.Random(seed)
        kept: dict[int, _File] = {}

        def survivor(file: _File) -> _File:
            if id(file) not in kept:
                found = _File()
                data = file.synced
                if mode != "drop" and bytes(file.data) != file.synced:
                    data = bytes(file.data[: rng.randrange(len(file.data) + 1)]) if file.data else b""
                    if rng.random() < 0.3:
                        data = bytes(len(data))
                found.data = bytearray(data)
                found.synced = data
                kept[id(file)] = found
            return kept[id(file)]

        folders: dict[str, dict[str, _File]] = {}
        for path, now in self.folders.items():
            if mode == "drop" and path not in self.synced_folders:
                continue
            before = self.synced.get(path, {})
            names = dict(before)
            for name in set(now) | set(before):
                changed = now.get(name) is not before.get(name)
                if changed and (mode == "torn" or (mode == "mixed" and rng.random() < 0.5)):
                    if name in now:
                        names[name] = now[name]
                    else:
                        del names[name]
            folders[path] = {name: survivor(file) for name, file in names.items()}
        return ModelDisk(folders)
