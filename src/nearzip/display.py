"""Human-readable sizes, escaping of untrusted names, and small tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["html_table", "human_bytes", "safe"]


def safe(text: object) -> str:
    """`text` with everything invisible, or that a terminal would act on, spelled out.

    Examples
    --------
    >>> safe("w\\x1b[2J\\n")
    'w\\\\x1b[2J\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def human_bytes(n: float) -> str:
    """Decimal units, three digits.

    Examples
    --------
    >>> human_bytes(999), human_bytes(1_234_567)
    ('999 B', '1.23 MB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            break
        n /= 1000
    if unit == "B":
        return f"{n:.0f} B"
    digits = 2 if n < 9.995 else 1 if n < 99.95 else 0
    return f"{n:.{digits}f} {unit}"


def html_table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """Names and values as notebooks show them, escaped. Rows whose value is None are left out.

    Examples
    --------
    >>> html_table("<a>", [("size", "1 B"), ("base", None)])
    '<table><caption>&lt;a&gt;</caption><tr><th>size</th><td>1 B</td></tr></table>'
    """
    lines = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(safe(value))}</td></tr>"
        for name, value in rows
        if value is not None
    ]
    return f"<table><caption>{html.escape(safe(title))}</caption>{''.join(lines)}</table>"
