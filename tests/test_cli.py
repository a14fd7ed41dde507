"""The command line: what it prints, where, and how it fails."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

import nearzip as nz
from nearzip import fileio
from nearzip.cli import cli
from nearzip.cli.console import human_bytes, safe

rng = np.random.default_rng(3)
OLD = {"layer.weight": rng.normal(0, 0.1, (64, 32)).astype(np.float32), "layer.bias": np.zeros(64, np.float32)}
NEW = {name: (value + rng.normal(0, 0.002, value.shape)).astype(np.float32) for name, value in OLD.items()}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with old.safetensors, new.safetensors and update.nz."""
    monkeypatch.chdir(tmp_path)
    save_file(OLD, "old.safetensors")
    save_file(NEW, "new.safetensors", {"epoch": "2"})
    nz.compress_file("new.safetensors", "update.nz", "old.safetensors", bound="abs:0.001")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def good(*arguments: str) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def bad(code: int, *arguments: str, says: tuple[str, ...] = ()) -> str:
    """Run a command that must fail with `code`, in one line that holds `says`, leaving every file as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    result = run(*arguments)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    line = result.stderr.removesuffix("\n")
    assert "\n" not in line
    assert line.startswith("nearzip: error: ")
    assert "Traceback" not in line
    for text in says:
        assert text in line
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    as_json = run(*arguments, "--json")
    assert as_json.exit_code == code
    assert as_json.stdout == ""
    document = json.loads(as_json.stderr)
    assert (document["message_type"], document["code"]) == ("exit_error", code)
    assert document["error"]
    assert document["message"]
    return line


# ---- commands --------------------------------------------------------------------------------------------------


def test_compress_and_decompress(files: Path):
    result = good("compress", "new.safetensors", "--base", "old.safetensors", "-o", "u.nz", "--bound", "abs:1e-3",
                  "--restored", "next.safetensors")  # fmt: skip
    assert result.stderr == ""
    for text in ("u.nz", "next.safetensors", "smaller", "bits per parameter", "abs:0.001", "base id", "/s"):
        assert text in result.stdout
    good("decompress", "u.nz", "--base", "old.safetensors", "-o", "restored.safetensors")
    restored = nz.compare("restored.safetensors", "next.safetensors")
    assert restored.identical
    assert nz.compare("new.safetensors", "restored.safetensors").total.max_abs_error <= 1e-3


def test_compress_as_json(files: Path):
    result = good("compress", "new.safetensors", "--base", "old.safetensors", "-o", "u.nz", "--method", "delta-dnn",
                  "--set", "eps=0.001", "--set", "backend=zstd", "--threads", "1", "--json")  # fmt: skip
    document = json.loads(result.stdout)
    assert (document["message_type"], document["command"]) == ("summary", "compress")
    assert document["method"] == {"name": "delta-dnn", "options": {"eps": 0.001, "mode": None, "backend": "zstd"}}
    assert document["bound"] == {"kind": "abs", "value": 0.001}
    assert document["bytes_out"] == os.path.getsize("u.nz")
    assert document["bytes_in"] == 4 * 64 * 33
    assert document["bits_per_value"] == pytest.approx(8 * document["bytes_out"] / (64 * 33))
    with nz.open("u.nz") as reader:
        assert (document["id"], document["base_id"]) == (reader.index.id, reader.index.base_id)


def test_the_default_says_that_it_was_lossless_and_how_to_be_smaller(files: Path):
    result = good("compress", "new.safetensors", "-o", "u.nz")
    assert "every bit was kept" in result.stderr
    assert "--bound" in result.stderr
    assert "lossless" in result.stdout
    assert "none needed" in result.stdout
    assert good("compress", "new.safetensors", "-o", "v.nz", "--bound", "lossless").stderr == ""


def test_tensors_coded_without_the_base_and_gone_are_named(files: Path):
    save_file({"layer.weight": NEW["layer.weight"][:, :16].copy(), "head": np.ones(4, np.float32)}, "other.safetensors")
    result = good("compress", "other.safetensors", "--base", "old.safetensors", "-o", "u.nz", "--bound", "abs:0.1")
    assert "head (new)" in result.stdout
    assert "layer.weight (was float32 [64, 32], is float32 [64, 16])" in result.stdout
    assert "gone" in result.stdout
    assert "layer.bias" in result.stdout


def test_codings_that_are_smaller_than_what_was_asked_are_named(files: Path):
    rng = np.random.default_rng(5)
    save_file({"w": rng.normal(size=(64, 64)).astype(np.float16)}, "half.safetensors")
    result = good("compress", "half.safetensors", "-o", "h.nz", "--bound", "abs:1e-7")
    assert "smaller coding  1 exactly" in result.stdout
    report = json.loads(good("compress", "half.safetensors", "-o", "i.nz", "--bound", "abs:1e-7", "--json").stdout)
    assert report["choices"] == {"w": "exact"}


def test_keep_going_leaves_out_damaged_tensors_and_warns(files: Path):
    big = {name: rng.normal(size=(1100, 1000)).astype(np.float32) for name in ("one", "two")}
    nz.compress(big).save("big.nz")
    data = bytearray(Path("big.nz").read_bytes())
    data[1000] ^= 1
    Path("hurt.nz").write_bytes(data)
    bad(12, "decompress", "hurt.nz", "-o", "out.npz", says=("hurt.nz", "'one'", "damaged"))
    result = run("decompress", "hurt.nz", "-o", "out.npz", "--keep-going", "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("nearzip: warning: tensor 'one' is left out: hurt.nz")
    assert list(json.loads(result.stdout)["left_out"]) == ["one"]
    with np.load("out.npz") as restored:
        assert restored.files == ["two"]
        assert np.array_equal(restored["two"], big["two"])


def test_inspect_needs_no_base(files: Path):
    text = good("inspect", "update.nz").stdout
    for part in ("layer.weight", "float32", "64x32", "abs:0.001", "metadata epoch", "bits per value", "rans"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    document = json.loads(good("inspect", "update.nz", "--json", "--sort", "name").stdout)
    assert [tensor["name"] for tensor in document["tensors"]] == ["layer.bias", "layer.weight"]
    assert all(tensor["with_base"] for tensor in document["tensors"])
    assert document["metadata"] == {"epoch": "2"}
    assert document["damage"] is None
    assert document["bytes"] == os.path.getsize("update.nz")


def test_inspect_shows_how_each_tensor_is_coded(files: Path):
    nz.compress(NEW, bound={"layer.weight": "abs:0.01"}).save("own.nz")
    text = good("inspect", "own.nz").stdout
    assert re.search(r"^1: nearzip, abs:0\.01: .*uniform-step", text, re.MULTILINE)
    assert re.search(r"^2: nearzip, lossless: ", text, re.MULTILINE)
    tensors = json.loads(good("inspect", "own.nz", "--json").stdout)["tensors"]
    bounds = {tensor["name"]: tensor["coding"]["bound"] for tensor in tensors}
    assert bounds == {"layer.weight": {"kind": "abs", "value": 0.01}, "layer.bias": {"kind": "lossless"}}
    assert {tensor["coding"]["method"] for tensor in tensors} == {"nearzip"}


def test_inspect_shows_archives_of_unknown_codings(files: Path, monkeypatch: pytest.MonkeyPatch):
    def unknown(index):
        raise nz.errors.CorruptError("a bound of a later release")

    monkeypatch.setattr("nearzip.reading.codings_in", unknown)
    assert "1: " in good("inspect", "update.nz").stdout
    assert all(row["coding"] is None for row in json.loads(good("inspect", "update.nz", "--json").stdout)["tensors"])


def test_inspect_lists_as_many_tensors_as_asked_for(files: Path):
    tensors = {f"t{i}": np.full(3, i, np.float32) for i in range(7)}
    nz.compress({**tensors, "tied": tensors["t0"]}).save("m.nz")
    assert "and 5 more tensors; --limit 0 lists all" in good("inspect", "m.nz", "--limit", "3").stdout
    text = good("inspect", "m.nz", "--limit", "0").stdout
    assert "more tensors" not in text
    assert "same as t0" in text


def test_inspect_verify(files: Path):
    assert "every tensor decodes" in good("inspect", "update.nz", "--verify", "--base", "old.safetensors").stdout
    bad(3, "inspect", "update.nz", "--verify", says=("update.nz", "--base"))
    bad(2, "inspect", "update.nz", "--base", "old.safetensors", says=("--verify",))
    data = bytearray(Path("update.nz").read_bytes())
    data[40] ^= 1
    Path("hurt.nz").write_bytes(data)
    result = run("inspect", "hurt.nz", "--verify", "--base", "old.safetensors", "--json")
    assert result.exit_code == 12
    assert set(json.loads(result.stdout)["damage"]) == set(NEW)
    assert json.loads(result.stderr)["code"] == 12


def test_compare(files: Path):
    text = good("compare", "old.safetensors", "new.safetensors").stdout
    for part in ("layer.weight", "SSIM", "fit", "r =", "unchanged", "|b - a| by power of ten", "#"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    document = json.loads(good("compare", "old.safetensors", "new.safetensors", "--json").stdout)
    assert document["total"]["n_values"] == 64 * 33
    assert 0.9 < document["total"]["ssim"] < 1
    assert document["total"]["fit"]["slope"] == pytest.approx(1, abs=0.01)
    assert document["identical"] is False


def test_compare_draws(files: Path):
    good("compare", "old.safetensors", "new.safetensors", "--plot", "p.png")
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    bad(2, "compare", "old.safetensors", "new.safetensors", "--plot", "p.png", says=("p.png", "--force"))
    bad(2, "compare", "old.safetensors", "new.safetensors", "--plot", "p.gif", says=("p.gif", ".png"))
    good("compare", "old.safetensors", "new.safetensors", "--plot", "p.png", "--force")


@pytest.mark.parametrize(("module", "command", "extra"), [
    ("matplotlib.figure", ("compare", "old.safetensors", "new.safetensors", "--plot", "p.png"), "nearzip[plot]"),
    ("matplotlib.figure", ("demo",), "nearzip[demo]"),
    ("sklearn.datasets", ("demo", "--output", "."), "nearzip[demo]"),
    ("torch", ("decompress", "new.nz", "-o", "new.pt"), "nearzip[torch]"),
])  # fmt: skip
def test_a_missing_extra_is_named(files: Path, monkeypatch: pytest.MonkeyPatch, module, command, extra):
    nz.compress({"x": np.ones(3)}).save("new.nz")
    monkeypatch.delenv("NEARZIP_DATA", raising=False)  # with it, the demo takes MNIST
    monkeypatch.setitem(sys.modules, module, None)
    bad(3, *command, says=(extra, "pip install"))


def test_methods(files: Path):
    text = good("methods").stdout
    document = json.loads(good("methods", "--json").stdout)
    assert {m["name"]: m["description"] for m in document["methods"]} == nz.methods()
    for name, description in nz.methods().items():
        assert name in text
        assert description in text
    assert "backend=rle+lzma" in text


def test_help_names_every_command_and_exit_code():
    text = good("--help").stdout
    for word in ("compress", "decompress", "inspect", "compare", "methods", "demo", "130 interrupted"):
        assert word in text
    assert good("--version").stdout.startswith("nearzip, version ")


# ---- bad input: one line, the documented code, no file left -----------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pt", ".nz"])
@pytest.mark.parametrize("damage", ["empty", "noise", "truncated"])
def test_a_checkpoint_that_cannot_be_read(files: Path, ending: str, damage: str):
    import torch

    if ending == ".pt":
        torch.save({name: torch.from_numpy(value) for name, value in NEW.items()}, "whole.pt")
    elif ending == ".npz":
        np.savez("whole.npz", **NEW)
    elif ending == ".nz":
        nz.compress(NEW).save("whole.nz")
    else:
        save_file(NEW, "whole.safetensors")
    whole = Path("whole" + ending).read_bytes()
    content = {"empty": b"", "noise": b"\x80noise" * 50, "truncated": whole[: len(whole) // 2]}[damage]
    Path("broken" + ending).write_bytes(content)
    bad(12, "compress", "broken" + ending, "-o", "u.nz", says=("broken" + ending,))
    bad(12, "compare", "broken" + ending, "new.safetensors", says=("broken" + ending,))
    bad(12, "compress", "new.safetensors", "--base", "broken" + ending, "-o", "u.nz", says=("broken" + ending,))


@pytest.mark.parametrize("content", [b"", b"\x89NZIP", b"not an archive at all, but long enough to be one" * 4])
def test_an_archive_that_cannot_be_read(files: Path, content: bytes):
    Path("broken.nz").write_bytes(content)
    bad(12, "decompress", "broken.nz", "-o", "out.npz", says=("broken.nz",))
    bad(12, "inspect", "broken.nz", says=("broken.nz",))


def test_the_base_is_missing_or_another(files: Path):
    bad(3, "decompress", "update.nz", "-o", "out.npz", says=("update.nz", "base", "id"))
    bad(3, "decompress", "update.nz", "--base", "new.safetensors", "-o", "out.npz", says=("layer.", "not the one"))
    bad(10, "decompress", "update.nz", "--base", "gone.npz", "-o", "out.npz", says=("gone.npz",))
    save_file({"other": np.zeros(3)}, "other.safetensors")
    bad(3, "decompress", "update.nz", "--base", "other.safetensors", "-o", "out.npz", says=("no such tensor",))
    bad(2, "compress", "update.nz", "-o", "u.nz", says=("update.nz", "decompress it with its base"))


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("--method", "magic"), 3, ("'magic'", "known are", "nearzip")),
    (("--bound", "abs:-1"), 2, ("positive", "-1")),
    (("--bound", "abs:0"), 2, ("positive",)),
    (("--bound", "rms:nan"), 2, ("positive", "nan")),
    (("--bound", "rel:inf"), 2, ("finite", "inf")),
    (("--bound", "tight"), 2, ("'tight'", "abs:1e-3")),
    (("--bound", "rel:1e-3", "--method", "delta-dnn"), 2, ("delta-dnn", "rel:0.001", "abs:EPS")),
    (("--set", "eps"), 2, ("key=value", "'eps'")),
    (("--set", "eps=1"), 2, ("'nearzip'", "'eps'")),
    (("--set", "eps=-1", "--method", "delta-dnn"), 2, ("-1",)),
    (("--set", "eps=1", "--set", "eps=2", "--method", "delta-dnn"), 2, ("eps", "twice")),
    (("--set", "backend=magic", "--method", "delta-dnn"), 2, ("backend", "rle+lzma", "'magic'")),
    (("--set", "level=99", "--method", "zstd"), 2, ("level",)),
    (("--set", "level=x", "--method", "zstd"), 2, ("level", "'x'")),
    (("--threads", "0"), 2, ("--threads",)),
    (("--unknown",), 2, ("--unknown", "--help")),
])  # fmt: skip
def test_arguments_that_cannot_be_meant(files: Path, arguments, code, says):
    bad(code, "compress", "new.safetensors", "-o", "u.nz", *arguments, says=says)


def test_usage_errors_take_one_line(files: Path):
    bad(2, "compress", "new.safetensors", says=("-o", "nearzip compress --help"))
    bad(2, "compress", says=("NEW",))
    bad(2, "magic", says=("magic",))
    bad(2, "inspect", "update.nz", "--limit", "many", says=("--limit",))
    bad(2, "decompress", "update.nz", "-o", "o.npz", "--max-output", "lots", says=("lots", "4GB"))


def test_places_that_cannot_be_written(files: Path):
    bad(2, "compress", "new.safetensors", "-o", "update.nz", says=("update.nz", "--force"))
    bad(2, "compress", "new.safetensors", "-o", "u.nz", "--restored", "old.safetensors", says=("old.saf", "--force"))
    bad(2, "decompress", "update.nz", "--base", "old.safetensors", "-o", "new.safetensors", says=("--force",))
    bad(10, "compress", "new.safetensors", "-o", "nowhere/u.nz", says=("nowhere: no such directory",))
    bad(10, "decompress", "update.nz", "--base", "old.safetensors", "-o", "nowhere/u.npz", says=("nowhere",))
    bad(2, "compress", "new.safetensors", "-o", ".", says=("directory",))
    bad(2, "decompress", "update.nz", "--base", "old.safetensors", "-o", "out.txt", says=("out.txt", ".safetensors"))
    bad(2, "compress", "new.safetensors", "-o", "u.nz", "--restored", "r.nz", says=("r.nz", ".safetensors"))
    good("compress", "new.safetensors", "-o", "update.nz", "--force")


def test_places_that_cannot_be_read(files: Path):
    bad(10, "compress", "gone.safetensors", "-o", "u.nz", says=("gone.safetensors", "no such file"))
    bad(10, "inspect", "gone.nz", says=("gone.nz",))
    bad(10, "compare", "gone.npz", "new.safetensors", says=("gone.npz",))
    Path("notes.txt").write_text("no network")
    bad(2, "compress", "notes.txt", "-o", "u.nz", says=("notes.txt", "unknown ending", ".safetensors"))
    Path("folder.pt").mkdir()
    bad(2, "compress", "folder.pt", "-o", "u.nz", says=("folder.pt", "directory"))
    bad(10, "demo", "--data", "gone", "--output", ".", says=("gone", "MNIST"))


class _Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pt_file_does_not_run(files: Path, zipped: bool):
    import torch

    torch.save({"w": torch.zeros(3), "x": _Hostile()}, "evil.pt", _use_new_zipfile_serialization=zipped)
    bad(2, "compress", "evil.pt", "-o", "u.nz", says=("evil.pt", "run code", "state_dict"))
    Path("plain.pt").write_bytes(pickle.dumps(_Hostile()))
    assert run("compress", "plain.pt", "-o", "u.nz").exit_code in (2, 12)
    assert not Path("ran").exists()


def test_objects_and_lost_types_in_npz(files: Path):
    np.savez("bf16.npz", w=np.ones(4, ml_dtypes.bfloat16))
    bad(2, "compress", "bf16.npz", "-o", "u.nz", says=("bf16.npz", "'w'", "bfloat16", ".safetensors"))
    np.savez("objects.npz", w=np.array([_Hostile()], object))
    bad(2, "compress", "objects.npz", "-o", "u.nz", says=("objects.npz", "'w'"))
    np.savez("text.npz", w=np.array(["a"]))
    bad(2, "compress", "text.npz", "-o", "u.nz", says=("text.npz", "'w'"))
    with zipfile.ZipFile("other.npz", "w") as archive:
        archive.writestr("readme.txt", "not an array")
    bad(12, "compress", "other.npz", "-o", "u.nz", says=("other.npz",))
    assert not Path("ran").exists()


def test_a_format_that_cannot_hold_the_tensors(files: Path):
    nz.compress({"w": np.ones(4, ml_dtypes.bfloat16)}).save("bf16.nz")
    bad(2, "decompress", "bf16.nz", "-o", "out.npz", says=("out.npz", "'w'", "bfloat16", ".safetensors"))


def test_an_archive_over_the_limit(files: Path):
    bad(14, "decompress", "update.nz", "--base", "old.safetensors", "-o", "o.npz", "--max-output", "1kB",
        says=("update.nz", "1000", "--max-output"))  # fmt: skip
    good("decompress", "update.nz", "--base", "old.safetensors", "-o", "o.safetensors", "--max-output", "0.1 MB")


class _FullDisk(io.FileIO):
    """Takes 4000 bytes and no more."""

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        if self.tell() + memoryview(data).nbytes > 4000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def _fill_disk(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Leave no room for files of that name."""
    roomy = fileio._NamingFile
    full = type("_FullNamingFile", (roomy, _FullDisk), {})
    monkeypatch.setattr(fileio, "_NamingFile", lambda path, to: (full if name in str(path) else roomy)(path, to))


@pytest.mark.parametrize("output", ["out.safetensors", "out.npz", "out.pt"])
def test_a_full_disk_when_restoring(files: Path, monkeypatch: pytest.MonkeyPatch, output: str):
    _fill_disk(monkeypatch, "out")
    bad(3, "decompress", "update.nz", "--base", "old.safetensors", "-o", output, says=(output, "No space left"))


def test_a_full_disk_when_compressing(files: Path, monkeypatch: pytest.MonkeyPatch):
    _fill_disk(monkeypatch, "u.nz")
    bad(3, "compress", "new.safetensors", "-o", "u.nz", says=("u.nz", "No space left"))
    bad(3, "compress", "new.safetensors", "-o", "u.nz", "--restored", "r.npz", says=("u.nz", "No space left"))


@pytest.mark.parametrize("restored", ["r.safetensors", "r.npz", "r.pt"])
def test_a_full_disk_names_the_file_that_did_not_fit(files: Path, monkeypatch: pytest.MonkeyPatch, restored: str):
    _fill_disk(monkeypatch, "r.")
    bad(3, "compress", "new.safetensors", "-o", "u.nz", "--restored", restored, says=(restored, "No space left"))


def test_a_fault_of_ours_takes_one_line_and_debug_shows_the_traceback(files: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments, **named):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("nearzip.cli.transfer.compress_file", broken)
    bad(3, "compress", "new.safetensors", "-o", "u.nz", says=("ZeroDivisionError: oh", "report"))
    assert "Traceback" in run("compress", "new.safetensors", "-o", "u.nz", "--debug").stderr


def test_interrupted(files: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("nearzip.writing.encode_block", interrupted)
    bad(130, "compress", "new.safetensors", "-o", "u.nz", "--threads", "1", says=("interrupted",))


# ---- hostile names ---------------------------------------------------------------------------------------------


def test_names_cannot_act_on_the_terminal(files: Path):
    names = ["\x1b[2Jgone", "[bold red]loud[/]", "two\nlines", "\u202eright", "[/]", ":smile:"]
    nz.compress({name: np.zeros(3, np.float32) + i for i, name in enumerate(names)}).save("h.nz")
    save_file({name: np.ones(3, np.float32) + i for i, name in enumerate(names)}, "h.safetensors")
    outputs = [
        good("inspect", "h.nz", "--sort", "size").stdout,
        good("compare", "h.nz", "h.safetensors").stdout,
        good("compress", "h.safetensors", "--base", "old.safetensors", "-o", "u.nz").stdout,
    ]
    for text in outputs:
        assert not any(c in text for c in "\x1b\u202e")
        assert "two\nlines" not in text
    assert "[bold red]loud[/]" in outputs[0].replace("\n", "")
    assert ":smile:" in outputs[0]


def test_safe():
    assert safe("a b é \t \udc80 \x9b") == "a b é \\t \\udc80 \\x9b"


def test_human_bytes():
    shown = [human_bytes(n) for n in (0, 999.6, 9_999, 99_960, 5e15)]
    assert shown == ["0 B", "1.00 kB", "10.0 kB", "100 kB", "5000 TB"]


# ---- real processes --------------------------------------------------------------------------------------------


def process(*arguments: str, **named) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "nearzip", *arguments], capture_output=True, text=True, **named)


def test_as_a_module(files: Path):
    done = process("compare", "old.safetensors", "new.safetensors", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["command"] == "compare"
    failed = process("inspect", "gone.nz")
    assert (failed.returncode, failed.stdout) == (10, "")
    assert failed.stderr == "nearzip: error: gone.nz: no such file or directory\n"


def test_a_terminal_without_unicode(files: Path):
    nz.compress({"höhe": np.zeros(3, np.float32)}).save("u.nz")
    done = process("inspect", "u.nz", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert "h\\xf6he" in done.stdout


def test_a_reader_that_goes_away(files: Path):
    command = f"{sys.executable} -m nearzip methods | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_behind(files: Path, number: signal.Signals, code: int):
    save_file({"w": rng.normal(size=(2000, 2000)).astype(np.float32)}, "big.safetensors")
    before = set(os.listdir())
    command = [sys.executable, "-m", "nearzip", "compress", "big.safetensors", "-o", "u.nz", "--method", "lzma",
               "--threads", "1", "--json"]  # fmt: skip
    # Whoever runs the tests in the background may have left Ctrl-C ignored, which children inherit.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=listen) as running:
        deadline = time.monotonic() + 60
        while set(os.listdir()) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(number)
        running.communicate(timeout=60)
    assert running.returncode == code
    assert set(os.listdir()) == before


def test_compare_of_networks_without_a_tensor_in_common(files: Path):
    save_file({f"_orig_mod.{name}": w for name, w in OLD.items()}, "wrapped.safetensors")
    save_file({name: w.astype(np.float16) for name, w in OLD.items()}, "half.safetensors")
    np.savez("empty.npz")
    for other, says in (("wrapped", "'_orig_mod.' in them"), ("half", "float16"), ("empty.npz", "different networks")):
        path = other if other.endswith(".npz") else f"{other}.safetensors"
        result = run("compare", "old.safetensors", path)
        assert result.exit_code == 1
        assert "compared" in result.stdout
        assert "unchanged" not in result.stdout
        assert says in result.stderr
        document = run("compare", "old.safetensors", path, "--json")
        assert document.exit_code == 1
        assert json.loads(document.stdout)["anything_in_common"] is False
    assert "neither holds a tensor" in run("compare", "empty.npz", "empty.npz").stderr


def test_compare_counts_partial_overlaps(files: Path):
    save_file({"layer.weight": NEW["layer.weight"], "head": OLD["layer.bias"]}, "other.safetensors")
    result = good("compare", "old.safetensors", "other.safetensors")
    assert "1 tensors, 2,048 values" in result.stdout
    assert re.search(r"only in a +1 tensor: layer\.bias", result.stdout)
    assert re.search(r"only in b +1 tensor: head", result.stdout)


@pytest.mark.parametrize("words", [[], ["store"]])
def test_a_group_without_a_command_prints_its_help(words):
    result = run(*words)
    assert result.exit_code in (0, 2)
    text = result.stdout + result.stderr
    assert "Commands:" in text
    assert "\\n" not in text
    assert "error:" not in text


def test_help_says_of_each_command_what_the_command_says():
    from nearzip.cli.commands import _COMMANDS, _SUMMARIES, _found

    assert set(_SUMMARIES) == set(_COMMANDS)
    for name, place in _COMMANDS.items():
        assert _SUMMARIES[name] == _found(*place).get_short_help_str(62), name


_STARTED = """
import sys
from nearzip.cli.commands import cli
try:
    cli(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
print(*sorted(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "absent"), [(["--help"], ["numpy", "fsspec"]), (["inspect"], ["fsspec", "nearzip.budget"])]
)
def test_commands_load_what_they_need(tmp_path, arguments, absent):
    archive = tmp_path / "a.nz"
    nz.compress({"w": np.zeros(3)}).save(archive)
    given = [*arguments, str(archive)] if arguments == ["inspect"] else arguments
    run = subprocess.run([sys.executable, "-c", _STARTED, *given], capture_output=True, text=True, check=True)
    assert run.stdout
    assert not set(absent) & set(run.stderr.split("\n")[-2].split())
