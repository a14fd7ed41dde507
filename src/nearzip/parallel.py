"""Ordered, bounded parallelism: results in the order of their inputs, few of them in memory, few threads in all.

And a lock that a forked process finds free.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from nearzip.errors import UsageError

try:
    import resource
except ImportError:  # Windows has no limit of addresses
    resource = None  # type: ignore[assignment]

__all__ = ["ForkSafeLock", "default_threads", "number_of_threads", "ordered_map"]

T = TypeVar("T")
R = TypeVar("R")


def default_threads() -> int:
    """`NEARZIP_THREADS`, or the number of processors that this process may use."""
    wanted = os.environ.get("NEARZIP_THREADS")
    if wanted is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not wanted.isdecimal() or int(wanted) < 1:
        raise UsageError(f"NEARZIP_THREADS is a positive number, not {wanted!r}")
    return int(wanted)


def number_of_threads(wanted: int | None) -> int:
    """What the caller asked for, or the default. Raises UsageError."""
    if wanted is None:
        return default_threads()
    if type(wanted) is not int or wanted < 1:
        raise UsageError(f"threads is a positive number or None, not {wanted!r}")
    return wanted


class ForkSafeLock:
    """`threading.Lock` for a `with` block, which a forked process finds free, whatever other threads held it.

    A fork copies locks as they are, but not the threads that would release them.
    """

    _all: ClassVar[weakref.WeakSet[ForkSafeLock]] = weakref.WeakSet()

    def __init__(self) -> None:
        self._lock = self._held = threading.Lock()
        self._all.add(self)

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._held = lock

    def __exit__(self, *details: object) -> None:
        # What was acquired: if this thread forked in between, the child has another one by now.
        self._held.release()

    @classmethod
    def _after_fork(cls) -> None:
        for lock in list(cls._all):
            lock._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ForkSafeLock._after_fork)

#: Filled when a task has ended. Not its future, which would keep the result in memory.
_Ended = list[bool]


@dataclass(frozen=True)
class _Pool:
    """Threads, and the work that they still do for a call that was abandoned."""

    n_threads: int
    executor: ThreadPoolExecutor
    running: tuple[_Ended, ...] = ()

    @property
    def is_busy(self) -> bool:
        return not all(self.running)


#: Pools between two calls. Their threads keep the memory in which blocks are coded, because fresh pages take time to
#: get. A pool serves one call at a time, so that work which itself calls `ordered_map` cannot wait for threads that
#: wait for it. Accessed with `append` and `popleft` only, which need no lock: see `_give_back`.
_kept: deque[_Pool] = deque()
#: As many as callers that often work at once: threads of a pool that is let go take a while to end on a busy machine,
#: and a pool for each call would leave dozens of them.
_MAX_IDLE = 4
#: Addresses that a thread takes with its stack and its heap of the C library, and what must be left for the work.
_THREAD_BYTES, _WORK_BYTES = 80 << 20, 128 << 20
#: With so many pools still busy with abandoned work, a call works in its own thread and starts no more of them.
#: Otherwise a thousand damaged archives, each abandoned at its first bad block, would leave a thousand pools behind.
_MAX_BUSY = 2
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_kept.clear)  # threads do not survive a fork


def _sort_kept() -> tuple[list[_Pool], list[_Pool]]:
    """Take all kept pools; the idle and the busy ones."""
    idle: list[_Pool] = []
    busy: list[_Pool] = []
    for _ in range(len(_kept)):
        try:
            pool = _kept.popleft()
        except IndexError:  # another thread took it
            break
        (busy if pool.is_busy else idle).append(pool)
    return idle, busy


def _take(n_threads: int) -> ThreadPoolExecutor | None:
    """An idle pool of that many threads, or a new one; None if too many are still busy with abandoned work."""
    idle, busy = _sort_kept()
    _kept.extend(busy)
    fitting = [pool for pool in idle if pool.n_threads == n_threads]
    if fitting:
        _kept.extend(fitting[:-1])
        return fitting[-1].executor  # the one that served last: its threads have their memory
    if len(busy) >= _MAX_BUSY or not _can_afford(n_threads):
        return None
    return ThreadPoolExecutor(n_threads, thread_name_prefix="nearzip")


def _can_afford(n_threads: int) -> bool:
    """Whether a limit of addresses (`ulimit -v`) leaves enough for so many threads.

    Where it does not, a thread may fail while it begins, and the one that started it waits for ever (CPython up to
    3.12).
    """
    if resource is None:
        return True
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return True
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux
        return True
    return used + n_threads * _THREAD_BYTES + _WORK_BYTES <= limit


def _give_back(pool: _Pool) -> None:
    """Keep a pool for the next call, and the total of idle ones small.

    The garbage collector may call this, in any thread and under any lock: an iterator that was abandoned in a cycle is
    closed there. Hence no lock is taken here. An executor without references ends its threads without one.
    """
    _kept.append(pool)
    idle, busy = _sort_kept()
    _kept.extend(busy)
    _kept.extend(idle[-_MAX_IDLE:])


class _Task(Generic[T, R]):
    """One call, done once: by a thread of the pool, or by the caller where no thread can be started."""

    def __init__(self, function: Callable[[T], R], item: T) -> None:
        self._function, self._item = function, item
        self._free = [True]
        self._process = os.getpid()
        self.ended: _Ended = []
        self.future: Future[R] = Future()

    def _run(self) -> None:
        if not self._claim() or not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._function(self._item))
        except BaseException as error:
            self.future.set_exception(error)
        finally:
            self.ended.append(True)
            del self  # no cycle of an exception, its traceback and this frame

    def _claim(self) -> bool:
        try:
            return self._free.pop()  # atomic
        except IndexError:
            return False

    def start(self, executor: ThreadPoolExecutor) -> None:
        try:
            executor.submit(self._run)
        except (RuntimeError, MemoryError):
            # The system starts no more threads. Those of the pool may still get to it, or it is done here and now.
            self._run()

    def result(self) -> R:
        if not self.ended and os.getpid() != self._process:
            return self._function(self._item)  # its thread stayed behind in the process that was forked
        return self.future.result()


def _abandon(waiting: Iterable[_Task[Any, Any]]) -> tuple[_Ended, ...]:
    """Cancel what has not begun. Returns the flags of the rest."""
    return tuple(task.ended for task in waiting if not task.future.cancel())


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` on a thread pool; at most `threads` + 2 results wait to be taken, so memory stays bounded.

    The work must release the GIL to gain. Closing the iterator early abandons what has not begun, and does not wait for
    what has. However many iterators are abandoned, few threads exist at a time. Where the system or a limit of
    addresses allows no more of them, the calling thread does the work, as it does with `threads=1`.
    """
    return _on_pool(function, iter(items), threads) if threads > 1 else map(function, items)


def _on_pool(function: Callable[[T], R], items: Iterator[T], threads: int) -> Iterator[R]:
    begin = list(itertools.islice(items, 2))
    items = itertools.chain(begin, items)
    # Only now: what prepared the first items may have used the same pool.
    executor = _take(threads) if len(begin) > 1 else None
    if executor is None:
        yield from map(function, items)
        return
    waiting: deque[_Task[T, R]] = deque()
    process = os.getpid()
    try:
        for item in items:
            if os.getpid() != process:  # forked meanwhile, without the threads
                yield from (task.result() for task in waiting)
                yield function(item)
                waiting.clear()
                continue
            waiting.append(_Task(function, item))
            waiting[-1].start(executor)
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if os.getpid() == process:
            _give_back(_Pool(threads, executor, _abandon(waiting)))
