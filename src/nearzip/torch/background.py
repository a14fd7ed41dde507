"""One background task at a time; its exception is raised in the caller's next call."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - `_at_end` says why
import ctypes
import queue
import threading
import time
import warnings
import weakref
from collections.abc import Callable

__all__ = ["Background"]


class _Job:
    """Work, whether it has ended, and how."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work: Callable[[], object] | None = work
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.seconds = 0.0

    def run(self) -> None:
        begin = time.perf_counter()
        try:
            assert self._work is not None
            self._work()
        except BaseException as error:  # re-raised in the thread that waits
            self.error = error
        finally:
            self._work = None  # and with it the state that was saved
            _give_back()
            self.seconds = time.perf_counter() - begin
            self.ended.set()


class Background:
    """Runs functions on a background thread, one at a time.

    One thread serves all calls: starting a thread waits until it runs, and a new thread may hold Python's lock for its
    first 5 ms, whereas putting work into a queue returns at once.

    At exit the last task is finished, and its error is reported if it was never raised.

    Attributes
    ----------
    seconds_waiting, seconds_behind : float
        Time that callers of `wait` waited, and that the thread worked.
    """

    def __init__(self, what: str = "save") -> None:
        self._what = what
        self._thread: threading.Thread | None = None
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._job: _Job | None = None
        self._seconds_before = 0.0
        self.seconds_waiting = 0.0
        _ALL.add(self)

    @property
    def seconds_behind(self) -> float:
        return self._seconds_before + (self._job.seconds if self._job is not None else 0.0)

    def start(self, work: Callable[[], object]) -> None:
        """Begin, once what is under way has ended. Raises what failed there, and then does not begin."""
        self.wait()
        if self._thread is None or not self._thread.is_alive():  # a process that was forked has none
            self._thread = self._begin()
        self._job = _Job(work)
        self._queue.put(self._job)

    def _begin(self) -> threading.Thread:
        """The thread, and a queue of its own: in that of a process before the fork may be work of that process."""
        self._queue = queue.SimpleQueue()
        weakref.finalize(self, self._queue.put, None).atexit = False
        # The program's end waits for what is under way (`_tell`), not for a thread that waits for more.
        thread = threading.Thread(target=_serve, args=(self._queue,), name=f"nearzip-{self._what}", daemon=True)
        thread.start()
        return thread

    def wait(self) -> None:
        """Until nothing is under way. Raises what failed, once."""
        job = self._job
        if job is None:
            return
        self._join(job)
        self._seconds_before += job.seconds
        self._job = None
        if job.error is not None:
            raise job.error

    def _join(self, job: _Job) -> None:
        if job.ended.is_set() or self._thread is None or not self._thread.is_alive():
            return
        begin = time.perf_counter()
        job.ended.wait()
        self.seconds_waiting += time.perf_counter() - begin

    def tell(self) -> None:
        """Warn of an error that was never raised."""
        job = self._job
        if job is None:
            return
        self._join(job)
        if job.error is not None:
            warnings.warn(f"the last {self._what} failed: {job.error}", RuntimeWarning, stacklevel=2)


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Until None comes. Keeps nothing of a job that has ended, nor the `Background` whose jobs they are."""
    while (job := jobs.get()) is not None:
        job.run()
        del job


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

    glibc keeps it for what is to come, arena by arena: without this, networks of 4 M and 13 M parameters were seen to
    hold three times as much between saves.
    """
    if _TRIM is not None:
        _TRIM(0)


_ALL: weakref.WeakSet[Background] = weakref.WeakSet()


def _tell() -> None:
    for one in list(_ALL):
        one.tell()


# While there are still other threads: pools are ended by a function that `concurrent.futures.thread` registered the
# same way, when it was imported above, and the last registered is the first called.
_at_end = getattr(threading, "_register_atexit", atexit.register)
_at_end(_tell)
