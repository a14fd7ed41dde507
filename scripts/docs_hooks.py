"""Hooks of MkDocs: pages made from what stands elsewhere in the repository, so that no text exists twice.

`CHANGELOG.md`, `CONTRIBUTING.md` and `SECURITY.md` become pages, and so does the help of every command. Links are
written for a reader of the repository; those that lead out of `docs/` are turned to the page or left out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

#: Files of the repository that are pages of the site.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
COMMANDS = "reference/command-line.md"

_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, COMMANDS, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    home = posixpath.join("docs", posixpath.dirname(uri)) if uri not in PAGES.values() else ""
    return _LINK.sub(lambda match: _turned(match, uri, home), markdown)


def _turned(match: re.Match[str], uri: str, home: str) -> str:
    """A link as the site needs it; only its text if what it leads to is no page."""
    text, target = match[1], match[2]
    if ":" in target or target.startswith("#"):
        return match[0]
    path, hash_, anchor = target.partition("#")
    whole = posixpath.normpath(posixpath.join(home, path))
    if whole in PAGES:
        page = PAGES[whole]
    elif whole.startswith("docs/"):
        page = whole.removeprefix("docs/")
    else:
        return text
    return f"[{text}]({posixpath.relpath(page, posixpath.dirname(uri) or '.')}{hash_}{anchor})"


# ---- the command line ------------------------------------------------------------------------------------------


def command_line() -> str:
    from nearzip.cli import cli

    parts = ["# Command line", "The help of every command. [Scripting](../scripting.md): JSON output and exit codes."]
    for path, command in _commands("nearzip", cli):
        context = click.Context(command, info_name=path, max_content_width=100, terminal_width=100)
        parts += [f"## {path}", f"```text\n{command.get_help(context)}\n```"]
    return "\n\n".join(parts) + "\n"


def _commands(path: str, command: Any) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, child in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(f"{path} {name}", child)
