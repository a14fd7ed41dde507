"""Ended at every operation, failing at every operation, full at every operation, and the power gone at every operation.

Always: what was committed is restored bit for bit, a new version is there whole or not at all, the next command works.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.store import Store
from store.faults import EndedError, FaultyDisk, ModelDisk, backend
from store.helpers import history, network, same, updated

VERSIONS = history(7, 100)


def commit(store: Store) -> None:
    store.commit(VERSIONS[6])


def prune(store: Store) -> None:
    store.prune("2 tagged last:1")


def shards(store: Store) -> None:
    store.shard({"a": np.ones(20, np.float32)}, "s", 0, 2)
    store.shard({"b": np.ones(20, np.float32)}, "s", 1, 2)
    store.commit_shards("s", 2)


def configure(store: Store) -> None:
    store.configure(policy="backward")


def repair(store: Store) -> None:
    store.verify(repair=True)


VERBS = {"commit": commit, "prune": prune, "shards": shards, "configure": configure, "repair": repair}


@pytest.fixture(scope="module", params=["forward", "backward"])
def prepared(request, tmp_path_factory):
    """A store with six versions, and what they are restored to."""
    root = tmp_path_factory.mktemp(request.param) / "store"
    store = nz.Store(root, create=True, bound="abs:1e-3", policy=request.param)
    for i, version in enumerate(VERSIONS[:6]):
        store.commit(version, tags=["kept"] if i == 4 else [])
    (root / "objects" / ("f" * 64)).write_bytes(b"what an interrupted writer left")
    (root / "latest").write_bytes(b"torn")
    return root, [store.checkout(i) for i in range(6)]


def broken(root, work, disk, verb) -> Exception | None:
    """Run a verb on a copy of a store whose disk fails; its error."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(root, work)
    try:
        VERBS[verb](Store(backend(work, disk)))
    except errors.Error as error:
        return error
    except EndedError:
        return None
    return None


def check(work, before, verb) -> None:
    """The promise."""
    store = nz.Store(work)
    live = {row.number for row in store.log()}
    assert live >= {2, 4, 5}
    if verb != "prune":
        assert live >= set(range(6))
    for number in live:
        restored = store.checkout(number)
        if number < 6:
            assert same(restored, before[number])
    if verb == "commit" and 6 in live:
        assert np.abs(store.checkout(6)["weight"] - VERSIONS[6]["weight"]).max() <= 1e-3
    number = store.commit(VERSIONS[6])
    assert number == max(live) + 1
    store.prune("all")
    report = nz.Store(work).verify("full")
    assert report.ok, report.damages
    assert all(same(nz.Store(work).checkout(i), before[i]) for i in live if i < 6)


def count(root, work, verb) -> int:
    disk = FaultyDisk()
    assert broken(root, work, disk, verb) is None
    return disk.count


def points(n: int, long: bool, quick: int = 9) -> list[int]:
    """Every operation, or some of them."""
    return list(range(n)) if long or n <= quick else sorted({round(i * (n - 1) / (quick - 1)) for i in range(quick)})


@pytest.mark.parametrize("verb", VERBS)
def test_ended_at_every_operation(prepared, tmp_path, verb, request, record_property):
    root, before = prepared
    n = count(root, tmp_path / "w", verb)
    record_property("operations", n)
    for at in points(n, request.config.getoption("--long")):
        disk = FaultyDisk(at)
        broken(root, tmp_path / "w", disk, verb)
        assert disk.ended
        check(tmp_path / "w", before, verb)


@pytest.mark.parametrize("fault", ["EIO", "EACCES", "short"])
@pytest.mark.parametrize("verb", ["commit", "prune"])
def test_every_operation_fails_once(prepared, tmp_path, verb, fault, request, record_property):
    root, before = prepared
    n = count(root, tmp_path / "w", verb)
    record_property("operations", n)
    for at in points(n, request.config.getoption("--long"), 5):
        error = broken(root, tmp_path / "w", FaultyDisk(at, fault), verb)
        assert error is None or str(error)
        check(tmp_path / "w", before, verb)


@pytest.mark.parametrize("verb", ["commit", "shards"])
def test_the_disk_is_full_from_every_operation_on(prepared, tmp_path, verb, request, record_property):
    root, before = prepared
    n = count(root, tmp_path / "w", verb)
    record_property("operations", n)
    for at in points(n, request.config.getoption("--long"), 6):
        error = broken(root, tmp_path / "w", FaultyDisk(at, "full"), verb)
        assert error is None or isinstance(error, errors.NoSpaceError), error
        check(tmp_path / "w", before, verb)


def test_pruning_works_with_no_byte_free(prepared, tmp_path):
    root, before = prepared
    work = tmp_path / "w"
    shutil.copytree(root, work)
    disk = FaultyDisk(0, "full")
    store = Store(backend(work, disk))
    assert same(store.checkout(5), before[5])
    report = store.prune("last:1", drop=[])
    assert report.dropped == (0, 1, 2, 3, 4)
    assert report.n_freed > 0
    assert [row.number for row in nz.Store(work).log()] == [5]
    assert same(nz.Store(work).checkout(5), before[5])
    with pytest.raises(errors.NotFoundError, match="pruned"):
        nz.Store(work).checkout(3)
    assert nz.Store(work).commit(VERSIONS[6]) == 6
    assert nz.Store(work).verify("deep").ok


@pytest.mark.parametrize("mode", ["drop", "torn", "mixed"])
@pytest.mark.parametrize("policy", ["forward", "backward"])
def test_the_power_fails_at_every_operation(policy, mode, request, record_property):
    def work(disk):
        """What is promised when the power fails: versions whose commit returned, and what pruning left."""
        promised = {}
        yield promised
        store = Store(backend("/store", disk), create=True, bound="abs:1e-3", policy=policy)
        for i in range(4):
            number = store.commit(VERSIONS[i])
            promised[number] = store.checkout(number)
            yield promised
        store.prune("1", drop=[])
        yield promised
        number = store.commit(VERSIONS[4])
        promised[number] = store.checkout(number)
        yield promised

    whole = ModelDisk()
    for _ in work(whole):
        pass
    long = request.config.getoption("--long")
    record_property("operations", whole.count)
    for at in points(whole.count, long, 25):
        disk = ModelDisk()
        disk.stop_at = at
        promised: dict[int, dict[str, np.ndarray]] = {}
        try:
            for now in work(disk):
                promised = dict(now)
        except EndedError:
            pass
        after = disk.crash(mode, at)
        store = Store(backend("/store", after), create=True, bound="abs:1e-3", policy=policy)
        live = {row.number for row in store.log()}
        # Pruning drops 0 and 2; until it is done, they may be there.
        assert live >= set(promised) - {0, 2}, at
        for number in live & set(promised):
            assert same(store.checkout(number), promised[number]), at
        for number in live:
            store.checkout(number)
        if live:
            assert store.commit(updated(network(0, 100), at)) == max(live) + 1
        store.prune("all")
        assert store.verify("deep").ok
