"""The documentation shows what the results say: every block, page and picture, by one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the experiments need PyTorch")

from experiments import registry
from experiments.docs import catalogue, writing
from experiments.docs.markdown import circumstances, commits, span, table
from experiments.lab.record import RESULTS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("block", catalogue.BLOCKS, ids=lambda block: f"{block.page}-{block.name}")
def test_blocks_are_what_the_results_say(block):
    text = (ROOT / block.page).read_text()
    assert writing.filled(block, text) == text, "run: python -m experiments docs"


@pytest.mark.parametrize("page", catalogue.PAGES, ids=lambda page: page.page)
def test_pages_are_what_the_results_say(page):
    assert writing.rendered(page) == (ROOT / page.page).read_text(), "run: python -m experiments docs"


@pytest.mark.parametrize("picture", catalogue.pictures(), ids=lambda picture: picture.image)
def test_pictures_were_drawn_from_these_results(picture):
    assert writing.is_current(picture), "run: python -m experiments docs"


def test_every_block_of_a_page_is_in_the_catalogue():
    found = {(str(path.relative_to(ROOT)), name) for path in PAGES
             for name in re.findall("<!-- ([a-z-]+):begin -->", path.read_text())}  # fmt: skip
    assert found == {(block.page, block.name) for block in catalogue.BLOCKS}


def test_every_result_is_shown():
    """A result that no page shows has served its purpose: then it goes, and Git keeps it."""
    assert {path.stem for path in RESULTS.glob("*.json")} == set(catalogue.shown())


def test_every_measured_result_has_a_claim():
    named = {name for claim in registry.CLAIMS.values() for name in claim.results} | set(registry.OTHERS)
    kept = {"agreement", "lattices", "tried"}  # their commands were removed
    assert {path.stem for path in RESULTS.glob("*.json")} == named | kept


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_are_json(path: Path):
    """NaN and infinities are not: what is no number is null."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path.name}: {constant}")

    json.loads(path.read_text(), parse_constant=refuse)


def test_commits_of_results_exist():
    asked = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True,
                           check=False)  # fmt: skip
    if asked.stdout.strip() != "false":
        pytest.skip("needs a Git checkout with its history")
    found = {name for path in RESULTS.glob("*.json") for name in _commits(json.loads(path.read_text()))}
    for name in sorted(found):
        done = subprocess.run(["git", "cat-file", "-e", f"{name}^{{commit}}"], cwd=ROOT, check=False)
        assert done.returncode == 0, f"commit {name} of a result is not in Git"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_come_from_clean_trees(path: Path):
    assert not re.findall(r'"[0-9a-f]{7,40}\+"', path.read_text())


def _commits(value: object) -> Iterator[str]:
    """Every hash under `commit` or `commits`, however deep."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "commit" and isinstance(inner, str):
                yield from re.findall(r"\b[0-9a-f]{7,40}\b", inner)
            elif key == "commits" and isinstance(inner, dict):
                yield from re.findall(r"\b[0-9a-f]{7,40}\b", " ".join(map(str, inner.values())))
            else:
                yield from _commits(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _commits(inner)


def test_readme_names_every_extra():
    text = (
        (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
    )
    for extra in re.findall(r"^([a-z0-9]+) = \[", text, flags=re.MULTILINE):
        assert f"`{extra}`" in (ROOT / "README.md").read_text(), extra


def test_stale_blocks_are_named_and_written(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a:begin -->\nold\n<!-- a:end -->\nafter\n")
    block = catalogue.Block("page.md", "a", (), lambda: "new")
    monkeypatch.setattr(writing, "ROOT", tmp_path)
    monkeypatch.setattr(writing, "BLOCKS", (block,))
    monkeypatch.setattr(writing, "PAGES", ())
    monkeypatch.setattr(writing, "pictures", tuple)
    with pytest.raises(SystemExit, match="python -m experiments docs"):
        writing.main(["--check"])
    assert list(writing.stale()) == ["page.md, block 'a'"]
    assert page.read_text().count("old") == 1
    assert list(writing.write()) == ["page.md"]
    assert page.read_text() == "before\n<!-- a:begin -->\nnew\n<!-- a:end -->\nafter\n"
    assert list(writing.stale()) == []
    page.write_text("no markers")
    with pytest.raises(SystemExit, match=r"page\.md: needs the markers"):
        list(writing.stale())


def test_a_picture_is_stale_when_its_result_changes(tmp_path, monkeypatch):
    (tmp_path / "resume.json").write_bytes((RESULTS / "resume.json").read_bytes() + b" ")
    monkeypatch.setattr(writing, "RESULTS", tmp_path)
    picture = next(each for each in catalogue.pictures() if each.results == ("resume",))
    assert not writing.is_current(picture)


@pytest.mark.parametrize("name", registry.REMOVED)
def test_removed_commands_say_where_their_results_are(name):
    done = subprocess.run([sys.executable, "-m", "experiments", name], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 1
    assert "docs/tried.md" in done.stderr


# ---- Markdown --------------------------------------------------------------------------------------------------


def test_tables_have_one_line_for_each_row():
    assert table(["a", "b"], [[1, 2], ["x", 0.5]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| x | 0.5 |"
    assert table(iter(["a"]), []) == "| a |\n| --- |"


def test_ranges():
    assert span([3.04, 1.26, 2.0]) == "1.3 to 3.0"
    assert span(iter([1.01, 1.04])) == "1.0"


def test_a_changed_tree_is_named():
    assert commits("abc1234", "def5678+", "abc1234") == "abc1234, def5678 with uncommitted changes"
    result = {"machine": {"cpu": "X", "cores": 2, "python": "3.11"}, "commit": "abc1234+", "date": "2026-11-28"}
    assert circumstances(result) == "X, 2 cores, Python 3.11; commit abc1234 with uncommitted changes, 2026-11-28"


def test_entries_of_an_earlier_run_keep_its_machine():
    from experiments.claims.bits import fidelity

    document = {"machine": {"cpu": "A"}, "date": "2026-01-01", "pairs": {"p": {"entries": {
        "old": {"points": []}, "older": {"machine": {"cpu": "B"}, "date": "2025-01-01"}}}}}  # fmt: skip
    entries = fidelity.earlier(document)["p"]["entries"]
    assert entries["old"] == {"points": [], "machine": {"cpu": "A"}, "date": "2026-01-01"}
    assert entries["older"] == {"machine": {"cpu": "B"}, "date": "2025-01-01"}
    assert fidelity.earlier({}) == {}
