"""Ordered, bounded parallelism: results in the order of their inputs, few of them in memory."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from nearzip.errors import UsageError

__all__ = ["default_threads", "number_of_threads", "ordered_map"]

T = TypeVar("T")
R = TypeVar("R")


def default_threads() -> int:
    """`NEARZIP_THREADS`, or the processors that this process may use."""
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


#: Pools that wait for the next call: their threads keep the memory in which blocks are coded, and fresh pages take
#: time to get. A pool serves one call at a time, so that work which itself calls `ordered_map` cannot wait
#: for threads that wait for it.
_idle: deque[tuple[int, ThreadPoolExecutor]] = deque()
_MOST_IDLE = 2
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # threads do not survive a fork


def _take(threads: int) -> ThreadPoolExecutor:
    """An idle pool of that many threads, or a new one."""
    for _ in range(len(_idle)):
        try:
            kept, pool = _idle.pop()  # the one that served last: its threads have their memory
        except IndexError:  # another thread was quicker
            break
        if kept == threads:
            return pool
        pool.shutdown(wait=False)
    return ThreadPoolExecutor(threads, thread_name_prefix="nearzip")


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` on a thread pool; at most `threads` + 2 results wait to be taken, so memory stays bounded.

    The work must release the GIL to gain. Closing the iterator early abandons what has not begun, and does not wait for
    what has.
    """
    items = iter(items)
    begin = list(itertools.islice(items, 2))
    items = itertools.chain(begin, items)
    if threads == 1 or len(begin) < 2:
        yield from map(function, items)
        return
    # Only now: what prepared the first items may have used the same pool.
    pool = _take(threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        if not waiting and len(_idle) < _MOST_IDLE:
            _idle.append((threads, pool))
        else:
            # Without joining threads: an iterator that was abandoned in a cycle is closed by the garbage collector, in
            # any thread and under any lock, those of starting and joining threads included.
            pool.shutdown(wait=False, cancel_futures=True)
