"""Charts as SVG text. Every label is escaped here; colours are CSS classes of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nearzip.display import human_bytes, safe
from nearzip.store import Version

__all__ = ["Drawing", "Interval", "Series", "bars", "chains", "for_widths", "intervals", "lines", "shares"]

_WIDTH, _LEFT, _RIGHT = 880, 76, 12
#: Versions that are drawn one by one, points of a line, characters of a tensor's name.
_BARS, _POINTS, _NAME = 240, 600, 36
#: Versions whose chains are drawn.
_CHAINED = 80


class Drawing(str):
    """SVG, or nothing; a template takes it as it is."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


@dataclass(frozen=True)
class Series:
    """Points of one line, x increasing. `style` is a class of the page: a or b."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "a"


def _text(x: float, y: float, text: object, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(safe(text))}</text>'


def _drawing(title: str, height: float, parts: Iterable[str], width: float = _WIDTH) -> Drawing:
    label = html.escape(safe(title))
    return Drawing(
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{label}">' + "".join(parts) + "</svg>"
    )


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self._turned(self.low), self._turned(self.high), self._turned(value)
        return self.start + (self.stop - self.start) * ((at - low) / (high - low) if high > low else 0.5)

    def _turned(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, n: int) -> list[float]:
        """Round values within the scale, about `n`."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = [(1, 2, 5), (1,)][len(powers) > 3]
            return [tick for p in powers for step in steps if self.low <= (tick := step * 10.0**p) <= self.high]
        if not self.high > self.low:
            return [self.low]
        step = _round_step((self.high - self.low) / n)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(step: float) -> float:
    """1, 2 or 5 times a power of ten, not less."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _grid(y: _Scale, shown: Callable[[float], str]) -> list[str]:
    parts = []
    for tick in y.ticks(4):
        at = y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(_LEFT - 8, at + 4, shown(tick), "y"))
    return parts


def _numbers(ats: Sequence[tuple[int, float]], y: float) -> list[str]:
    """Version numbers below a chart, about ten of them."""
    step = max(1, -(-len(ats) // 12))
    return [_text(at, y, number, "x") for number, at in ats[::step]]


def bars(title: str, rows: Sequence[Version]) -> Drawing:
    """Bytes stored for each version, the newest if there are many; keyframes and deltas in different colours."""
    rows = rows[-_BARS:]
    top, bottom = 10.0, 190.0
    y = _Scale(0.0, float(max((row.n_stored for row in rows), default=0) or 1), bottom, top)
    slot = (_WIDTH - _LEFT - _RIGHT) / max(1, len(rows))
    width = min(40.0, slot * 0.8)
    parts, ats = _grid(y, human_bytes), []
    for i, row in enumerate(rows):
        middle = _LEFT + (i + 0.5) * slot
        height = max(1.0, bottom - y(row.n_stored))
        ats.append((row.number, middle))
        coded = "keyframe" if row.base is None else f"delta to {row.base}"
        parts.append(
            f'<rect class="{"key" if row.base is None else "delta"}" x="{middle - width / 2:.2f}" '
            f'y="{bottom - height:.1f}" width="{width:.2f}" height="{height:.1f}">'
            f"<title>version {row.number}: {human_bytes(row.n_stored)}, {coded}</title></rect>"
        )
    return _drawing(title, 212, [*parts, *_numbers(ats, 207)])


def lines(title: str, series: Sequence[Series], shown: Callable[[float], str], log: bool = False) -> Drawing:
    """Lines over version numbers; nothing where no value can be drawn. Points that are not finite leave no mark."""
    drawn = [Series(one.name, _thinned(_drawable(one.points, log)), one.style) for one in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        return Drawing("")
    top, bottom = 22.0 if len(drawn) > 1 else 10.0, 190.0
    x = _Scale(min(p[0] for p in points), max(p[0] for p in points), _LEFT + 8, _WIDTH - _RIGHT - 8)
    y = _Scale(min(p[1] for p in points), max(p[1] for p in points), bottom - 6, top + 6, log)
    parts = _grid(y, shown)
    if len(drawn) > 1:
        parts += [_text(_LEFT + 8 + 110 * i, 12, one.name, f"legend {one.style}") for i, one in enumerate(drawn)]
    for one in drawn:
        parts += _line(one, x, y, shown)
    whole = [(int(tick), x(tick)) for tick in x.ticks(10) if tick == int(tick)]
    return _drawing(title, 212, [*parts, *_numbers(whole, 207)])


def _drawable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    return [point for point in points if abs(point[1]) < 1e300 and (not log or point[1] > 0)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // _POINTS) or 1
    return points[::step] + (points[-1:] if (len(points) - 1) % step else [])


def _line(one: Series, x: _Scale, y: _Scale, shown: Callable[[float], str]) -> list[str]:
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in one.points)
    parts = [f'<polyline class="line {one.style}" points="{path}"/>']
    if len(one.points) <= _CHAINED:
        parts += [
            f'<circle class="dot {one.style}" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5">'
            f"<title>version {a:.0f}: {html.escape(shown(b))}</title></circle>"
            for a, b in one.points
        ]
    return parts


def chains(title: str, rows: Sequence[Version]) -> Drawing:
    """A dot for each version, as deep as the deltas before it are many; lines lead to what it is coded against."""
    rows = rows[-_CHAINED:]
    deepest = max((row.depth for row in rows), default=0)
    spacing = min(24.0, 240.0 / max(1, deepest))
    slot = (_WIDTH - _LEFT - _RIGHT) / max(1, len(rows))
    ats = {row.number: (_LEFT + (i + 0.5) * slot, 14 + max(0, row.depth) * spacing) for i, row in enumerate(rows)}
    bottom = 14 + deepest * spacing
    step = max(1, math.ceil(18 / spacing))
    parts = [_text(_LEFT - 8, 18 + depth * spacing, depth or "keyframe", "y") for depth in range(0, deepest + 1, step)]
    for row in rows:
        if row.base in ats:
            (x1, y1), (x2, y2) = ats[row.number], ats[row.base]
            parts.append(f'<line class="link" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for row in rows:
        x, y = ats[row.number]
        kind = "gone" if row.pruned is not None else "key" if row.base is None else "delta"
        coded = "keyframe" if row.base is None else f"on {row.base}, depth {row.depth}"
        gone = ", pruned" if row.pruned is not None else ""
        parts.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{min(5.0, max(2.0, slot * 0.4)):.1f}">'
            f"<title>version {row.number}: {coded}{gone}</title></circle>"
        )
    return _drawing(title, bottom + 30, [*parts, *_numbers([(n, x) for n, (x, _) in ats.items()], bottom + 25)])


def shares(title: str, items: Sequence[tuple[str, float, str]], limit: float | None = None) -> Drawing:
    """Bars from left to right: what, how much, and the words beside it. A line is drawn at `limit`; above it is red."""
    if not items:
        return Drawing("")
    left, longest, row = 270.0, 330.0, 20.0
    scale = _Scale(0.0, max([value for _, value, _ in items] + [limit or 0.0]) or 1.0, left, left + longest)
    parts = []
    for i, (name, value, words) in enumerate(items):
        y = 4 + i * row
        name = safe(name)
        short = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
        kind = "over" if limit is not None and value > limit else "key"
        width = max(1.0, scale(value) - left) if value else 0.0
        parts += [
            _text(left - 8, y + 13, short, "name"),
            f'<rect class="{kind}" x="{left:.0f}" y="{y + 3:.0f}" width="{width:.1f}" height="13">'
            f"<title>{html.escape(name)}: {html.escape(safe(words))}</title></rect>",
            _text(_beside(left + width, None if limit is None else scale(limit)), y + 13, words, "value"),
        ]
    height = len(items) * row + 8
    if limit is not None:
        at = scale(limit)
        parts.append(f'<line class="limit" x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height:.0f}"/>')
    return _drawing(title, height, parts)


def _beside(end: float, line: float | None) -> float:
    """The x position of a label after a bar, moved so that it does not cross a line."""
    return (line if line is not None and end <= line < end + 60 else end) + 6


@dataclass(frozen=True)
class Interval:
    """A row of `intervals`: a value, its interval and its limit. `kind` is a class of the page: good, bad, open."""

    name: str
    value: float
    low: float
    high: float
    limit: float
    words: str
    kind: str


def intervals(title: str, rows: Sequence[Interval], shown: Callable[[float], str]) -> Drawing:
    """One row an interval: a dot at the value, a line over the interval, a tick at the limit; zero is marked.

    Drawn twice, for wide and for narrow pages; the style sheet hides one.
    """
    if not rows:
        return Drawing("")
    return for_widths(*(_intervals(title, rows, shown, layout) for layout in (_WIDE, _NARROW)))


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a row are: its name, its line from `left` to `right`, its words."""

    width: float
    left: float
    right: float
    row: float
    line: float
    text: float
    name: str
    n_ticks: int


#: Beside each other; and for phones: name and words above the line.
_WIDE = _Layout(_WIDTH, 240.0, _WIDTH - 110.0, 20.0, 10.0, 14.0, "name", 6)
_NARROW = _Layout(360.0, 8.0, 352.0, 36.0, 26.0, 14.0, "above", 3)


def _intervals(title: str, rows: Sequence[Interval], shown: Callable[[float], str], at: _Layout) -> Drawing:
    low = min(0.0, *(min(row.low, row.value) for row in rows))
    high = max(0.0, *(max(row.high, row.limit) for row in rows))
    x, bottom = _Scale(low, high, at.left, at.right), len(rows) * at.row + 6
    wide = at is _WIDE
    parts = []
    for tick in x.ticks(at.n_ticks):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom:.0f}"/>')
        # A number at the edge of a narrow drawing would be cut.
        parts.append(_text(min(max(x(tick), 14.0), at.width - 14.0), bottom + 16, shown(tick), "x"))
    parts.append(f'<line class="link" x1="{x(0.0):.1f}" x2="{x(0.0):.1f}" y1="0" y2="{bottom:.0f}"/>')
    for i, row in enumerate(rows):
        top = 3 + i * at.row
        y = top + at.line
        name = safe(row.name)
        short = name if len(name) <= _NAME else "…" + name[1 - _NAME :]
        parts += [
            _text(at.left - 8 if wide else at.left, top + at.text, short, at.name),
            f'<line class="range {row.kind}" x1="{x(row.low):.1f}" x2="{x(row.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<line class="limit" x1="{x(row.limit):.1f}" x2="{x(row.limit):.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}"/>',
            f'<circle class="dot {row.kind}" cx="{x(row.value):.1f}" cy="{y:.1f}" r="4">'
            f"<title>{html.escape(name)}: {html.escape(safe(row.words))}</title></circle>",
            _text(at.right + 12, top + at.text, row.words, "value") if wide else
            _text(at.right, top + at.text, row.words, "value end"),
        ]  # fmt: skip
    return _drawing(title, bottom + 22, parts, at.width)


def for_widths(wide: str, narrow: str) -> Drawing:
    """A drawing for wide pages and one for narrow ones, of which a page shows one."""
    return Drawing(f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>')
