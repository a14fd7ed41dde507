"""What `verify --repair` may do: nothing by an old look, no half versions, tombstones from copies."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import shutil
import threading

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.report.facts import gather
from nearzip.store.documents import seal
from nearzip.store.labels import Label
from nearzip.store.manifest import path_of
from store.helpers import history, same

VERSIONS = history(8, 200)
FROZEN = np.random.default_rng(0).normal(0, 0.05, (2, 130, 130)).astype(np.float32)


def filled(root, policy="forward", n=5):
    """Versions that share one tensor from the first on and another from the third on."""
    store = nz.Store(root, create=True, bound="abs:5e-4", policy=policy)
    first, second = FROZEN
    for i in range(n):
        store.commit({"a": first, **VERSIONS[i], "b": second if i > 1 else second + i}, f"epoch {i}", tags=[f"t{i}"])
        restored = store.checkout(i)
        first, second = restored["a"], restored["b"] if i > 1 else second
    return store, {i: store.checkout(i) for i in range(n)}


# ---- between the look and the lock -----------------------------------------------------------------------------


def while_locked(root, change):
    """Repair, while another process has the lock and changes something before it gives it back."""
    reports = []
    with open(root / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Event()
        original = fcntl.flock

        def flock(*arguments):
            waiting.set()
            return original(*arguments)

        fcntl.flock = flock
        thread = threading.Thread(target=lambda: reports.append(nz.Store.repair(root)))
        try:
            thread.start()
            assert waiting.wait(60)
            change()
        finally:
            fcntl.flock = original
            lock.close()
            thread.join()
    return reports[0]


def test_a_manifest_that_is_put_back_meanwhile_stays(tmp_path):
    filled(tmp_path)
    path = tmp_path / path_of(2)
    good = path.read_bytes()
    path.write_bytes(good[:50])
    report = while_locked(tmp_path, lambda: path.write_bytes(good))
    assert path.read_bytes() == good
    assert report.ok
    assert not report.repaired
    assert not report.lost
    assert not list((tmp_path / "lost").iterdir())


def test_an_object_that_is_put_back_meanwhile_stays(tmp_path):
    store, truth = filled(tmp_path)
    (part,) = (part for part in store._versions.get(3).parts if part.names is None)
    path = tmp_path / "objects" / part.object
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    assert while_locked(tmp_path, lambda: path.write_bytes(good)).ok
    assert same(nz.Store(tmp_path).checkout(3), truth[3])


def test_settings_that_are_put_back_meanwhile_stay(tmp_path):
    filled(tmp_path)
    path = tmp_path / "nearzip-store"
    good = path.read_bytes()
    path.write_bytes(b"junk")
    assert while_locked(tmp_path, lambda: path.write_bytes(good)).ok
    assert path.read_bytes() == good


def test_a_version_that_is_committed_in_place_of_a_missing_one_stays(tmp_path, monkeypatch):
    """Where commits hold no lock: the number of a lost newest version is taken while it is repaired."""
    store, _ = filled(tmp_path)
    lost = (tmp_path / path_of(4)).read_bytes()
    (tmp_path / path_of(4)).unlink()
    document = json.loads(lost.partition(b"\n")[2])
    other = seal("version", {**document, "message": "another"})
    create = type(store._backend).create

    def late(self, path, data):
        if path == path_of(4):
            (tmp_path / path).write_bytes(other)
        return create(self, path, data)

    monkeypatch.setattr(type(store._backend), "create", late)
    report = nz.Store(tmp_path).verify(repair=True)
    assert (tmp_path / path_of(4)).read_bytes() == other
    assert not report.repaired
    assert not report.lost


# ---- rebuilt from objects --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["forward", "backward", "hop:2"])
@pytest.mark.parametrize("number", range(5))
def test_a_version_of_several_parts_is_rebuilt_whole(tmp_path, policy, number):
    _, truth = filled(tmp_path, policy)
    (tmp_path / path_of(number)).unlink()
    report = nz.Store.repair(tmp_path)
    assert report.ok, report.damages
    assert not report.lost
    assert "message, metrics, tags and step are lost" in report.repaired[0]
    assert all(same(nz.Store(tmp_path).checkout(i), truth[i]) for i in truth)
    assert nz.Store(tmp_path).verify("deep").ok


def test_several_lost_manifests_in_a_row(tmp_path):
    _, truth = filled(tmp_path)
    for number in (1, 2, 3):
        (tmp_path / path_of(number)).write_bytes(b"junk")
    assert nz.Store.repair(tmp_path).ok
    assert all(same(nz.Store(tmp_path).checkout(i), truth[i]) for i in truth)


@pytest.mark.parametrize("said", [None, {}, {"nearzip.parts": '{"more":true}'}])
def test_an_object_that_may_be_a_part_only_is_not_taken_for_a_version(tmp_path, said, monkeypatch):
    """Written before labels named the other parts, or with more names than fit: refused rather than half restored."""
    monkeypatch.setattr(
        Label, "to_metadata", lambda self: {} if said is None else {"nearzip.version": str(self.number), **said}
    )
    store, truth = filled(tmp_path)
    own = next(part.object for part in store._versions.get(2).parts if part.names is None)
    for number in (0, 1, 3, 4):
        assert same(store.checkout(number), truth[number])
    (tmp_path / path_of(2)).unlink()
    report = nz.Store.repair(tmp_path)
    assert [text.split(":")[0] for text in report.lost] == [path_of(2)]
    assert (own in report.lost[0]) == (said is not None)
    with pytest.raises(errors.NotFoundError):
        nz.Store(tmp_path).checkout(2)


def test_an_object_without_a_full_label_that_holds_all_is_rebuilt(tmp_path, monkeypatch):
    monkeypatch.setattr(Label, "to_metadata", lambda self: {"nearzip.version": str(self.number)})
    store = nz.Store(tmp_path, create=True, bound="abs:1e-3", policy="forward")
    for version in VERSIONS[:4]:
        store.commit(version)
    truth = store.checkout(2)
    (tmp_path / path_of(2)).unlink()
    assert nz.Store.repair(tmp_path).ok
    assert same(nz.Store(tmp_path).checkout(2), truth)


@pytest.mark.parametrize("lost", [0, 1])
def test_shards_are_rebuilt_as_one_version(tmp_path, lost):
    store = nz.Store(tmp_path, create=True, bound="abs:1e-3", policy="forward")
    for step in range(2):
        for rank in range(3):
            store.shard({f"w{rank}": VERSIONS[step]["weight"] + rank}, f"s{step}", rank, 3)
        store.commit_shards(f"s{step}", 3)
    truth = [store.checkout(step) for step in range(2)]
    (tmp_path / path_of(lost)).unlink()
    assert nz.Store.repair(tmp_path).ok
    assert all(same(nz.Store(tmp_path).checkout(step), truth[step]) for step in range(2))


def test_a_version_whose_shard_is_gone_is_not_rebuilt_in_part(tmp_path):
    store = nz.Store(tmp_path, create=True)
    store.commit(VERSIONS[0])
    for rank in range(2):
        store.shard({f"w{rank}": VERSIONS[1]["weight"]}, "s", rank, 2)
    store.commit_shards("s", 2)
    part = store._versions.get(1).parts[0]
    (tmp_path / "objects" / part.object).unlink()
    (tmp_path / path_of(1)).unlink()
    (text,) = nz.Store.repair(tmp_path).lost
    assert store._versions.get(1).parts[1].object in text


def test_hostile_labels_are_no_labels(tmp_path, monkeypatch):
    texts = [
        "",
        "[",
        "3",
        "[" * 5000,
        '{"shared": [{"object": "../x"}]}',
        '{"order": 3}',
        '{"rank": "x"}',
        '{"shared": 3}',
    ]
    for i, text in enumerate(texts):
        monkeypatch.setattr(
            Label, "to_metadata", lambda self, text=text: {"nearzip.version": str(self.number), "nearzip.parts": text}
        )
        root = tmp_path / str(i)
        store = nz.Store(root, create=True)
        store.commit(VERSIONS[0])
        (root / path_of(0)).unlink()
        (root / "latest").unlink()
        report = nz.Store.repair(root)
        assert report.ok or report.lost


# ---- copies ----------------------------------------------------------------------------------------------------


def pruned(root, policy="forward"):
    """A store whose version 1 is dropped and gone, and whose version 2 is dropped and needed."""
    store = nz.Store(root, create=True, bound="abs:1e-3", policy=policy)
    for i in range(5):
        store.commit(VERSIONS[i], f"epoch {i}")
    store.prune("all", drop=[2])
    return store


@pytest.mark.parametrize("keep", ["all", "last:1", "0 4"])
@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_tombstone_comes_back_from_a_copy(tmp_path, keep, damage):
    store = pruned(tmp_path / "s")
    store.prune(keep)
    truth = {row.number: store.checkout(row.number) for row in store.log()}
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    for number in (m.number for m in store._versions.all() if m.pruned is not None):
        path = tmp_path / "s" / path_of(number)
        good = path.read_bytes()
        path.unlink() if damage is None else path.write_bytes(damage)
        report = nz.Store.repair(tmp_path / "s", [tmp_path / "copy"])
        assert report.ok, report.damages
        assert report.repaired == [f"{path_of(number)}: from {tmp_path / 'copy'}"]
        assert path.read_bytes() == good
    assert all(same(nz.Store(tmp_path / "s").checkout(number), truth[number]) for number in truth)


def test_a_tombstone_that_was_renamed_on_a_full_disk_comes_back(tmp_path):
    pruned(tmp_path / "s").prune("last:1")
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    copy = tmp_path / "copy" / path_of(1)
    document = json.loads(copy.read_bytes().partition(b"\n")[2])
    copy.with_name("00000001.pruned").write_bytes(seal("version", {**document, "pruned": None}))
    copy.unlink()
    (tmp_path / "s" / path_of(1)).write_bytes(b"junk")
    assert nz.Store.repair(tmp_path / "s", [tmp_path / "copy"]).ok
    assert [row.number for row in nz.Store(tmp_path / "s").log()] == [4]


def test_a_copy_that_dropped_a_version_which_is_here_gives_what_was_said_of_it(tmp_path):
    store = nz.Store(tmp_path / "s", create=True, bound="abs:1e-3", policy="forward")
    for i in range(5):
        store.commit(VERSIONS[i], f"epoch {i}")
    truth = store.checkout(4)
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    copy = nz.Store(tmp_path / "copy")
    copy.commit(VERSIONS[5])
    copy.prune("5")
    (tmp_path / "s" / path_of(4)).write_bytes(b"junk")
    assert nz.Store.repair(tmp_path / "s", [tmp_path / "copy"]).ok
    assert same(nz.Store(tmp_path / "s").checkout(4), truth)
    assert nz.Store(tmp_path / "s").info(4).message == "epoch 4"


# ---- bases that there are not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [3, 5, 40, 77, 10**7, 10**9])
@pytest.mark.parametrize("number", range(3))
def test_a_base_beyond_the_newest_version(tmp_path, number, base):
    store = nz.Store(tmp_path, create=True)
    for i in range(3):
        store.commit(VERSIONS[i])
    parts = [dataclasses.asdict(part) for part in store._versions.get(number).parts]
    path = tmp_path / path_of(number)
    document = json.loads(path.read_bytes().partition(b"\n")[2])
    path.write_bytes(seal("version", {**document, "parts": [{**parts[0], "base": base}]}))
    for level in ("quick", "full", "deep"):
        report = nz.Store(tmp_path).verify(level)
        assert number in report.unreadable
        assert set(report.readable) == set(range(number))
    assert [row.depth for row in nz.Store(tmp_path).log()][number] == -1
    for does in (nz.Store(tmp_path).checkout, lambda n: nz.Store(tmp_path).checkout_file(n, tmp_path / "x.npz"),
                 lambda _: nz.Store(tmp_path).prune("last:1"), lambda _: nz.Store(tmp_path).stat(),
                 lambda _: gather(nz.Store(tmp_path)), lambda n: nz.pull(tmp_path, tmp_path / "x.npz", n)):  # fmt: skip
        with pytest.raises(errors.CorruptError):
            does(number)
    nz.Store.repair(tmp_path)
    again = nz.Store(tmp_path)
    if base > 2 + 64:  # nobody ever committed such a version: the manifest is what is wrong, and its object tells more
        assert again.verify("deep").ok
        assert all(same(again.checkout(i), VERSIONS[i]) for i in range(3))
    assert all(same(again.checkout(i), VERSIONS[i]) for i in range(number))
    new = again.commit(VERSIONS[3])
    assert same(nz.Store(tmp_path).checkout(new), VERSIONS[3])


@pytest.mark.parametrize(
    "how",
    [{"bound": "abs:1e-3"}, {"bound": "upd:0.1:tensor"}, {"options": {"step": 0.01}}, {},
     {"method": "delta-dnn", "options": {"eps": 0.01}}, {"method": "delta-dnn", "bound": "pwrel:0.01"}],
)  # fmt: skip
def test_lost_settings_are_those_of_the_newest_version(tmp_path, how):
    store = nz.Store(tmp_path, create=True, policy="forward", **how)
    for version in VERSIONS[:2]:
        store.commit(version)
    codings = store.settings.codings()
    (tmp_path / "nearzip-store").write_bytes(b"damaged")
    nz.Store.repair(tmp_path)
    repaired = nz.Store(tmp_path)
    assert repaired.settings.codings() == codings
    assert repaired.commit(VERSIONS[2]) == 2
