"""One piece of work at a time behind the caller's back; what fails there is raised in front."""

from __future__ import annotations

import atexit
import ctypes
import threading
import time
import warnings
import weakref
from collections.abc import Callable

__all__ = ["Background"]


class Background:
    """Runs functions on a thread behind, one at a time.

    A program that ends lets the last one come to its end, and is told if it failed and nobody asked.

    Attributes
    ----------
    seconds_waiting, seconds_behind : float
        Spent by callers of `wait`, and by the thread.
    """

    def __init__(self, what: str = "save") -> None:
        self._what = what
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds_waiting = 0.0
        self.seconds_behind = 0.0
        _ALL.add(self)

    def start(self, work: Callable[[], object]) -> None:
        """Begin, once what is under way has ended. Raises what failed there, and then does not begin."""
        self.wait()
        # Not a daemon: the interpreter waits for it when it ends.
        self._thread = threading.Thread(target=self._run, args=(work,), name=f"nearzip-{self._what}")
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way. Raises what failed, once."""
        if self._thread is not None:
            begin = time.perf_counter()
            self._thread.join()
            self._thread = None
            self.seconds_waiting += time.perf_counter() - begin
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, work: Callable[[], object]) -> None:
        begin = time.perf_counter()
        try:
            work()
        except BaseException as error:  # handed to whoever waits
            self._error = error
        finally:
            _give_back()
            self.seconds_behind += time.perf_counter() - begin

    def tell(self) -> None:
        """Warn of a failure that nobody has seen."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            warnings.warn(f"the last {self._what} failed: {self._error}", RuntimeWarning, stacklevel=2)


def _trimmer() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`, where there is one."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows
        return None
    return trim


_TRIM = _trimmer()


def _give_back() -> None:
    """Hand freed memory back to the system.

    glibc keeps it for threads to come, arena by arena, and every save is a thread of its own: without this, networks
    of 4 M and 13 M parameters were seen to hold three times as much between saves.
    """
    if _TRIM is not None:
        _TRIM(0)


_ALL: weakref.WeakSet[Background] = weakref.WeakSet()


@atexit.register
def _tell() -> None:
    for one in list(_ALL):
        one.tell()
