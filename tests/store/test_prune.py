"""Dropping versions and coding others anew: what stays is restored bit for bit as before."""

from __future__ import annotations

import os

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.store.keep import kept, parse_rules
from nearzip.store.versions import Versions
from store.helpers import history, memory_url, network, same, updated

POLICIES = ("forward", "backward", "hop:4")


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else memory_url()


def filled(url, policy, bound="abs:1e-3", n=12, size=600):
    store = nz.Store(url, create=True, bound=bound, policy=policy)
    for i, version in enumerate(history(n, size)):
        store.commit(version, metrics={"accuracy": i % 7}, tags=["tagged"] if i == 3 else [])
    return store


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bound", ["abs:1e-3", "rms:0.01", "lossless"])
def test_what_stays_is_as_before(tmp_path, policy, bound):
    url = str(tmp_path / "store") if bound == "rms:0.01" else memory_url()
    store = filled(url, policy, bound)
    before = {i: store.checkout(i) for i in range(12)}
    rules = "last:2 every:5 best:accuracy tagged"
    planned = store.prune(rules, dry_run=True)
    assert all(same(store.checkout(i), before[i]) for i in range(12))
    report = nz.Store(url).prune(rules)
    assert sorted(report.kept) == [0, 3, 5, 6, 10, 11]
    assert (report.dropped, report.recoded, report.n_objects) == (planned.dropped, planned.recoded, planned.n_objects)
    assert planned.dry_run
    for opened in (store, nz.Store(url)):
        assert [row.number for row in opened.log()] == [0, 3, 5, 6, 10, 11]
        for i in range(12):
            if i in report.kept:
                assert same(opened.checkout(i), before[i])
            else:
                with pytest.raises(errors.NotFoundError, match=f"version {i} was pruned on"):
                    opened.checkout(i)
    assert store.stat().n_garbage == 0
    assert store.prune("all").n_objects == 0
    assert [row.number for row in store.log(pruned=True)] == list(range(12))
    assert store.commit(updated(network(), 99)) == 12
    assert same(store.checkout(10), before[10])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bound", ["abs:1e-3", "rms:0.01", "lossless"])
def test_pruning_never_makes_a_store_larger(policy, bound):
    store = filled(memory_url(), policy, bound, n=9, size=4000)
    before = store.stat().n_stored
    report = store.prune("every:3")
    assert store.stat().n_stored == before - report.n_freed <= before


@pytest.mark.parametrize("bound", ["abs:1e-3", "rms:0.01"])
def test_pruning_lossy_versions_pays(bound):
    """Versions that were quantized with one step have small exact differences."""
    store = filled(memory_url(), "forward", bound, n=9, size=40_000)
    sizes = [row.n_stored for row in store.log()]
    report = store.prune("every:4")
    assert report.recoded == (4, 8)
    assert report.retained == ()
    assert store.stat().n_stored < sizes[0] + 6 * sizes[1]


@pytest.mark.parametrize("bound", ["abs:1e-3", "rms:0.01", "lossless"])
def test_backward_keeps_the_newest_whole_and_the_rest_small(bound):
    store = filled(memory_url(), "backward", bound, n=6, size=40_000)
    rows = store.log()
    assert [row.base for row in rows] == [1, 2, 3, 4, 5, None]
    assert all(row.n_stored < (1 if bound == "lossless" else 0.7) * rows[-1].n_stored for row in rows[:-1])
    assert store.stat().n_garbage == 0


def test_backward_chains_are_cut_where_they_become_too_long():
    store = nz.Store(memory_url(), create=True, bound="abs:1e-3", policy=nz.store.Policy("backward", depth=3))
    versions = history(10)
    for version in versions:
        store.commit(version)
    rows = store.log()
    assert max(row.depth for row in rows) == 3
    assert rows[-1].base is None
    assert all(np.abs(store.checkout(i)["weight"] - v["weight"]).max() <= 1e-3 for i, v in enumerate(versions))


def test_a_change_of_policy_is_applied_by_pruning():
    store = filled(memory_url(), "hop:1", n=6, size=40_000)
    before = [store.checkout(i) for i in range(6)]
    store.configure(policy="backward")
    report = store.prune("all")
    assert report.dropped == ()
    assert report.recoded == (0, 1, 2, 3, 4)
    assert [row.base for row in store.log()] == [1, 2, 3, 4, 5, None]
    assert all(same(store.checkout(i), version) for i, version in enumerate(before))


def test_shared_tensors_survive_the_version_they_came_from(url):
    rng = np.random.default_rng(0)
    frozen = rng.normal(size=50_000).astype(np.float32)
    store = nz.Store(url, create=True, policy="forward")
    for i in range(6):
        store.commit({"frozen": frozen + (i == 0), "head": rng.normal(size=100).astype(np.float32)})
    before = [store.checkout(i) for i in range(6)]
    store.prune("last:2")
    assert all(same(nz.Store(url).checkout(i), before[i]) for i in (4, 5))
    assert store.stat().n_stored < 1.3 * frozen.nbytes


def test_backward_with_frozen_tensors(url):
    rng = np.random.default_rng(0)
    frozen = rng.normal(size=30_000).astype(np.float32)
    store = nz.Store(url, create=True, policy="forward", bound="abs:1e-3")
    seen = []
    for i in range(9):
        if i == 3:
            store.configure(policy="backward")
        thawed = frozen + np.float32(max(0, i - 5))
        store.commit({"frozen": thawed, "n": np.array(i), "head": rng.normal(size=100).astype(np.float32)})
        seen.append(store.checkout(i))
        assert all(same(store.checkout(j), seen[j]) for j in range(i + 1))
    store.prune("every:2")
    assert all(same(nz.Store(url).checkout(j), seen[j]) for j in range(0, 9, 2))


def test_dropping_by_number():
    store = filled(memory_url(), "forward", n=5)
    before = store.checkout(2)
    assert store.prune("all", drop=[1]).dropped == (1,)
    assert same(store.checkout(2), before)
    for wrong in (4, 1, 17):
        with pytest.raises(errors.UsageError, match="cannot be dropped"):
            store.prune("all", drop=[wrong])


def test_pruning_an_empty_store():
    report = nz.Store(memory_url(), create=True).prune("last:3")
    assert (report.kept, report.dropped) == ({}, ())


def test_what_interrupted_writers_left_is_removed(tmp_path):
    store = nz.Store(tmp_path, create=True)
    store.commit(network())
    (tmp_path / "objects" / ("0" * 64)).write_bytes(b"orphan")
    (tmp_path / "tmp" / "123-abc").write_bytes(b"half")
    assert store.stat().n_garbage == 6
    assert store.prune("all", dry_run=True).n_objects == 1
    assert (tmp_path / "objects" / ("0" * 64)).exists()
    assert store.prune("all").n_freed == 6
    assert not list((tmp_path / "tmp").iterdir())
    assert len(list((tmp_path / "objects").iterdir())) == 1


def test_nothing_is_dropped_while_a_manifest_is_damaged(tmp_path):
    store = nz.Store(tmp_path, create=True, policy="forward")
    for version in history(4):
        store.commit(version)
    path = tmp_path / "versions" / "00000001"
    path.write_bytes(path.read_bytes()[:-5])
    objects = sorted(os.listdir(tmp_path / "objects"))
    with pytest.raises(errors.CorruptError, match="nothing was dropped"):
        store.prune("last:1")
    assert sorted(os.listdir(tmp_path / "objects")) == objects


def test_rules():
    store = filled(memory_url(), "forward", n=10)
    versions = {row.number: store._versions.get(row.number) for row in store.log()}
    for text, wanted in {
        "last:3": [7, 8, 9], "every:4": [0, 4, 8, 9], "best:accuracy": [6, 9], "min:accuracy": [7, 9], "tagged": [3, 9],
        "tag:tagged": [3, 9], "5": [5, 9], "all": list(range(10)), "last:1": [9], "last:2,every:5": [0, 5, 8, 9],
        "best:nothing": [9],
    }.items():  # fmt: skip
        assert list(kept(parse_rules(text), versions)) == wanted, text
    for wrong in ("", " ", "last", "last:0", "last:-1", "every:x", "best:", "worst:5", "tag:a b", [3]):
        with pytest.raises(errors.UsageError):
            parse_rules(wrong)


def test_what_is_committed_during_a_prune_of_days_stays(monkeypatch):
    """Reading the manifests, and all else, takes longer than the grace period; others commit meanwhile."""
    url = memory_url()
    pruning, other = nz.Store(url, create=True), nz.Store(url)
    for i in range(3):
        pruning.commit(network(i))
    backend = pruning._backend
    backend.grace = 86400.0
    snapshot = Versions.snapshot
    committed = []

    def slow_snapshot(versions):
        found = snapshot(versions)
        if not committed:
            committed.append(other.commit(network(7)))
            backend._clock_offset = 2 * backend.grace
        return found

    monkeypatch.setattr(Versions, "snapshot", slow_snapshot)
    pruning.prune("last:1")
    assert committed == [3]
    assert same(nz.Store(url).checkout(3), network(7))
    assert nz.Store(url).verify().ok
