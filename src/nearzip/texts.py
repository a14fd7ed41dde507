"""Texts for people: sizes, and names from files made harmless."""

from __future__ import annotations

__all__ = ["human_bytes", "safe"]


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
