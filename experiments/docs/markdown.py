"""Markdown shared by all pages: tables, ranges, and the circumstances of a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def span(values: Iterable[float], digits: int = 1) -> str:
    """`1.2 to 3.4`, or one number where both ends are printed alike."""
    found = list(values)
    low, high = (f"{end:.{digits}f}" for end in (min(found), max(found)))
    return low if low == high else f"{low} to {high}"


def machine(result: Mapping[str, Any]) -> str:
    """Processor, cores and Python of a result."""
    m = result["machine"]
    return f"{m['cpu']}, {m['cores']} cores, Python {m['python']}"


def circumstances(result: Mapping[str, Any], commit: str | None = None) -> str:
    """Machine, commit and date of a result, and its note; `commit` where rows have commits of their own."""
    note = f". {result['note'].removesuffix('.')}" if "note" in result else ""
    return f"{machine(result)}; commit {commits(commit or result['commit'])}, {result['date']}{note}"


def commits(*found: str) -> str:
    """Commits in order, each once; "+" at the end of one says that files of the tree differed from it."""
    return ", ".join(_commit(name) for name in dict.fromkeys(found))


def _commit(name: str) -> str:
    if name.endswith("+"):
        return f"{name.removesuffix('+')} with uncommitted changes"
    return name
