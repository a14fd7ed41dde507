"""Files of Keras, Flax and Orbax: restored byte for byte, or as the same files around rounded arrays."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

import nearzip as nz
from nearzip import errors
from nearzip.attached import attached_tree
from nearzip.checkpoints import open_checkpoint
from nearzip.checkpoints.chunked import OCDBT, ZARR
from nearzip.tensors import DTYPES, TensorSpec

RNG = np.random.default_rng(0)


def there_and_back(path: Path, **how) -> Path:
    restored = path.with_name(f"restored-{path.name}")
    nz.compress_file(path, path.with_name("a.nz"), force=True, **how)
    nz.decompress_file(path.with_name("a.nz"), restored, force=True)
    return restored


# ---- Keras -----------------------------------------------------------------------------------------------------

#: Keras chooses its engine when it is imported, so it has a process of its own.
KERAS = """
import os, sys, warnings
os.environ["KERAS_BACKEND"] = "torch"
import numpy as np, keras
import nearzip as nz

def same(a, b):
    return open(a, "rb").read() == open(b, "rb").read()

keras.utils.set_random_seed(0)
x = np.random.default_rng(0).random((8, 20), np.float32)
net = keras.Sequential([keras.Input((20,)), keras.layers.Dense(64), keras.layers.BatchNormalization(),
                        keras.layers.Dense(3)])
net.compile("adam", "mean_squared_error")
net.fit(x, x[:, :3], verbose=0)
outputs = net.predict(x, verbose=0)
net.save("a.keras"); net.save_weights("a.weights.h5"); net.save("a.h5")
for name in ("a.keras", "a.weights.h5", "a.h5"):
    nz.compress_file(name, "x.nz", force=True)
    nz.decompress_file("x.nz", "exact-" + name)
    assert same(name, "exact-" + name), name
    nz.compress_file(name, "x.nz", bound="abs:0.001", force=True)
    nz.decompress_file("x.nz", "near-" + name)
    assert not same(name, "near-" + name), name
    for which in ("exact-", "near-"):
        if name == "a.weights.h5":
            other = net
            other.load_weights(which + name)
        else:
            other = keras.models.load_model(which + name, compile=name == "a.keras")
        difference = np.abs(other.predict(x, verbose=0) - outputs).max()
        assert difference == 0 if which == "exact-" else 0 < difference < 0.2, (name, which, difference)
        if name == "a.keras":
            for one, two in zip(net.optimizer.variables, other.optimizer.variables):
                assert np.array_equal(np.asarray(one), np.asarray(two)), one.path  # the moments keep every bit
with nz.open("x.nz") as archive:
    print(sum(array.dtype == np.float32 for array in archive.values()))
net.fit(x, x[:, :3], verbose=0)
net.save("b.keras")
exact = nz.compress_file("b.keras", "b.nz", base="a.keras")
nz.decompress_file("b.nz", "exact-b.keras", base="a.keras")
assert same("b.keras", "exact-b.keras")
print("done")
"""


def test_keras_files(tmp_path):
    for package in ("keras", "h5py", "torch"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    run = subprocess.run([sys.executable, "-c", KERAS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split()[-1] == "done"


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.mark.parametrize("userblock", [0, 1024])
def test_hdf5_files_of_any_kind(tmp_path, h5py, userblock):
    arrays = {
        "net/w": RNG.normal(size=(30, 40)).astype("f4"),
        "net/half": RNG.normal(size=100).astype("f2"),
        "n": np.arange(10),
        "flags": RNG.random(100) < 0.5,
        "waves": (RNG.normal(size=20) + 1j).astype("c8"),
        "big endian": np.arange(10, dtype=">f4"),
    }
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=userblock) as file:
        for name, array in arrays.items():
            file[name] = array
        file["text"] = "some text"
        file.create_dataset("as Keras has it", data=RNG.normal(size=10).astype(ml_dtypes.bfloat16)).attrs["dtype"] = (
            "bfloat16"
        )
        file["empty"] = np.empty((0, 3))
        file["once more"] = file["net/w"]
        file.create_dataset("packed", data=np.ones((100, 100)), compression="gzip")
        file["net"].attrs["names"] = ["w", "half"]
    restored = there_and_back(tmp_path / "a.h5")
    assert restored.read_bytes() == (tmp_path / "a.h5").read_bytes()
    found = nz.decompress(tmp_path / "a.nz")
    for name, array in arrays.items():
        if name != "big endian":
            assert found[name].dtype == array.dtype, name
            assert np.array_equal(found[name], array), name
    assert found["as Keras has it"].dtype.name == "bfloat16"
    assert found["big endian"].tobytes() == arrays["big endian"].tobytes()
    with h5py.File(there_and_back(tmp_path / "a.h5", bound="abs:0.01")) as file:
        assert 0 < np.abs(file["net/w"][()] - arrays["net/w"]).max() <= 0.01
        assert file["text"][()] == b"some text"
        assert file["packed"][()].sum() == 10_000


def test_compressed_datasets_are_named(tmp_path, h5py):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("all of it", data=RNG.normal(size=(500, 500)), compression="gzip")
    with pytest.raises(errors.UsageError, match=r"'all of it'.*h5repack -l CONTI -f NONE"):
        open_checkpoint(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["w"] = np.ones(10)
    with pytest.warns(UserWarning, match="'all of it'.*kept as it is"):
        opened = open_checkpoint(tmp_path / "a.h5")
    assert set(opened.specs) - opened.attached == {"w"}


def test_hdf5_without_its_library_names_the_extra(tmp_path, h5py):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["w"] = np.ones(10)
    nz.compress_file(tmp_path / "a.h5", tmp_path / "a.nz")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "h5py.py").write_text("raise ImportError('none')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import nearzip as nz\n"
        "nz.decompress_file(sys.argv[2] + '/a.nz', sys.argv[2] + '/b.h5')\n"
        "nz.compress_file(sys.argv[2] + '/a.h5', sys.argv[2] + '/b.nz')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "without"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "pip install 'nearzip[hdf5]'" in run.stderr
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()  # restoring needs no library


def test_damaged_hdf5_is_a_named_error(tmp_path, h5py):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for i in range(5):
            file[f"group{i}/w"] = RNG.normal(size=100)
    data = (tmp_path / "a.h5").read_bytes()
    for _ in range(6):
        broken = bytearray(data)
        for at in RNG.integers(8, len(data), 20):
            broken[at] = RNG.integers(0, 256)
        (tmp_path / "b.h5").write_bytes(broken[: RNG.integers(100, len(data) + 1)])
        try:
            opened = open_checkpoint(tmp_path / "b.h5")
            for name in opened.specs:
                opened.read(name)
        except errors.Error:
            pass


# ---- Flax ------------------------------------------------------------------------------------------------------


def test_flax_files(tmp_path):
    serialization = pytest.importorskip("flax.serialization")
    jnp = pytest.importorskip("jax.numpy")
    params = {
        "dense": {"kernel": jnp.array(RNG.normal(size=(30, 20)), jnp.float32), "bias": jnp.ones(20, jnp.bfloat16)}
    }
    state = {
        "params": params,
        "opt_state": [{"mu": jnp.full((30, 20), 1e-9)}, 5, "text"],
        "step": jnp.array(3),
        "none": None,
    }
    state |= {
        "scalar": np.float32(0.5),
        "wave": 1 + 2j,
        "empty": np.empty((0, 3)),
        "long": {str(i): i for i in range(70_000)},
    }
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.to_bytes(state))
    assert there_and_back(path).read_bytes() == path.read_bytes()
    found = nz.decompress(tmp_path / "a.nz")
    assert set(found) == {"params.dense.kernel", "params.dense.bias", "opt_state.0.mu", "step"}
    assert found["params.dense.bias"].dtype.name == "bfloat16"
    near = serialization.msgpack_restore(there_and_back(path, bound="abs:0.01").read_bytes())
    difference = np.abs(np.asarray(params["dense"]["kernel"]) - near["params"]["dense"]["kernel"]).max()
    assert 0 < difference <= 0.01
    assert near["opt_state"]["0"]["mu"].min() > 0  # the optimizer's state keeps every bit
    assert (near["wave"], near["opt_state"]["2"], near["long"]["69999"]) == (1 + 2j, "text", 69_999)


def test_large_flax_arrays_are_in_pieces(tmp_path, monkeypatch):
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 1000)
    array = RNG.normal(size=(30, 20)).astype("f4")
    path = tmp_path / "a.msgpack"
    path.write_bytes(serialization.msgpack_serialize({"w": array}))
    assert there_and_back(path).read_bytes() == path.read_bytes()
    found = nz.decompress(tmp_path / "a.nz")
    assert np.array_equal(np.concatenate([found[f"w.chunks.{i}"] for i in range(3)]), array.reshape(-1))


def msgpack_array(name: str, array: np.ndarray) -> bytes:
    """A file with one array, as Flax writes it."""
    shape = bytes([0x90 | array.ndim, *array.shape])
    dtype = array.dtype.name.encode()
    body = (
        b"\x93"
        + shape
        + bytes([0xA0 | len(dtype)])
        + dtype
        + b"\xc6"
        + array.nbytes.to_bytes(4, "big")
        + array.tobytes()
    )
    return b"\x81" + bytes([0xA0 | len(name)]) + name.encode() + b"\xc9" + len(body).to_bytes(4, "big") + b"\x01" + body


def test_flax_files_need_no_library_and_damage_is_named(tmp_path):
    array = RNG.normal(size=(20, 30)).astype("f4")
    data = msgpack_array("w", array)
    path = tmp_path / "a.msgpack"
    path.write_bytes(data)
    assert there_and_back(path).read_bytes() == data
    assert np.array_equal(nz.decompress(tmp_path / "a.nz")["w"], array)
    for _ in range(300):
        broken = bytearray(data)
        for at in RNG.integers(1, 40, 3):
            broken[at] = RNG.integers(0, 256)
        path.write_bytes(broken[: RNG.integers(1, len(data) + 1)])
        try:
            opened = open_checkpoint(path)
            for name in opened.specs:
                opened.read(name)
        except errors.Error:
            pass
    path.write_bytes(b"\x81\xa1w" + b"\x91" * 5000 + b"\xc0")
    with pytest.raises(errors.CorruptError, match="nested too deep"):
        open_checkpoint(path)


# ---- Orbax -----------------------------------------------------------------------------------------------------


@pytest.fixture
def orbax():
    pytest.importorskip("tensorstore")
    pytest.importorskip("jax")
    return pytest.importorskip("orbax.checkpoint")


def a_tree() -> dict:
    jnp = importlib.import_module("jax.numpy")
    params = {
        "dense": {"kernel": jnp.array(RNG.normal(size=(60, 50)), jnp.float32), "bias": jnp.ones(20, jnp.bfloat16)},
        "layers": [jnp.zeros(3), {"a/b.c": jnp.arange(5), "small": jnp.array([0.5, -0.0, jnp.nan], jnp.float8_e4m3fn)}],
    }
    moments = {"mu": jnp.full((60, 50), 1e-9), "count": np.int32(7)}
    return {"params": params, "opt_state": (moments, {}), "step": 3, "rate": 0.001, "none": None}


def save_with_orbax(orbax, path: Path, how: str, tree: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "standard":
            with orbax.StandardCheckpointer() as checkpointer:
                checkpointer.save(os.fspath(path), tree)
            return
        handler = orbax.PyTreeCheckpointHandler(use_ocdbt=how != "files", use_zarr3=how == "zarr3")
        orbax.Checkpointer(handler).save(os.fspath(path), tree | {"text": "kept"})


def restored_by_orbax(orbax, path: Path, how: str) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpointer = orbax.StandardCheckpointer() if how == "standard" else orbax.PyTreeCheckpointer()
        return checkpointer.restore(os.fspath(path))


def bits_of_leaves(tree) -> list:
    jax = pytest.importorskip("jax")
    return [leaf if isinstance(leaf, str) else np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("how", ["standard", "pytree", "files", "zarr3"])
def test_orbax_restores_the_same(tmp_path, orbax, how):
    jax = pytest.importorskip("jax")
    tree = a_tree()
    source = tmp_path / "orbax"
    save_with_orbax(orbax, source, how, tree)
    restored = there_and_back(source)
    one, two = (restored_by_orbax(orbax, path, how) for path in (source, restored))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert bits_of_leaves(one) == bits_of_leaves(two)
    for file in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "array_metadatas/process_0"):
        assert (source / file).read_bytes() == (restored / file).read_bytes(), file
    found = nz.decompress(tmp_path / "a.nz")
    assert {"params.dense.kernel", "params.layers.1.a/b.c", "opt_state.0.mu", "step"} <= set(found)
    assert np.array_equal(found["params.dense.kernel"], tree["params"]["dense"]["kernel"])
    assert found["params.dense.bias"].dtype.name == "bfloat16"

    near = restored_by_orbax(orbax, there_and_back(source, bound="abs:0.01"), how)
    difference = np.abs(np.asarray(near["params"]["dense"]["kernel"]) - tree["params"]["dense"]["kernel"]).max()
    assert 0 < difference <= 0.01
    # The state of the optimizer and single numbers keep every bit.
    assert (near["step"], near["rate"], near["opt_state"][0]["count"]) == (3, 0.001, 7)
    assert np.asarray(near["opt_state"][0]["mu"]).tobytes() == np.asarray(tree["opt_state"][0]["mu"]).tobytes()


def test_an_update_of_an_orbax_checkpoint_and_a_store(tmp_path, orbax):
    tree = a_tree()
    save_with_orbax(orbax, tmp_path / "old", "files", tree)
    tree["params"]["dense"]["kernel"] = tree["params"]["dense"]["kernel"] * 1.0001
    save_with_orbax(orbax, tmp_path / "new", "standard", tree)  # stored otherwise, under the same names
    alone = nz.compress_file(tmp_path / "new", tmp_path / "alone.nz")
    update = nz.compress_file(tmp_path / "new", tmp_path / "a.nz", base=tmp_path / "old")
    assert update.n_bytes < 0.8 * alone.n_bytes
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "restored", base=tmp_path / "old")
    # A folder may be replaced although what Orbax wrote into d/ has other names.
    (tmp_path / "other").mkdir()
    os.rename(tmp_path / "restored", tmp_path / "copy")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "copy", base=tmp_path / "old", force=True)
    with nz.Store(tmp_path / "store", create=True) as store:
        for name in ("old", "new"):
            store.commit_file(tmp_path / name)
        store.checkout_file("latest", tmp_path / "checked-out")
    for name in ("copy", "checked-out"):
        assert bits_of_leaves(restored_by_orbax(orbax, tmp_path / name, "standard")) == bits_of_leaves(tree)
    (tmp_path / "copy" / "d" / "mine").write_text("notes")
    with pytest.raises(errors.UsageError, match="'d/mine', which is not in the archive"):
        nz.decompress_file(tmp_path / "a.nz", tmp_path / "copy", base=tmp_path / "old", force=True)


def test_folders_of_a_checkpoint_manager(tmp_path, orbax):
    tree = a_tree()["params"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with orbax.CheckpointManager(tmp_path / "run") as manager:
            for step in (1, 20):
                args = {"state": orbax.args.StandardSave(tree), "notes": orbax.args.JsonSave({"loss": 0.5})}
                manager.save(step, args=orbax.args.Composite(**args))
        restored = there_and_back(tmp_path / "run")
        with orbax.CheckpointManager(restored) as manager:
            assert list(manager.all_steps()) == [1, 20]
            args = {"state": orbax.args.StandardRestore(), "notes": orbax.args.JsonRestore()}
            found = manager.restore(20, args=orbax.args.Composite(**args))
    assert found.notes == {"loss": 0.5}
    assert bits_of_leaves(found.state) == bits_of_leaves(tree)
    assert "20/state/dense.kernel" in nz.decompress(tmp_path / "a.nz")


def test_damaged_orbax_folders_are_named_errors(tmp_path, orbax):
    save_with_orbax(orbax, tmp_path / "orbax", "pytree", a_tree())
    manifest = tmp_path / "orbax" / "manifest.ocdbt"
    data = manifest.read_bytes()
    for damage in (data[: len(data) // 2], b"", data[:40] + b"!" + data[41:], b"no manifest"):
        manifest.write_bytes(damage)
        with pytest.raises(errors.CorruptError, match="not a readable Orbax or zarr folder"):
            open_checkpoint(tmp_path / "orbax")
    manifest.write_bytes(data)
    files = sorted(tmp_path.glob("orbax/**/d/*"), key=lambda each: each.stat().st_size)
    files[-1].write_bytes(bytes(files[-1].stat().st_size))
    with pytest.raises(errors.CorruptError, match=r"orbax.*(cannot be read|not a readable)"):
        nz.compress_file(tmp_path / "orbax", tmp_path / "a.nz")
    files[-1].unlink()
    with pytest.raises(errors.CorruptError, match=r"orbax.*(cannot be read|not a readable)"):
        nz.compress_file(tmp_path / "orbax", tmp_path / "a.nz")


def test_orbax_without_tensorstore_names_the_extra(tmp_path):
    (tmp_path / "orbax" / "d").mkdir(parents=True)
    (tmp_path / "orbax" / "manifest.ocdbt").write_bytes(b"some bytes")
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "tensorstore.py").write_text("raise ImportError('none')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import nearzip as nz\n"
        "nz.compress_file(sys.argv[2] + '/orbax', sys.argv[2] + '/a.nz')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "without"), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "pip install 'nearzip[orbax]'" in run.stderr


def test_descriptions_of_chunks_that_no_reader_wrote():
    specs = {"w": TensorSpec("w", "float32", (2,))}
    text = '{"zarr_format":2}'

    def tree(arrays, others=()):
        return attached_tree([], {"chunked": {"arrays": arrays, "others": list(others)}})

    ZARR.check("w/.zarray", specs, tree([["w", "zarr", "", text]]))
    OCDBT.check("manifest.ocdbt", specs, tree([["w", "zarr", "w/", text]]))
    for form, file, arrays in (
        (ZARR, "w/.zarray", [["w", "zarr", "../../w/", text]]),  # a key that would be a path
        (ZARR, "w/.zarray", [["w", "zarr3", "", text]]),
        (ZARR, "w/notes", [["w", "zarr", "", text]]),
        (OCDBT, "notes", [["w", "zarr", "w/", text]]),
        (OCDBT, "manifest.ocdbt", [["w", "n5", "w/", text]]),
        (OCDBT, "manifest.ocdbt", [["v", "zarr", "w/", text]]),
        (OCDBT, "manifest.ocdbt", [["w", "zarr", "w/", 5]]),
        (OCDBT, "manifest.ocdbt", [["w"]]),
    ):
        with pytest.raises(errors.CorruptError, match="the description of the arrays' chunks is damaged"):
            form.check(file, specs, tree(arrays))


# ---- JAX -------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """As optax has it."""

    count: object
    mu: object


def test_trees_of_lists_and_named_tuples():
    tree = {"layers": [{"w": np.ones(3)}, {"w": np.zeros(2)}], "opt": (State(np.int32(3), {"w": np.ones(3)}), ())}
    archive = nz.compress(tree)
    assert set(nz.decompress(archive)) == {"layers.0.w", "layers.1.w", "opt.0.count", "opt.0.mu.w"}
    with pytest.raises(errors.UsageError, match=r"'layers' is a list"):
        nz.compress({"layers": [1.0]})


def test_arrays_and_trees_of_jax():
    jax = pytest.importorskip("jax")
    optax = pytest.importorskip("optax")
    jnp = jax.numpy
    params = {"layers": [{"w": jnp.array(RNG.normal(size=(300, 20)), jnp.bfloat16)}, {"w": jnp.ones(20)}]}
    moved = jax.tree.map(lambda w: w * 1.01, params)
    tree = {"params": moved, "opt_state": optax.adam(1e-3).init(params)}
    archive = nz.compress(tree, base={"params": params})
    found = nz.decompress(archive, base={"params": params})
    assert found["params.layers.0.w"].dtype == jnp.bfloat16
    assert np.array_equal(found["params.layers.0.w"], np.asarray(moved["layers"][0]["w"]))
    assert {"opt_state.0.count", "opt_state.0.mu.layers.0.w"} <= set(found)
    with pytest.raises(errors.UsageError, match="float32 of float64"):
        nz.decompress(nz.compress({"w": np.ones(3)}), framework="jax")
    with pytest.raises(errors.UsageError, match="no dtype complex32"):
        nz.decompress(nz.compress({"w": np.ones(3, DTYPES["complex32"])}), framework="jax")

    found = nz.decompress(archive.to_bytes(), base={"params": params}, framework="jax")
    assert all(isinstance(array, jax.Array) for array in found.values())

    def of(path, _):
        return found[jax.tree_util.keystr(path, simple=True, separator=".")]

    again = jax.tree_util.tree_map_with_path(of, tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert bits_of_leaves(again) == bits_of_leaves(tree)
    assert [leaf.dtype for leaf in jax.tree.leaves(again)] == [leaf.dtype for leaf in jax.tree.leaves(tree)]


def test_a_store_and_a_file_give_arrays_of_jax(tmp_path):
    jax = pytest.importorskip("jax")
    tree = {"w": jax.numpy.ones((3, 4), jax.numpy.bfloat16), "n": jax.numpy.arange(3)}
    with nz.Store(tmp_path / "store", create=True) as store:
        store.commit(tree)
        found = store.checkout(framework="jax")
    nz.compress(tree).save(tmp_path / "a.nz")
    with nz.open(tmp_path / "a.nz", framework="jax") as archive:
        for name, array in tree.items():
            assert found[name].dtype == archive[name].dtype == array.dtype
            assert isinstance(archive[name], jax.Array)
            assert (found[name] == array).all()


def test_jax_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(errors.MissingExtraError, match="pip install jax"):
        nz.decompress(nz.compress({"w": np.ones(3)}), framework="jax")
