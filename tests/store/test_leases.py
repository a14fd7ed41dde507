"""Locks made of files: one holder at a time, renewed, taken over when it ended, lost with a named error."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import threading
import time

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.store.backends import lease as lease_module
from nearzip.store.backends.lease import Lease, hold
from nearzip.store.backends.local import LocalBackend
from nearzip.store.backends.remote import RemoteBackend
from store.helpers import history, memory_url, same


@pytest.fixture(params=["disk", "object store"])
def places(request, tmp_path):
    """Two processes' views of one place."""
    if request.param == "disk":
        for folder in ("locks", "tmp"):
            (tmp_path / folder).mkdir()
        return LocalBackend(str(tmp_path)), LocalBackend(str(tmp_path))
    url = memory_url()
    found = RemoteBackend(url), RemoteBackend(url)
    for backend in found:
        backend._scheme = "s3"  # lock files, as there
    return found


def test_one_holder_at_a_time(places):
    one, two = places
    with hold(one, 60, 0, "busy"), pytest.raises(errors.BusyError, match="busy"), hold(two, 60, 0, "busy"):
        pass
    with hold(two, 60, 0, "busy") as lease:
        assert lease.number == 1
    assert [entry.name for entry in one.list("locks")] == ["00000001"]


def test_it_is_renewed_for_as_long_as_it_is_held(places):
    one, two = places
    with hold(one, 0.4, 0, "busy") as lease:
        time.sleep(1.0)
        lease.check()
        assert not Lease(two, 0.4).take()


def test_a_holder_that_ended_is_followed(places):
    one, two = places
    assert Lease(one, 0.2).take()  # and never renewed
    follower = Lease(two, 0.2)
    assert not follower.take()
    time.sleep(0.3)
    assert Lease(two, 0.2).take()


@pytest.mark.parametrize("hours", [-30, 30])
def test_clocks_of_machines_may_differ(places, hours, monkeypatch):
    one, two = places
    now = time.time
    with hold(one, 0.5, 0, "busy"):
        monkeypatch.setattr(lease_module.time, "time", lambda: now() + 3600 * hours)
        assert not Lease(two, 0.5).take()
        monkeypatch.undo()
    assert Lease(one, 0.2).take()
    time.sleep(0.3)
    monkeypatch.setattr(lease_module.time, "time", lambda: now() + 3600 * hours)
    assert Lease(two, 0.2).take()


def test_a_lost_lease_stops_what_would_change_the_store(tmp_path):
    backend = LocalBackend(str(tmp_path))
    backend.make()
    backend._lease = lease = Lease(backend, 0.2)
    (tmp_path / "locks").mkdir()
    (tmp_path / "objects" / "x").write_bytes(b"needed")
    assert lease.take()
    backend.replace("latest", b"fine")
    time.sleep(0.25)
    for change in (
        lambda: backend.delete("objects/x"), lambda: backend.replace("latest", b""), lambda: backend.create("a", b""),
        lambda: backend.retire("versions/00000000", b""),
    ):  # fmt: skip
        with pytest.raises(errors.BusyError, match=r"lost the lock of this store .* run it again"):
            change()
    assert (tmp_path / "objects" / "x").exists()
    assert (tmp_path / "latest").read_bytes() == b"fine"


def test_a_holder_notices_that_another_has_followed_it(places):
    one, two = places
    with hold(one, 0.4, 0, "busy") as lease:
        two.claim("locks/00000001", b"{}")
        deadline = time.monotonic() + 5
        while lease._lost is None and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(errors.BusyError, match="another process has it"):
            lease.check()


def test_renewals_that_fail_are_tried_again_and_end_the_lease(places, monkeypatch):
    one, _ = places
    failing = True

    def fails(path, data, durable=True, original=one.replace):
        if failing:
            raise errors.Error("no network")
        original(path, data, durable)

    monkeypatch.setattr(one, "replace", fails)
    with hold(one, 0.6, 0, "busy") as lease:
        time.sleep(0.3)
        lease.check()
        failing = False
        time.sleep(0.4)
        lease.check()
        failing = True
        time.sleep(0.7)
        with pytest.raises(errors.BusyError, match="could not be renewed"):
            lease.check()


def test_who_looked_long_ago_does_not_take_a_number_that_is_past(places):
    """Between the look and the claim, others held the lock and removed the files before theirs."""
    one, two = places
    slow = Lease(one, 60)
    original = one.list
    looks = itertools.count()

    def list_(folder):
        found = original(folder)
        if next(looks) == 0:
            for _ in range(3):
                with hold(two, 60, 0, "busy"):
                    pass
            assert holder.take()
        return found

    holder = Lease(two, 60)
    one.list = list_
    assert not slow.take()
    holder.check()
    assert max(entry.name for entry in original("locks")) == f"{holder.number:08d}"


@pytest.mark.parametrize("data", [b"", b"[" * 5000, b"[3]", b'{"until": "x"}', b'{"seconds": NaN}', b"\xff"])
def test_claims_that_are_none_end_by_their_age(places, data):
    one, two = places
    one.claim("locks/00000004", data)
    assert not Lease(two, 0.3).take()
    time.sleep(0.4)
    lease = Lease(two, 0.3)
    assert lease.take()
    assert lease.number == 5


# ---- no flock --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def no_flock(request, monkeypatch):
    def flock(*_):
        raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("no_flock")
def test_a_store_without_flock(tmp_path):
    store = nz.Store(tmp_path / "s", create=True, bound="abs:1e-3", policy="backward")
    versions = history(6)
    seen = [store.checkout(store.commit(version)) for version in versions]
    other = nz.Store(tmp_path / "s")
    with other._backend.committing(0), pytest.raises(errors.BusyError, match="another process is writing"):
        store.commit(versions[0], timeout=0)
    store.prune("last:2 0")
    assert all(same(other.checkout(i), seen[i]) for i in (0, 4, 5))
    assert other.verify("deep").ok
    # A lease can be lost, so objects of a commit that may be under way are not deleted at once.
    assert store.stat().n_garbage > 0


@pytest.mark.usefixtures("no_flock")
def test_writers_without_flock_take_turns(tmp_path):
    nz.Store(tmp_path / "s", create=True, policy="hop:3")
    failed: list[BaseException] = []

    def write(who):
        try:
            store = nz.Store(tmp_path / "s", threads=1)
            for i in range(3):
                store.commit({"w": np.full(50, 10 * who + i, np.float32)}, metadata={"is": str(10 * who + i)})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    store = nz.Store(tmp_path / "s")
    assert {row.metadata["is"] for row in store.log()} == {str(10 * who + i) for who in range(3) for i in range(3)}
    assert all((store.checkout(row.number)["w"] == int(row.metadata["is"])).all() for row in store.log())


@pytest.mark.usefixtures("no_flock")
def test_a_pull_without_flock(tmp_path):
    store = nz.Store(tmp_path / "s", create=True)
    store.commit(history(1)[0])
    assert nz.pull(tmp_path / "s", tmp_path / "m.npz").version == 0
    assert same(dict(np.load(tmp_path / "m.npz")), store.checkout(0))


def test_a_lock_that_fails_otherwise_is_an_error(tmp_path, monkeypatch):
    store = nz.Store(tmp_path / "s", create=True)

    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(errors.Error, match="cannot lock: Input/output error"):
        store.commit(history(1)[0])


# ---- folders that cannot be synced ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EINVAL", "EBADF", "ENOTSUP", "ENOSYS"])
def test_folders_that_cannot_be_synced(tmp_path, monkeypatch, name):
    original = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(getattr(errno, name), "not here")
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    store = nz.Store(tmp_path / "s", create=True)
    assert store.commit(history(1)[0]) == 0
    store.prune("all")
    assert nz.Store(tmp_path / "s").verify("deep").ok


def test_folders_whose_disk_fails_are_errors(tmp_path, monkeypatch):
    store = nz.Store(tmp_path / "s", create=True)
    original = os.fsync

    def fsync(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EIO, "Input/output error")
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(errors.Error, match="cannot write: Input/output error"):
        store.commit(history(1)[0])
