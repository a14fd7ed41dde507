"""What a process does while others commit, prune and repair: at every operation, another process comes between."""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.report.facts import gather
from nearzip.store import Store
from nearzip.store.backends.disk import Disk
from nearzip.store.backends.local import LocalBackend
from store.helpers import history, memory_url, same

VERSIONS = history(14, 100)


class Disturbed(Disk):
    """Before one of the operations that read, `disturb` is called: another process comes between."""

    def __init__(self):
        self.count, self.at, self.disturb = 0, -1, lambda: None

    def _before(self):
        self.count += 1
        if self.count - 1 == self.at:
            self.disturb()

    def read(self, path, most):
        self._before()
        return super().read(path, most)

    def source(self, path):
        self._before()
        return super().source(path)

    def scan(self, path):
        self._before()
        return super().scan(path)


def prune(root):
    nz.Store(root).prune("5 9 last:2 tagged")


def prune_and_commit(root):
    store = nz.Store(root)
    for i in range(9, 13):
        store.commit(VERSIONS[i], metrics={"accuracy": i})
        store.prune("5 last:1 best:accuracy")


def commit(root):
    store = nz.Store(root)
    for i in range(9, 12):
        store.commit(VERSIONS[i], metrics={"accuracy": i})


DISTURBANCES = {"prune": prune, "prune and commit": prune_and_commit, "commit": commit}


@pytest.fixture(scope="module", params=["forward", "backward", "hop:4"])
def prepared(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("beside") / "store"
    store = nz.Store(root, create=True, bound="abs:1e-3", policy=request.param)
    for i in range(9):
        store.commit(VERSIONS[i], metrics={"accuracy": i % 5}, tags=["kept"] if i == 2 else [], step=10 * i)
    return root, {i: store.checkout(i) for i in range(9)}


def right(store, truth, number, arrays):
    """Versions 0 to 8 are as they were; later ones are close to what was committed."""
    if number in truth:
        return same(arrays, truth[number])
    return np.abs(arrays["weight"] - VERSIONS[number]["weight"]).max() <= 1e-3


def read_array(store, truth, out):
    assert same(store.checkout(5), truth[5])


def read_file(store, truth, out):
    store.checkout_file(5, out / "5.npz", force=True)
    assert same(dict(np.load(out / "5.npz")), truth[5])


def read_latest(store, truth, out):
    number = store.checkout_file("latest", out / "new.npz", force=True)
    assert right(store, truth, number, dict(np.load(out / "new.npz")))


def read_best(store, truth, out):
    number = store.checkout_file("best:accuracy", out / "best.npz", force=True)
    assert number in (4, 8, *range(9, 13))  # 8 once 4 is dropped
    assert right(store, truth, number, dict(np.load(out / "best.npz")))


def read_tagged(store, truth, out):
    with contextlib.suppress(errors.NotFoundError):  # it may be dropped
        assert same(store.checkout("tag:kept"), truth[2])


def describe(store, truth, out):
    assert set(store.specs(5)) == set(truth[5])
    assert store.info(5).depth >= 0
    assert store.info("latest").number >= 8


def list_all(store, truth, out):
    rows = store.log()
    assert {5, 8} <= {row.number for row in rows} or rows[-1].number > 8
    assert all(row.depth >= 0 and row.n_stored >= 0 for row in rows)


def count_all(store, truth, out):
    assert store.stat().n_versions > 0
    assert store.stat().depth >= 0


def verify_quick(store, truth, out):
    report = store.verify("quick")
    assert report.ok, report.damages


def verify_full(store, truth, out):
    report = store.verify("full")
    assert report.ok, report.damages


def verify_deep(store, truth, out):
    report = store.verify("deep")
    assert report.ok, report.damages
    assert 5 in report.readable


def export_all(store, truth, out):
    shutil.rmtree(out / "all", ignore_errors=True)
    for name in store.export(out / "all", ending=".npz"):
        assert right(store, truth, int(name[8:16]), dict(np.load(out / "all" / name)))


def report_of(store, truth, out):
    facts = gather(store)
    assert not facts.damage
    assert facts.n_stored > 0


def pull_file(store, truth, out):
    (out / "pulled.npz").unlink(missing_ok=True)
    report = nz.pull(store._backend, out / "pulled.npz", 5)
    assert report.version == 5
    assert same(dict(np.load(out / "pulled.npz")), truth[5])


READERS = [
    read_array, read_file, read_latest, read_best, read_tagged, describe, list_all, count_all, verify_quick,
    verify_full, verify_deep, export_all, report_of, pull_file,
]  # fmt: skip


def points(n, long, quick):
    return list(range(n)) if long or n <= quick else sorted({round(i * (n - 1) / (quick - 1)) for i in range(quick)})


@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("reader", READERS)
def test_another_process_comes_between(prepared, tmp_path, reader, disturbance, request):
    root, truth = prepared
    disk = Disturbed()
    reader(Store(LocalBackend(str(root), disk)), truth, tmp_path)
    for at in points(disk.count, request.config.getoption("--long"), 3):
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(root, work)
        disk = Disturbed()
        store = Store(LocalBackend(str(work), disk))
        store.log()  # what is remembered from before must not mislead it
        disk.count, disk.at = 0, at
        disk.disturb = lambda work=work: DISTURBANCES[disturbance](work)
        reader(store, truth, tmp_path)


@pytest.mark.parametrize("policy", ["forward", "backward", "hop:4"])
@pytest.mark.parametrize("kind", ["disk", "memory"])
def test_a_writer_remembers_nothing_that_others_changed(tmp_path, policy, kind):
    """The newest version was re-encoded and its objects deleted: a commit that shares its tensors names new ones."""
    url = tmp_path / "s" if kind == "disk" else memory_url()
    frozen = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    one = nz.Store(url, create=True, bound="abs:1e-3", policy=policy)
    for i in range(5):
        one.commit({"frozen": frozen, **VERSIONS[i]})
    truth = {i: one.checkout(i) for i in range(5)}
    nz.Store(url).prune("last:1 1")
    one.commit({"frozen": truth[4]["frozen"], **VERSIONS[5]})
    nz.Store(url).prune("last:2 1")
    one.commit({"frozen": truth[4]["frozen"], **VERSIONS[6]})
    assert nz.Store(url).verify("deep").ok
    assert all(same(nz.Store(url).checkout(i), truth[i]) for i in (1,))
    assert same({"frozen": nz.Store(url).checkout(6)["frozen"]}, {"frozen": truth[4]["frozen"]})


def held_back(store, monkeypatch):
    """What follows a commit, to be called later: another process is between."""
    kept = []
    after = store._committer.follow_up
    monkeypatch.setattr(store._committer, "follow_up", lambda *arguments: kept.append(arguments))
    return lambda: after(*kept.pop())


def test_what_follows_a_commit_deletes_nothing_that_later_versions_share(tmp_path, monkeypatch):
    frozen = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    one = nz.Store(tmp_path, create=True, policy="backward")
    one.commit({"frozen": frozen, "n": np.array(0)})
    go_on = held_back(one, monkeypatch)
    one.commit({"frozen": frozen, "n": np.array(1)})
    two = nz.Store(tmp_path)
    two.commit({"frozen": frozen, "n": np.array(2)})  # shares it, and codes version 1 against version 2
    go_on()
    assert nz.Store(tmp_path).verify("deep").ok
    assert [int(nz.Store(tmp_path).checkout(i)["n"]) for i in range(3)] == [0, 1, 2]


def test_what_follows_a_commit_brings_no_dropped_version_back(tmp_path, monkeypatch):
    one = nz.Store(tmp_path, create=True, bound="abs:1e-3", policy="backward")
    for i in range(3):
        one.commit(VERSIONS[i])
    go_on = held_back(one, monkeypatch)
    one.commit(VERSIONS[3])
    nz.Store(tmp_path).prune("last:1")
    go_on()
    assert [row.number for row in nz.Store(tmp_path).log()] == [3]
    assert nz.Store(tmp_path).verify("deep").ok


def test_a_damaged_version_is_not_waited_for(tmp_path):
    """What fails by manifests that do not change is damage, and said at once."""
    store = nz.Store(tmp_path, create=True)
    store.commit(VERSIONS[0])
    (part,) = store._versions.get(0).parts
    (tmp_path / "objects" / part.object).unlink()
    for read in (lambda: store.checkout(0), lambda: store.checkout_file(0, tmp_path / "x.npz"), store.specs):
        with pytest.raises(errors.CorruptError, match="verify"):
            read()


def test_the_newest_version_is_never_one_that_was_given_up(tmp_path):
    store = nz.Store(tmp_path, create=True)
    for i in range(3):
        store.commit(VERSIONS[i])
    (part,) = store._versions.get(2).parts
    (tmp_path / "objects" / part.object).unlink()
    (tmp_path / "versions" / "00000002").write_bytes(b"junk")
    assert nz.Store.repair(tmp_path).lost
    assert nz.Store(tmp_path).resolve("latest") == 1
    assert same(nz.Store(tmp_path).checkout(), VERSIONS[1])
    assert nz.Store(tmp_path).commit(VERSIONS[3]) == 3
