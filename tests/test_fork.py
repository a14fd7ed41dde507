"""Children forked while other threads work: each does a whole job of its own and ends."""

from __future__ import annotations

import functools
import gc
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip import tensors
from nearzip.parallel import ForkSafeLock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

draws = np.random.default_rng(3)
OLD = {"w": draws.normal(0, 0.1, (300, 200)).astype(np.float32), "b": draws.normal(0, 1, 50), "n": np.arange(9)}
NEW = {name: (w + 0.01 * draws.normal(size=w.shape)).astype(w.dtype) for name, w in OLD.items()}


def ends_well(job: Callable[[], object], seconds: int = 60) -> bool:
    """Whether `job` returns in a forked child."""
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)  # a child that hangs is ended by the system
        status = 1
        try:
            job()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def round_trip(method: str = "nearzip", threads: int = 3) -> None:
    archive = nz.compress(NEW, base=OLD, method=method, threads=threads)
    restored = nz.decompress(archive.to_bytes(), base=OLD, threads=threads)
    assert all(np.array_equal(restored[name], archive.restored[name]) for name in NEW)


def store_round_trip(url: str) -> None:
    store = nz.Store(url, create=True, bound="abs:0.01")
    number = store.commit(NEW)
    assert np.abs(store.checkout(number)["w"] - NEW["w"]).max() <= 0.01


class Crowd:
    """Threads that do `job` again and again until the block ends."""

    def __init__(self, job: Callable[[], object], n: int = 8) -> None:
        self._stop, self._job = threading.Event(), job
        self._threads = [threading.Thread(target=self._work) for _ in range(n)]

    def _work(self) -> None:
        while not self._stop.is_set():
            self._job()

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("method", ["nearzip", "delta-dnn", "blosc"])
def test_children_forked_beside_eight_working_threads_work(method: str) -> None:
    if method == "blosc":
        pytest.importorskip("blosc2")
    round_trip(method)
    n_children = 2 if method == "blosc" else 6  # each of them loads the codec
    with Crowd(functools.partial(round_trip, method)):
        assert all(ends_well(functools.partial(round_trip, method)) for _ in range(n_children))
    round_trip(method)


def test_children_forked_beside_threads_that_commit(tmp_path: Path) -> None:
    numbers = iter(range(10**6))
    with Crowd(lambda: store_round_trip(f"{tmp_path}/thread-{next(numbers)}"), 4):
        assert all(ends_well(lambda i=i: store_round_trip(f"{tmp_path}/child-{i}")) for i in range(4))


def test_a_child_of_a_thread_works() -> None:
    """It is the forking thread that lives on in the child, whichever it is."""
    found: list[bool] = []
    forker = threading.Thread(target=lambda: found.append(ends_well(round_trip)))
    with Crowd(round_trip, 3):
        forker.start()
        forker.join()
    assert found == [True]


def locks_of_ours() -> list[threading.Lock]:
    """Locks that cached properties of nearzip have, whoever made them."""
    return [
        thing.lock
        for thing in gc.get_objects()
        if type(thing) is functools.cached_property
        and hasattr(thing, "lock")
        and (thing.func.__module__ or "").startswith("nearzip")
    ]


def test_no_property_has_a_lock() -> None:

    assert not locks_of_ours()


def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    lock = ForkSafeLock()
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            end.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)

    def use() -> None:
        for _ in range(2):
            with lock:
                assert lock._lock.locked()
        assert not lock._lock.locked()

    assert ends_well(use, 20)
    end.set()
    holder.join()
    with lock:
        # The forking thread may hold it too: then it releases what it acquired.
        assert ends_well(lambda: lock.__exit__(None, None, None), 20)
    use()


def test_a_source_that_is_being_read_can_be_read_in_the_child() -> None:
    reading, end = threading.Event(), threading.Event()

    def read(name: str) -> np.ndarray:
        if name == "slow":
            reading.set()
            end.wait(60)
        return np.ones(3)

    once = tensors.keeping_last(read)
    reader = threading.Thread(target=once, args=("slow",))
    reader.start()
    reading.wait(60)
    assert ends_well(lambda: once("quick"), 20)
    end.set()
    reader.join()
