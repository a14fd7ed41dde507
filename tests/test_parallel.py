"""Ordered work on threads: order, bounded memory, and an end that waits for nobody."""

from __future__ import annotations

import os
import threading

import pytest

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
