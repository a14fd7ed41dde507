"""Kinds of checkpoint files: told by their content, restored as they were, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import random
import struct
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch

import nearzip as nz
from nearzip import errors
from nearzip.checkpoints import open_checkpoint
from nearzip.checkpoints.builders import PickleError
from nearzip.checkpoints.pickles import read_pickle

torch = pytest.importorskip("torch")


def through(content, folder, name="in.pt", out="out.pt", **how):
    """What comes back of a value that `torch.save` wrote."""
    torch.save(content, folder / name)
    nz.compress_file(folder / name, folder / "a.nz", force=True, **how)
    nz.decompress_file(folder / "a.nz", folder / out, force=True)
    return torch.load(folder / out, weights_only=False)


# ---- by content ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["last.ckpt", "model_best.pth.tar", "model.th", "blob", "weights.data", "x.safetensors"]
)
def test_a_pytorch_file_of_any_name(tmp_path, name):
    torch.save({"state_dict": {"w": torch.arange(12.0).reshape(3, 4)}, "epoch": 3}, tmp_path / name)
    nz.compress_file(tmp_path / name, tmp_path / "a.nz")
    assert np.array_equal(nz.decompress(tmp_path / "a.nz")["state_dict.w"], np.arange(12.0).reshape(3, 4))


@pytest.mark.parametrize("name", ["model.bin", "blob", "m.pt"])
def test_a_safetensors_file_of_any_name(tmp_path, name):
    safetensors.numpy.save_file({"w": np.ones((2, 3), np.float32)}, tmp_path / name)
    assert open_checkpoint(tmp_path / name).specs["w"].shape == (2, 3)
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as zipped, io.BytesIO() as buffer:
        np.save(buffer, np.ones(4))
        zipped.writestr("w.npy", buffer.getvalue())
    assert open_checkpoint(tmp_path / "odd.zip").specs["w"].shape == (4,)


@pytest.mark.parametrize("n", [0x280, 0x380, 0x4B50, 0x8B1F])
def test_a_safetensors_header_of_any_length(tmp_path, n):
    """Its length is what the file begins with: here like a pickle, a zip file, a file of gzip."""
    header = b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    data = n.to_bytes(8, "little") + header + b" " * (n - len(header)) + np.float32([1, 2]).tobytes()
    for name in ("w.safetensors", "w"):
        (tmp_path / name).write_bytes(data)
        assert open_checkpoint(tmp_path / name).read("w").tolist() == [1, 2]


@pytest.mark.parametrize("ending", [".ckpt", ".th", ".pth", ".bin"])
def test_the_usual_endings_are_written(tmp_path, ending):
    got = through({"w": torch.ones(3), "epoch": 4}, tmp_path, out=f"out{ending}")
    assert got["epoch"] == 4
    assert torch.equal(got["w"], torch.ones(3))


def test_an_archive_without_its_ending_is_an_archive(tmp_path):
    nz.compress({"w": np.ones(5, np.float32)}).save(tmp_path / "blob")
    nz.compress_file(tmp_path / "blob", tmp_path / "b.nz")
    assert nz.decompress(tmp_path / "b.nz")["w"].tolist() == [1] * 5


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123\n"


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.npz", "m", "m.nz"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(errors.UsageError, match=r"git-lfs pointer.*git lfs pull"):
        nz.compress_file(tmp_path / name, tmp_path / "o.nz")
    with pytest.raises(errors.Error, match=r"git-lfs pointer|not a nearzip archive"):
        nz.open(tmp_path / name)
    os.mkdir(tmp_path / "folder")
    (tmp_path / "folder/model.safetensors").write_text(POINTER)
    with pytest.raises(errors.UsageError, match="git-lfs"):
        nz.compress_file(tmp_path / "folder", tmp_path / "o.nz")


def test_a_page_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "m.safetensors").write_text("<!doctype html>\n<html><body>404</body></html>")
    with pytest.raises(errors.UsageError, match="web page"):
        nz.compress_file(tmp_path / "m.safetensors", tmp_path / "o.nz")


@pytest.mark.parametrize("array", [np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.eye(3, 5)),
                                   np.array(3, np.int8), np.zeros((0, 2), np.float16)], ids=str)  # fmt: skip
def test_npy_files(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    nz.compress_file(tmp_path / "x.npy", tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "y.npy")
    back = np.load(tmp_path / "y.npy")
    assert back.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(back, array)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(errors.Error):
        open_checkpoint(tmp_path / "cut.npy").read("array")


# ---- values ----------------------------------------------------------------------------------------------------


def rich_values():
    state = collections.OrderedDict(w=torch.ones(2), b=torch.zeros(1))
    state._metadata = collections.OrderedDict({"": {"version": 2}})
    return {
        "state": state,
        "ordered": collections.OrderedDict(a=1, b=[1, 2]),
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "args": argparse.Namespace(lr=1e-3, path=pathlib.PurePosixPath("/data/x"), nested=argparse.Namespace(n=None)),
        "path": pathlib.Path("runs/one"),
        "scalar": np.float64(0.3),
        "scalars": [np.float32(1.5), np.int64(-7), np.bool_(True), np.float16(2), np.complex64(1 + 2j)],
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "numpy rng": np.random.RandomState(3).get_state(),
        "generator": np.random.default_rng(3).bit_generator.state,
        "python rng": random.Random(3).getstate(),
        "torch rng": torch.Generator().manual_seed(3).get_state(),
        "size": torch.Size([3, 4]),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "cpu": torch.device("cpu"),
        "bytes": [b"\x00\xff", bytearray(b"ab")],
        "sets": [{1, 2}, frozenset({"a"})],
        "complex": 1 - 2j,
        "floats": [float("inf"), -0.0, 5e-324],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "tuple keys": {(1, "a"): 1, None: 2, 2.5: 3, True: 4},
        "many": list(range(1000)),
        "huge": 3**200,
        "": "empty name",
    }


def same(one, other) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, (torch.Tensor, np.ndarray)):
        kept = getattr(one, "requires_grad", None) == getattr(other, "requires_grad", None)
        return kept and one.dtype == other.dtype and bool((one == other).all())
    if isinstance(one, dict):
        metadata = getattr(one, "_metadata", None) == getattr(other, "_metadata", None)
        return metadata and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, argparse.Namespace):
        return same(vars(one), vars(other))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or one != one


@pytest.mark.parametrize("name", rich_values(), ids=str)
def test_values_of_research_checkpoints_keep_their_type(tmp_path, name):
    value = rich_values()[name]
    got = through({"model": {"weight": torch.randn(4, 4)}, "value": value}, tmp_path)["value"]
    if name == "args":  # paths come back as this system's
        assert got.path == value.path
        got.path = value.path
    assert same(got, value), got
    if isinstance(value, float):
        assert np.float64(value).tobytes() == np.float64(got).tobytes()


def test_all_of_them_at_once_and_through_an_archive(tmp_path):
    values = rich_values()
    del values["args"]
    got = through(values, tmp_path)
    assert same(got, values)
    nz.compress_file(tmp_path / "a.nz", tmp_path / "b.nz")
    nz.decompress_file(tmp_path / "b.nz", tmp_path / "c.pt")
    assert same(torch.load(tmp_path / "c.pt", weights_only=False), values)


class Net(torch.nn.Module):
    _version = 2

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def _load_from_state_dict(self, state, prefix, local, *rest):
        self.seen = local.get("version")
        super()._load_from_state_dict(state, prefix, local, *rest)


def test_a_state_dict_keeps_the_versions_of_its_modules(tmp_path):
    got = through(Net().state_dict(), tmp_path)
    assert type(got) is collections.OrderedDict
    net = Net()
    net.load_state_dict(got)
    assert net.seen == 2
    with nz.open(tmp_path / "a.nz") as reader:
        assert len(reader.index.tree) < 120  # names are not written twice


def test_legacy_files_keep_their_values_too(tmp_path):
    content = collections.OrderedDict(w=torch.randn(3, 4), half=torch.ones(5).half(), part=torch.arange(9)[2:5])
    content._metadata = {"": {"version": 1}}
    torch.save({"model": content, "epoch": 3}, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    nz.compress_file(tmp_path / "old.pth.tar", tmp_path / "a.nz")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "out.pt")
    got = torch.load(tmp_path / "out.pt", weights_only=True)
    assert same(got, {"model": content, "epoch": 3})


class Config:
    def __init__(self):
        self.x = 1


@pytest.mark.parametrize(("where", "content"), [
    ("cfg", lambda: {"model": {"w": torch.ones(2)}, "cfg": Config()}),
    ("hyper.opt.0", lambda: {"hyper": {"opt": [Config()]}, "w": torch.ones(1)}),
    ("function", lambda: {"function": os.getcwd}),
    ("objects", lambda: {"objects": np.array([Config()], dtype=object)}),
    ("the file", lambda: Config()),
])  # fmt: skip
def test_other_objects_are_named_by_place_and_type(tmp_path, where, content):
    torch.save(content(), tmp_path / "c.pt")
    with pytest.raises(errors.UsageError) as caught:
        nz.compress_file(tmp_path / "c.pt", tmp_path / "c.nz")
    message = str(caught.value)
    assert f"'{where}'" in message
    assert "Config" in message or "getcwd" in message or "object" in message
    assert "could run code" in message
    assert "state_dict" in message


def test_several_of_them_are_counted(tmp_path):
    torch.save({name: Config() for name in "abcdef"}, tmp_path / "c.pt")
    with pytest.raises(errors.UsageError, match=r"'a' is a .*Config \(and 5 more: 'b', 'c', 'd', \.\.\)"):
        nz.compress_file(tmp_path / "c.pt", tmp_path / "c.nz")


@pytest.mark.parametrize("zipped", [True, False])
def test_no_file_can_run_anything(tmp_path, zipped):
    class Trap:
        def __init__(self, how):
            self.how = how

        def __reduce__(self):
            return self.how

    made = str(tmp_path / "made")
    for how in ((os.mkdir, (made,)), (eval, (f"open({made!r}, 'w')",)), (getattr, ("abc", "upper"))):
        torch.save({"w": torch.ones(1), "x": Trap(how)}, tmp_path / "t.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(errors.UsageError, match=r"'x' is a .*could run code"):
            nz.compress_file(tmp_path / "t.pt", tmp_path / "t.nz")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Trap((os.mkdir, (made,)))}))
    with pytest.raises(errors.UsageError, match="pickle"):
        nz.compress_file(tmp_path / "plain.pt", tmp_path / "t.nz")
    assert not os.path.exists(made)


def test_reading_needs_no_pytorch(tmp_path):
    import subprocess
    import sys

    torch.save({"model": Net().state_dict(), "epoch": 3}, tmp_path / "m.pt")
    code = f"import sys, nearzip as nz; nz.compress_file({str(tmp_path / 'm.pt')!r}, {str(tmp_path / 'm.nz')!r}); "
    code += "raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("depth", [50, 99])
def test_deep_nesting_is_read_as_it_was_written(tmp_path, depth):
    value = torch.ones(1)
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    got = through(value, tmp_path)
    for i in reversed(range(depth)):
        got = got[0] if i % 2 else got["a"]
    assert torch.equal(got, torch.ones(1))


@pytest.mark.parametrize("depth", [101, 150])
def test_deeper_nesting_is_refused_before_work_begins(tmp_path, depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    torch.save(value, tmp_path / "deep.pt")
    with pytest.raises(errors.UsageError, match="nested more than 100 deep"):
        nz.compress_file(tmp_path / "deep.pt", tmp_path / "a.nz")


def test_long_lists_of_values_do_not_fill_the_index(tmp_path):
    history = {"loss": [i / 7 for i in range(20_000)], "names": [f"token {i}" for i in range(5_000)]}
    got = through({"w": torch.ones(4), "history": history}, tmp_path)
    assert got["history"] == history
    assert list(nz.decompress(tmp_path / "a.nz")) == ["w"]
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "again.pt")
    store = nz.Store(tmp_path / "s", create=True)
    store.commit_file(tmp_path / "in.pt")
    store.checkout_file(0, tmp_path / "store.pt")
    assert torch.load(tmp_path / "store.pt", weights_only=True)["history"] == history
    assert list(store.checkout(0)) == ["w"]


def test_shared_references_cannot_multiply(tmp_path):
    value = ["x"]
    for _ in range(60):
        value = [value, value]
    torch.save({"w": value}, tmp_path / "laughs.pt")
    with pytest.raises(errors.UsageError, match="refer to each other"):
        nz.compress_file(tmp_path / "laughs.pt", tmp_path / "a.nz")


# ---- what other formats lose -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".npz"])
def test_values_that_a_format_cannot_hold_are_named(tmp_path, ending):
    torch.save({"model": {"w": torch.ones(3)}, "epoch": 3, "args": {"lr": 0.1}}, tmp_path / "in.pt")
    nz.compress_file(tmp_path / "in.pt", tmp_path / "a.nz")
    with pytest.warns(UserWarning, match=r"2 other values are left out: epoch, args\.lr"):
        nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{ending}")
    assert list(open_checkpoint(tmp_path / f"out{ending}").specs) == ["model.w"]
    torch.save({"model": {"w": torch.ones(3)}}, tmp_path / "in.pt")
    nz.compress_file(tmp_path / "in.pt", tmp_path / "a.nz", force=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nz.decompress_file(tmp_path / "a.nz", tmp_path / f"out{ending}", force=True)


def test_the_command_line_says_so_too(tmp_path):
    from click.testing import CliRunner

    from nearzip.cli import cli

    torch.save({"model": {"w": torch.ones(3)}, "epoch": 3}, tmp_path / "in.pt")
    nz.compress_file(tmp_path / "in.pt", tmp_path / "a.nz")
    done = CliRunner().invoke(cli, ["decompress", str(tmp_path / "a.nz"), "-o", str(tmp_path / "o.safetensors")])
    assert done.exit_code == 1
    assert "left out: epoch" in done.stderr


# ---- tensors ---------------------------------------------------------------------------------------------------


def test_meta_tensors_are_named(tmp_path):
    torch.save({"net": {"w": torch.empty(3, device="meta")}}, tmp_path / "m.pt")
    with pytest.raises(errors.UsageError, match=r"tensor 'net\.w' is on the meta device"):
        nz.compress_file(tmp_path / "m.pt", tmp_path / "m.nz")
    with pytest.raises(errors.UsageError, match="tensor 'w' is on the meta device"):
        nz.compress({"w": torch.empty(3, device="meta")})


def test_tensor_subclasses_are_named(tmp_path):
    from torch.testing._internal.two_tensor import TwoTensor

    from nearzip.torch import save_file

    two = TwoTensor(torch.zeros(3, 3), torch.ones(3, 3))
    for call in (lambda: nz.compress({"w": two}), lambda: save_file({"w": two}, tmp_path / "a.nz")):
        with pytest.raises(errors.UsageError, match="tensor 'w' is a TwoTensor, made of the tensors 'a', 'b'"):
            call()
    torch.save({"w": two}, tmp_path / "m.pt")
    with pytest.raises(errors.UsageError, match=r"'w'.*TwoTensor"):
        nz.compress_file(tmp_path / "m.pt", tmp_path / "m.nz")


NARROW = ("float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz", "float4_e2m1fn_x2")


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("bound", [None, "abs:0.1"])
def test_narrow_floats_keep_every_bit(tmp_path, name, bound):
    if not hasattr(torch, name):
        pytest.skip(f"PyTorch {torch.__version__} has no {name}")
    bits = torch.arange(64, dtype=torch.uint8).reshape(8, 8)
    scale = bits.view(getattr(torch, name))
    safetensors.torch.save_file({"w": torch.randn(9, 9).bfloat16(), "scale": scale}, tmp_path / "m.safetensors")
    nz.compress_file(tmp_path / "m.safetensors", tmp_path / "m.nz", bound=bound)
    nz.decompress_file(tmp_path / "m.nz", tmp_path / "out.safetensors")
    nz.decompress_file(tmp_path / "m.nz", tmp_path / "out.pt")
    for got in (safetensors.torch.load_file(tmp_path / "out.safetensors"), torch.load(tmp_path / "out.pt")):
        assert got["scale"].dtype == scale.dtype
        assert torch.equal(got["scale"].view(torch.uint8), bits)
    array = nz.decompress(nz.compress({"scale": scale}, base={"scale": bits.roll(1).view(scale.dtype)}),
                          base={"scale": bits.roll(1).view(scale.dtype)})["scale"]  # fmt: skip
    assert array.view(np.uint8).tolist() == bits.tolist()
    assert nz.torch.load_file(tmp_path / "out.safetensors")["scale"].dtype == scale.dtype


@pytest.mark.parametrize(
    ("dtype", "shape", "n_bytes"), [("F6_E2M3", [4, 4], 12), ("F6_E3M2", [8], 6), ("F4", [2, 3], 3)]
)
def test_types_that_only_safetensors_knows_come_back_byte_for_byte(tmp_path, dtype, shape, n_bytes):
    header = json.dumps({"odd": {"dtype": dtype, "shape": shape, "data_offsets": [0, n_bytes]}, "w": {
        "dtype": "F32", "shape": [3], "data_offsets": [n_bytes, n_bytes + 12]}}).encode()  # fmt: skip
    data = struct.pack("<Q", len(header)) + header + bytes(range(n_bytes)) + np.arange(3, dtype="<f4").tobytes()
    (tmp_path / "m.safetensors").write_bytes(data)
    nz.compress_file(tmp_path / "m.safetensors", tmp_path / "m.nz")
    nz.decompress_file(tmp_path / "m.nz", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == data
    assert nz.decompress(tmp_path / "m.nz")["odd"].tolist() == list(range(n_bytes))


def test_a_file_of_the_library_comes_back_byte_for_byte(tmp_path):
    tensors = {"b": torch.ones(3).half(), "a": torch.randn(5), "n": torch.arange(4), "f": torch.tensor([True])}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", {"format": "pt"})
    nz.compress_file(tmp_path / "m.safetensors", tmp_path / "m.nz")
    nz.decompress_file(tmp_path / "m.nz", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()


# ---- TorchScript -----------------------------------------------------------------------------------------------


def scripted(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2)).eval()
        torch.jit.script(net).save(str(folder / "net.pt"))
    return net


def run_script(path, batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(path))(batch)


def test_torchscript_comes_back_byte_for_byte(tmp_path):
    net = scripted(tmp_path)
    nz.compress_file(tmp_path / "net.pt", tmp_path / "net.nz")
    nz.decompress_file(tmp_path / "net.nz", tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_bytes() == (tmp_path / "net.pt").read_bytes()
    arrays = nz.decompress(tmp_path / "net.nz")
    assert set(arrays) == set(net.state_dict())
    assert all(np.array_equal(arrays[name], tensor.numpy()) for name, tensor in net.state_dict().items())


def test_torchscript_within_a_bound_runs(tmp_path):
    net, batch = scripted(tmp_path), torch.randn(4, 6)
    nz.compress_file(tmp_path / "net.pt", tmp_path / "net.nz", bound="abs:1e-3", restored=tmp_path / "next.pt")
    nz.decompress_file(tmp_path / "net.nz", tmp_path / "out.pt")
    assert (tmp_path / "out.pt").read_bytes() == (tmp_path / "next.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "out.pt") as zipped:
        assert zipped.testzip() is None  # the checksums are those of the rounded values
    assert (run_script(tmp_path / "out.pt", batch) - net(batch)).abs().max() < 0.1
    for name, array in nz.decompress(tmp_path / "net.nz").items():
        assert np.abs(array - net.state_dict()[name].numpy()).max() <= 1e-3
    with pytest.warns(UserWarning, match="rest of the TorchScript file"):
        nz.decompress_file(tmp_path / "net.nz", tmp_path / "out.safetensors")


def test_an_update_of_torchscript_against_its_base(tmp_path):
    net = scripted(tmp_path)
    os.rename(tmp_path / "net.pt", tmp_path / "old.pt")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        net[0].weight += 1e-4
        torch.jit.script(net).save(str(tmp_path / "net.pt"))
    nz.compress_file(tmp_path / "net.pt", tmp_path / "u.nz", base=tmp_path / "old.pt")
    nz.decompress_file(tmp_path / "u.nz", tmp_path / "out.pt", base=tmp_path / "old.pt")
    assert (tmp_path / "out.pt").read_bytes() == (tmp_path / "net.pt").read_bytes()


# ---- damage ----------------------------------------------------------------------------------------------------


def test_damaged_pickles_are_named_errors():
    buffer = io.BytesIO()
    torch.save(rich_values() | {"args": 1}, buffer)
    with zipfile.ZipFile(buffer) as zipped:
        data = zipped.read(next(name for name in zipped.namelist() if name.endswith("data.pkl")))
    rng = np.random.default_rng(0)
    for _ in range(400):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        with contextlib.suppress(PickleError):
            read_pickle(bytes(broken[: rng.integers(len(data) // 2, len(data) + 1)]), lambda pid: pid)


def test_damaged_files_are_named_errors(tmp_path):
    torch.save({"w": torch.arange(20.0), "o": collections.OrderedDict(a=torch.ones(3)), "n": np.float32(1)},
               tmp_path / "new.pt")  # fmt: skip
    torch.save({"w": torch.arange(20.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    scripted(tmp_path)
    rng = np.random.default_rng(1)
    for name in ("new.pt", "old.pt", "net.pt"):
        data = (tmp_path / name).read_bytes()
        for _ in range(150):
            broken = bytearray(data)
            for at in rng.integers(0, len(data), 3):
                broken[at] = rng.integers(0, 256)
            (tmp_path / "broken.pt").write_bytes(broken[: rng.integers(1, len(data) + 1)])
            try:
                opened = open_checkpoint(tmp_path / "broken.pt")
                for each in opened.specs:
                    opened.read(each)
                opened.close()
            except errors.Error:
                pass


@pytest.mark.parametrize("data", [
    b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"}" + b"K\x01s.",
    b"\x80\x02cbuiltins\nbytearray\n\x8a\x04\x00\x00\x00\x7f\x85R.",
    b"\x80\x02]q\x00h\x00a.",
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x02}(" + b")" + b"\x85" * 200_000 + b"K\x01u.",
    b"\x80\x02cos\nsystem\n" + b"\x85" * 3000 + b"N\x81.",
])  # fmt: skip
def test_hostile_pickles_take_neither_memory_nor_the_process(tmp_path, data):
    (tmp_path / "hostile.pt").write_bytes(data)
    with pytest.raises(errors.Error):
        open_checkpoint(tmp_path / "hostile.pt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("x/data.pkl", data)
    (tmp_path / "zipped.pt").write_bytes(buffer.getvalue())
    with pytest.raises(errors.Error):
        open_checkpoint(tmp_path / "zipped.pt")


def test_expanded_tensors_are_bounded(tmp_path):
    torch.save({"w": torch.zeros(1).expand(1 << 30)}, tmp_path / "bomb.pt")
    with pytest.raises(errors.LimitError, match="expanded"):
        open_checkpoint(tmp_path / "bomb.pt")
    got = through({"w": torch.arange(3.0).expand(1000, 3), "t": torch.arange(6).reshape(2, 3).T}, tmp_path)
    assert torch.equal(got["w"], torch.arange(3.0).expand(1000, 3))
    assert torch.equal(got["t"], torch.arange(6).reshape(2, 3).T)


def test_arrays_of_several_fields_and_text_in_the_place_of_a_checkpoint(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3, [("step", "i8"), ("loss", "f4")]))
    with pytest.raises(errors.UsageError, match=r"has several fields \(step, loss\)"):
        open_checkpoint(tmp_path / "a.npy")
    (tmp_path / "a.ckpt").write_text("hello")
    with pytest.raises(errors.CorruptError, match="refers to value 101, which it does not hold"):
        open_checkpoint(tmp_path / "a.ckpt")
