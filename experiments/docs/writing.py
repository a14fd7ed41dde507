"""Write every block, page and picture of the documentation from the results; `--check` names what is stale."""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.docs.catalogue import BLOCKS, PAGES, Block, Page, Picture, draw, load, pictures
from experiments.lab.record import RESULTS

ROOT = RESULTS.parents[1]
_TEMPLATES = Path(__file__).parent / "templates"
#: PNG keyword under which a picture keeps the digest of what it was drawn from.
_DIGEST = "Comment"


def markers(name: str) -> tuple[str, str]:
    """First and last line of a block."""
    return f"<!-- {name}:begin -->\n", f"\n<!-- {name}:end -->"


def filled(block: Block, text: str) -> str:
    """The page's text with a freshly rendered block. Raises SystemExit if the page lacks the markers."""
    begin, end = markers(block.name)
    rendered = block.render(*(load(name) for name in block.results)).strip("\n")
    new, n = re.subn(f"{begin}.*?{end}", lambda _: begin + rendered + end, text, flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"{block.page}: needs the markers of block {block.name!r} once, has them {n} times")
    return new


def rendered(page: Page) -> str:
    """The page's whole text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,  # noqa: S701 - Markdown of our own results
    )  # fmt: skip
    template = environment.get_template(f"{page.page.removeprefix('docs/')}.j2")
    return template.render(page.context(*(load(name) for name in page.results)))


def digest(picture: Picture) -> str:
    """Hash of a picture's results and of the code that draws it."""
    found = hashlib.sha256(repr((picture.draw, picture.arguments, picture.dpi)).encode())
    code = ROOT / f"{picture.module.replace('.', '/')}.py"
    for path in (*(RESULTS / f"{name}.json" for name in picture.results), code):
        found.update(path.read_bytes().replace(b"\r\n", b"\n"))  # as Git stores them
    return found.hexdigest()


def write_picture(picture: Picture) -> None:
    """Draw, and keep the digest in the file."""
    import matplotlib.pyplot as plt

    figure = draw(picture)
    figure.savefig(ROOT / picture.image, dpi=picture.dpi, metadata={"Software": None, _DIGEST: digest(picture)})
    plt.close(figure)


def is_current(picture: Picture) -> bool:
    """Whether the file was drawn from today's results by today's code."""
    path = ROOT / picture.image
    return path.is_file() and f"{_DIGEST}\0{digest(picture)}".encode() in path.read_bytes()[:4096]


def stale() -> Iterator[str]:
    """Blocks, pages and pictures that differ from what the results and the code give."""
    for block in BLOCKS:
        text = (ROOT / block.page).read_text("utf-8")
        if filled(block, text) != text:
            yield f"{block.page}, block {block.name!r}"
    for page in PAGES:
        if rendered(page) != (ROOT / page.page).read_text("utf-8"):
            yield page.page
    yield from (picture.image for picture in pictures() if not is_current(picture))


def write() -> Iterator[str]:
    """Write what is stale; names of the files written."""
    for page in PAGES:
        path, text = ROOT / page.page, rendered(page)
        if not path.is_file() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            yield page.page
    for name in dict.fromkeys(block.page for block in BLOCKS):
        path = ROOT / name
        old = text = path.read_text("utf-8")
        for block in BLOCKS:
            text = filled(block, text) if block.page == name else text
        if text != old:
            path.write_text(text, "utf-8")
            yield name
    for picture in pictures():
        if not is_current(picture):
            write_picture(picture)
            yield picture.image


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if anything is stale")
    options = parser.parse_args(arguments)
    found = list(stale() if options.check else write())
    for name in found:
        print(f"stale: {name}" if options.check else f"wrote {name}", file=sys.stderr)
    if options.check and found:
        raise SystemExit("run: python -m experiments docs")
