"""Every file of a small store damaged or deleted in turn: found, named, its reach exact, nothing wrong returned."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.store.documents import seal
from store.helpers import history, same

DAMAGES = ("deleted", "cut", "flipped", "emptied", "another's")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two chains, shared tensors, a pruned version that another stands on."""
    root = tmp_path_factory.mktemp("damage") / "store"
    rng = np.random.default_rng(0)
    frozen = rng.normal(size=20_000).astype(np.float32)
    store = nz.Store(root, create=True, bound="rms:0.01", policy="hop:4")
    for i, version in enumerate(history(7)):
        store.commit({**version, **({"frozen": frozen} if i < 6 else {})})
    store.prune("all", drop=[1])
    live = [row.number for row in store.log()]
    return root, {number: store.checkout(number) for number in live}


def spoil(path: Path, how: str, others: list[Path]) -> None:
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "flipped":
        at = len(data) // 3
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    else:
        path.write_bytes(next(other for other in others if other != path).read_bytes())


def readable(root: Path, truth: dict[int, dict[str, np.ndarray]]) -> set[int]:
    """Versions that can be restored. What is restored is right."""
    found = set()
    for number, tensors in truth.items():
        with contextlib.suppress(errors.CorruptError, errors.NotFoundError):
            assert same(nz.Store(root).checkout(number), tensors)
            found.add(number)
    return found


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("kind", ["objects", "versions"])
def test_every_file_in_turn(prepared, tmp_path, kind, how):
    root, truth = prepared
    work = tmp_path / "w"
    for name in sorted(os.listdir(root / kind)):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(root, work)
        spoil(work / kind / name, how, sorted((work / kind).iterdir()))
        left = readable(work, truth)
        report = nz.Store(work).verify("full")
        assert set(report.readable) == left, name
        assert set(truth) - left <= set(report.unreadable)
        if kind == "objects" or int(name) in truth or left != set(truth):
            (damage,) = [damage for damage in report.damages if damage.path == f"{kind}/{name}"]
            assert set(damage.versions) & set(truth) == set(truth) - left
            assert damage.problem
            assert damage.advice
        quick = nz.Store(work).verify("quick")
        if how in ("deleted", "cut", "emptied") and kind == "objects":
            assert quick.damages == report.damages
        # Whatever is damaged, training goes on, and from a copy everything comes back.
        number = nz.Store(work).commit(truth[6])
        assert np.abs(nz.Store(work).checkout(number)["weight"] - truth[6]["weight"]).max() <= 0.01
        repaired = nz.Store(work).verify("full", repair=True, sources=[root])
        assert repaired.ok, (name, repaired.damages)
        assert readable(work, truth) == set(truth), name


def test_the_settings_are_damaged(prepared, tmp_path):
    root, truth = prepared
    work = tmp_path / "w"
    shutil.copytree(root, work)
    (work / "nearzip-store").write_bytes(b"junk")
    with pytest.raises(errors.CorruptError, match="verify --repair"):
        nz.Store(work)
    report = nz.Store.repair(work)
    assert report.ok
    assert any("nearzip-store" in text for text in report.repaired)
    assert nz.Store(work).bound == "rms:0.01"
    assert readable(work, truth) == set(truth)


def test_a_manifest_is_rebuilt_from_its_object(tmp_path):
    store = nz.Store(tmp_path, create=True, policy="forward", bound="abs:1e-3")
    for version in history(5):
        store.commit(version, "said")
    truth = {i: store.checkout(i) for i in range(5)}
    for number in (1, 4):
        (tmp_path / "versions" / f"{number:08d}").unlink()
    (tmp_path / "latest").unlink()
    report = nz.Store(tmp_path).verify(repair=True)
    assert report.ok
    assert "message, metrics, tags and step are lost" in report.repaired[0]
    assert readable(tmp_path, truth) >= {0, 1, 2, 3}
    assert nz.Store(tmp_path).log()[1].message == "(rebuilt by verify --repair)"


def test_a_version_comes_back_from_a_file_with_the_same_content(tmp_path):
    store = nz.Store(tmp_path / "s", create=True, policy="forward", bound="abs:1e-3")
    for version in history(4):
        store.commit(version)
    truth = {i: store.checkout(i) for i in range(4)}
    store.checkout_file(1, tmp_path / "one.npz")
    (part,) = store._versions.get(1).parts
    (tmp_path / "s" / "objects" / part.object).unlink()
    assert readable(tmp_path / "s", truth) == {0}
    report = nz.Store(tmp_path / "s").verify(repair=True, sources=[tmp_path / "one.npz"])
    assert report.ok, report
    assert readable(tmp_path / "s", truth) == {0, 1, 2, 3}


def test_what_cannot_be_repaired_is_said_and_the_store_goes_on(tmp_path):
    store = nz.Store(tmp_path, create=True, policy="forward", bound="abs:1e-3")
    for version in history(5):
        store.commit(version)
    truth = {i: store.checkout(i) for i in range(5)}
    (part,) = store._versions.get(2).parts
    (tmp_path / "objects" / part.object).unlink()
    (tmp_path / "versions" / "00000002").write_bytes(b"junk")
    report = nz.Store(tmp_path).verify(repair=True)
    assert not report.ok
    assert report.unreadable == (3, 4)
    assert report.readable == (0, 1)
    assert any("00000002" in text for text in report.lost)
    assert (tmp_path / "lost" / "00000002").read_bytes() == b"junk"
    assert nz.Store(tmp_path).commit(truth[4]) == 5
    nz.Store(tmp_path).prune("all", drop=[3, 4])
    assert nz.Store(tmp_path).verify("deep").ok
    assert readable(tmp_path, truth) == {0, 1}
    assert np.abs(nz.Store(tmp_path).checkout(5)["weight"] - truth[4]["weight"]).max() <= 1e-3


def test_slices_and_limits(prepared):
    root, _ = prepared
    store = nz.Store(root)
    whole = store.verify("full")
    assert whole.ok
    assert whole.complete
    assert whole.n_checked == whole.n_objects
    parts = [store.verify("full", subset=f"{i}/3").n_checked for i in (1, 2, 3)]
    assert sum(parts) == whole.n_checked
    assert 0 < store.verify("full", subset="20%").n_checked < whole.n_checked
    over = store.verify("deep", max_duration=0)
    assert not over.complete
    assert over.ok
    assert store.verify("deep").ok
    assert store.verify("quick").n_checked == 0
    for wrong in ({"level": "slow"}, {"subset": "0%"}, {"subset": "3/2"}, {"subset": "x"}, {"subset": 2}):
        with pytest.raises(errors.UsageError):
            store.verify(**wrong)


# ---- made to harm ----------------------------------------------------------------------------------------------


def rewritten(root: Path, number: int, **changes: object) -> None:
    path = root / "versions" / f"{number:08d}"
    document = json.loads(path.read_bytes().partition(b"\n")[2])
    path.write_bytes(seal("version", {**document, **changes}))


@pytest.mark.parametrize("changes", [
    {"parts": [{"object": "../../etc/passwd", "n_bytes": 3, "base": None, "names": None}]},
    {"parts": [{"object": "/etc/passwd", "n_bytes": 3, "base": None, "names": None}]},
    {"parts": [{"object": "A" * 64, "n_bytes": 3, "base": None, "names": None}]},
    {"parts": [{"object": "0" * 64, "n_bytes": -1, "base": None, "names": None}]},
    {"parts": [{"object": "0" * 64, "n_bytes": 1 << 70, "base": None, "names": None}]},
    {"parts": [{"object": "0" * 64, "n_bytes": 1 << 50, "base": None, "names": None}]},
    {"parts": "none"}, {"parts": [3]}, {"parts": []}, {"version": 0}, {"version": True}, {"id": "0" * 32}, {"id": 3},
    {"n_bytes": 1.5}, {"tags": ["<script>"]}, {"metrics": {"a b": 1}}, {"metrics": {"a": "low"}}, {"step": 1 << 90},
    {"unknown": 1}, {"order": ["weight"]}, {"order": ["nope"]}, {"time": None}, {"metadata": {"a": 1}}, {"message": 3},
    {"parts": [{"object": "0" * 64, "n_bytes": 3, "base": 1, "names": None}]},
    {"parts": [{"object": "0" * 64, "n_bytes": 3, "base": 10**30, "names": None}]},
    {"parts": [{"object": "0" * 64, "n_bytes": 3, "base": None, "names": ["w", "w"]}]},
])  # fmt: skip
def test_hostile_manifests_are_refused(tmp_path, changes):
    store = nz.Store(tmp_path, create=True, policy="forward")
    for version in history(2, 100):
        store.commit(version)
    rewritten(tmp_path, 1, **changes)
    with pytest.raises((errors.CorruptError, errors.LimitError)):
        nz.Store(tmp_path).checkout(1)
    report = nz.Store(tmp_path).verify("deep")
    assert not report.ok
    assert report.readable == (0,)
    assert 1 in report.unreadable
    assert nz.Store(tmp_path).commit(history(1)[0]) == 2


def test_circles_and_long_chains_are_refused(tmp_path):
    store = nz.Store(tmp_path, create=True, policy="forward", bound="abs:1e-3")
    for version in history(4):
        store.commit(version)
    parts = [dataclasses.asdict(part) for part in store._versions.get(1).parts]
    rewritten(tmp_path, 1, parts=[{**parts[0], "base": 3}])
    for number in (1, 2, 3):
        with pytest.raises(errors.CorruptError, match="circle"):
            nz.Store(tmp_path).checkout(number)
    nz.Store(tmp_path).log()
    assert nz.Store(tmp_path).verify("deep").readable == (0,)
    assert nz.Store(tmp_path).commit(history(1)[0]) == 4


@pytest.mark.parametrize("data", [
    b"", b"nearzip-version 1 " + b"0" * 64 + b"\n{}", b"nearzip-version 1\n{}", b"\0" * 5000,
    b"nearzip-version 99999999999999999999 " + b"0" * 64 + b"\n" + b"[" * 100_000,
])  # fmt: skip
def test_documents_that_are_none(tmp_path, data):
    store = nz.Store(tmp_path, create=True)
    store.commit(history(1, 100)[0])
    (tmp_path / "versions" / "00000000").write_bytes(data)
    with pytest.raises(errors.CorruptError):
        nz.Store(tmp_path).checkout(0)
    (tmp_path / "nearzip-store").write_bytes(data)
    with pytest.raises(errors.CorruptError):
        nz.Store(tmp_path)


def test_deep_json_and_repeated_keys(tmp_path):
    store = nz.Store(tmp_path, create=True)
    store.commit(history(1, 100)[0])
    for body in (b"[" * 100_000, b'{"a":' * 50 + b"1" + b"}" * 50, b'{"version":0,"version":0}', b'{"step":NaN}', b"3",
                 b'"' + b"\\ud800" + b'"', b"\xff"):  # fmt: skip
        head = f"nearzip-version 1 {hashlib.sha256(body).hexdigest()}\n".encode()
        (tmp_path / "versions" / "00000000").write_bytes(head + body)
        with pytest.raises(errors.CorruptError):
            nz.Store(tmp_path).checkout(0)
    newer = f"nearzip-version 2 {hashlib.sha256(b'x').hexdigest()}\n".encode() + b"x"
    (tmp_path / "versions" / "00000000").write_bytes(newer)
    with pytest.raises(errors.NewerFormatError, match="upgrade nearzip"):
        nz.Store(tmp_path).checkout(0)


def test_a_bomb_is_refused(tmp_path):
    store = nz.Store(tmp_path, create=True, bound="abs:1e-3")
    store.commit({"zeros": np.zeros((1 << 26,), np.float32)})
    with pytest.raises(errors.LimitError, match="limit"):
        nz.Store(tmp_path, limits=nz.Limits(output_bytes=1 << 20)).checkout()
