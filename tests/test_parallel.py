"""Ordered work on threads: order, bounded memory, and an end that waits for nobody."""

from __future__ import annotations

import os
import threading

import pytest

from nearzip import parallel
from nearzip.parallel import ordered_map


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads):
    assert list(ordered_map(lambda i: i * i, range(100), threads)) == [i * i for i in range(100)]


def test_few_results_wait():
    begun = []
    results = ordered_map(lambda i: begun.append(i) or i, range(100), 3)
    assert next(results) == 0
    assert len(begun) <= 5
    results.close()


def test_an_error_comes_where_its_result_would():
    results = ordered_map(lambda i: 1 // (i - 3), range(100), 2)
    assert [next(results) for _ in range(3)] == [-1, -1, -1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_does_not_wait_for_running_work():
    """The garbage collector may close an iterator while its thread holds the locks that joining would need."""
    release, began = threading.Event(), threading.Event()

    def work(i: int) -> int:
        if i:
            began.set()
            release.wait(60)
        return i

    results = ordered_map(work, range(100), 2)
    assert next(results) == 0
    assert began.wait(60)
    closing = threading.Thread(target=results.close)
    closing.start()
    closing.join(30)
    closed = not closing.is_alive()
    release.set()
    assert closed


def names_of(threads: int, n: int) -> set[str]:
    return set(ordered_map(lambda _: threading.current_thread().name, range(n), threads))


def test_threads_are_kept_for_the_next_call():
    first = names_of(3, 50)
    assert names_of(3, 50) & first
    results = ordered_map(lambda _: threading.current_thread().name, range(5), 3)
    taken = {next(results) for _ in range(5)}  # never asked for a sixth, as the reader of an archive does
    del results
    assert names_of(3, 50) & taken


def test_work_may_call_for_threads_itself():
    def inner(i: int) -> int:
        return sum(ordered_map(lambda k: i + k, range(10), 2))

    assert list(ordered_map(inner, range(40), 2)) == [10 * i + 45 for i in range(40)]


def test_an_error_leaves_no_busy_pool_behind():
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            list(ordered_map(lambda i: 1 // (i - 1), range(20), 2))
        assert list(ordered_map(lambda i: i, range(20), 2)) == list(range(20))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_threads_are_made_anew_after_a_fork():
    assert list(ordered_map(lambda i: i, range(20), 2)) == list(range(20))
    child = os.fork()
    if child == 0:
        os._exit(0 if list(ordered_map(lambda i: i, range(20), 2)) == list(range(20)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_one_item_needs_no_thread():
    assert names_of(3, 1) == {threading.current_thread().name}


def test_the_pool_that_prepared_the_items_serves_them():
    """Its threads have memory already."""
    used: set[str] = set()

    def items():
        used.update(names_of(3, 50))
        yield from range(50)

    found = set(ordered_map(lambda _: threading.current_thread().name, items(), 3))
    assert found & used


def living() -> int:
    return threading.active_count()


def test_abandoned_work_keeps_few_threads_busy():
    """Each call below is abandoned while the other thread of its pool still works."""
    before, release = living(), threading.Event()

    def work(i: int) -> int:
        if i == 0:
            raise ZeroDivisionError
        release.wait(60)
        return i

    most = 0
    for _ in range(50):
        with pytest.raises(ZeroDivisionError):
            list(ordered_map(work, range(2), 2))
        most = max(most, living() - before)
    assert most <= 2 * parallel._MAX_BUSY
    assert list(ordered_map(lambda i: i * i, range(9), 2)) == [i * i for i in range(9)]
    release.set()


def test_a_pool_serves_again_once_its_abandoned_work_has_ended():
    release = threading.Event()
    results = ordered_map(lambda i: i and release.wait(60), range(100), 3)
    assert next(results) == 0
    results.close()
    assert any(pool.is_busy for pool in parallel._kept)
    release.set()
    for _ in range(1000):
        if not any(pool.is_busy for pool in parallel._kept):
            break
        threading.Event().wait(0.01)
    used = parallel._take(3)
    assert used is not None
    parallel._give_back(parallel._Pool(3, used))
    assert parallel._take(3) is used


@pytest.mark.parametrize("started", [0, 1])
def test_where_no_thread_starts_the_calling_one_works(monkeypatch, started):
    begin = threading.Thread.start
    left = [None] * started

    def refuse(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        begin(thread)

    parallel._kept.clear()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []

    def work(i: int) -> int:
        done.append(i)
        return 10 // (i - 7) if i > 6 else i

    results = ordered_map(work, range(20), 4)
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(set(done)) == len(done)
    parallel._kept.clear()


@pytest.mark.skipif(parallel.resource is None, reason="no limit of addresses here")
def test_a_limit_of_addresses_is_a_limit_of_threads(monkeypatch):
    parallel._kept.clear()
    limit = [parallel.resource.RLIM_INFINITY]
    monkeypatch.setattr(parallel.resource, "getrlimit", lambda what: (limit[0], limit[0]))
    assert names_of(3, 50) != {threading.current_thread().name}
    parallel._kept.clear()
    limit[0] = 200 << 20
    if os.path.exists("/proc/self/statm"):
        assert names_of(3, 50) == {threading.current_thread().name}
    limit[0] = 1 << 50
    assert names_of(3, 50) != {threading.current_thread().name}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_can_finish_what_was_begun():
    results = ordered_map(lambda i: i * i, range(30), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    child = os.fork()
    if child == 0:
        os._exit(0 if list(results) == [i * i for i in range(3, 30)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(results) == [i * i for i in range(3, 30)]
