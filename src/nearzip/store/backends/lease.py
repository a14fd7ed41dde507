"""A lock made of files, for storage without another one: a lease that its holder renews until the work is done.

Lock files are numbered. A process holds the lock if it created the file with the highest number, exclusively, when the
one before was given back or had run out. A thread renews the lease by writing the file again. Whether a lease ran out
is decided by the file system's clock (times of its files), so that clocks of machines may differ.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Protocol

from nearzip.errors import BusyError, Error, NotFoundError
from nearzip.store.backends.backend import Entry

__all__ = ["Lease", "hold"]

#: The holder stops when this share of the lease has passed without a renewal: what it began ends within the rest.
_SAFE = 0.75
#: Renewals in the time of a lease.
_RENEWALS = 4
#: Seconds; a claim that names more is wrong.
_MAX_SECONDS = 86400.0
#: Seconds between two attempts to take a lock that another process holds.
_PAUSES = (0.05, 0.3)


class LockFiles(Protocol):
    """What a lease needs of a backend."""

    url: str

    def read(self, path: str, most: int) -> bytes: ...

    def claim(self, path: str, data: bytes) -> bool: ...

    def replace(self, path: str, data: bytes, durable: bool = True) -> None: ...

    def delete(self, path: str) -> bool: ...

    def list(self, folder: str) -> list[Entry]: ...


def _uptime() -> float:
    """Seconds, those counted while the machine was suspended."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def _path(number: int) -> str:
    return f"locks/{number:08d}"


def _numbers(entries: list[Entry]) -> list[int]:
    names = (entry.name for entry in entries if entry.name.isdecimal())
    return sorted(int(name) for name in names if _path(int(name)) == f"locks/{name}")


class Lease:
    """One process's claim to the lock of a store.

    Parameters
    ----------
    files : LockFiles
    seconds : float
        After which an unrenewed lease ends.
    """

    def __init__(self, files: LockFiles, seconds: float):
        self.number = -1
        #: What the clock of the place shows less what ours shows, in seconds.
        self.clock_offset = 0.0
        self._files = files
        self._seconds = seconds
        self._who = secrets.token_hex(8)
        self._lost: str | None = None
        self._renewed = -math.inf
        self._stop = threading.Event()
        #: When the age of another's lease may be asked for again.
        self._look_again = -math.inf

    # taking it

    def take(self) -> bool:
        """Try once."""
        entries = self._files.list("locks")
        numbers = _numbers(entries)
        if numbers and not self._is_free(numbers[-1]):
            return False
        number = numbers[-1] + 1 if numbers else 0
        began, wall = _uptime(), time.time()
        if not self._files.claim(_path(number), self._claim()):
            return False
        entries = self._files.list("locks")
        if _numbers(entries)[-1:] != [number]:
            # Others took the lock and gave it back since our first look, and removed the files before theirs.
            self._files.delete(_path(number))
            return False
        for old in numbers:
            self._files.delete(_path(old))
        self.number, self._renewed = number, began
        self.clock_offset = next(e.modified for e in entries if e.name == f"{number:08d}") - wall
        return True

    def _claim(self) -> bytes:
        claim = {
            "who": self._who, "host": socket.gethostname(), "pid": os.getpid(), "seconds": self._seconds,
            "until": time.time() + self._seconds,
        }  # fmt: skip
        return json.dumps(claim).encode()

    def _is_free(self, number: int) -> bool:
        """Whether the newest lock was given back, or its lease ran out."""
        try:
            claim = _parsed(self._files.read(_path(number), 1 << 16))
        except NotFoundError:
            return False  # the next holder has cleared it away; look again
        if claim.get("until") == 0:
            return True
        seconds = claim.get("seconds")
        if not isinstance(seconds, (int, float)) or not 0 < seconds <= _MAX_SECONDS:
            seconds = self._seconds
        now = _uptime()
        if now < self._look_again:
            return False
        self._look_again = now + min(seconds, self._seconds) / 10
        age = self._age(f"{number:08d}")
        return age is not None and age > seconds

    def _age(self, name: str) -> float | None:
        """Seconds since a lock file was written, by the clock of the place: a new file beside it shows the time."""
        probe = f"now-{secrets.token_hex(8)}"
        self._files.claim(f"locks/{probe}", b"{}")
        try:
            modified = {entry.name: entry.modified for entry in self._files.list("locks")}
        finally:
            self._files.delete(f"locks/{probe}")
        return modified[probe] - modified[name] if probe in modified and name in modified else None

    # keeping it

    def renew(self) -> None:
        """Renew the lease until `release`, on a thread of its own: nothing that takes long makes it run out."""
        pause = self._seconds / _RENEWALS
        while not self._stop.wait(pause):
            began = _uptime()
            if self._is_over(began):
                return
            try:
                if _numbers(self._files.list("locks"))[-1:] != [self.number]:
                    self._lost = "another process has it now"
                    return
                self._files.replace(_path(self.number), self._claim(), durable=False)
                self._renewed, pause = began, self._seconds / _RENEWALS
            except Exception:  # whatever a driver raises: tried again until the lease is over
                pause = self._seconds / 20

    def _is_over(self, now: float) -> bool:
        if self._lost is None and now - self._renewed > _SAFE * self._seconds:
            self._lost = f"it could not be renewed for {now - self._renewed:.0f} s"
        return self._lost is not None

    def check(self) -> None:
        """Raise BusyError if the lock is, or may be, another process's: before anything is changed or deleted."""
        if self._is_over(_uptime()):
            raise BusyError(
                f"{self._files.url}: lost the lock of this store ({self._lost}); stopped before the next change, "
                "no version is harmed: run it again"
            )

    def release(self) -> None:
        """Give the lock back."""
        self._stop.set()
        if not self._is_over(_uptime()):
            with contextlib.suppress(Error):
                self._files.replace(_path(self.number), json.dumps({"until": 0}).encode(), durable=False)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        claim = json.loads(data)
    except (ValueError, RecursionError):
        return {}  # written by a process that was ended, or half written
    return claim if isinstance(claim, dict) else {}


@contextlib.contextmanager
def hold(files: LockFiles, seconds: float, timeout: float, busy: str) -> Iterator[Lease]:
    """Hold the lock of a store. Raises BusyError with the text `busy` if others have it for longer than `timeout`."""
    lease = Lease(files, seconds)
    deadline = time.monotonic() + timeout
    while not lease.take():
        if time.monotonic() >= deadline:
            raise BusyError(busy)
        time.sleep(random.uniform(*_PAUSES))  # noqa: S311 (not for secrets)
    thread = threading.Thread(target=lease.renew, name="nearzip-lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease._stop.set()
        thread.join(seconds)
        lease.release()
