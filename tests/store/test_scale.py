"""Many versions: how many files are read, not how long it takes."""

from __future__ import annotations

import dataclasses
import math

import pytest

import nearzip as nz
from nearzip.store.backends.disk import Disk
from store.faults import backend
from store.helpers import history, network, same


class CountingDisk(Disk):
    def __init__(self):
        self.reads: list[str] = []

    def read(self, path, most):
        self.reads.append(path)
        return super().read(path, most)


@pytest.fixture
def short_blocks(monkeypatch):
    for module in ("summaries", "versions", "committing", "maintenance"):
        monkeypatch.setattr(f"nearzip.store.{module}.BLOCK", 8)


def reads_of(root, work) -> int:
    disk = CountingDisk()
    store = nz.Store(backend(root, disk))
    disk.reads.clear()
    work(store)
    return len(disk.reads)


def test_hints_save_reading(tmp_path, short_blocks):
    store = nz.Store(tmp_path, create=True, policy="hop:4")
    for i, version in enumerate(history(35, 60)):
        store.commit(version, metrics={"accuracy": i % 9, "loss": math.nan}, tags=[f"t{i}"])
    plain = [dataclasses.replace(row) for row in store.log()]
    # The hint of the newest, a look beyond it, four blocks, and three versions that fill none.
    assert reads_of(tmp_path, lambda s: s.log()) <= 4 + 4 + 4
    assert reads_of(tmp_path, lambda s: s.resolve("tag:t3")) <= 4 + 4 + 4
    assert reads_of(tmp_path, lambda s: s.checkout()) <= 4 + 4
    # Damaged or missing hints cost reading, nothing else.
    for spoil in (b"", b"junk", (tmp_path / "hints" / "00000001").read_bytes()):
        (tmp_path / "hints" / "00000000").write_bytes(spoil)
        assert str(nz.Store(tmp_path).log()) == str(plain)
        assert nz.Store(tmp_path).resolve("best:accuracy") == 26


def test_hints_follow_what_pruning_does(tmp_path, short_blocks):
    store = nz.Store(tmp_path, create=True, policy="hop:4")
    for i, version in enumerate(history(20, 60)):
        store.commit(version, metrics={"accuracy": -i})
    stale = (tmp_path / "hints" / "00000000").read_bytes()
    store.prune("every:3")
    assert [row.number for row in nz.Store(tmp_path).log()] == [0, 3, 6, 9, 12, 15, 18, 19]
    assert reads_of(tmp_path, lambda s: s.log()) <= 4 + 2 + 4
    (tmp_path / "hints" / "00000000").write_bytes(stale)
    store.prune("all", drop=[0])
    (tmp_path / "hints" / "00000000").write_bytes(stale)
    assert nz.Store(tmp_path).resolve("best:accuracy") == 3  # though the hints say 0
    assert store.verify("deep").ok


@pytest.mark.long
def test_ten_thousand_versions(tmp_path):
    store = nz.Store(tmp_path, create=True, policy="hop:20")
    for i in range(10_000):
        store.commit({"w": network(i, 60)["weight"]}, metrics={"accuracy": i % 1000})
    assert len(store.log()) == 10_000
    assert reads_of(tmp_path, lambda s: s.log()) <= 4 + 39 + 16
    assert reads_of(tmp_path, lambda s: s.checkout()) <= 2 + 20
    assert reads_of(tmp_path, lambda s: s.checkout("best:accuracy")) <= 4 + 39 + 16 + 20
    assert same(nz.Store(tmp_path).checkout(9_999), {"w": network(9_999, 60)["weight"]})
    store.prune("every:100")
    assert len(store.log()) == 101
    assert reads_of(tmp_path, lambda s: s.log()) <= 4 + 39 + 16
