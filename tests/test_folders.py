"""Folders of files: the same shards and every other file byte for byte, whatever the base was cut into."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip import errors
from nearzip.attached import attached_tree, files_of
from nearzip.checkpoints import open_checkpoint, write_checkpoint
from nearzip.checkpoints.folder import is_safe_path
from nearzip.tensors import Checkpoint


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def weights(seed: int, n: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"layers.{i}.weight": rng.normal(size=(64, 40)).astype(np.float32) for i in range(n)}


def model_folder(folder: Path, tensors: dict, shards: int, note: str = "") -> Path:
    """As `save_pretrained` writes it."""
    folder.mkdir(parents=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    else:
        names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        where = {name: names[i % shards] for i, name in enumerate(tensors)}
        for shard in names:
            save_file({n: t for n, t in tensors.items() if where[n] == shard}, folder / shard, {"format": "pt"})
        index = {"metadata": {"total_size": 1}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (folder / "config.json").write_text(json.dumps({"hidden": 64, "note": note}))
    (folder / "tokenizer.json").write_text(json.dumps({f"token{i}": i for i in range(3000)}))
    (folder / "empty.txt").touch()
    return folder


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = weights(0)
    new = {name: array + np.float32(1e-3) for name, array in old.items()}
    model_folder(tmp_path / "old", old, 1)
    model_folder(tmp_path / "new", new, 3, "new")
    return old, new


# ---- model folders ---------------------------------------------------------------------------------------------


def test_a_folder_against_a_base_with_other_shards(folders):
    old, new = folders
    report = nz.compress_file("new", "update.nz", base="old", restored="next")
    assert report.n_bytes < 0.7 * nz.compress_file("new", "alone.nz").n_bytes
    nz.decompress_file("update.nz", "out", base="old")
    assert contents("out") == contents("new") == contents("next")
    assert "model-00002-of-00003.safetensors" in contents("out")
    arrays = nz.decompress("update.nz", base=old)
    assert set(arrays) == set(new)
    assert all(np.array_equal(arrays[name], new[name]) for name in new)
    nz.compress_file("old", "back.nz", base="new")
    nz.decompress_file("back.nz", "old again", base="next")
    assert contents("old again") == contents("old")


def test_other_files_are_compressed_and_not_sent_again(folders):
    text = sum(len(data) for name, data in contents("new").items() if name.endswith(".json"))
    save_file(folders[1], "weights.safetensors")
    alone = nz.compress_file("weights.safetensors", "w.nz").n_bytes
    assert nz.compress_file("new", "new.nz").n_bytes - alone < 0.5 * text
    shutil.copytree("new", "same")
    assert nz.compress_file("same", "same.nz", base="new").n_bytes < 4000


def test_an_index_stands_for_its_shards(folders):
    nz.compress_file("new/model.safetensors.index.json", "i.nz")
    nz.decompress_file("i.nz", "out")
    shards = {name: data for name, data in contents("new").items() if name.startswith("model")}
    assert contents("out") == shards
    nz.decompress_file("i.nz", "u.safetensors")
    assert set(load_file("u.safetensors")) == set(folders[1])


def test_one_file_from_a_folder_says_what_is_left_out(folders):
    nz.compress_file("new", "new.nz")
    with pytest.warns(UserWarning, match=r"3 other values are left out: config\.json, empty\.txt"):
        nz.decompress_file("new.nz", "one.safetensors")
    got = load_file("one.safetensors")
    assert all(np.array_equal(got[name], array) for name, array in folders[1].items())


def test_a_single_file_serves_as_base_of_a_folder(folders):
    nz.compress_file("new", "u.nz", base="old/model.safetensors")
    nz.decompress_file("u.nz", "out", base="old/model.safetensors")
    assert contents("out") == contents("new")


def test_bounds_hold_in_every_shard(folders):
    nz.compress_file("new", "u.nz", base="old", bound="abs:1e-4", restored="next")
    nz.decompress_file("u.nz", "out", base="old")
    assert contents("out") == contents("next")
    for name in contents("new"):
        if name.endswith(".safetensors"):
            got, wanted = load_file(f"out/{name}"), load_file(f"new/{name}")
            assert all(np.abs(got[each] - wanted[each]).max() <= 1e-4 for each in wanted)
        else:
            assert contents("out")[name] == contents("new")[name]


def test_outputs_that_exist(folders):
    nz.compress_file("new", "new.nz")
    os.mkdir("empty")
    nz.decompress_file("new.nz", "empty")
    with pytest.raises(errors.UsageError, match="exists already"):
        nz.decompress_file("new.nz", "empty")
    nz.decompress_file("new.nz", "empty", force=True)
    assert contents("empty") == contents("new")
    Path("empty/notes.txt").write_text("mine")
    with pytest.raises(errors.UsageError, match=r"notes\.txt"):
        nz.decompress_file("new.nz", "empty", force=True)
    nz.compress({"w": np.ones(3)}).save("w.nz")
    with pytest.raises(errors.UsageError, match="is a directory"):
        nz.decompress_file("w.nz", "old", force=True)
    for taken in ("new", "."):
        with pytest.raises(errors.UsageError, match=r"input|would be lost"):
            nz.compress_file("new", "x.nz", restored=taken, force=True)
    assert contents("old")


def test_every_command_takes_a_folder(folders):
    from click.testing import CliRunner

    from nearzip.cli import cli

    def good(*arguments):
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "u.nz" in good("compress", "new", "--base", "old", "-o", "u.nz", "--bound", "abs:1e-4")
    good("decompress", "u.nz", "--base", "old", "-o", "out")
    assert "layers.0.weight" in good("compare", "new", "old")
    assert "layers.0.weight" in good("inspect", "u.nz")
    good("store", "init", "runs")
    good("store", "commit", "runs", "old")
    good("store", "commit", "runs", "new")
    good("store", "checkout", "runs@1", "-o", "checked")
    assert contents("checked") == contents("new")
    good("store", "pull", "runs@0", "--to", "pulled")
    assert contents("pulled") == contents("old")


def test_a_store_of_folders(folders):
    store = nz.Store("runs", create=True, bound="abs:1e-5")
    for name in ("old", "new"):
        store.commit_file(name)
    assert set(store.checkout(1)) == set(folders[1])
    store.checkout_file(1, "one")
    assert set(contents("one")) == set(contents("new"))
    assert nz.pull("runs", "pulled", 0).version == 0
    report = nz.pull("runs", "pulled")
    assert (report.held, report.version) == (0, 1)
    assert contents("pulled") == contents("one")
    assert store.verify("full").ok
    Path("pulled/mine.txt").write_text("notes")
    with pytest.raises(errors.UsageError):
        nz.pull("runs", "pulled", 0)
    with pytest.raises(errors.UsageError, match=r"mine\.txt"):
        nz.pull("runs", "pulled", 0, force=True)
    assert Path("pulled/mine.txt").read_text() == "notes"


def test_what_is_left_of_a_damaged_folder_is_its_tensors(folders):
    large = np.random.default_rng(0).normal(size=(1100, 1000)).astype(np.float32)  # not stored with small ones
    tensors = {"large": large, **folders[1]}
    model_folder(Path("big"), tensors, 2)
    nz.compress_file("big", "new.nz")
    with nz.open("new.nz") as reader:
        block = next(s for s in reader.index.segments if s.tensors[0].name == "large").blocks[0]
    data = bytearray(Path("new.nz").read_bytes())
    data[block.offset + block.length // 2] ^= 1
    Path("new.nz").write_bytes(data)
    with pytest.raises(errors.CorruptError):
        nz.decompress_file("new.nz", "out")
    assert not Path("out").exists()
    damage = nz.decompress_file("new.nz", "left.safetensors", keep_going=True)
    assert set(damage) == {"large"}
    assert set(load_file("left.safetensors")) == set(folders[1])


def test_tune_sees_the_tensors_alone(folders):
    from nearzip.cli.tuning import _arrays

    assert set(_arrays("new")) == set(folders[1])


def test_links_of_a_cache_are_followed(folders):
    os.mkdir("snapshot")
    os.mkdir("blobs")
    for name, data in contents("new").items():
        Path("blobs", name).write_bytes(data)
        os.symlink(f"../blobs/{name}", f"snapshot/{name}")
    nz.compress_file("snapshot", "s.nz")
    nz.decompress_file("s.nz", "out")
    assert contents("out") == contents("new")
    assert not any(path.is_symlink() for path in Path("out").rglob("*"))


def test_a_missing_shard_and_an_empty_folder_are_named(folders):
    os.unlink("new/model-00002-of-00003.safetensors")
    with pytest.raises(errors.CorruptError, match="model-00002-of-00003"):
        nz.compress_file("new/model.safetensors.index.json", "x.nz")
    os.mkdir("none")
    Path("none/notes.txt").write_text("x")
    with pytest.raises(errors.UsageError, match="directory without a checkpoint"):
        nz.compress_file("none", "x.nz")
    Path("new/model.safetensors.index.json").write_text('{"weight_map": {"w": "../old/model.safetensors"}}')
    with pytest.raises(errors.CorruptError, match="outside its folder"):
        nz.compress_file("new/model.safetensors.index.json", "x.nz")
    data = Path("old/model.safetensors").read_bytes()
    Path("old/model.safetensors").write_bytes(data[:500])
    with pytest.raises(errors.CorruptError, match=r"model\.safetensors"):
        nz.compress_file("old", "x.nz")


# ---- several networks, training state --------------------------------------------------------------------------


def test_a_pipeline_of_several_networks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (part, name) in enumerate({"unet": "diffusion_pytorch_model", "text_encoder": "model"}.items()):
        os.makedirs(f"pipe/{part}")
        save_file(weights(seed, 2), f"pipe/{part}/{name}.safetensors")
        save_file(weights(seed, 2), f"pipe/{part}/{name}.fp16.safetensors")
        Path(f"pipe/{part}/config.json").write_text("{}")
    Path("pipe/model_index.json").write_text("{}")
    nz.compress_file("pipe", "p.nz")
    nz.decompress_file("p.nz", "out")
    assert contents("out") == contents("pipe")
    names = set(nz.decompress("p.nz"))
    assert {"unet/layers.0.weight", "text_encoder/layers.1.weight"} < names
    assert "unet/diffusion_pytorch_model.fp16.safetensors/layers.0.weight" in names


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """As transformers' Trainer writes it."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = torch.nn.Linear(40, 30)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    os.mkdir("checkpoint-5")
    save_file({name: t.numpy() for name, t in net.state_dict().items()}, "checkpoint-5/model.safetensors")
    torch.save(optimizer.state_dict(), "checkpoint-5/optimizer.pt")
    torch.save({"last_epoch": 3, "_last_lr": [0.1]}, "checkpoint-5/scheduler.pt")
    rng = {"python": random.getstate(), "numpy": np.random.RandomState(5).get_state(), "cpu": torch.get_rng_state()}
    torch.save(rng, "checkpoint-5/rng_state.pth")
    torch.save(Arguments(), "checkpoint-5/training_args.bin")
    Path("checkpoint-5/trainer_state.json").write_text('{"step": 5}')
    return torch, net, optimizer, rng


class Arguments:
    """Stands for what cannot be read without running code."""


def test_a_training_checkpoint(checkpoint):
    torch, net, optimizer, rng = checkpoint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nz.compress_file("checkpoint-5", "c.nz", bound="abs:0.01")
        nz.decompress_file("c.nz", "out")
    before, after = contents("checkpoint-5"), contents("out")
    assert set(before) == set(after)
    for name in ("training_args.bin", "trainer_state.json"):
        assert after[name] == before[name]
    got = load_file("out/model.safetensors")
    assert 0 < np.abs(got["weight"] - net.weight.detach().numpy()).max() <= 0.01
    state = torch.load("out/optimizer.pt", weights_only=True)  # exact, though the network is not
    assert all(torch.equal(state["state"][0][key], value) for key, value in optimizer.state_dict()["state"][0].items())
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]
    found = torch.load("out/rng_state.pth", weights_only=False)
    assert found["python"] == rng["python"]
    assert all(np.array_equal(a, b) for a, b in zip(found["numpy"], rng["numpy"], strict=True))
    assert torch.equal(found["cpu"], rng["cpu"])


def test_a_pattern_rounds_the_optimizer_too(checkpoint):
    torch, _, optimizer, _ = checkpoint
    nz.compress_file("checkpoint-5", "c.nz", bound={"optimizer.pt/*": nz.Absolute(1e-3), "*": nz.Lossless()})
    nz.decompress_file("c.nz", "out")
    got = torch.load("out/optimizer.pt", weights_only=True)["state"][0]["exp_avg"]
    assert 0 < (got - optimizer.state_dict()["state"][0]["exp_avg"]).abs().max() <= 1e-3
    assert np.array_equal(
        load_file("out/model.safetensors")["bias"], load_file("checkpoint-5/model.safetensors")["bias"]
    )


def test_a_large_file_that_cannot_be_read_is_kept_with_a_warning(checkpoint):
    torch, *_ = checkpoint
    torch.save({"w": torch.zeros(400_000), "x": Arguments()}, "checkpoint-5/other.pt")
    with pytest.warns(UserWarning, match=r"other\.pt.*Arguments.*kept as it is"):
        nz.compress_file("checkpoint-5", "c.nz")
    nz.decompress_file("c.nz", "out")
    assert contents("out")["other.pt"] == contents("checkpoint-5")["other.pt"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bound", [None, "abs:1e-3"])
def test_a_distributed_checkpoint(checkpoint, bound):
    torch, net, optimizer, _ = checkpoint
    import torch.distributed.checkpoint as dcp

    state = {"model": net.state_dict(), "optim": optimizer.state_dict(), "epoch": 3, "none": torch.zeros(0)}
    dcp.save(state, checkpoint_id="dcp", no_dist=True)
    nz.compress_file("dcp", "d.nz", bound=bound)
    nz.decompress_file("d.nz", "out")
    assert (contents("out") == contents("dcp")) is (bound is None)
    fresh = {"model": torch.nn.Linear(40, 30).state_dict(), "epoch": 0, "optim": torch.optim.AdamW(
        torch.nn.Linear(40, 30).parameters()).state_dict()}  # fmt: skip
    dcp.load(fresh, checkpoint_id="out", no_dist=True)
    assert fresh["epoch"] == 3
    assert (fresh["model"]["weight"] - net.weight).abs().max() <= (1e-3 if bound else 0)
    assert np.array_equal(nz.decompress("d.nz")["optim.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


# ---- hostile documents -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a//b", ".", "a/.", "C:/x", "a\\b", "a\0b",
                                  "x" * 300, "/", "a/"])  # fmt: skip
def test_no_path_leaves_the_folder(tmp_path, path):
    assert not is_safe_path(path)
    tree = attached_tree(["f"], {"folder": True, "members": [[path, "bytes", [["f", "x"]], {}, None]]})
    source = Checkpoint.of({"f": np.frombuffer(b"data", np.uint8)}, tree=tree)
    with (
        pytest.raises(errors.CorruptError, match="no path inside it"),
        write_checkpoint(tmp_path / "out", source.specs, {}, tree, read=source.read),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("members", [
    [["a", "bytes", [["f", "x"]], {}, None], ["A", "bytes", [["g", "x"]], {}, None]],
    [["a", "bytes", [["f", "x"]], {}, None], ["a/b", "bytes", [["g", "x"]], {}, None]],
    [["a", "bytes", [["f", "x"]], {}, None]],
    [["a", "bytes", [["f", "x"]], {}, None], ["b", "bytes", [["f", "x"]], {}, None]],
    [["a", "none", [["f", "x"], ["g", "y"]], {}, None]],
    [["a", "safetensors", [["f", "x"], ["g", "x"]], {}, None]],
    [["a", "embedded", [["f", "x"], ["g", "y"]], {}, None]],
    [["a", "bytes", [["w", "x"]], {}, None], ["b", "bytes", [["f", "x"], ["g", "y"]], {}, None]],
    [["a", "safetensors", [["f", "x"], ["g", "y"]], {"k": 3}, None]],
    [["a", 3, [["f", "x"], ["g", "y"]], {}, None]], [[]], ["a"], {"a": 1}, None, "x",
])  # fmt: skip
def test_damaged_descriptions_are_named(tmp_path, members):
    tree = attached_tree(["f", "g"], {"folder": True, "members": members})
    source = Checkpoint.of({"f": np.zeros(3, np.uint8), "g": np.zeros(2, np.uint8)}, tree=tree)

    def write():
        with write_checkpoint(tmp_path / "out", source.specs, {}, tree, read=source.read) as writer:
            for name, array in source.arrays():
                writer.write(name, array)

    with pytest.raises(errors.Error):
        write()
    assert not list(tmp_path.iterdir())


def test_a_frame_that_does_not_fit_is_refused(tmp_path):
    frame, w = np.zeros(10, np.uint8), np.ones(2, np.float32)
    for detail in (
        {"kind": "TorchScript", "frame": "f", "tensors": [["w", 20]], "checksums": []},
        {"kind": "TorchScript", "frame": "f", "tensors": [["w", -1]], "checksums": []},
        {"kind": "TorchScript", "frame": "f", "tensors": [["w", 4], ["w", 12]], "checksums": []},
        {"kind": "TorchScript", "frame": "f", "tensors": [["w", 4]], "checksums": [[0, 100, [0]]]},
        {"kind": "TorchScript", "frame": "f", "tensors": [["w", 4]], "checksums": [[0, 4, [17]]]},
        {"kind": "TorchScript", "frame": "w", "tensors": [["f", 4]], "checksums": []},
        {"kind": "TorchScript", "frame": "f", "tensors": [], "checksums": []},
        {"kind": "TorchScript", "frame": "f"},
        {"kind": "TorchScript"},
    ):
        tree = attached_tree(["f"], {"embedded": detail})
        source = Checkpoint.of({"f": frame, "w": w}, tree=tree)
        with pytest.raises(errors.CorruptError), write_checkpoint(tmp_path / "o.pt", source.specs, {}, tree):
            pass
    assert not list(tmp_path.iterdir())


def test_long_descriptions_are_tensors(tmp_path):
    tensors = {f"a_rather_long_name_of_a_tensor.{i}": np.float32([i]) for i in range(1500)}
    model_folder(tmp_path / "m", tensors, 2)
    opened = open_checkpoint(tmp_path / "m")
    assert "members" not in files_of(opened.tree)
    nz.compress_file(tmp_path / "m", tmp_path / "m.nz")
    nz.decompress_file(tmp_path / "m.nz", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "m")


def test_a_link_to_nothing_is_named(tmp_path):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    save_file({"w": np.ones(3, np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").symlink_to("../blobs/abc")
    with pytest.raises(errors.UsageError, match=r"tokenizer\.json: is a link to '\.\./blobs/abc', which is not there"):
        nz.compress_file(folder, tmp_path / "a.nz")
