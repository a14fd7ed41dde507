"""Checkpoint files and archives: what goes in comes out, under any name, from any place, or a named error."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import resource
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import fsspec
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from arrays import FLOATS, random_network

import nearzip as nz
from nearzip import errors
from nearzip.checkpoints import ENDINGS, open_checkpoint, write_checkpoint
from nearzip.tensors import DTYPES, Checkpoint
from nearzip.writing import check_writable

#: NumPy writes these as bytes without a name.
NOT_NUMPY = {name for name, dtype in DTYPES.items() if dtype.isbuiltin != 1}
CANNOT = {".safetensors": {"complex128", "complex32"}, ".npz": NOT_NUMPY}
NAMES = (
    "layer.0.weight",
    "",
    " ",
    "ünïcödé/名前/🙂",
    "../../etc/passwd",
    "/absolute",
    "a/b\\c",
    "a.npy",
    "a",
    "CON",
    "quote\"'<b>&amp;",
    "new\nline\ttab",
    "x" * 1000,
    "\u202eright to left",
)


def write(path: Path, tensors: dict, metadata: dict | None = None) -> Path:
    source = Checkpoint.of(tensors)
    with write_checkpoint(path, source.specs, metadata) as writer:
        for name, array in source.arrays():
            writer.write(name, array)
    return path


def read(path: Path) -> dict:
    source = open_checkpoint(path)
    tensors = {name: array.copy() for name, array in source.arrays()}
    source.close()
    return tensors


def assert_same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape), name
        assert array.tobytes() == other[name].tobytes(), name


def every_dtype(ending: str) -> dict:
    rng = np.random.default_rng(4)
    tensors = {}
    for name, dtype in DTYPES.items():
        if name in CANNOT.get(ending, ()):
            continue
        numbers = rng.integers(0, 2 if name == "bool" else 100, 12)
        values = numbers.astype(np.float32).astype(dtype) if dtype.names is None else np.zeros(12, dtype)
        if dtype.names is not None:
            values.view(f"u{dtype.itemsize}")[:] = numbers
        tensors |= {f"{name}.matrix": values.reshape(3, 4)}
        if (name, ending) != ("float4_e2m1fn_x2", ".safetensors"):  # which counts two values to a byte
            tensors |= {f"{name}.scalar": values[0].reshape(())}
        tensors |= {f"{name}.empty": values[:0].reshape(0, 5), f"{name}.row": values[1:]}
    return tensors


# ---- formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_dtype_goes_through_every_format(tmp_path, ending):
    tensors = every_dtype(ending)
    src = write(tmp_path / f"in{ending}", tensors)
    assert_same(read(src), tensors)
    nz.compress_file(src, tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{ending}")
    assert_same(read(tmp_path / f"out{ending}"), tensors)
    assert_same(nz.decompress(tmp_path / "a.nz"), tensors)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_dtype_that_a_format_cannot_hold_is_refused_by_name(tmp_path, ending):
    for name in CANNOT.get(ending, ()):
        archive = nz.compress({"the.tensor": np.zeros(3, DTYPES[name])})
        archive.save(tmp_path / f"{name}.nz")
        with pytest.raises(errors.UsageError, match=rf"'the\.tensor' of dtype {name}"):
            nz.decompress_file(tmp_path / f"{name}.nz", tmp_path / f"out{ending}")
    assert not (tmp_path / f"out{ending}").exists()


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz"])
def test_odd_names_survive(tmp_path, ending):
    tensors = {name: np.full(i + 1, i, np.float32) for i, name in enumerate(NAMES)}
    if ending == ".pt":  # PyTorch cannot tell "" from no name
        tensors.pop("")
    if ending == ".npz":  # NumPy reads "a.npy" where "a" stands too
        tensors.pop("a.npy")
    src = write(tmp_path / f"in{ending}", tensors)
    nz.compress_file(src, tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{ending}")
    assert_same(read(tmp_path / f"out{ending}"), tensors)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in{ending}", "a.nz", f"out{ending}"])


def test_names_that_a_format_cannot_hold_are_refused(tmp_path):
    for name, ending in (("a\0b", ".npz"), ("__metadata__", ".safetensors")):
        nz.compress({name: np.ones(2)}).save(tmp_path / "a.nz", force=True)
        with pytest.raises(errors.UsageError, match="cannot hold a tensor of the name"):
            nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{ending}")
        assert_same(nz.decompress(tmp_path / "a.nz"), {name: np.ones(2)})


@pytest.mark.parametrize("name", ["\ud800", 3, b"x", None])
def test_names_that_are_no_text_are_refused(name):
    with pytest.raises(errors.UsageError, match="tensor names"):
        nz.compress({name: np.ones(2)})


@pytest.mark.parametrize("metadata", [{"a": 1}, {1: "a"}, {"a": "\ud800"}, {"\udfff": "a"}])
def test_metadata_that_is_no_text_is_refused(metadata):
    with pytest.raises(errors.UsageError, match="metadata"):
        nz.compress({"x": np.ones(2)}, metadata=metadata)


def test_the_safetensors_library_reads_what_we_stream(tmp_path):
    tensors = every_dtype(".safetensors")
    path = write(tmp_path / "x.safetensors", tensors, {"format": "pt", "naïve": "✓"})
    with safetensors.safe_open(path, "numpy") as f:
        assert set(f.keys()) == set(tensors)
        assert f.metadata() == {"format": "pt", "naïve": "✓"}
        for name in ("float32.matrix", "int64.scalar", "float16.empty", "bool.row"):
            assert np.array_equal(f.get_tensor(name), tensors[name])


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    tensors = {"b": np.arange(5, dtype=np.int8), "a": np.ones((2, 2), np.float64), "c": np.array(3, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"k": "v"})
    assert_same(read(tmp_path / "x.safetensors"), tensors)
    assert open_checkpoint(tmp_path / "x.safetensors").metadata == {"k": "v"}


def test_metadata_survives(tmp_path):
    metadata = {"format": "pt", "note": 'ünï\n"quoted"', "empty": ""}
    src = write(tmp_path / "in.safetensors", {"x": np.ones(3, np.float32)}, metadata)
    nz.compress_file(src, tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "out.safetensors")
    assert open_checkpoint(tmp_path / "out.safetensors").metadata == metadata
    with nz.open(tmp_path / "a.nz") as reader:
        assert reader.metadata() == metadata
    in_memory = nz.compress({"x": np.ones(3)}, metadata=metadata)
    with nz.open(in_memory) as reader:
        assert reader.metadata() == metadata


def test_npz_in_other_orders_and_layouts(tmp_path):
    tensors = {"big": np.arange(6, dtype=">f4").reshape(2, 3), "fortran": np.asfortranarray(np.eye(3, 4))}
    np.savez_compressed(tmp_path / "x.npz", **tensors)
    assert_same(read(tmp_path / "x.npz"), {"big": tensors["big"].astype("<f4"), "fortran": np.eye(3, 4)})


@pytest.mark.parametrize("content", [np.array([object()]), np.array(["text"]), np.zeros(2, "V2")])
def test_npz_of_other_things_is_refused(tmp_path, content):
    np.savez(tmp_path / "x.npz", thing=content)
    with pytest.raises(errors.UsageError, match="thing"):
        open_checkpoint(tmp_path / "x.npz")


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".npz"])
def test_a_damaged_checkpoint_is_a_named_error(tmp_path, ending):
    whole = write(tmp_path / f"in{ending}", {"x": np.arange(100, dtype=np.float32)}).read_bytes()
    for name, data in {"empty": b"", "cut": whole[: len(whole) // 2], "noise": bytes(range(256))}.items():
        path = tmp_path / f"{name}{ending}"
        path.write_bytes(data)
        with pytest.raises(errors.CorruptError, match=name):
            nz.compress_file(path, tmp_path / "a.nz")
        assert not (tmp_path / "a.nz").exists()


def test_unknown_endings_and_missing_files(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(errors.UsageError, match="unknown ending"):
        nz.compress_file(tmp_path / "x.txt", tmp_path / "a.nz")
    for name in ("none.safetensors", "none.pt", "none.npz", "none.nz"):
        with pytest.raises(errors.NotFoundError, match="none"):
            nz.compress_file(tmp_path / name, tmp_path / "a.nz")
    with pytest.raises(errors.NotFoundError):
        nz.decompress(tmp_path / "none.nz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(errors.UsageError, match="directory"):
        nz.compress_file(tmp_path / "folder.npz", tmp_path / "a.nz")


# ---- PyTorch ---------------------------------------------------------------------------------------------------


def through_files(content, folder, **how):
    torch = pytest.importorskip("torch")
    torch.save(content, folder / "in.pt")
    nz.compress_file(folder / "in.pt", folder / "a.nz", **how)
    nz.decompress_file(folder / "a.nz", folder / "out.pt")
    return torch.load(folder / "out.pt", weights_only=True)


def equal(one, other) -> bool:
    torch = pytest.importorskip("torch")
    if isinstance(one, torch.Tensor):
        same_type = one.dtype == other.dtype and one.shape == other.shape
        return same_type and np.array_equal(one.float().numpy(), other.float().numpy(), equal_nan=True)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, float) and one != one:
        return other != other
    return type(one) is type(other) and one == other


def test_nested_checkpoints_keep_their_structure(tmp_path):
    torch = pytest.importorskip("torch")
    content = {
        "model": OrderedDict([("w.0", torch.randn(3, 4)), ("b", torch.randn(4).bfloat16())]),
        "optimizer": {
            "state": {0: {"step": torch.tensor(7.0), "exp_avg": torch.randn(3, 4)}, 1: {}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None, "amsgrad": False}],
        },
        "epoch": 12,
        "huge": 2**80,
        "odd floats": [float("nan"), float("inf"), -0.0, 1e-310],
        "text": "ünï",
        "nothing": None,
        "empty": {"dict": {}, "list": [], "tuple": ()},
        "model.b": torch.ones(2),
        "deep": [[({"x": torch.zeros(0, 3)},)]],
        "1": torch.tensor([1, 2]),
        1: torch.tensor([True]),
    }
    assert equal(through_files(content, tmp_path), content)


def test_a_bare_tensor_and_a_list_are_checkpoints_too(tmp_path):
    torch = pytest.importorskip("torch")
    for i, content in enumerate((torch.arange(5), [torch.arange(3), torch.ones(2)], {})):
        (tmp_path / str(i)).mkdir()
        assert equal(through_files(content, tmp_path / str(i)), content)


def test_views_parameters_and_gradients_are_plain_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    whole = torch.randn(6, 6)
    parameter = torch.nn.Parameter(torch.randn(3))
    tensors = {"t": whole.T, "slice": whole[1:4, ::2], "parameter": parameter, "conj": torch.randn(2) * 1j}
    tensors["conj"] = tensors["conj"].conj()
    restored = nz.decompress(nz.compress(tensors))
    for name, tensor in tensors.items():
        assert np.array_equal(restored[name], tensor.detach().resolve_conj().numpy()), name


def test_pickles_are_not_run(tmp_path):
    torch = pytest.importorskip("torch")

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "trapped"),))

    torch.save({"x": torch.ones(2), "trap": Trap()}, tmp_path / "in.pt")
    with pytest.raises(errors.UsageError, match="could run code"):
        nz.compress_file(tmp_path / "in.pt", tmp_path / "a.nz")
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("make", ["sparse", "quantized"])
def test_tensors_without_plain_memory_are_refused(make):
    torch = pytest.importorskip("torch")
    if make == "sparse":
        tensor = torch.eye(3).to_sparse()
    else:
        with warnings.catch_warnings(action="ignore"):
            tensor = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(errors.UsageError, match="'x' is sparse or quantized"):
        nz.compress({"x": tensor})


# ---- file to file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [None, nz.Rms(0.01), "abs:1e-3"], ids=str)
@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_restored_is_what_decompress_gives(tmp_path, ending, bound):
    rng = np.random.default_rng(8)
    old = {f"w{i}": rng.normal(0, 0.1, (50, 40)).astype(np.float32) for i in range(4)}
    new = {name: array + rng.normal(0, 1e-3, array.shape).astype(np.float32) for name, array in old.items()}
    write(tmp_path / f"old{ending}", old)
    write(tmp_path / f"new{ending}", new)
    base = tmp_path / f"old{ending}"
    report = nz.compress_file(
        tmp_path / f"new{ending}", tmp_path / "a.nz", base=base, bound=bound, restored=tmp_path / f"next{ending}"
    )
    assert report.n_bytes == (tmp_path / "a.nz").stat().st_size
    nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{ending}", base=base)
    restored = read(tmp_path / f"next{ending}")
    assert_same(restored, read(tmp_path / f"out{ending}"))
    assert_same(restored, nz.decompress(tmp_path / "a.nz", base=old))
    assert (tmp_path / f"next{ending}").read_bytes() == (tmp_path / f"out{ending}").read_bytes() or ending == ".pt"


def test_files_and_memory_give_the_same_bytes(tmp_path):
    tensors, base = random_network(np.random.default_rng(1), 30, FLOATS)
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    tensors = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in tensors.items()}
    # A .safetensors file is in its own order.
    order = read(write(tmp_path / "new.safetensors", tensors))
    write(tmp_path / "old.safetensors", base)
    nz.compress_file(
        tmp_path / "new.safetensors", tmp_path / "a.nz", base=tmp_path / "old.safetensors", bound=nz.Absolute(1e-3)
    )
    archive = nz.compress(order, base=read(tmp_path / "old.safetensors"), bound=nz.Absolute(1e-3))
    assert (tmp_path / "a.nz").read_bytes() == archive.to_bytes()


def test_an_archive_serves_as_input_and_base(tmp_path):
    rng = np.random.default_rng(8)
    old = {"w": rng.normal(size=(30, 30)).astype(np.float32)}
    new = {"w": old["w"] * np.float32(1.0001)}
    nz.compress(old).save(tmp_path / "old.nz")
    write(tmp_path / "new.safetensors", new)
    nz.compress_file(tmp_path / "new.safetensors", tmp_path / "update.nz", base=tmp_path / "old.nz")
    nz.decompress_file(tmp_path / "update.nz", tmp_path / "out.npz", base=tmp_path / "old.nz")
    assert_same(read(tmp_path / "out.npz"), new)
    nz.compress_file(tmp_path / "old.nz", tmp_path / "again.nz", method="zstd")
    assert_same(nz.decompress(tmp_path / "again.nz"), old)
    with pytest.raises(errors.UsageError, match="is an update"):
        nz.compress_file(tmp_path / "update.nz", tmp_path / "x.nz")


def test_nothing_is_overwritten_unless_forced(tmp_path):
    write(tmp_path / "in.npz", {"x": np.ones(3)})
    for taken in ("a.nz", "out.npz"):
        (tmp_path / taken).write_bytes(b"mine")
    archive = nz.compress({"x": np.ones(3)})
    archive.save(tmp_path / "b.nz")
    for call in (
        lambda force: nz.compress_file(tmp_path / "in.npz", tmp_path / "a.nz", force=force),
        lambda force: nz.decompress_file(tmp_path / "b.nz", tmp_path / "out.npz", force=force),
        lambda force: archive.save(tmp_path / "a.nz", force=force),
        lambda force: nz.compress_file(
            tmp_path / "in.npz", tmp_path / "c.nz", restored=tmp_path / "out.npz", force=force
        ),
    ):
        with pytest.raises(errors.UsageError, match="exists already"):
            call(False)
    assert (tmp_path / "a.nz").read_bytes() == (tmp_path / "out.npz").read_bytes() == b"mine"
    assert not (tmp_path / "c.nz").exists()
    nz.compress_file(tmp_path / "in.npz", tmp_path / "a.nz", force=True)
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "out.npz", force=True)
    assert_same(read(tmp_path / "out.npz"), {"x": np.ones(3)})


def test_long_file_names_have_room_for_the_temporary_one(tmp_path):
    path = tmp_path / ("名" * 80 + ".nz")  # 243 bytes of the 255 that a name may have
    nz.compress({"x": np.ones(3)}).save(path)
    assert nz.decompress(path)["x"].tolist() == [1, 1, 1]


@contextlib.contextmanager
def files_end_after(room: int):
    """The operating system refuses to write more than `room` bytes to any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 30, 500, 4000])
@pytest.mark.parametrize("ending", [".nz", ".safetensors", ".npz", ".pt"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, ending, room):
    tensors = {"x": np.random.default_rng(0).normal(size=1000)}
    archive = nz.compress(tensors)
    source = write(tmp_path / "in.safetensors", tensors)
    archive.save(tmp_path / "in.nz")
    before = sorted(path.name for path in tmp_path.iterdir())
    calls = [lambda: nz.compress_file(source, tmp_path / "out.nz"), lambda: archive.save(tmp_path / "out.nz")]
    if ending != ".nz":
        calls = [lambda: nz.decompress_file(tmp_path / "in.nz", tmp_path / f"out{ending}")]
    for call in calls:
        too_large = pytest.raises(errors.Error, match=f"out{ending}: cannot write: File too large")
        with too_large as caught, files_end_after(room):
            call()
        assert type(caught.value) is errors.Error
        gc.collect()
        assert sorted(path.name for path in tmp_path.iterdir()) == before


# ---- bases -----------------------------------------------------------------------------------------------------


@pytest.fixture
def update():
    """An update of three tensors with a base that has one more, and its archive."""
    rng = np.random.default_rng(6)
    base = {name: rng.normal(size=(40, 30)).astype(np.float32) for name in ("a", "b", "c", "extra")}
    new = {name: base[name] + np.float32(0.01) for name in ("a", "b", "c")}
    return new, base, nz.compress(new, base=base, bound=nz.Absolute(1e-3))


def test_the_order_of_the_base_does_not_matter(update):
    new, base, archive = update
    backwards = dict(reversed(base.items()))
    assert_same(nz.decompress(archive, base=backwards), archive.restored)
    assert nz.compress(new, base=backwards, bound=nz.Absolute(1e-3)).to_bytes() != b""
    assert nz.compress(new, base=backwards, bound=nz.Absolute(1e-3)).base_id == archive.base_id


def test_more_tensors_in_the_base_do_not_matter(update):
    _, base, archive = update
    assert_same(nz.decompress(archive, base=base | {"more": np.ones(3)}), archive.restored)
    assert archive.report.index.gone == ("extra",)


def test_a_wrong_base_is_refused_by_name(update):
    _, base, archive = update
    cases = {
        "other values": (base | {"b": base["b"] + 1}, "the base given is not the one"),
        "one bit": (base | {"b": np.nextafter(base["b"], np.float32(9))}, "the base given is not the one"),
        "other shape": (base | {"b": base["b"].T}, r"'b' \(float32 \[40, 30\]\) needs .* has it as float32 \[30, 40\]"),
        "other dtype": (base | {"b": base["b"].astype(np.float64)}, "has it as float64"),
        "not there": ({name: array for name, array in base.items() if name != "b"}, "'b' .* has no such tensor"),
        "none": (None, "was made against a base"),
    }
    for name, (wrong, message) in cases.items():
        with pytest.raises(errors.WrongBaseError, match=message) as caught:
            nz.decompress(archive, base=wrong)
        assert archive.base_id in str(caught.value), name
        if name != "none":
            assert "'b'" in str(caught.value), name


def test_one_tensor_with_a_wrong_base_spoils_only_its_own_segment():
    rng = np.random.default_rng(6)
    base = {name: rng.normal(size=2_000_000).astype(np.float32) for name in "ab"}
    archive = nz.compress({name: array * np.float32(1.001) for name, array in base.items()}, base=base)
    with nz.open(archive, base=base | {"b": base["a"]}) as reader:
        assert reader["a"].tobytes() == archive.restored["a"].tobytes()
        with pytest.raises(errors.WrongBaseError):
            reader["b"]
        assert set(reader.damage()) == {"b"}


@pytest.mark.parametrize("method", nz.methods())
def test_a_base_that_is_not_used_is_not_needed(method):
    rng = np.random.default_rng(2)
    new, base = ({"x": rng.normal(size=100).astype(np.float32)} for _ in range(2))
    archive = nz.compress(new, base=base, method=method)
    if archive.base_id is None:
        assert_same(nz.decompress(archive), archive.restored)
        assert_same(nz.decompress(archive, base={"x": np.zeros(3)}), archive.restored)
    unrelated = nz.compress(new, base={"y": np.zeros(3)}, method=method)
    assert unrelated.base_id is None
    assert_same(nz.decompress(unrelated), unrelated.restored)


@pytest.mark.parametrize("method", ["gzip", "zstd", "lzma"])
def test_baselines_have_no_use_for_a_base(method):
    x = np.ones(100)
    assert nz.compress({"x": x}, base={"x": x}, method=method).base_id is None


def test_tensors_that_the_base_does_not_have_are_coded_without_it_and_reported():
    x = np.ones((3, 4), np.float32)
    base = {"same": x, "reshaped": x, "retyped": x, "gone": x}
    new = {"same": x, "reshaped": x.T + 1, "retyped": x.astype(np.int32), "new": x + 2}
    archive = nz.compress(new, base=base)
    assert archive.report.without_base == {
        "reshaped": "was float32 [3, 4], is float32 [4, 3]",
        "retyped": "was float32 [3, 4], is int32 [3, 4]",
        "new": "new",
    }
    assert archive.report.index.gone == ("gone",)
    assert_same(nz.decompress(archive, base=base), new)
    with nz.open(archive, base=base) as reader:
        assert {r.spec.name: r.with_base for r in reader.tensor_reports()} == {
            "same": True, "reshaped": False, "retyped": False, "new": False,
        }  # fmt: skip


# ---- reading ---------------------------------------------------------------------------------------------------


class _Counting:
    """A source that remembers what was read of it."""

    def __init__(self, data: bytes):
        self.data, self.name, self.size, self.read_bytes = data, "counted", len(data), 0

    def read(self, offset: int, length: int) -> bytes:
        self.read_bytes += length
        return self.data[offset : offset + length]

    def close(self) -> None:
        self.data = b""


def test_one_tensor_is_read_alone():
    from nearzip.reading import Reader

    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.normal(size=600_000) for i in range(6)}
    source = _Counting(nz.compress(tensors, threads=1).to_bytes())
    with Reader(source, threads=1) as reader:
        assert source.read_bytes < 20_000
        assert reader["t3"].tobytes() == tensors["t3"].tobytes()
        assert source.read_bytes < source.size / 4


def test_an_open_archive_is_a_mapping(update):
    new, base, archive = update
    with nz.open(archive.to_bytes(), base=base) as reader:
        assert list(reader) == list(reader.keys()) == list(new)
        assert len(reader) == 3
        assert "a" in reader
        assert "nope" not in reader
        assert 3 not in reader
        assert_same(dict(reader.items()), archive.restored)
        assert_same(dict(reader), archive.restored)
        with pytest.raises(errors.NotFoundError, match="no tensor 'nope'"):
            reader["nope"]


def test_arrays_outlive_the_archive_and_belong_to_the_caller(tmp_path, update):
    _, base, archive = update
    archive.save(tmp_path / "a.nz")
    with nz.open(tmp_path / "a.nz", base=base) as reader:
        arrays = {name: reader[name] for name in reader}
    (tmp_path / "a.nz").unlink()
    assert_same(arrays, archive.restored)
    for tensors in (arrays, nz.decompress(archive, base=base), archive.restored):
        for array in tensors.values():
            assert array.flags.writeable
            array += 1
    assert base["a"].max() < 10, "the base is the caller's too"
    with nz.open(archive.to_bytes(), base=base) as reader:
        first = reader["a"]
        first[:] = 0
        assert reader["a"].any()


@pytest.mark.parametrize("method", nz.methods())
def test_compress_does_not_touch_or_keep_its_input(method):
    rng = np.random.default_rng(1)
    tensors, base = random_network(rng, 30, tuple(DTYPES))
    copies = [{name: array.tobytes() for name, array in side.items()} for side in (tensors, base)]
    archive = nz.compress(tensors, base=base, method=method)
    for array in archive.restored.values():
        array.reshape(-1).view(np.uint8)[...] = 1
        assert not any(np.shares_memory(array, other) for side in (tensors, base) for other in side.values())
    for side, copy in zip((tensors, base), copies, strict=True):
        assert {name: array.tobytes() for name, array in side.items()} == copy


def test_archives_behind_urls(update):
    _, base, archive = update
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/nearzip-tests/a.nz", archive.to_bytes())
    url = "memory://nearzip-tests/a.nz"
    assert_same(nz.decompress(url, base=base), archive.restored)
    with nz.open(url, base=base) as reader:
        assert reader["b"].tobytes() == archive.restored["b"].tobytes()
    with pytest.raises(errors.NotFoundError):
        nz.decompress("memory://nearzip-tests/none.nz")
    with pytest.raises(errors.UsageError):
        nz.decompress("nosuchprotocol://x/a.nz")


def test_bytes_in_every_form(update):
    _, base, archive = update
    data = archive.to_bytes()
    for form in (archive, data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert_same(nz.decompress(form, base=base), archive.restored)
    for wrong in (3, None, [data]):
        with pytest.raises(errors.UsageError):
            nz.decompress(wrong)


# ---- limits ----------------------------------------------------------------------------------------------------


def test_results_over_the_limit_are_refused_before_memory_is_taken():
    zeros = {"x": np.zeros(1 << 20, np.float64)}
    archive = nz.compress(zeros)
    assert archive.nbytes < 1000
    assert nz.decompress(archive)["x"].size == 1 << 20
    with pytest.raises(errors.LimitError, match=r"declares 8388608 bytes.*Limits\(output_bytes"):
        nz.decompress(archive, limits=nz.Limits(output_bytes=(8 << 20) - 1))
    assert nz.decompress(archive, limits=nz.Limits(output_bytes=8 << 20))["x"].size == 1 << 20


def test_more_than_a_gibibyte_needs_a_base_bytes_or_permission():
    archive = _declaring((1 << 30) + 4)
    with pytest.raises(errors.LimitError):
        nz.open(archive)
    nz.open(archive, limits=nz.Limits(output_bytes=2 << 30)).close()
    nz.open(_declaring(1 << 30)).close()


def _declaring(n_bytes: int) -> bytes:
    """An archive of zeros of that size, without ever holding them."""
    from nearzip.container import Index, Segment, Writer
    from nearzip.digests import digest
    from nearzip.stages import OrderedBits, Pipeline, Rans
    from nearzip.tensors import TensorSpec

    stream = io.BytesIO()
    writer = Writer(stream)
    specs = []
    segments = []
    for i, at in enumerate(range(0, n_bytes, 64 << 20)):
        spec = TensorSpec(f"t{i}", "uint8", (min(64 << 20, n_bytes - at),))
        block = writer.add_block((b"\0",), Pipeline((OrderedBits(), Rans())))
        specs.append(spec)
        segments.append(Segment((spec,), 64 << 20, (block,), digest(b""), None))
    writer.finish(Index(tuple(specs), tuple(segments), "0" * 32, None))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("tensors", "limits"),
    [
        ({"x": np.ones(3), "y": np.ones(4)}, nz.Limits(tensors=1)),
        ({"x": np.ones((1, 1, 1, 2))}, nz.Limits(rank=3)),
        ({"long name": np.ones(3)}, nz.Limits(name_bytes=8)),
        ({"x": np.ones(3)}, nz.Limits(index_bytes=64)),
    ],
)
def test_every_limit_is_kept_and_can_be_raised(tensors, limits):
    archive = nz.compress(tensors)
    with pytest.raises(errors.LimitError):
        nz.decompress(archive, limits=limits)
    assert_same(nz.decompress(archive, limits=nz.Limits()), tensors)


def test_threads_are_a_positive_number(monkeypatch):
    for threads in (0, -1, 1.5, "2", True):
        with pytest.raises(errors.UsageError, match="threads"):
            nz.compress({"x": np.ones(3)}, threads=threads)
    archive = nz.compress({"x": np.ones(3)})
    with pytest.raises(errors.UsageError, match="threads"):
        nz.decompress(archive, threads=0)
    for wrong in ("0", "x", "-1", "1.5", ""):
        monkeypatch.setenv("NEARZIP_THREADS", wrong)
        with pytest.raises(errors.UsageError, match="NEARZIP_THREADS"):
            nz.compress({"x": np.ones(3)})


@pytest.mark.parametrize("value", ["text", [1.0], 3, {"nested": "text"}, None, np.array(["a"]), np.zeros(2, "O")])
def test_what_is_no_tensor_is_refused_by_name(value):
    with pytest.raises(errors.UsageError, match=r"'layer\.w(\.nested)?'"):
        nz.compress({"layer.w": value})
    with pytest.raises(errors.UsageError, match="mapping"):
        nz.compress([np.ones(2)])


def test_an_npz_is_a_plain_zip(tmp_path):
    path = write(tmp_path / "x.npz", {"w": np.arange(4.0)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    with np.load(path) as loaded:
        assert loaded["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", [".npz", ".nz"])
def test_a_large_tensor_is_not_decoded_again_for_every_block(tmp_path, monkeypatch, ending):
    x = np.random.default_rng(0).normal(size=3_000_000)  # six blocks
    nz.compress({"x": x}, method="zstd", options={"level": 1}).save(tmp_path / "in.nz")
    write(tmp_path / "in.npz", {"x": x})
    calls = []
    for owner, name in ((zipfile.ZipFile, "open"), (nz.Reader, "__getitem__")):
        original = getattr(owner, name)

        def counted(*args, original=original, **named):
            calls.append(args[1])
            return original(*args, **named)

        monkeypatch.setattr(owner, name, counted)
    nz.compress_file(tmp_path / f"in{ending}", tmp_path / "out.nz", bound=nz.Absolute(1e-3), threads=2)
    assert len(calls) <= 3


def test_what_readers_refuse_by_default_is_not_written():
    with pytest.raises(errors.UsageError, match="up to 4096 bytes"):
        nz.compress({"x" * 4097: np.ones(2)})
    deep = types.SimpleNamespace(name="deep", shape=(1,) * 33)
    with pytest.raises(errors.UsageError, match="33 dimensions"):
        check_writable(types.SimpleNamespace(specs={"deep": deep}))


def test_an_archive_cut_short_while_it_is_open(tmp_path):
    path = tmp_path / "a.nz"
    weights = np.random.default_rng(0).normal(size=60_000).astype(np.float32)
    nz.compress({"a": weights, "b": weights[:100].copy()}).save(path)
    with nz.open(path) as reader:
        os.truncate(path, 30)
        with pytest.raises(errors.TruncatedError, match=r"a\.nz: ends early"):
            reader["a"]
