"""The link behind which updates are measured: what it carries, counts and holds back; no times."""

from __future__ import annotations

import urllib.request

import numpy as np
import pytest

import nearzip as nz
from nearzip.checkpoints import open_checkpoint

transmission = pytest.importorskip("experiments.claims.store.transmission")


def test_a_link_carries_and_counts(tmp_path):
    data = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "file").write_bytes(data)
    link = transmission.Link()
    link.megabits = 1000.0
    with transmission.serving(tmp_path, link) as url, urllib.request.urlopen(f"{url}/file") as response:  # noqa: S310
        assert response.read() == data
    assert link.n_requests == 1
    assert 100_000 < link.n_bytes < 101_000  # headers count


def test_pieces_wait_for_each_other(monkeypatch):
    """The link is one for all: what comes second is across when both have had their time."""
    now, waited = [0.0], []
    monkeypatch.setattr(transmission.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(transmission.time, "sleep", waited.append)
    link = transmission.Link()
    link.send(1_000_000)
    assert waited == []  # without a limit
    link.megabits = 8.0
    link.send(1_000_000)
    link.send(500_000)
    assert waited == pytest.approx([1.0, 1.5])
    now[0] = 10.0  # nothing is saved up while it is idle
    link.send(1_000_000)
    assert waited[-1] == pytest.approx(1.0)
    now[0] = 11.1  # late with what stood ready
    link.send(1_000_000, follows=True)
    assert waited[-1] == pytest.approx(0.9)
    now[0] = 20.0  # far too late: a buffer holds no more
    link.send(1_000_000, follows=True)
    assert waited[-1] == pytest.approx(0.75)


def test_a_pull_through_a_link(tmp_path):
    store = nz.Store(tmp_path / "store", create=True, bound="abs:0.001")
    for i in range(2):
        store.commit({"w": np.random.default_rng(i).normal(size=3000).astype(np.float32)})
    link = transmission.Link()
    with transmission.serving(tmp_path, link) as url:
        report = nz.pull(f"{url}/store", tmp_path / "m.npz")
    assert dict(open_checkpoint(tmp_path / "m.npz").arrays())["w"].tobytes() == store.checkout()["w"].tobytes()
    assert link.n_bytes > report.n_moved + report.n_described
