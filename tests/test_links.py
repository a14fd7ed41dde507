"""Links between the pages: every file and every heading that a page names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for folder, pattern in ((ROOT, "*.md"), (ROOT / "docs", "**/*.md"), (ROOT / "experiments", "*.md"))
    for path in folder.glob(pattern)
)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """A page without its code blocks."""
    return _CODE.sub("", path.read_text())


def anchor(heading: str) -> str:
    """The anchor that GitHub and MkDocs make of a heading.

    >>> anchor("Biases, norms: `finer=1`?")
    'biases-norms-finer1'
    """
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """Of all headings of a page, and of explicit ids."""
    text = prose(path)
    found: set[str] = set(re.findall(r'<a (?:id|name)="([^"]+)"', text))
    for heading in re.findall(r"^#{1,6} +(.+?)#*$", text, re.MULTILINE):
        name, n = anchor(heading), 1
        while name in found:
            name, n = f"{anchor(heading)}-{n}", n + 1
        found.add(name)
    return found


def links(path: Path) -> list[str]:
    return [link or image for link, image in _LINK.findall(prose(path))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, fragment = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link}: no such file"
        if fragment:
            assert fragment in anchors(path), f"{link}: no such heading"


def test_anchors_are_made_as_github_makes_them():
    assert anchor("Biases, norms: `finer=1`?") == "biases-norms-finer1"
    assert anchor("Updating a client") == "updating-a-client"
    assert anchor("A [link](x.md) in `code`") == "a-link-in-code"


def test_wrong_links_are_found(tmp_path: Path):
    page = tmp_path / "a.md"
    page.write_text("# One\n\n[x](#two) [y](b.md)\n\n```text\n[z](c.md)\n```\n\n![p](p.png)\n")
    assert links(page) == ["#two", "b.md", "p.png"]
    assert anchors(page) == {"one"}
