"""Updates: how much of one a bound keeps, the warning where that is nothing, and bounds relative to the update."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip.changes import Change, UpdateKept
from nearzip.cli import cli
from nearzip.coding_index import written_bounds
from nearzip.errors import UpdateLostWarning, UsageError
from nearzip.estimates import estimate
from nearzip.tensors import Checkpoint

pytestmark = pytest.mark.filterwarnings("error::nearzip.errors.UpdateLostWarning")

Tensors = dict[str, np.ndarray]


def network(seed: int = 0, dtype: type = np.float32, n: int = 4) -> Tensors:
    rng = np.random.default_rng(seed)
    return {f"l{i}.w": rng.normal(0, 0.02, (64, 96)).astype(dtype) for i in range(n)}


def moved(tensors: Tensors, by: float, seed: int = 1) -> Tensors:
    """The same after an update whose values are about so large."""
    rng = np.random.default_rng(seed)
    return {name: (w + rng.normal(0, by, w.shape)).astype(w.dtype) for name, w in tensors.items()}


def rms_of_change(new: Tensors, old: Tensors) -> float:
    differences = np.concatenate([(new[n].astype(np.float64) - old[n].astype(np.float64)).ravel() for n in old])
    return float(np.sqrt(np.mean(np.square(differences[np.isfinite(differences)]))))


def worst(new: Tensors, restored: Tensors) -> float:
    return max(float(np.abs(w.astype(np.float64) - restored[name].astype(np.float64)).max()) for name, w in new.items())


OLD = network()
NEW = moved(OLD, 3e-5)
#: A bound of 2e-4: an update of 3e-5 vanishes below it.
COARSE = "rms:0.01"


# ---- what is kept ----------------------------------------------------------------------------------------------


def test_the_share_is_that_of_the_squares():
    base, new = network(1), moved(network(1), 1e-3)
    archive = nz.compress(new, base=base, bound="rms:0.05")
    kept = archive.update_kept
    for name, change in kept.tensors.items():
        x, b, r = (side[name].astype(np.float64) for side in (new, base, archive.restored))
        assert change.squares == pytest.approx(float(((x - b) ** 2).sum()), rel=1e-4)
        assert change.share == pytest.approx(1 - float(((x - r) ** 2).sum() / ((x - b) ** 2).sum()), abs=1e-4)
        assert (change.n_changed, change.n_kept) == ((x != b).sum(), ((x != b) & (r != b)).sum())
    assert 0.5 < kept.share < 0.99
    assert kept.lost == ()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", ["nearzip", "delta-dnn"])
def test_a_bound_that_swallows_the_update_warns(dtype, method):
    old = network(dtype=dtype)
    new = moved(old, 1e-3)
    with pytest.warns(UpdateLostWarning, match=r"in 4 of 4 tensors .* keeps 0\.0%.*upd:0\.1") as seen:
        archive = nz.compress(new, base=old, method=method, bound="abs:0.1")
    assert len(seen) == 1
    assert all(np.array_equal(archive.restored[name], w) for name, w in old.items())
    assert archive.update_kept.share == 0
    assert set(archive.update_kept.lost) == set(old)
    assert archive.update_kept.network_lost


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_large_tensors_of_half_precision_are_measured_whole(dtype):
    rng = np.random.default_rng(0)
    old = {"w": rng.normal(0, 1, (300, 700)).astype(dtype)}
    new = moved(old, 0.05)
    archive = nz.compress(new, base=old, bound="abs:0.05")
    x, b, r = (side["w"].astype(np.float64) for side in (new, old, archive.restored))
    [change] = archive.update_kept.tensors.values()
    assert (change.n_changed, change.n_kept) == ((x != b).sum(), ((x != b) & (r != b)).sum())
    assert change.error == pytest.approx(float(((x - r) ** 2).sum()), rel=1e-4)
    assert np.abs(x - r).max() <= 0.05


def test_one_tensor_that_is_lost_among_others_is_named():
    new = {**moved(OLD, 1e-2), "l2.w": moved(OLD, 1e-6)["l2.w"]}
    with pytest.warns(UpdateLostWarning, match=r"in 1 of 4 tensors \('l2\.w'\)"):
        archive = nz.compress(new, base=OLD, bound="abs:0.001")
    assert archive.update_kept.lost == ("l2.w",)
    assert not archive.update_kept.network_lost


def test_a_warning_names_the_largest_few_and_counts_them_all():
    kept = UpdateKept({f"w{i}": Change(10, 0, float(i), float(i)) for i in range(1, 50)})
    text = kept.warning()
    assert "in 49 of 49 tensors ('w49', 'w48', 'w47', ..)" in text


@pytest.mark.parametrize("bound", [None, "lossless", "abs:1e-9", "upd:0.1", "upd:0.1:tensor", {"*": "upd:0.5"}])
def test_what_keeps_the_update_does_not_warn(bound):
    kept = nz.compress(NEW, base=OLD, bound=bound).update_kept
    assert kept.share > 0.9


def test_tensors_that_did_not_change_do_not_warn():
    assert nz.compress(OLD, base=OLD, bound="abs:0.1").update_kept.share == 1
    new = {**moved(OLD, 1e-2), "l1.w": OLD["l1.w"]}
    assert nz.compress(new, base=OLD, bound="abs:0.001").update_kept.tensors["l1.w"].n_changed == 0


def test_what_rounding_left_in_the_base_is_no_update():
    """The base is what the reader got of the very same network: it differs by the first rounding."""
    held = nz.compress(OLD, bound=COARSE).restored
    kept = nz.compress(OLD, base=held, bound=COARSE).update_kept
    assert kept.tensors == {}
    assert set(kept.residues) == set(OLD)


def test_without_a_base_nothing_is_said_of_updates():
    assert nz.compress(NEW, bound=COARSE).update_kept is None
    assert nz.compress(NEW, base=OLD, method="zstd").update_kept is None, "the method ignores the base"


def test_tied_tensors_are_told_as_well():
    tied = {**NEW, "tied": NEW["l0.w"].copy()}
    with pytest.warns(UpdateLostWarning, match="in 5 of 5"):
        nz.compress(tied, base={**OLD, "tied": OLD["l0.w"]}, bound=COARSE)


def test_a_step_without_a_bound_is_judged_by_its_values():
    """It may move values farther than the update did, on purpose."""
    nz.compress(moved(OLD, 1e-3), base=OLD, options={"step": 4e-3, "unbiased": True})
    with pytest.warns(UpdateLostWarning):
        nz.compress(NEW, base=OLD, options={"step": 1.0})


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_files_warn_as_well(tmp_path: Path, ending):
    for name, tensors in (("old", OLD), ("new", NEW)):
        path = tmp_path / f"{name}{ending}"
        save_file(tensors, path) if ending == ".safetensors" else np.savez(path, **tensors)
    with pytest.warns(UpdateLostWarning):
        report = nz.compress_file(tmp_path / f"new{ending}", tmp_path / "u.nz", tmp_path / f"old{ending}", bound=COARSE)
    assert report.write.update_kept.share == 0


# ---- stores ----------------------------------------------------------------------------------------------------


def memory_store(**settings) -> nz.Store:
    memory_store.n = getattr(memory_store, "n", 0) + 1
    return nz.Store(f"memory://updates-{memory_store.n}", create=True, **settings)


@pytest.mark.parametrize("policy", ["forward", "backward", "hop:2"])
def test_commits_that_keep_nothing_warn(policy):
    with memory_store(bound=COARSE, policy=policy) as store:
        store.commit(OLD)
        assert store.update_kept is None
        store.commit(moved(OLD, 1e-2))
        assert store.update_kept.share > 0.9
        for seed in (2, 3):
            with pytest.warns(UpdateLostWarning):
                store.commit(moved(moved(OLD, 1e-2), 1e-7, seed))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            store.commit(moved(moved(OLD, 1e-2), 1e-7, 4), warn=False)


def test_frozen_tensors_of_a_store_do_not_warn():
    store = memory_store(bound=COARSE, policy="hop:3")
    for seed in range(5):
        store.commit({**OLD, "head": moved(OLD, 1e-2, seed)["l0.w"]})
    store.commit({**OLD, "head": moved(OLD, 1e-2, seed)["l0.w"]})
    assert nz.Store(store.url).commit({**OLD, "head": moved(OLD, 1e-2, seed)["l0.w"]}) == 6


@pytest.mark.parametrize("policy", ["forward", "backward", "hop:2"])
@pytest.mark.parametrize("bound", ["upd:0.1", "upd:0.1:tensor", {"*": nz.Update(0.1), "l1.w": "lossless"}])
def test_stores_keep_a_bound_relative_to_each_update(policy, bound):
    store = memory_store(bound=bound, policy=policy)
    assert nz.Store(store.url).bound == store.bound
    held, version = None, OLD
    for number in range(4):
        store.commit(version)
        restored = nz.Store(store.url).checkout(number)
        if held is None:
            assert all(np.array_equal(restored[name], w) for name, w in version.items()), "the first is lossless"
        else:
            limit = 0.1 * rms_of_change(version, held) * (1.1 if "tensor" in str(bound) else 1)
            assert 0 < worst(version, restored) <= limit
        held, version = restored, moved(version, 1e-3, number)


# ---- bounds relative to the update -----------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), log_value=st.floats(-4, 1), per=st.sampled_from(["network", "tensor"]))
def test_no_value_is_further_than_a_share_of_the_change(seed, log_value, per):
    rng = np.random.default_rng(seed)
    value = 10.0**log_value
    dtypes = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
    old = {f"w{i}": rng.normal(0, 1, rng.integers(1, 400)).astype(rng.choice(dtypes)) for i in range(4)}
    new = {n: (w.astype(np.float64) + rng.normal(0, 10.0 ** rng.uniform(-6, 0), w.shape)).astype(w.dtype)
           for n, w in old.items()}  # fmt: skip
    new["w0"].flat[0], old["w1"].flat[0] = np.nan, np.inf
    new |= {"fresh": rng.normal(size=7), "counter": np.array([3, 4])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UpdateLostWarning)
        archive = nz.compress(new, base=old, bound=nz.Update(value, per=per))
    restored = nz.decompress(archive.to_bytes(), base=old)
    for name, w in old.items():
        limit = (
            value * rms_of_change(new, old) if per == "network" else value * rms_of_change({name: new[name]}, {name: w})
        )
        x, r = new[name].astype(np.float64), restored[name].astype(np.float64)
        finite = np.isfinite(x)
        assert np.array_equal(np.isnan(x), np.isnan(r))
        assert np.abs(x - r)[finite].max(initial=0) <= limit
    assert np.array_equal(restored["fresh"], new["fresh"]), "what the base does not have is exact"
    assert np.array_equal(restored["counter"], new["counter"])


def test_an_update_of_nothing_keeps_every_bit():
    archive = nz.compress(OLD, base=OLD, bound="upd:0.5")
    assert all(np.array_equal(archive.restored[name], w) for name, w in OLD.items())
    assert archive.report.index.bound["resolved"] == 0


def test_another_shape_is_exact():
    old = {"a": OLD["l0.w"], "c": OLD["l2.w"][:, :3]}
    new = {"a": NEW["l0.w"], "c": NEW["l2.w"]}
    restored = nz.compress(new, base=old, bound="upd:0.5").restored
    assert np.array_equal(restored["c"], new["c"])
    assert not np.array_equal(restored["a"], new["a"])


def test_without_a_base_the_error_says_what_to_use():
    with pytest.raises(UsageError, match=r"upd:0\.1 is a share of the change .*rms:0\.001 or lossless"):
        nz.compress(NEW, bound="upd:0.1")
    with pytest.raises(UsageError, match="a base that the method uses"):
        nz.compress(NEW, bound={"*": "lossless", "l0.*": nz.Update(0.1)})


@pytest.mark.parametrize(
    "text", ["upd", "upd:", "upd:x", "upd:0.1:", "upd:0.1:layer", "rms:0.1:tensor", "upd:0.1:tensor:x"]
)
def test_bounds_that_cannot_be_read(text):
    with pytest.raises(UsageError, match=r"cannot read the bound .*upd:0\.1"):
        nz.compress(NEW, base=OLD, bound=text)


def test_values_that_no_bound_has():
    for value in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="positive and finite"):
            nz.Update(value)
    with pytest.raises(UsageError, match="per 'network' or per 'tensor'"):
        nz.Update(0.1, per="layer")


def test_the_index_says_what_the_bound_came_to():
    for bound in ("upd:0.1", "upd:0.1:tensor", {"*": "upd:0.1", "l1.w": "abs:1e-6", "l2.w": "upd:0.2:tensor"}):
        archive = nz.compress(NEW, base=OLD, bound=bound)
        found = written_bounds(nz.open(archive, base=OLD).index)
        assert set(found) == set(OLD) - ({"l1.w"} if isinstance(bound, dict) else set())
        for name, value in found.items():
            error = np.abs(archive.restored[name].astype(np.float64) - NEW[name]).max()
            assert 0.5 * value < error <= value


def test_damaged_descriptions_of_bounds_are_left_out():
    index = nz.open(nz.compress(NEW, base=OLD, bound="upd:0.1"), base=OLD).index
    for bound in ({"kind": "upd"}, {"kind": "upd", "resolved": [1.0]}, {"kind": "upd", "resolved": "x"}, {"kind": 3}):
        object.__setattr__(index, "bound", bound)
        assert written_bounds(index) == {}
    object.__setattr__(index, "method", {"others": [3, {"tensors": [99]}, {"tensors": "x", "bound": 7}]})
    assert written_bounds(index) == {}


@pytest.mark.parametrize("method", ["sz3", "zfp"])
def test_methods_that_keep_absolute_bounds_keep_this_one(method):
    pytest.importorskip("pysz" if method == "sz3" else "zfpy")
    new = moved(OLD, 1e-3)
    archive = nz.compress(new, base=OLD, method=method, bound="upd:0.2")
    assert worst(new, archive.restored) <= 0.2 * rms_of_change(new, OLD)


def test_other_methods_refuse_it():
    with pytest.raises(UsageError, match=r"delta-dnn cannot promise upd:0\.1"):
        nz.compress(NEW, base=OLD, method="delta-dnn", bound="upd:0.1")


def test_a_plan_with_such_bounds_is_written_and_read(tmp_path: Path):
    def evaluate(tensors: Tensors) -> float:
        return -worst(NEW, tensors)

    plan = nz.tune(NEW, OLD, evaluate=evaluate, max_loss=1e-5, knob="upd")
    assert isinstance(plan.chosen.codings.default.bound, nz.Update)
    plan.save(tmp_path / "plan.json")
    archive = nz.compress(NEW, base=OLD, plan=nz.Plan.load(tmp_path / "plan.json"))
    assert worst(NEW, archive.restored) <= 1e-5
    assert archive.nbytes == plan.nbytes


def test_file_to_file_is_the_same_as_in_memory(tmp_path: Path):
    save_file(OLD, tmp_path / "old.safetensors")
    save_file(NEW, tmp_path / "new.safetensors")
    for bound in ("upd:0.1", "upd:0.1:tensor"):
        nz.compress_file(
            tmp_path / "new.safetensors", tmp_path / "u.nz", tmp_path / "old.safetensors", bound=bound, force=True
        )
        assert (tmp_path / "u.nz").read_bytes() == nz.compress(NEW, base=OLD, bound=bound).to_bytes()


# ---- estimates and the command line ----------------------------------------------------------------------------


def test_estimates_are_near_what_is_written():
    rng = np.random.default_rng(0)
    old = {f"l{i}": rng.normal(0, 0.02, (700, 1024)).astype(np.float32) for i in range(2)} | network(n=2)
    new = moved(old, 1e-4)
    bounds = [nz.Lossless(), nz.Update(0.01), nz.Update(0.3)]
    for found in estimate(Checkpoint.of(new), Checkpoint.of(old), bounds):
        archive = nz.compress(new, base=old, bound=found.bound)
        assert found.n_bytes == pytest.approx(archive.nbytes, rel=0.03)
        assert found.share == pytest.approx(archive.update_kept.share, abs=0.01)
    [alone] = estimate(Checkpoint.of(new), None, [nz.Rms(0.01)])
    assert alone.n_bytes == pytest.approx(nz.compress(new, bound="rms:0.01").nbytes, rel=0.03)
    assert alone.share is None


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_file(OLD, "old.safetensors")
    save_file(NEW, "new.safetensors")
    return tmp_path


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == code, result.stderr
    return result


def test_compress_warns_with_exit_code_one(files: Path):
    done = run("compress", "new.safetensors", "--base", "old.safetensors", "-o", "u.nz", "--bound", COARSE, code=1)
    assert "warning: the update is lost" in done.stderr
    assert "0 % of the change is kept; lost in 4 tensors: " in done.stdout
    assert Path("u.nz").is_file()
    done = run(
        "compress", "new.safetensors", "--base", "old.safetensors", "-o", "v.nz", "--bound", COARSE, "--json", code=1
    )
    document = json.loads(done.stdout)["update_kept"]
    assert (document["share"], document["share_of_values"], sorted(document["lost"])) == (0, 0, sorted(OLD))
    assert document["tensors"]["l0.w"]["share"] == 0


def test_the_hint_is_made_from_this_update(files: Path):
    done = run("compress", "new.safetensors", "--base", "old.safetensors", "-o", "u.nz")
    assert "every bit was kept; with --bound upd:0.1" in done.stderr
    assert "keep 99.66 % of the update" in done.stderr or "keep 99.6" in done.stderr
    assert "rms:0.01" not in done.stderr
    done = run("compress", "new.safetensors", "--base", "old.safetensors", "-o", "v.nz", "--bound", "upd:0.1")
    assert "upd:0.1 (|x - x'| <= " in done.stdout
    restored = nz.decompress("v.nz", base="old.safetensors")
    assert worst(NEW, restored) <= 0.1 * rms_of_change(NEW, OLD)
    assert "upd:0.1 (|x - x'| <= " in run("inspect", "v.nz").stdout
    run("compress", "old.safetensors", "--base", "old.safetensors", "-o", "w.nz")


def test_a_bound_of_an_update_needs_a_base(files: Path):
    done = run("compress", "new.safetensors", "-o", "u.nz", "--bound", "upd:0.1", code=2)
    assert "there is none: give a base" in done.stderr
    assert not Path("u.nz").exists()


def test_store_commit_warns_with_exit_code_one(files: Path):
    run("store", "init", "runs", "--bound", COARSE)
    run("store", "commit", "runs", "old.safetensors")
    done = run("store", "commit", "runs", "old.safetensors", "--json")
    assert json.loads(done.stdout)["update_kept"]["lost"] == []
    save_file(moved(OLD, 5e-2), "far.safetensors")
    assert "% of the change is kept" in run("store", "commit", "runs", "far.safetensors").stdout


def test_store_init_takes_a_bound_of_updates(files: Path):
    run("store", "init", "runs", "--bound", "upd:0.1:tensor")
    for file in ("old", "new"):
        run("store", "commit", "runs", f"{file}.safetensors")
    run("store", "checkout", "runs", "-o", "out.safetensors")
    restored = load_file("out.safetensors")
    for name in OLD:
        assert worst({name: NEW[name]}, restored) <= 0.1 * rms_of_change({name: NEW[name]}, {name: OLD[name]})
    report = run("store", "report", "runs", "-o", "r.html", "--original", "latest=new.safetensors", "--json")
    assert 0.5 < json.loads(report.stdout)["worst_share"] <= 1


def test_compare_estimates_bounds(files: Path):
    done = run("compare", "old.safetensors", "new.safetensors")
    assert "--bound upd:0.1" in done.stdout
    rows = json.loads(run("compare", "old.safetensors", "new.safetensors", "--json").stdout)["estimates"]
    assert [row["bound"] for row in rows] == ["lossless", "upd:0.01", "upd:0.03", "upd:0.1", "upd:0.3"]
    assert rows[0]["update_kept"] == 1
    sizes = [row["bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert json.loads(run("compare", "old.safetensors", "old.safetensors", "--json").stdout)["estimates"] == []


def test_paths_and_streams_in_python(files: Path):
    archive = nz.compress("new.safetensors", base="old.safetensors", bound="upd:0.1")
    assert archive.to_bytes() == nz.compress(NEW, base=OLD, bound="upd:0.1").to_bytes()
    stream = io.BytesIO()
    archive.save(stream)
    restored = nz.decompress(io.BytesIO(stream.getvalue()), base=Path("old.safetensors"))
    assert all(np.array_equal(restored[name], w) for name, w in archive.restored.items())
    for _ in range(2):
        archive.save("u.nz")
    with nz.open("u.nz", base="old.safetensors") as reader:
        assert np.array_equal(reader["l0.w"], archive.restored["l0.w"])
