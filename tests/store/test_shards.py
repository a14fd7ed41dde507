"""Several processes write parts of one version, and one commits it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from store.helpers import memory_url, network, same, updated


def test_shards_make_one_version(tmp_path):
    store = nz.Store(tmp_path, create=True, bound="abs:1e-3", policy="hop:3")
    ranks = [nz.Store(tmp_path) for _ in range(3)]
    parts = [{f"{name}.{rank}": array for name, array in network(rank, 5000).items()} for rank in range(3)]
    for step in range(5):
        parts = [updated(part, 10 * step + i) for i, part in enumerate(parts)]
        for rank, opened in enumerate(ranks):
            opened.shard(parts[rank], f"step-{step}", rank, 3)
        assert store.stat().n_garbage == 0
        assert store.commit_shards(f"step-{step}", 3, step=step, metrics={"loss": 1 / (1 + step)}) == step
        whole = store.checkout(step)
        assert list(whole) == [name for part in parts for name in part]
        for part in parts:
            for name, array in part.items():
                if array.dtype.kind == "f" and array.size:
                    assert np.abs(whole[name].astype(np.float64) - array).max() <= 1e-3
                else:
                    assert np.array_equal(whole[name], array)
    assert [row.depth for row in store.log()] == [0, 1, 2, 0, 1]
    sizes = [row.n_stored for row in store.log()]
    assert sizes[1] < 0.6 * sizes[0]
    before = {i: store.checkout(i) for i in range(5)}
    store.prune("2 4")
    assert all(same(nz.Store(tmp_path).checkout(i), before[i]) for i in (2, 4))
    assert not list((tmp_path / "staged").iterdir())
    assert store.commit(before[2]) == 5  # and on by a single process


def test_a_rank_that_lost_its_memory_reads_its_own_part_only(tmp_path):
    nz.Store(tmp_path, create=True, policy="forward", bound="abs:1e-3")
    for step in range(3):
        for rank in range(2):
            nz.Store(tmp_path).shard({f"w{rank}": np.full(3000, step, np.float32)}, "s", rank, 2)
        nz.Store(tmp_path).commit_shards("s", 2)
    assert [row.depth for row in nz.Store(tmp_path).log()] == [0, 1, 2]


def test_what_can_go_wrong():
    url = memory_url()
    store, other = nz.Store(url, create=True), nz.Store(url)
    with pytest.raises(errors.NotFoundError, match="shard 0 of session s was not written"):
        store.commit_shards("s", 1)
    store.shard({"a": np.ones(3)}, "s", 0, 2)
    with pytest.raises(errors.NotFoundError, match="shard 1"):
        store.commit_shards("s", 2)
    other.shard({"a": np.ones(3)}, "s", 1, 2)
    with pytest.raises(errors.UsageError, match="one name"):
        store.commit_shards("s", 2)
    other.shard({"b": np.ones(3)}, "s", 1, 2)  # in place of the first
    other.commit(network())
    with pytest.raises(errors.BusyError, match="write them again"):
        store.commit_shards("s", 2)
    store.shard({"a": np.ones(3)}, "s", 0, 2)
    with pytest.raises(errors.BusyError, match="different versions"):
        store.commit_shards("s", 2)
    other.shard({"b": np.ones(3)}, "s", 1, 2)
    assert store.commit_shards("s", 2) == 1
    assert same(store.checkout(), {"a": np.ones(3), "b": np.ones(3)})
    for session, rank, ranks in (("a/b", 0, 1), ("", 0, 1), ("s", 1, 1), ("s", -1, 1), (3, 0, 1)):
        with pytest.raises(errors.UsageError):
            store.shard({"a": np.ones(3)}, session, rank, ranks)


def test_pruning_leaves_shards_that_are_yet_to_be_committed():
    url = memory_url()
    store = nz.Store(url, create=True)
    store.commit(network())
    store.shard({"a": np.arange(1000.0)}, "s", 0, 1)
    nz.Store(url).prune("all")
    store.commit_shards("s", 1)
    assert np.array_equal(store.checkout()["a"], np.arange(1000.0))


def test_shards_by_processes_at_the_same_time(tmp_path):
    nz.Store(tmp_path, create=True)
    code = (
        "import sys, numpy as np, nearzip as nz\n"
        "store, rank = nz.Store(sys.argv[1]), int(sys.argv[2])\n"
        "store.shard({f'w{rank}': np.full(1000, rank, np.float32)}, 'all', rank, 3)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(rank)]) for rank in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    store = nz.Store(tmp_path)
    store.commit_shards("all", 3)
    assert all((store.checkout()[f"w{rank}"] == rank).all() for rank in range(3))
