"""nearzip compress --calibrate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip.cli import cli

CODE = """
import torch
from safetensors.numpy import load_file

def make():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    return module, [torch.randn(32, 8) for _ in range(4)]

def values():
    module, batches = make()
    return module, batches, {"output": "values", "fit_biases": False}

def odd():
    return 3

def judge(tensors):
    module, batches = make()
    own = {n: torch.from_numpy(w) for n, w in load_file("new.safetensors").items() if n != "extra"}
    judged = {n: torch.from_numpy(tensors[n]) for n in own}
    one, other = (torch.func.functional_call(module, state, batches[0]) for state in (own, judged))
    return -float((one - other).abs().mean())

def unknown():
    return *make(), {"nope": 1}

def fails():
    raise RuntimeError("no data here")
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    name = f"mine_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(CODE)
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (4, 16), "2.bias": (4,)}
    old = {n: rng.normal(0, 0.3, s).astype(np.float32) for n, s in shapes.items()}
    new = {n: (w + rng.normal(0, 0.01, w.shape)).astype(np.float32) for n, w in old.items()}
    save_file(old, "old.safetensors")
    save_file({**new, "extra": np.linspace(0, 1, 7, dtype=np.float32)}, "new.safetensors", {"epoch": "3"})
    return Path(name)


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(cli, ["compress", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_from_file_to_file(files):
    result = run("new.safetensors", "--base", "old.safetensors", "-o", "u.nz", "--calibrate", f"{files}:make",
                 "--step", "0.01", "--restored", "r.safetensors", "--json")  # fmt: skip
    document = json.loads(result.stdout)
    assert document["bound"] == {"kind": "no promise"}
    assert document["not_calibrated"] == {}
    assert 0 < document["divergence"] < 0.01
    restored = nz.decompress("u.nz", base=load_file("old.safetensors"))
    kept = load_file("r.safetensors")
    assert all(np.array_equal(restored[name], value) for name, value in kept.items())
    assert np.array_equal(restored["extra"], np.linspace(0, 1, 7, dtype=np.float32))
    with nz.open("u.nz", base=load_file("old.safetensors")) as f:
        assert f.metadata() == {"epoch": "3"}


def test_a_target_and_a_bound(files):
    said = run("new.safetensors", "-o", "a.nz", "--calibrate", f"{files}:make", "--kl", "1e-4").stdout
    assert "divergence" in said
    run("new.safetensors", "-o", "b.nz", "--calibrate", f"{files}:values", "--bound", "abs:0.01")
    restored, original = nz.decompress("b.nz"), load_file("new.safetensors")
    assert all(np.abs(restored[name] - value).max() <= 0.01 for name, value in original.items())


@pytest.mark.parametrize("base", [(), ("--base", "old.safetensors")], ids=["alone", "update"])
def test_a_plan_is_found_and_applied(files, base):
    calibrated = ("--calibrate", f"{files}:make")
    save_file(load_file("new.safetensors"), "new.safetensors")  # without metadata, which a plan does not count
    result = CliRunner().invoke(cli, ["tune", "new.safetensors", *base, *calibrated, "--evaluate", f"{files}:judge",
                                      "--max-loss", "0.01", "-o", "plan.json"])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "chosen" in result.stdout
    plan = nz.Plan.load("plan.json")
    assert plan.calibration is not None
    run("new.safetensors", *base, *calibrated, "--plan", "plan.json", "-o", "a.nz")
    assert Path("a.nz").stat().st_size == plan.nbytes
    restored = nz.decompress("a.nz", base=load_file("old.safetensors"))
    assert np.array_equal(restored["extra"], np.linspace(0, 1, 7, dtype=np.float32))
    refused = run("new.safetensors", *base, "--plan", "plan.json", "-o", "b.nz", code=2)
    assert "on the command line with --calibrate" in refused.stderr


def test_a_plan_of_nothing_is_applied_from_files_as_well(files):
    save_file(load_file("new.safetensors"), "new.safetensors")
    result = CliRunner().invoke(cli, ["tune", "new.safetensors", "--base", "old.safetensors", "--calibrate",
                                      f"{files}:make", "--evaluate", f"{files}:judge", "--max-loss", "9",
                                      "-o", "plan.json", "--json"])  # fmt: skip
    assert result.exit_code == 0, result.output
    plan = nz.Plan.load("plan.json")
    assert plan.calibration is None
    result = CliRunner().invoke(cli, ["compress", "new.safetensors", "--base", "old.safetensors", "--calibrate",
                                      f"{files}:make", "--plan", "plan.json", "-o", "a.nz"])  # fmt: skip
    assert (result.exit_code, "warning: the update is lost" in result.stderr) == (1, True)
    assert Path("a.nz").stat().st_size == plan.nbytes
    restored, old = nz.decompress("a.nz", base=load_file("old.safetensors")), load_file("old.safetensors")
    assert all(np.array_equal(restored[name], w) for name, w in old.items())
    assert np.array_equal(restored["extra"], np.linspace(0, 1, 7, dtype=np.float32))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--method", "lzma"], "for the method and the strategy nearzip"),
        (["--strategy", "deepsz"], "for the method and the strategy nearzip"),
        (["--calibrate", "NAME:odd"], "returns a module and batches"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(files, arguments, says):
    arguments = [argument.replace("NAME", str(files)) for argument in arguments]
    result = CliRunner().invoke(cli, ["tune", "new.safetensors", "--calibrate", f"{files}:make", "--evaluate",
                                      f"{files}:judge", "--max-loss", "1", "-o", "p.json", *arguments])  # fmt: skip
    assert result.exit_code == 2
    assert says in result.stderr
    assert not Path("p.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--step", "0.1"], "--step and --kl go with --calibrate"),
        (["--calibrate", "NAME:make"], "how far to go"),
        (["--calibrate", "NAME:make", "--step", "1", "--kl", "1"], "not both"),
        (["--calibrate", "NAME:make", "--step", "1", "--method", "lzma"], "for the method nearzip"),
        (["--calibrate", "NAME:make", "--step", "1", "--plan", "p.json"], "give --plan or --step or --kl"),
        (["--calibrate", "NAME:odd", "--step", "1"], "returns a module and batches"),
        (["--calibrate", "NAME:unknown", "--step", "1"], "not nope"),
        (["--calibrate", "NAME:fails", "--step", "1"], "RuntimeError: no data here"),
        (["--calibrate", "NAME:nothing", "--step", "1"], "nothing"),
        (["--calibrate", "NAME", "--step", "1"], "PACKAGE.MODULE:FUNCTION"),
    ],
)
def test_what_cannot_be_meant_is_one_line(files, arguments, says):
    arguments = [argument.replace("NAME", str(files)) for argument in arguments]
    result = run("new.safetensors", "-o", "x.nz", *arguments, code=2)
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("x.nz").exists()


def test_a_file_of_another_network_is_refused(files):
    save_file({"0.weight": np.zeros((3, 3), np.float32)}, "other.safetensors")
    result = run("other.safetensors", "-o", "x.nz", "--calibrate", f"{files}:make", "--step", "1", code=2)
    assert "has no tensor '0.bias'" in result.stderr
    whole = load_file("new.safetensors")
    save_file({**whole, "0.weight": np.zeros((3, 3), np.float32)}, "other2.safetensors")
    result = run("other2.safetensors", "-o", "x.nz", "--calibrate", f"{files}:make", "--step", "1", code=2)
    assert "has shape [3, 3], the network's [16, 8]" in result.stderr
