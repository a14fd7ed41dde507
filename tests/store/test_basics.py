"""Committing, restoring and selecting versions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.coding import Codings
from nearzip.store import Policy
from nearzip.store.policy import parse_policy
from store.helpers import history, memory_url, network, same, updated

POLICIES = ("forward", "backward", "hop", "hop:3", "hop:1")


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else memory_url()


@pytest.mark.parametrize("policy", POLICIES)
def test_versions_are_restored_within_the_bound_and_never_change(url, policy):
    store = nz.Store(url, create=True, bound=nz.Absolute(1e-3), policy=policy)
    versions = history(7)
    seen = {}
    for i, version in enumerate(versions):
        assert store.commit(version) == i
        for number in range(i + 1):
            restored = store.checkout(number)
            assert same(restored, seen.setdefault(number, restored))
    other = nz.Store(url)
    for i, version in enumerate(versions):
        restored = other.checkout(i)
        assert same(restored, seen[i])
        assert np.abs(restored["weight"] - version["weight"]).max() <= 1e-3
        assert restored["steps"] == version["steps"]


def test_without_a_bound_every_bit_is_kept(url):
    store = nz.Store(url, create=True)
    versions = history(4)
    for version in versions:
        store.commit(version)
    assert all(same(store.checkout(i), version) for i, version in enumerate(versions))


@pytest.mark.parametrize(("policy", "bases"), [
    ("forward", [None, 0, 1, 2, 3, 4]), ("hop:3", [None, 0, 1, None, 3, 4]), ("hop:1", [None] * 6),
])  # fmt: skip
def test_chains_are_as_the_policy_says(policy, bases):
    store = nz.Store(memory_url(), create=True, bound="abs:1e-3", policy=policy)
    for version in history(6):
        store.commit(version)
    assert [row.base for row in store.log()] == bases
    depths = [row.depth for row in store.log()]
    assert all(d == (0 if b is None else depths[b] + 1) for d, b in zip(depths, bases, strict=True))


def test_chains_end_at_the_depth_asked_for():
    store = nz.Store(memory_url(), create=True, bound="abs:1e-3", policy=Policy("forward", depth=2))
    for version in history(6):
        store.commit(version)
    assert [row.depth for row in store.log()] == [0, 1, 2, 0, 1, 2]


def test_a_delta_that_does_not_pay_becomes_a_keyframe():
    store = nz.Store(memory_url(), create=True, policy="forward")
    store.commit(network(0, 20_000))
    store.commit(network(1, 20_000))  # has nothing in common with the first
    assert [row.base for row in store.log()] == [None, None]


def test_log_tells_what_was_said():
    store = nz.Store(memory_url(), create=True)
    store.commit(network(), "first", {"loss": math.nan, "accuracy": np.float32(0.5)}, ["best", "a/b"], 7)
    (row,) = store.log()
    assert (row.number, row.message, row.step, row.tags) == (0, "first", 7, ("best", "a/b"))
    assert math.isnan(row.metrics["loss"])
    assert row.metrics["accuracy"] == 0.5
    assert row.n_bytes == sum(array.nbytes for array in network().values())
    assert row.n_stored > 0


def test_metadata_comes_back():
    store = nz.Store(memory_url(), create=True)
    store.commit(network(), metadata={"net": "lenet"})
    assert store.log()[0].metadata == {"net": "lenet"}


def test_a_version_that_is_all_shared_adds_nothing(url):
    frozen = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    store = nz.Store(url, create=True)
    for _ in range(3):
        store.commit({"frozen": frozen})
    rows = store.log()
    assert [row.n_stored for row in rows[1:]] == [0, 0]
    assert rows[1].ratio == math.inf
    assert sum(row.n_stored for row in rows) == store.stat().n_stored
    store.prune("last:1")
    (row,) = store.log()
    assert row.n_stored == store.info(2).n_stored == store.stat().n_stored > 0
    assert [row.n_stored for row in store.log(pruned=True)][:2] == [0, 0]


def test_selectors():
    store = nz.Store(memory_url(), create=True)
    for i, (accuracy, loss) in enumerate([(0.1, 3.0), (0.9, 1.0), (0.9, math.nan), (0.2, 0.5)]):
        store.commit(
            updated(network(), i), metrics={"accuracy": accuracy, "loss": loss}, tags=[f"t{i}", "all"], step=10 * i
        )
    wanted = {"latest": 3, 0: 0, "2": 2, "tag:t1": 1, "tag:all": 3, "step=20": 2, "best:accuracy": 2, "min:loss": 3,
              "max:loss": 0, "min:accuracy": 0}  # fmt: skip
    assert {selector: store.resolve(selector) for selector in wanted} == wanted
    for missing in (4, "tag:none", "step=5", "best:f1"):
        with pytest.raises(errors.NotFoundError):
            store.checkout(missing)
    for wrong in ("newest", "tag:", "-1", 1.5, True, None, "step=x"):
        with pytest.raises(errors.UsageError):
            store.checkout(wrong)


def test_bounds_by_tensor():
    url = memory_url()
    store = nz.Store(url, create=True, bound={"*": "abs:0.1", "bias": nz.Lossless()}, policy="forward")
    versions = history(3)
    for version in versions:
        store.commit(version)
    restored = nz.Store(url).checkout(2)
    assert np.array_equal(restored["bias"], versions[2]["bias"])
    assert 0 < np.abs(restored["weight"] - versions[2]["weight"]).max() <= 0.1


def test_a_plan_for_one_version():
    class Plan:
        def codings_for(self, names):
            return Codings.of("nearzip", "abs:0.1")

    store = nz.Store(memory_url(), create=True)
    store.commit(network(), plan=Plan())
    assert 0 < np.abs(store.checkout()["weight"] - network()["weight"]).max() <= 0.1


def test_some_tensors():
    store = nz.Store(memory_url(), create=True, policy="forward", bound="abs:1e-3")
    for version in history(3):
        store.commit(version)
    whole = store.checkout(2)
    assert same(store.checkout(2, names=["bias"]), {"bias": whole["bias"]})
    with pytest.raises(errors.NotFoundError, match="version 2 has no tensor 'nope'"):
        store.checkout(2, names=["nope"])


def test_tensors_that_come_go_and_change_shape():
    store = nz.Store(memory_url(), create=True, policy="forward")
    one = {"a": np.ones(5, np.float32), "b": np.arange(4)}
    two = {"b": np.arange(6), "c": np.ones(2, np.float16), "a": np.ones(5, np.float32)}
    for version in (one, two, {}, one):
        store.commit(version)
    assert [same(store.checkout(i), v) for i, v in enumerate((one, two, {}, one))] == [True] * 4


def test_unchanged_tensors_are_stored_once(url):
    rng = np.random.default_rng(0)
    frozen = rng.normal(size=100_000).astype(np.float32)
    store = nz.Store(url, create=True, policy="hop:2")
    for _ in range(6):
        store.commit({"frozen": frozen, "head": rng.normal(size=100).astype(np.float32), "tied": frozen})
    sizes = [row.n_stored for row in store.log()]
    names = {part.object for i in range(6) for part in store._versions.get(i).parts}
    assert store.stat().n_stored < 1.1 * sizes[0] + 6 * 2000
    assert len(names) == 6
    # What a version added, not what it points to: the sum is what all of them take.
    assert sum(sizes) == store.stat().n_stored == sum(nz.Store(url).info(i).n_stored for i in range(6))
    assert max(sizes[1:]) < 2000
    for i in range(6):
        restored = nz.Store(url).checkout(i)
        assert np.array_equal(restored["frozen"], frozen)
        assert list(restored) == ["frozen", "head", "tied"]
        restored["frozen"][:] = 0
        assert np.array_equal(restored["tied"], frozen)
    assert store.commit({"frozen": frozen, "tied": frozen}) == 6  # nothing new at all
    assert np.array_equal(nz.Store(url).checkout(6)["frozen"], frozen)


def test_keyframes_stay_keyframes_beside_frozen_tensors():
    rng = np.random.default_rng(0)
    frozen = rng.normal(size=30_000).astype(np.float32)
    store = nz.Store(memory_url(), create=True, policy="hop:3", bound="abs:1e-3")
    for i in range(8):
        store.commit({"frozen": frozen + np.float32(i > 0), "head": rng.normal(size=100).astype(np.float32)})
    # Version 1 is smaller without a base. From there on every third one is a keyframe, its frozen tensor included.
    assert [row.depth for row in store.log()] == [0, 0, 1, 2, 0, 1, 2, 0]


def test_what_the_caller_does_to_its_arrays_does_not_matter():
    store = nz.Store(memory_url(), create=True, policy="forward", bound="abs:1e-3")
    version = network()
    store.commit(version)
    before = store.checkout(0)
    store._committer.held.arrays["weight"] += 1  # somebody got hold of what is kept in memory
    version["weight"] += np.float32(0.01)
    store.commit(version)
    assert same(store.checkout(0), before)
    assert np.abs(store.checkout(1)["weight"] - version["weight"]).max() <= 1e-3


@pytest.mark.parametrize("changed", [(), ("head",), ("head", "frozen")])
def test_what_was_written_against_altered_arrays_is_dropped(tmp_path, changed):
    rng = np.random.default_rng(0)
    version = {name: rng.normal(size=30_000).astype(np.float32) for name in ("frozen", "head")}
    store = nz.Store(tmp_path, create=True, policy="forward", bound="abs:1e-3")
    store.commit(version)
    version = {name: store.checkout(0)[name] + np.float32(0.01 * (name in changed)) for name in version}
    store._committer.held.arrays["frozen"] += np.float32(0.01)
    store.commit(version)
    for name, found in nz.Store(tmp_path).checkout(1).items():
        assert np.abs(found - version[name]).max() <= 1e-3
    assert store.stat().n_garbage == 0
    assert nz.Store(tmp_path).verify("deep").ok


def test_versions_larger_than_what_is_held_in_memory(url, monkeypatch):
    monkeypatch.setattr("nearzip.store.committing._HOLD_BYTES", 100)
    store = nz.Store(url, create=True, bound=nz.Absolute(1e-3), policy="hop:4")
    versions = history(6)
    for version in versions:
        store.commit(version)
    assert store._committer.held is None
    for i, version in enumerate(versions):
        assert np.abs(store.checkout(i)["weight"] - version["weight"]).max() <= 1e-3


def test_files_in_and_out(tmp_path):
    store = nz.Store(tmp_path / "store", create=True)
    version = network()
    np.savez(tmp_path / "one.npz", **version)
    assert store.commit_file(tmp_path / "one.npz", "from a file", step=1) == 0
    assert store.checkout_file("latest", tmp_path / "two.npz") == 0
    with np.load(tmp_path / "two.npz") as found:
        assert same(dict(found), version)
    with pytest.raises(errors.UsageError, match="exists already"):
        store.checkout_file(0, tmp_path / "two.npz")


def test_opening(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no store here"):
        nz.Store(tmp_path / "none")
    store = nz.Store(tmp_path / "store", create=True, bound=nz.Rms(0.01), policy="hop:7")
    again = nz.Store(tmp_path / "store", create=True, bound="rms:0.01", policy="hop:7")
    assert again.settings == store.settings
    with pytest.raises(errors.UsageError, match=r"has bound rms:0.01, not abs:0.1"):
        nz.Store(tmp_path / "store", bound="abs:0.1")
    with pytest.raises(errors.UsageError, match="has policy hop:7, not forward"):
        nz.Store(tmp_path / "store", policy="forward")
    with pytest.raises(errors.NotFoundError, match="has no versions yet"):
        store.checkout()
    assert store.log() == []


def test_settings_can_be_changed_later():
    url = memory_url()
    store = nz.Store(url, create=True, bound="abs:1e-3", policy="forward")
    versions = history(4)
    store.commit(versions[0])
    store.configure(policy="hop:1", bound="abs:1e-2")
    store.commit(versions[1])
    assert nz.Store(url).settings == store.settings
    assert [row.base for row in store.log()] == [None, None]
    assert str(nz.Store(url).policy) == "hop:1"


def test_numbers_and_times_in_settings_are_not_rounded():
    store = nz.Store(memory_url(), create=True, bound=nz.Absolute(0.1234567890123))
    assert store.settings.codings().default.bound == nz.Absolute(0.1234567890123)


@pytest.mark.parametrize("arguments", [
    {"bound": "abs:0"}, {"bound": 3}, {"policy": "sideways"}, {"policy": "hop:0"}, {"policy": "forward:3"},
    {"policy": 3}, {"method": "zstd", "options": {"level": 99}}, {"exclusive": "perhaps"}, {"url": ""}, {"url": 3},
    {"url": "nope://x"},
])  # fmt: skip
def test_settings_that_cannot_be_meant(arguments):
    with pytest.raises(errors.UsageError):
        nz.Store(**{"url": memory_url(), "create": True, **arguments})


@pytest.mark.parametrize("said", [
    {"tags": "best"}, {"tags": ["a b"]}, {"tags": [""]}, {"tags": [3]}, {"metrics": {"loss": "low"}},
    {"metrics": {"": 1}}, {"metrics": {"x y": 1}}, {"step": 1.5}, {"step": True}, {"step": 1 << 80}, {"message": 3},
    {"metadata": {"a": 3}}, {"message": "\ud800"}, {"message": "x" * (17 << 20)},
])  # fmt: skip
def test_what_cannot_be_said_of_a_version(said):
    store = nz.Store(memory_url(), create=True)
    with pytest.raises(errors.UsageError):
        store.commit(network(), **said)
    assert len(store) == 0
    assert store.commit(network()) == 0


@pytest.mark.parametrize("method", ["delta-dnn", "zstd"])
def test_other_methods(method):
    store = nz.Store(memory_url(), create=True, method=method, policy="forward")
    versions = history(3)
    for version in versions:
        store.commit(version)
    assert [row.base for row in store.log()] == ([None, 0, 1] if method == "delta-dnn" else [None] * 3)
    assert store.checkout(2)["steps"] == versions[2]["steps"]


def test_the_hint_may_be_wrong_or_gone(tmp_path):
    store = nz.Store(tmp_path, create=True)
    for version in history(9):
        store.commit(version)
    hint = tmp_path / "latest"
    stale = hint.read_bytes()
    from nearzip.store.documents import seal

    for content in (None, b"", b"junk", seal("latest", {"version": 3}), seal("latest", {"version": 10**7}),
                    seal("latest", {"version": -1}), seal("latest", {}), stale[:-1]):  # fmt: skip
        hint.unlink(missing_ok=True)
        if content is not None:
            hint.write_bytes(content)
        assert nz.Store(tmp_path).resolve() == 8


def test_policies_are_spelled_as_they_are_read():
    for text in POLICIES:
        assert str(parse_policy(text)) == text
    assert parse_policy("hop") == parse_policy("hop:10")


def test_manifests_are_readable_by_people(tmp_path):
    store = nz.Store(tmp_path, create=True)
    store.commit(network(), "hello")
    head, body = (tmp_path / "versions" / "00000000").read_text().splitlines()
    assert head.split()[:2] == ["nearzip-version", "1"]
    assert json.loads(body)["message"] == "hello"
    assert not list((tmp_path / "tmp").iterdir())


def test_a_store_makes_the_folders_above_it(tmp_path):
    store = nz.Store(tmp_path / "runs" / "vgg", create=True)
    assert store.commit({"w": np.ones(3, np.float32)}) == 0


def test_specs_are_those_of_the_version_and_decode_nothing(tmp_path, monkeypatch):
    store = nz.Store(tmp_path / "s", create=True, bound=nz.Absolute(0.1))
    first = {"a": np.ones((3, 2), np.float32), "b": np.arange(4)}
    store.commit(first)
    store.commit({"b": np.arange(5), "a": np.zeros((3, 2), np.float32)})
    monkeypatch.setattr("nearzip.store.reading.restore", None)
    for number, shape in ((0, (4,)), (1, (5,))):
        specs = store.specs(number)
        assert {name: spec.shape for name, spec in specs.items()} == {"a": (3, 2), "b": shape}
        assert specs["a"].dtype == "float32"
    assert list(store.specs()) == ["b", "a"]
    with pytest.raises(errors.NotFoundError):
        store.specs(7)
