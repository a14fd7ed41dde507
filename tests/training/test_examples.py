"""The examples run as they stand, and go on where they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name, *arguments):
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_plain(tmp_path):
    assert "starting at step 0" in run("plain.py", "--store", tmp_path / "run", "--steps", 40, "--every", 10)
    assert "starting at step 40" in run("plain.py", "--store", tmp_path / "run", "--steps", 60)


def test_lightning(tmp_path):
    pytest.importorskip("lightning")
    run("lightning_training.py", "--folder", tmp_path, "--epochs", 1)
    assert "epoch 2" in run("lightning_training.py", "--folder", tmp_path, "--epochs", 2)


@pytest.mark.long
def test_transformers(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run("transformers_training.py", "--folder", tmp_path, "--steps", 10)
    assert "checkpoint-10" in run("transformers_training.py", "--folder", tmp_path, "--steps", 20)


@pytest.mark.long
def test_fsdp(tmp_path):
    run("fsdp.py", "--folder", tmp_path / "run", "--steps", 10)
    out = run("fsdp.py", "--folder", tmp_path / "run", "--steps", 5, "--processes", 1)
    assert "going on from step 10" in out
    assert "step 15" in out
