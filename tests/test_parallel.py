"""Ordered work on threads: order, bounded memory, and an end that waits for nobody."""

from __future__ import annotations

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
