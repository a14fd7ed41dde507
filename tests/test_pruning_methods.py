"""The methods that prune: what they keep, what they promise, sparse reading, retraining."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import nearzip as nz
from nearzip.errors import BoundError, CorruptError, NotFoundError, UsageError
from nearzip.recipes import Hold, recipe_types
from nearzip.recipes.by_name import ByName
from nearzip.recipes.pruning import PruningRecipe
from nearzip.recipes.weightless import Weightless
from nearzip.stages.prune import largest
from nearzip.tensors import DTYPES, is_float
from nearzip.testing.contract import trouble

METHODS = [name for name, kind in recipe_types().items() if issubclass(kind, PruningRecipe)]
BOUNDED = [name for name in METHODS if recipe_types()[name].promises]
FLOATS = [name for name, dtype in DTYPES.items() if is_float(dtype)]
#: Everything in a filter, so that all methods prune all layers.
ALL = {"weightless": {"layers": "*"}}


def network(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"conv.weight": (8, 4, 3, 3), "fc1.weight": (40, 60), "fc1.bias": (40,), "fc2.weight": (10, 40)}
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def compressed(method, tensors, **options):
    return nz.compress(tensors, method=method, options=ALL.get(method, {}) | options)


# ---- what is kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_each_layer_is_kept_and_all_else_is_exact(method):
    x = network()
    y = compressed(method, x, keep="conv*=0.5,fc1.weight=0.1").restored
    assert y["fc1.bias"].tobytes() == x["fc1.bias"].tobytes()
    assert y["fc2.weight"].tobytes() == x["fc2.weight"].tobytes(), "keep says nothing about it"
    for name, share in (("conv.weight", 0.5), ("fc1.weight", 0.1)):
        kept = largest(x[name].reshape(-1), share)
        assert (y[name].reshape(-1)[kept] != 0).mean() > 0.99
        if method != "weightless":
            assert not y[name].reshape(-1)[~kept].any()


@pytest.mark.parametrize("method", METHODS)
def test_the_papers_shares_are_the_default(method):
    y = compressed(method, network()).restored
    if method != "weightless":
        assert (y["fc1.weight"] != 0).mean() == pytest.approx(0.09, abs=0.001)
        assert (y["conv.weight"] != 0).mean() == pytest.approx(0.35, abs=0.002)


@pytest.mark.parametrize("method", BOUNDED)
def test_the_bound_counts_from_the_pruned_weights(method):
    x = network()["fc1.weight"]
    archive = nz.compress({"x": x}, method=method, bound=nz.Absolute(0.02), options={"keep": 0.2})
    kept = largest(x.reshape(-1), 0.2).reshape(x.shape)
    difference = np.abs(archive.restored["x"].astype(np.float64) - np.where(kept, x, 0))
    assert 0.01 < difference.max() <= 0.02
    assert not difference[~kept].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bound", ["rel:0.1", "pwrel:0.1", "rms:0.1"])
def test_bounds_that_pruning_cannot_promise_are_refused(method, bound):
    with pytest.raises(UsageError, match=method):
        nz.compress(network(), method=method, bound=bound)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [-0.1, 1.1, "x", "a=1,a=0", "", float("nan"), True, {}, {"": 0.1}, {"a": None}])
def test_shares_that_make_no_sense_are_refused(method, keep):
    with pytest.raises(UsageError):
        nz.compress(network(), method=method, options={"keep": keep})


@pytest.mark.parametrize("method", METHODS)
def test_a_share_for_a_tensor_that_is_not_there_is_refused(method):
    with pytest.raises(UsageError, match=r"'fc9\.\*'.*matches none"):
        nz.compress(network(), method=method, options={"keep": {"fc9.*": 0.1}})


def test_numbers_by_name():
    numbers = ByName.parse({"a.*": 0.1, "a.b": 0.2, "*": 0.3})
    assert [numbers[name] for name in ("a.b", "a.c", "z")] == [0.2, 0.1, 0.3]
    assert ByName.parse(numbers.to_option()) == numbers
    assert ByName.parse("a=b=0.5")["a=b"] == 0.5
    assert ByName.parse("0.25").to_option() == 0.25


# ---- every input, from bytes alone -----------------------------------------------------------------------------


def layers(dtype):
    """Arrays that have broken compressors, as layers."""
    found = {case: np.ascontiguousarray(values).reshape(1, -1) for case, values in trouble(dtype).items()}
    rng = np.random.default_rng(3)
    found["far apart"] = np.zeros((3, 2000), DTYPES[dtype])
    found["far apart"][[0, 1, 2], [0, 255, 1999]] = rng.normal(0, 1, 3).astype(DTYPES[dtype])
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 1.0])
def test_troublesome_layers_come_back(method, dtype, keep):
    x = layers(dtype)
    archive = compressed(method, x, keep=keep)
    restored = nz.decompress(archive.to_bytes())
    for name, array in x.items():
        assert restored[name].tobytes() == archive.restored[name].tobytes(), name
        assert restored[name].dtype == array.dtype
        finite = np.isfinite(array)
        kept = largest(array.reshape(-1), keep).reshape(array.shape)
        lost = kept & ~finite & (bits(array) != bits(restored[name]))
        assert not lost.any(), f"{name}: what is not finite and kept keeps its bits"
        assert np.isfinite(restored[name])[finite].all(), name


def bits(array):
    return array.view(f"u{array.itemsize}")


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_pruning_empties(method):
    archive = compressed(method, network(), keep=0)
    assert not archive.restored["fc1.weight"].any()
    assert archive.ratio > 5


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_process_restores_from_bytes_alone(method, tmp_path):
    archive = compressed(method, network())
    archive.save(tmp_path / "a.nz")
    code = (
        "import sys, nearzip as nz, hashlib\n"
        "x = nz.decompress(sys.argv[1])\n"
        "print(hashlib.sha256(b''.join(x[k].tobytes() for k in sorted(x))).hexdigest())\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.nz"], capture_output=True, text=True, check=True)
    import hashlib

    expected = b"".join(archive.restored[k].tobytes() for k in sorted(archive.restored))
    assert run.stdout.strip() == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_compressing_again_what_was_pruned_changes_nothing(method):
    """A pruned network that was retrained has as many nonzero weights as `keep` says."""
    x = compressed(method, network(), keep=0.2).restored
    if method == "weightless":
        pytest.skip("its false positives are weights to the next filter")
    assert all(np.array_equal(a == 0, x[name] == 0) for name, a in compressed(method, x, keep=0.2).restored.items())


# ---- sparse reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "nearzip"])
def test_sparse_reading_is_dense_reading(method):
    pytest.importorskip("scipy")
    torch = pytest.importorskip("torch")
    x = network()
    x["fc1.weight"][3, 4] = np.nan
    x["fc2.weight"] = x["fc2.weight"].astype(np.float64)
    archive = compressed(method, x) if method in METHODS else nz.compress(x)
    with nz.open(archive) as reader:
        for name, dense in archive.restored.items():
            csr = reader.sparse(name)
            assert csr.dtype == dense.dtype
            np.testing.assert_array_equal(csr.toarray(), dense.reshape(dense.shape[0], -1))
            coo = reader.sparse(name, "torch")
            assert coo.is_coalesced()
            torch.testing.assert_close(coo.to_dense(), torch.from_numpy(dense), rtol=0, atol=0, equal_nan=True)


def test_a_large_sparse_layer_needs_no_dense_array():
    pytest.importorskip("scipy")
    import tracemalloc

    x = np.zeros((2000, 4000), np.float32)
    x[::50, ::40] = np.linspace(1, 2, 40 * 100, dtype=np.float32).reshape(40, 100)
    archive = nz.compress({"x": x}, method="deepsz-nearzip", options={"keep": 1.0})
    with nz.open(archive) as reader:
        tracemalloc.start()
        csr = reader.sparse("x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert csr.nnz == 4000
    assert peak < x.nbytes / 20


@pytest.mark.parametrize("method", METHODS)
def test_the_parts_of_decoding_are_timed(method):
    with nz.open(compressed(method, network())) as reader:
        times = reader.decode_times()
    layers = {"conv.weight", "fc1.weight", "fc2.weight"}
    assert set(times) == (set() if method == "weightless" else layers)
    assert all(part >= 0 for row in times.values() for part in row)


def test_sparse_forms_that_do_not_exist():
    pytest.importorskip("scipy")
    x = {"scalar": np.array(1.5, np.float32), "half": np.ones((2, 2), DTYPES["bfloat16"])}
    with nz.open(nz.compress(x)) as reader:
        with pytest.raises(UsageError, match="no dimensions"):
            reader.sparse("scalar")
        with pytest.raises(UsageError, match="bfloat16"):
            reader.sparse("half")
        with pytest.raises(UsageError, match="'csr' and 'torch'"):
            reader.sparse("half", "dense")
        with pytest.raises(NotFoundError):
            reader.sparse("nothing")
        assert reader.sparse("half", "torch").to_dense().tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_damage_is_found_in_sparse_reading(method):
    pytest.importorskip("scipy")
    data = compressed(method, network()).to_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(24, len(data) // 2, 40):
        damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        try:
            with nz.open(damaged) as reader:
                found = {name: reader.sparse(name) for name in reader}
        except CorruptError:
            continue
        raise AssertionError(f"a flipped bit in byte {at} was read as {found}")


# ---- retraining ------------------------------------------------------------------------------------------------


class Retraining:
    """Moves all that is not held, and remembers what it was asked to hold."""

    def __init__(self, by=1.01):
        self.holds = []
        self.by = by

    def __call__(self, tensors, hold):
        self.holds.append(hold)
        return {
            name: array if name in hold.frozen else (array * self.by).astype(array.dtype)
            for name, array in tensors.items()
        }


@pytest.mark.parametrize("method", BOUNDED)
def test_pruned_weights_are_retrained_with_their_zeros_held(method):
    x, retrain = network(), Retraining(2)
    archive = nz.compress(x, method=method, options={"keep": {"fc*": 0.1}}, retrain=retrain)
    assert retrain.holds == [Hold(zeros=("fc1.weight", "fc2.weight"))]
    kept = largest(x["fc1.weight"].reshape(-1), 0.1)
    y = archive.restored["fc1.weight"].reshape(-1)
    np.testing.assert_allclose(y[kept], 2 * x["fc1.weight"].reshape(-1)[kept], atol=1e-3)
    assert not y[~kept].any()


def test_layers_behind_a_filter_are_retrained_with_its_errors_in_place():
    x, retrain = network(), Retraining()
    seen = []

    def watched(tensors, hold):
        seen.append(tensors["fc1.weight"].copy())
        return retrain(tensors, hold)

    archive = nz.compress(x, method="weightless", options={"keep": 0.1}, retrain=watched)
    front = ("conv.weight", "fc1.weight")
    assert retrain.holds == [Hold(zeros=("fc1.weight",)), Hold(frozen=front)]
    assert seen[1].tobytes() == archive.restored["fc1.weight"].tobytes(), "trained behind what a reader gets"
    # conv and the filtered layer moved once, what stands behind twice.
    np.testing.assert_allclose(archive.restored["conv.weight"], x["conv.weight"] * 1.01, rtol=1e-6)
    np.testing.assert_allclose(archive.restored["fc2.weight"], x["fc2.weight"] * 1.01**2, rtol=1e-6)


def test_false_positives_are_reported():
    x = {"w": np.random.default_rng(0).normal(0, 1, (200, 300)).astype(np.float32)}
    archive = nz.compress(x, method="weightless", options={"keep": 0.05, "clusters": 8, "bits": 8})
    kept = largest(x["w"].reshape(-1), 0.05).reshape(200, 300)
    false = int((archive.restored["w"][~kept] != 0).sum())
    assert archive.report.false_positives == {"w": false}
    used = np.unique(archive.restored["w"][kept]).size
    assert 1 < used <= 8, "clusters that end up empty are left out"
    assert false / (~kept).sum() == pytest.approx(used / 256, rel=0.15)
    assert nz.compress(x, method="gzip").report.false_positives == {}


def test_which_layers_go_into_filters():
    shapes = {name: a.shape for name, a in network().items()}
    assert list(Weightless().filtered(shapes)) == ["fc1.weight"]
    assert list(Weightless(layers="fc*").filtered(shapes)) == ["fc1.weight", "fc2.weight"]
    assert list(Weightless(layers="conv.weight fc2.weight").filtered(shapes)) == ["conv.weight", "fc2.weight"]
    with pytest.raises(UsageError, match="matches none"):
        nz.compress(network(), method="weightless", options={"layers": "fc9"})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda t: None, "mapping"),
        (lambda t: {k: v for k, v in t.items() if k != "fc1.bias"}, "no tensor 'fc1.bias'"),
        (lambda t: t | {"fc1.bias": t["fc1.bias"][:3]}, r"'fc1.bias' as float32 \[3\]"),
        (lambda t: t | {"fc1.bias": t["fc1.bias"].astype(np.float64)}, "float64"),
        (lambda t: t | {"fc1.weight": t["fc1.weight"] + 1}, "zeros of tensor 'fc1.weight'"),
    ],
)
def test_retraining_that_breaks_its_promise_is_refused(returned, message):
    with pytest.raises(UsageError, match=message):
        nz.compress(network(), method="deepsz-nearzip", retrain=lambda tensors, hold: returned(tensors))


def test_what_a_hold_holds():
    before = {"x": np.array([0, 1, 1, 2.0])}
    for hold, good, bad in (
        (Hold(zeros=("x",)), [0, 5, 6, 7.0], [1, 1, 1, 2.0]),
        (Hold(shared=("x",)), [9, 5, 5, 7.0], [0, 1, 2, 2.0]),
        (Hold(frozen=("x",)), [0, 1, 1, 2.0], [0, 1, 1, 3.0]),
    ):
        assert hold.broken(before, {"x": np.array(good)}) is None
        assert "'x'" in hold.broken(before, {"x": np.array(bad)})


def test_methods_that_do_not_retrain_say_so():
    with pytest.raises(UsageError, match="no step that retrains"):
        nz.compress(network(), retrain=Retraining())


def test_a_broken_bound_would_be_found(monkeypatch):
    """The promise is checked against what pruning left, not only where weights were kept."""
    from nearzip.stages import Sparse

    honest = Sparse.pick
    monkeypatch.setattr(
        Sparse, "pick", lambda *a: honest(*a)._replace(indices=np.zeros(len(honest(*a).indices), np.int64))
    )
    try:
        archive = nz.compress({"x": network()["fc1.weight"]}, method="deepsz-nearzip", bound="abs:0.001")
    except BoundError:
        return
    kept = largest(network()["fc1.weight"].reshape(-1), 0.09)
    target = np.where(kept, network()["fc1.weight"].reshape(-1), 0)
    assert np.abs(archive.restored["x"].reshape(-1) - target).max() <= 0.001, "patched"


# ---- from the shell --------------------------------------------------------------------------------------------

RETRAIN = """
def double(tensors, hold):
    return {name: array if name in hold.frozen else array * 2 for name, array in tensors.items()}

def fails(tensors, hold):
    raise RuntimeError("no data")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retraining.py").write_text(RETRAIN)
    np.savez(tmp_path / "new.npz", **network())
    return tmp_path


def run(*arguments):
    command = [sys.executable, "-m", "nearzip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_shares_and_retraining_from_the_shell(folder):
    done = run(
        "compress", "new.npz", "-o", "a.nz", "--method", "weightless", "--set", "keep=fc1.*=0.1,*=1", "--set", "bits=8",
        "--retrain", "retraining:double", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import json

    document = json.loads(done.stdout)
    assert list(document["false_positives"]) == ["fc1.weight"]
    restored = nz.decompress(folder / "a.nz")
    np.testing.assert_allclose(restored["fc2.weight"], network()["fc2.weight"] * 4, rtol=1e-6)


def test_mistakes_in_the_shell_are_one_line(folder):
    for arguments, message in (
        (("--set", "keep=2"), "between 0 and 1"),
        (("--set", "keep=fc9=0.1"), "matches none"),
        (("--retrain", "retraining:fails"), "retraining raised RuntimeError: no data"),
        (("--retrain", "retraining"), "--retrain takes PACKAGE.MODULE:FUNCTION"),
        (("--retrain", "retraining:nothing"), "nothing"),
        (("--bound", "rms:0.1"), "cannot promise"),
    ):
        done = run("compress", "new.npz", "-o", "b.nz", "--method", "deepsz-nearzip", *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not (folder / "b.nz").exists()
