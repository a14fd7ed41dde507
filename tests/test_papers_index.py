"""docs/papers/index.md lists every equation, algorithm, figure and table of the papers, and its names of code exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "papers" / "index.md").read_text(encoding="utf-8")
STATUSES = {"faithful", "differs", "needs a GPU", "left out", "drawing"}

#: How many of each kind a paper has, counted in the papers.
COUNTS = {
    "Delta-DNN": {"Equation": 3, "Algorithm": 1, "Figure": 9, "Table": 3},
    "QD-Compressor": {"Equation": 9, "Algorithm": 2, "Figure": 13, "Table": 10},
    "DeepSZ": {"Equation": 5, "Algorithm": 2, "Figure": 7, "Table": 5},
    "Correctness-preserving compression": {"Figure": 8, "Table": 2},
}


def section(title: str) -> str:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]


def rows(text: str) -> list[list[str]]:
    """Cells of all rows below the head of a table."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not set(line) <= set("| -")]


@pytest.mark.parametrize("paper", COUNTS)
def test_no_item_is_missing(paper):
    found = [row[0] for row in rows(section(paper))]
    expected = [f"{kind} {i}" for kind, n in COUNTS[paper].items() for i in range(1, n + 1)]
    assert [item for item in expected if item not in found] == []
    assert len(found) == len(set(found))


@pytest.mark.parametrize("title", re.findall("^## (.+)$", PAGE, re.MULTILINE))
def test_every_item_has_a_status_and_says_something(title):
    for item, status, what in rows(section(title))[1:]:
        assert status in STATUSES, f"{item}: {status}"
        assert len(what) > 7, item


def test_names_of_code_can_be_imported():
    names = set(re.findall(r"`(nearzip(?:\.\w+)+)", PAGE))
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            try:
                found = importlib.import_module(module)
            except ModuleNotFoundError as error:
                if str(error.name).startswith("nearzip"):
                    raise AssertionError(f"{name} does not exist") from error
                pytest.skip(f"{name} needs {error.name}")
            assert hasattr(found, attribute), f"{name} does not exist"


def test_tables_named_for_bench_papers_exist():
    pytest.importorskip("torch")
    from experiments.papers.scale.measure import TABLES

    assert set(re.findall(r"--table ([\w-]+)", PAGE)) <= set(TABLES)
