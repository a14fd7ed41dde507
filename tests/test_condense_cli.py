"""nearzip condense: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import nearzip as nz
from nearzip.cli import cli

MINE = """
import torch
from torch import nn
from nearzip.torch import evaluator

torch.manual_seed(0)
CENTRES = torch.randn(4, 8)
TARGETS = torch.randint(0, 4, (256,))
INPUTS = CENTRES[TARGETS] + 0.5 * torch.randn(256, 8)

def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

def train_epoch(module, factor=1.0):
    optimizer = torch.optim.SGD(module.parameters(), 0.1 * factor, 0.9)
    for rows in torch.randperm(256).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(INPUTS[rows]), TARGETS[rows]).backward()
        optimizer.step()

def trained():
    torch.manual_seed(0)
    module = network()
    for _ in range(8):
        train_epoch(module)
    return module

def make():
    return network(), train_epoch, INPUTS[:16], evaluator(trained(), [(INPUTS, TARGETS)], "top1")

def lazy(module):
    torch.optim.SGD(module.parameters(), 0.0).step()

def make_lazy():
    return network(), lazy, INPUTS[:16], evaluator(trained(), [(INPUTS, TARGETS)], "top1")

def three():
    return 1, 2, 3

def number():
    return 3

def no_module():
    return 1, 2, 3, 4


def few_columns(network):
    return -sum((p != 0).any(0).sum().item() for p in network.parameters() if p.ndim == 2)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine.py").write_text(MINE)
    import mine

    save_file({name: value.numpy() for name, value in mine.trained().state_dict().items()}, "net.safetensors")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli, ["condense", "net.safetensors", "--network", "mine:make", *arguments])


def test_a_search_writes_an_archive_and_its_evidence(folder):
    found = run("--max-loss", "0.05", "-o", "small.nz", "--epochs", "2", "--samples", "2", "--evidence", "all.json",
                "--json", "--trials", "trials")  # fmt: skip
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["command"] == "condense"
    assert document["n_bytes"] == (folder / "small.nz").stat().st_size
    assert document["trials"] == json.loads((folder / "all.json").read_text())["trials"]
    assert json.loads(found.stderr.splitlines()[-1])["trials_most"] == 2
    assert set(nz.decompress("small.nz")) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_structure_with_a_share_that_is_given(folder):
    found = run("--max-loss", "0.5", "-o", "small.nz", "--scheme", "structure", "--align", "4", "--keep", "0.25",
                "--objective", "flops", "--epochs", "2", "--bits", "6")  # fmt: skip
    assert found.exit_code == 0, found.output
    assert nz.decompress("small.nz")["0.weight"].shape == (8, 8)
    assert "25 % of the channels" in found.stdout
    assert "flops" in found.stdout


def test_an_objective_of_the_users(folder):
    found = run("--max-loss", "0.5", "-o", "small.nz", "--keep", "0.25", "--objective", "mine:few_columns",
                "--epochs", "2", "--json")  # fmt: skip
    assert found.exit_code == 0, found.output
    objective = json.loads(found.stdout)["objective"]
    columns = sum((w != 0).any(0).sum() for w in nz.decompress("small.nz").values() if w.ndim == 2)
    assert (objective["name"], objective["after"]) == ("few_columns", -columns)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-loss", "0.1", "--keep", "0.5", "--objective", "mine:none"], 2, "has no attribute 'none'"),
        (["--max-loss", "0.1", "--keep", "0.5", "--objective", "speed"], 2, "objective"),
        (["--max-loss", "0", "--network", "mine:make_lazy", "--samples", "1", "--scheme", "structure", "--align", "2",
          "--objective", "flops"], 15, "the best reached, keep"),
        (["--max-loss", "0.1", "--keep", "0"], 2, "keep is the share of a network"),
        (["--max-loss", "0.1", "--keep", "0.5", "--samples", "3"], 2, "there is no search for"),
        (["--max-loss", "x"], 2, "--max-loss takes a number"),
        (["--max-loss", "0.1", "--network", "mine:three"], 2, "it returned 3 values"),
        (["--max-loss", "0.1", "--network", "mine:number"], 2, "it returned 'int'"),
        (["--max-loss", "0.1", "--network", "mine:no_module"], 2, "the first is of type 'int'"),
        (["--max-loss", "0.1", "--network", "mine:none"], 2, "has no attribute 'none'"),
        (["--max-loss", "0.1", "--strategy-set", "gamma=1"], 2, "strategy 'nearzip' has no parameter 'gamma'"),
    ],
)  # fmt: skip
def test_failures_are_one_line(folder, arguments, code, message):
    found = run("-o", "small.nz", *arguments)
    assert found.exit_code == code, found.output
    assert message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert not (folder / "small.nz").exists()
