"""nearzip store, as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nearzip as nz
from nearzip.cli import cli
from store.helpers import history


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")

    def call(*arguments, code=0):
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, arguments)])
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err
        return out, err

    return call


@pytest.fixture
def filled(run):
    run("store", "init", "runs", "--bound", "abs:1e-3", "--policy", "forward")
    for i, version in enumerate(history(5)):
        save_file(version, f"{i}.safetensors")
        run("store", "commit", "runs", f"{i}.safetensors", "-m", f"epoch {i}", "--metric", f"accuracy={i % 3}",
            "--step", 10 * i, *(["--tag", "best"] if i == 2 else []))  # fmt: skip
    return run


def test_init_says_what_it_made(run):
    out, err = run("store", "init", "runs", "--json")
    document = json.loads(out)
    assert (document["bound"], document["policy"], document["command"]) == (None, "hop", "store init")
    assert "every bit is kept" in err
    assert "hop" in run("store", "init", "runs")[0]  # is there already
    assert "has policy hop, not forward" in run("store", "init", "runs", "--policy", "forward", code=2)[1]


def test_log_and_checkout(filled):
    out, _ = filled("store", "log", "runs")
    assert "epoch 3" in out
    assert [line.split()[0] for line in out.splitlines()[1:6]] == list("01234")
    assert "5 versions" in out
    document = json.loads(filled("store", "log", "runs", "--json")[0])
    assert [v["version"] for v in document["versions"]] == list(range(5))
    assert document["versions"][4]["base"] == 3
    for selector, number in {"": 4, "@2": 2, "@tag:best": 2, "@step=10": 1, "@best:accuracy": 2, "@latest": 4}.items():
        filled("store", "checkout", f"runs{selector}", "-o", "out.safetensors", "--force")
        found = load_file("out.safetensors")
        assert np.array_equal(found["weight"], nz.Store("runs").checkout(number)["weight"]), selector
    assert "exists already" in filled("store", "checkout", "runs", "-o", "out.safetensors", code=2)[1]
    assert "no version" in filled("store", "checkout", "runs@17", "-o", "new.npz", code=10)[1]
    assert not os.path.exists("new.npz")


def test_prune_and_stat(filled):
    out, _ = filled("store", "prune", "runs", "--keep", "last:1", "--keep", "tagged", "--dry-run")
    assert "would be freed" in out
    assert len(nz.Store("runs").log()) == 5
    out, _ = filled("store", "prune", "runs", "--keep", "last:1", "--keep", "tagged", "--json")
    assert json.loads(out)["dropped"] == [0, 1, 3]
    assert [row.number for row in nz.Store("runs").log()] == [2, 4]
    assert json.loads(filled("store", "stat", "runs", "--json")[0])["n_pruned"] == 3
    assert "2 (" in filled("store", "stat", "runs")[0]
    assert "say what to keep" in filled("store", "prune", "runs", code=2)[1]
    assert "pruned" in filled("store", "log", "runs", "--pruned")[0]


def test_configure(filled):
    filled("store", "configure", "runs", "--policy", "hop:2", "--bound", "lossless")
    assert str(nz.Store("runs").policy) == "hop:2"


def test_export(filled):
    out, _ = filled("store", "export", "runs", "-o", "plain", "--json")
    assert json.loads(out)["files"] == [f"version-{i:08d}.safetensors" for i in range(5)]
    assert len(json.loads(Path("plain/log.json").read_text())) == 5
    filled("store", "export", "runs@best:accuracy", "-o", "one", "--ending", ".npz")
    assert sorted(os.listdir("one")) == ["log.json", "version-00000002.npz"]


def test_verify(filled):
    out, _ = filled("store", "verify", "runs")
    assert "no damage found" in out
    assert filled("store", "verify", "runs", "--level", "quick", "--subset", "50%", code=0)
    name = os.listdir("runs/objects")[0]
    Path("copy").mkdir()
    shutil.copytree("runs", "copy/runs")
    Path("runs/objects", name).write_bytes(b"damaged")
    out, _ = filled("store", "verify", "runs", code=12)
    assert f"objects/{name}: has 7 bytes instead of" in out
    assert "affects versions" in out
    document = json.loads(filled("store", "verify", "runs", "--json", code=12)[0])
    assert document["damages"][0]["path"] == f"objects/{name}"
    assert "--source" in filled("store", "verify", "runs", "--source", "copy/runs", code=2)[1]
    out, _ = filled("store", "verify", "runs", "--repair", "--source", "copy/runs")
    assert f"repaired  objects/{name}: from copy/runs" in out
    Path("runs/nearzip-store").write_bytes(b"")
    assert "verify --repair" in filled("store", "log", "runs", code=12)[1]
    filled("store", "verify", "runs", "--repair")
    assert "5 versions" in filled("store", "log", "runs")[0]
    filled("store", "verify", "runs", "--max-duration", "0")


def test_mistakes_are_one_line(filled):
    for arguments, code in [
        (("log", "nowhere"), 10), (("commit", "runs", "missing.safetensors"), 10), (("init", "x", "--bound", "3"), 2),
        (("commit", "runs", "0.safetensors", "--metric", "accuracy"), 2),
        (("commit", "runs", "0.safetensors", "--metric", "accuracy=high"), 2),
        (("commit", "runs", "0.safetensors", "--tag", "a b"), 2), (("checkout", "runs@newest", "-o", "x.npz"), 10),
        (("prune", "runs", "--keep", "some"), 2), (("init", "0.safetensors"), 2),
    ]:  # fmt: skip
        _, err = filled("store", *arguments, code=code)
        assert err.startswith("nearzip: error: "), arguments
        assert err.count("\n") == 1, err
