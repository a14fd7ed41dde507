"""Repair, ended or failing at every operation: nothing readable is lost, and the next repair does all that can be."""

from __future__ import annotations

import shutil

import pytest

import nearzip as nz
from nearzip import errors
from nearzip.store import Store
from nearzip.store.backends.local import LocalBackend
from store.faults import EndedError, FaultyDisk, backend
from store.helpers import history, same
from store.test_faults import points

VERSIONS = history(7, 100)


@pytest.fixture(scope="module", params=["forward", "backward"])
def damaged(request, tmp_path_factory):
    """A damaged store, a sound copy of it, what was in it, and which versions can still be read."""
    folder = tmp_path_factory.mktemp(request.param)
    copy, root = folder / "copy", folder / "store"
    store = nz.Store(copy, create=True, bound="abs:1e-3", policy=request.param)
    for version in VERSIONS[:6]:
        store.commit(version)
    before = [store.checkout(i) for i in range(6)]
    shutil.copytree(copy, root)
    (name,) = store._versions.get(3).objects
    (root / "objects" / name).write_bytes(b"something else")
    for number, data in ((1, b"torn"), (4, b"nonsense" * 30)):
        (root / "versions" / f"{number:08d}").write_bytes(data)
    (root / "nearzip-store").write_bytes(b"nothing")
    (root / "latest").unlink()
    (root / "objects" / ("f" * 64)).write_bytes(b"what an interrupted writer left")
    return root, copy, before


def readable(root, before):
    """Versions that are restored as before; none is restored otherwise."""
    found = set()
    copy = root.with_name("settings-mended")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root, copy)
    shutil.copy(root.with_name("copy-settings"), copy / "nearzip-store")
    store = nz.Store(copy)
    for number in range(6):
        try:
            restored = store.checkout(number)
        except errors.Error:
            continue
        assert same(restored, before[number])
        found.add(number)
    return found


def repair(work, disk, sources):
    """Repair with a disk on which something happens; the report, or None."""
    try:
        return Store.repair(backend(work, disk), sources)
    except (errors.Error, EndedError):
        return None


@pytest.mark.parametrize("fault", ["end", "EIO", "EACCES", "short", "full"])
@pytest.mark.parametrize("with_copy", [True, False], ids=["copy", "alone"])
def test_repair_with_a_fault_at_every_operation(damaged, tmp_path, with_copy, fault, request, record_property):
    root, copy, before = damaged
    work = tmp_path / "w"
    shutil.copy(copy / "nearzip-store", tmp_path / "copy-settings")
    sources = [copy] if with_copy else []

    def anew():
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(root, work)

    anew()
    at_first = readable(work, before)
    disk = FaultyDisk()
    whole = repair(work, disk, sources)
    possible = readable(work, before)
    assert whole is not None
    assert possible >= at_first
    assert possible == set(range(6)) or not with_copy
    record_property("operations", disk.count)
    for at in points(disk.count, request.config.getoption("--long"), 4):
        anew()
        repair(work, FaultyDisk(at, fault), sources)
        assert readable(work, before) >= at_first, at
        report = Store.repair(work, sources)
        assert readable(work, before) == possible, at
        assert [d.path for d in report.damages] == [d.path for d in whole.damages], at
        store = nz.Store(work)
        assert store.commit(VERSIONS[6]) == 6, at
        assert same(store.checkout(min(possible)), before[min(possible)]), at


class _BadSectors(LocalBackend):
    """Some files cannot be read."""

    def __init__(self, root, *bad):
        super().__init__(str(root))
        self.bad = bad

    def _refuse(self, path):
        if any(path.endswith(bad) for bad in self.bad):
            raise errors.Error(f"{path}: cannot read: Input/output error")

    def read(self, path, most):
        self._refuse(path)
        return super().read(path, most)

    def source(self, path, n_bytes):
        self._refuse(path)
        return super().source(path, n_bytes)


@pytest.mark.parametrize("path", ["versions/00000002", "nearzip-store"])
def test_what_cannot_be_read_today_is_named_and_left_alone(tmp_path, path):
    store = nz.Store(tmp_path, create=True, bound="abs:1e-3", policy="hop:2")
    for version in VERSIONS[:5]:
        store.commit(version)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    disk = _BadSectors(tmp_path)
    store = Store(disk)
    disk.bad = (path,)
    for repairing in (False, True):
        report = store.verify(repair=repairing)
        assert [damage.path for damage in report.damages] == [path]
        assert "Input/output error" in report.damages[0].problem
        assert "nothing was changed" in report.damages[0].advice
        assert {0, 1, 4} <= set(report.readable)
        assert not report.lost
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == files
    assert nz.Store(tmp_path).verify("deep").ok


def test_an_object_on_a_bad_sector_is_named_and_put_back(tmp_path):
    store = nz.Store(tmp_path / "s", create=True, bound="abs:1e-3", policy="forward")
    for version in VERSIONS[:4]:
        store.commit(version)
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    (name,) = store._versions.get(2).objects
    bad = Store(_BadSectors(tmp_path / "s", name))
    (damage,) = bad.verify().damages
    assert (damage.path, damage.versions[0]) == (f"objects/{name}", 2)
    bad.verify(repair=True, sources=[tmp_path / "copy"])
    assert nz.Store(tmp_path / "s").verify("deep").ok


def test_a_version_is_not_given_up_while_a_file_cannot_be_read_that_may_hold_it(tmp_path):
    """Without its manifest, a version is looked for in objects that nobody names."""
    store = nz.Store(tmp_path, create=True, bound="abs:1e-3")
    for version in VERSIONS[:3]:
        store.commit(version)
    wanted = store.checkout(2)
    (name,) = store._versions.get(2).objects
    (tmp_path / "versions" / "00000002").write_bytes(b"torn")
    report = Store(_BadSectors(tmp_path, name)).verify(repair=True)
    assert (report.repaired, report.lost, report.unreadable) == ([], [], (2,))
    report = nz.Store(tmp_path).verify(repair=True)
    assert report.ok
    assert same(nz.Store(tmp_path).checkout(2), wanted)
