"""What a job passes through: modules, calls, and how often control goes from one module to another.

`--tree NAME=FOLDER` also traces the package of another commit: a folder with `nearzip`, its built core inside. `--keep`
keeps what was counted for other commits, which does not change, and the last measured commit's under its own name.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nearzip
import nearzip._core as _core
from experiments.claims.structure import jobs
from experiments.lab import record

_THIS = "this commit"


def _own_tree(folder: Path) -> Path:
    """This commit's package with its core, as `jobs` imports it."""
    shutil.copytree(Path(nearzip.__file__).parent, folder / "nearzip")
    shutil.copy(_core.__file__, folder / "nearzip")
    return folder


def _traced(name: str, tree: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, jobs.__file__, name, folder, str(tree)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    counted: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return counted


def _counted_before() -> dict[str, Any]:
    last = record.load("handovers")
    return {last["commit"] if name == _THIS else name: counted for name, counted in last.get("trees", {}).items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="handovers", description=__doc__)
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args(arguments)
    trees = {name: Path(folder) for name, _, folder in (text.partition("=") for text in given.tree)}
    with tempfile.TemporaryDirectory() as folder:
        trees[_THIS] = _own_tree(Path(folder))
        found = _counted_before() if given.keep else {}
        found |= {tree: {name: _traced(name, path) for name in jobs.JOBS} for tree, path in trees.items()}
    print(record.save("handovers", {"trees": found}, ("nearzip", "numpy", "torch")))
