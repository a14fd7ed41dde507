"""Tables for people, laid out for the width of the terminal: text gives way, numbers are never cut."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from nearzip.display import safe

__all__ = ["Rows", "cut", "width_of"]

_GAP = "  "
#: Columns of text keep so many characters where space is short; a heading over numbers keeps so many.
_LEAST, _LEAST_HEADING = 12, 6


class Rows:
    """A table; `columns` maps headings to "left" (text) or "right" (numbers).

    Where it is wider than the terminal, first texts get shorter, in the middle. A cell of the first column that still
    does not fit has a line of its own, above the rest of its row. Wider numbers are printed as they are.

    Examples
    --------
    >>> rows = [["w", "9"], ["model.layers.31.q_proj.weight", "1,234,567"]]
    >>> table = Rows({"tensor": "left", "values": "right"}, rows)
    >>> print(table.text(24))
    tensor            values
    ------------------------
    w                      9
    model.layer...roj.weight
                   1,234,567
    """

    def __init__(self, columns: Mapping[str, str], rows: Iterable[Iterable[object]]):
        self._heads = [safe(heading) for heading in columns]
        self._numbers = [side == "right" for side in columns.values()]
        self._rows = [[safe(cell) for cell in row] for row in rows]

    def text(self, width: int | None, unicode: bool = False) -> str:
        """Lines of at most `width` characters, as far as numbers allow; None: as long as they need to be."""
        dots, rule = ("\N{HORIZONTAL ELLIPSIS}", "\N{BOX DRAWINGS LIGHT HORIZONTAL}") if unicode else ("...", "-")
        widths = self._widths(width)
        lines = [self._line(self._heads, widths, dots)]
        whole = sum(widths) + len(_GAP) * (len(widths) - 1)
        lines.append(rule * whole)
        for row in self._rows:
            first = row[0]
            if _length(first) > widths[0] and not self._numbers[0]:
                lines.append(cut(first, max(whole, widths[0]), dots))
                row = ["", *row[1:]]
            lines.append(self._line(row, widths, dots))
        return "\n".join(line.rstrip() for line in lines)

    def _widths(self, width: int | None) -> list[int]:
        cells = [[head, *(row[i] for row in self._rows)] for i, head in enumerate(self._heads)]
        widths = [max(map(_length, column)) for column in cells]
        if width is None:
            return widths
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
        for i, least in self._givers(cells):
            given = min(max(excess, 0), max(widths[i] - least, 0))
            widths[i] -= given
            excess -= given
        return widths

    def _givers(self, cells: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
        """Columns in the order in which they get narrower, and how narrow."""
        texts = [i for i, is_number in enumerate(self._numbers) if not is_number]
        found = [(i, max(_LEAST, _length(self._heads[i]))) for i in texts]
        for i, is_number in enumerate(self._numbers):
            if is_number:
                numbers = max((_length(cell) for cell in cells[i][1:]), default=0)
                found.append((i, max(_LEAST_HEADING, numbers)))
        return found

    def _line(self, row: Sequence[str], widths: Sequence[int], dots: str) -> str:
        cells = []
        for cell, width, is_number in zip(row, widths, self._numbers, strict=True):
            fitting = cut(cell, width, dots)
            space = " " * (width - _length(fitting))
            cells.append(space + fitting if is_number else fitting + space)
        return _GAP.join(cells)


def cut(text: str, width: int, dots: str = "...") -> str:
    """`text` in at most `width` characters: its beginning and its end.

    Examples
    --------
    >>> cut("model.layers.31.weight", 14), cut("weight", 14)
    ('model....eight', 'weight')
    """
    if _length(text) <= width:
        return text
    left = max(width - len(dots), 0)
    end = left // 2
    start = left - end
    beginning, ending = text[:start], text[len(text) - end :]
    while _length(beginning) + _length(ending) > left:  # wide characters
        beginning, ending = beginning[:-1], ending[1:]
    return beginning + dots[: max(width, 0)] + ending


def _length(text: str) -> int:
    """How many places a terminal takes for `text`."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def width_of(stream: TextIO) -> int | None:
    """The width for tables: that of the terminal, or COLUMNS. None for a file or a pipe, whose reader cuts itself."""
    if stream.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def is_unicode(stream: TextIO) -> bool:
    """Whether a stream takes any character."""
    return (stream.encoding or "").lower().replace("-", "").startswith("utf")


def printed(table: Rows, err: bool = False) -> str:
    """The text of a table for stdout, or for stderr."""
    stream = sys.stderr if err else sys.stdout
    if is_unicode(stream):
        return table.text(width_of(stream), unicode=True)
    encoding = stream.encoding or "ascii"
    return table.text(width_of(stream)).encode(encoding, "backslashreplace").decode(encoding)
