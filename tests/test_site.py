"""The documentation site: the menu lists each page; links and anchors resolve, on the site and in the repository."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nearzip import recipes

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*sorted(ROOT.glob("*.md")), ROOT / "experiments" / "README.md", *PAGES]
#: Made by `scripts/docs_hooks.py`.
GENERATED = {"changelog.md", "contributing.md", "security.md", "reference/command-line.md"}


def config() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav if isinstance(nav, list) else nav.values():
            yield from leaves(item)


def prose(path: Path) -> str:
    """The text without code."""
    text = re.sub(r"^( *)```.*?^\1```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda match: match[0].replace("](", "] ("), text)


def links(path: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(path))


def anchors_in_the_repository(path: Path) -> set[str]:
    """As GitHub and GitLab make them: each space a hyphen."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(path)}


def anchors_on_the_site(path: Path) -> set[str]:
    """As Python-Markdown makes them: ASCII, runs of spaces and hyphens one hyphen."""
    found = set()
    for heading in headings(path):
        ascii_only = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower()))
    return found


def headings(path: Path) -> list[str]:
    titles = re.findall(r"^#+ +(.+?) *$", prose(path), flags=re.MULTILINE)
    return [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]


def test_the_menu_lists_every_page_once():
    listed = list(leaves(config()["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {page.relative_to(DOCS).as_posix() for page in PAGES} | GENERATED


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path):
    for link in links(path):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        whole = (path.parent / target).resolve() if target else path
        assert whole.exists(), f"{path.name} links to {link}, which does not exist"
        assert whole.is_relative_to(ROOT), f"{path.name} links out of the repository: {link}"
        if anchor:
            assert anchor in anchors_in_the_repository(whole), f"{path.name}: {link}: no such heading"
            assert anchor in anchors_on_the_site(whole), f"{path.name}: {link}: no such heading on the site"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_has_one_title(path: Path):
    titles = re.findall(r"^# .+$", prose(path), flags=re.MULTILINE)
    assert len(titles) == 1


class Leftovers(HTMLParser):
    """Text of paragraphs: Markdown that was not understood stays there as it was written."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.code = 0
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside += tag == "p"
        self.code += tag == "code"

    def handle_endtag(self, tag: str) -> None:
        self.inside -= tag == "p"
        self.code -= tag == "code"

    def handle_data(self, data: str) -> None:
        if self.inside and not self.code and re.search(r"^([*-] |\d+\. |\| .* \|$)|```|\]\(", data, re.MULTILINE):
            self.found.append(data)


def public_names() -> set[str]:
    import nearzip.store

    found = {*nearzip.__all__, *nearzip.store.__all__, *nearzip.errors.__all__} - {"errors", "__version__"}
    for module in ("torch", "calibrate", "federated", "correctness", "datasets", "condense"):
        with contextlib.suppress(nearzip.errors.MissingExtraError):
            found |= set(importlib.import_module(f"nearzip.{module}").__all__)
    return {name for name in found if not name.isupper()} - {"finetune"}  # without constants, and a module


def described(folder: Path) -> set[str]:
    pages = folder.rglob("index.html")
    return {name for page in pages for name in re.findall(r'id="(nearzip[\w.]+)"', page.read_text(encoding="utf-8"))}


@pytest.mark.long
def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert public_names() <= {name.rpartition(".")[2] for name in described(tmp_path / "reference")}
    pages = sorted(tmp_path.rglob("index.html"))
    assert len(pages) == len(PAGES) + len(GENERATED)
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.search(r"<blockquote>\s*<blockquote>", html), f"{page}: doctest outside an Examples section"
        leftovers = Leftovers()
        leftovers.feed(html)
        assert not leftovers.found, f"{page.relative_to(tmp_path)}: {leftovers.found[0]!r}"


def commands(path: str, command: Any) -> Iterator[str]:
    children = getattr(command, "commands", {})
    if not children:
        yield path
    for name, child in children.items():
        yield from commands(f"{path} {name}", child)


def test_every_command_has_an_example_of_its_json():
    from nearzip.cli import cli

    text = (DOCS / "scripting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```bash\n([^`]*?--json[^`]*?)^```\n\n```json$", text, flags=re.MULTILINE)
    for path in commands("nearzip", cli):
        assert any(f"{path} " in code for code in shown), f"docs/scripting.md has no example of {path} --json"


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Find your way")[2].partition("\n## ")[0]
    rows = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)[2:]]
    assert len(rows) > 10
    for _, files, names in rows:
        paths = [ROOT / name for name in re.findall(r"`([^`]+)`", files)]
        for path in paths:
            assert path.exists(), f"CONTRIBUTING names {path.relative_to(ROOT)}"
            source = path.read_text(encoding="utf-8")
            for name in re.findall(r"`([^`]+)`", names):
                assert re.search(rf"\b{name}\b", source), f"CONTRIBUTING looks for {name} in {path.name}"


def test_every_method_has_a_page():
    titles = re.findall(r"- ([\w, -]+): methods/", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    documented = {name for title in titles for name in title.split(", ")}
    assert documented == set(recipes._BUILT_IN_BY_NAME)


def test_contributing_names_scripts_and_files():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in re.findall(r"(?<![\w/.])\.?/?((?:scripts|tests|docs|experiments)/[\w./]+\w)", text):
        assert (ROOT / name).exists() or name.endswith(("NAME.md", "NNN-title.md")), f"CONTRIBUTING names {name}"
