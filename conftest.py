"""Code blocks of README and docs are tests: Python runs in the file's namespace, bash in the same empty folder.

A `json` block behind a `bash` block is an example of what that command prints: keys and types are compared, not values.
Of lists only the first items are compared. Blocks behind `skip: .. if(quick)` run with --long only.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser


def _run_bash(example: Example) -> None:
    command = ["bash", "-euo", "pipefail", "-c", example.parsed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    example.namespace["_printed"] = done.stdout


def _compare_json(example: Example) -> None:
    found = difference("$", json.loads(example.parsed), json.loads(example.namespace["_printed"]))
    if found is not None:
        raise AssertionError(f"{found}; scripts/json_examples writes the examples anew")


def difference(path: str, shown: Any, printed: Any) -> str | None:
    """Where an example differs in keys or types from what was printed."""
    if type(shown) is not type(printed):
        return f"{path} is {json.dumps(printed)}, the example has {json.dumps(shown)}"
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(shown, dict):
        if list(shown) != list(printed):
            return f"{path} has the keys {list(printed)}, the example has {list(shown)}"
        pairs = [(f"{path}.{key}", shown[key], printed[key]) for key in shown]
    elif isinstance(shown, list):
        if bool(shown) != bool(printed):
            return f"{path} has {len(printed)} items, the example has {len(shown)}"
        pairs = [(f"{path}[0]", shown[0], printed[0])] if shown else []
    return next((found for pair in pairs if (found := difference(*pair)) is not None), None)


def _lacks(*modules: str) -> bool:
    """For `skip: next if(lacks("lightning"), reason=...)`: whether one of the modules is not installed."""
    return any(importlib.util.find_spec(module) is None for module in modules)


_run: dict[str, bool] = {"quick": True}


#: Their imports need an extra that development does without; tests/federated/test_nvflare.py reads it over a double.
collect_ignore = ["src/nearzip/nvflare.py"] if _lacks("nvflare") else []


def pytest_configure(config: pytest.Config) -> None:
    _run["quick"] = not config.getoption("--long", default=False)


def _enter(namespace: dict[str, Any]) -> None:
    namespace["_before"] = Path.cwd()
    namespace["_folder"] = tempfile.mkdtemp()
    namespace.update(_run, lacks=_lacks)
    os.chdir(namespace["_folder"])


def _leave(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    shutil.rmtree(namespace["_folder"])


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="bash", evaluator=_run_bash),
        CodeBlockParser(language="json", evaluator=_compare_json),
        SkipParser(),
    ],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=_enter,
    teardown=_leave,
).pytest()
