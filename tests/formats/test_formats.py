"""Archives written by every released format are read back bit for bit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nearzip as nz
from nearzip.checkpoints import open_checkpoint
from nearzip.recipes import recipe_types
from nearzip.tensors import DTYPES

HERE = Path(__file__).parent
FOLDERS = sorted(path.parent for path in HERE.glob("*/expected.json"))
GOLDEN = [
    pytest.param(folder / name, expected, id=f"{folder.name}/{name}")
    for folder in FOLDERS
    for name, expected in json.loads((folder / "expected.json").read_text(encoding="utf-8")).items()
]


def names_of(array: np.ndarray) -> list:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == array.dtype)
    return [dtype, list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def needs(path: Path) -> tuple[str, ...]:
    """Packages of the method that a golden file is named after; `coding-` files are nearzip's, which has none."""
    methods = [method for method in recipe_types() if path.name.startswith(f"{method}-")]
    return recipe_types()[max(methods, key=len)].needs if methods else ()


@pytest.mark.parametrize(("path", "expected"), GOLDEN)
def test_golden_files_read_as_they_were_written(path, expected):
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected["sha256"], "the file itself was changed"
    for package in needs(path):
        pytest.importorskip(package)
    base = dict(open_checkpoint(path.parent / "base.safetensors").arrays())
    with nz.open(path, base=base) as reader:
        assert reader.index.id == expected["id"]
        assert reader.index.base_id == expected["base_id"]
        assert list(reader) == list(expected["tensors"])
        assert {name: names_of(reader[name]) for name in reader} == expected["tensors"]
    assert {name: names_of(array) for name, array in nz.decompress(path, base=base).items()} == expected["tensors"]


def test_every_method_has_golden_files():
    assert FOLDERS
    made_by = {path.name for folder in FOLDERS for path in folder.glob("*.nz")}
    for method in recipe_types():
        assert {f"{method}-alone.nz", f"{method}-update.nz"} <= made_by


def test_golden_files_are_never_replaced():
    before = {path: path.stat().st_mtime_ns for path in HERE.rglob("*.nz")}
    run = subprocess.run([sys.executable, str(HERE / "make.py")], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "never replaced" in run.stderr
    assert {path: path.stat().st_mtime_ns for path in HERE.rglob("*.nz")} == before
