"""Pictures as data URIs and charts of a certificate's page: no library for images, nothing fetched."""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from nearzip.display import safe
from nearzip.report.svg import Drawing, for_widths
from nearzip.tensors import Array

__all__ = ["heat_map", "pairs_of_bars", "png_uri", "scatter"]

#: Small pictures are enlarged by whole factors up to about this many pixels.
_SIDE = 128
_SIZE, _MARGIN = 420, 52
#: Points of a scatter that are drawn.
_MAX_POINTS = 2000


def png_uri(image: Array) -> str:
    """A picture (height, width) or (height, width, 3), 0 to 1, as the URI of a PNG."""
    pixels = np.clip(np.nan_to_num(np.asarray(image, np.float64)), 0, 1)
    pixels = np.round(255 * (pixels[..., None].repeat(3, -1) if pixels.ndim == 2 else pixels)).astype(np.uint8)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, -1)
    factor = max(1, _SIDE // max(pixels.shape[:2]))
    pixels = pixels.repeat(factor, 0).repeat(factor, 1)
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def heat_map(values: Array, largest: float) -> Array:
    """An attribution map as a picture: white nothing, red for the class, blue against it; readable on any page."""
    x = np.clip(np.asarray(values, np.float64) / (largest or 1.0), -1, 1)
    while x.ndim > 2:
        x = x.sum(0)
    strength = np.abs(x)[..., None]
    tint = np.where(x[..., None] > 0, np.array([0.72, 0.11, 0.09]), np.array([0.04, 0.33, 0.68]))
    found: Array = 1 - strength * (1 - tint)
    return found


def _text(x: float, y: float, text: object, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{html.escape(safe(text))}</text>'


def _svg(width: float, height: float, label: str, parts: Sequence[str], kind: str = "") -> Drawing:
    shown = html.escape(safe(label))
    start = f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{shown}">'
    return Drawing(start + "".join(parts) + "</svg>")


def scatter(label: str, before: Array, after: Array) -> Drawing:
    """Distances of each sample under both networks, on logarithmic axes; a censored one lies on the edge."""
    low, high = 2.0**-7, 2.0**6.5
    first, last = float(_MARGIN), float(_SIZE - 12)

    def at(value: float) -> float:
        value = min(max(value, low), high)
        return first + (last - first) * math.log(value / low) / math.log(high / low)

    parts = []
    for power in range(-6, 7, 2):
        x = at(2.0**power)
        name = f"1/{2**-power}" if power < 0 else str(2**power)
        parts += [
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_SIZE - last:.1f}" y2="{_SIZE - first:.1f}"/>',
            f'<line class="grid" x1="{first:.1f}" x2="{last:.1f}" y1="{_SIZE - x:.1f}" y2="{_SIZE - x:.1f}"/>',
            _text(x, _SIZE - first + 18, name, "x"), _text(first - 6, _SIZE - x + 4, name, "y"),
        ]  # fmt: skip
    ends = (at(low), at(high))
    parts.append(f'<line class="link" x1="{ends[0]:.1f}" y1="{_SIZE - ends[0]:.1f}" x2="{ends[1]:.1f}" '
                 f'y2="{_SIZE - ends[1]:.1f}"/>')  # fmt: skip
    for x, y in list(zip(before.tolist(), after.tolist(), strict=True))[:_MAX_POINTS]:
        kind = "bad" if y < x / 2 else "a"
        parts.append(f'<circle class="dot {kind}" cx="{at(x):.1f}" cy="{_SIZE - at(y):.1f}" r="2.2"/>')
    parts.append(_text((first + last) / 2, _SIZE - 12, "distance under the original", "x"))
    turned = f"translate(14 {_SIZE / 2:.0f}) rotate(-90)"
    parts.append(f'<text class="x" transform="{turned}">distance after compression</text>')
    return _svg(_SIZE, _SIZE, label, parts, "square")


def pairs_of_bars(label: str, rows: Sequence[tuple[str, float, float, str]]) -> Drawing:
    """Two bars a row, from 0 to 1: before and after, and words behind them; above them on narrow pages."""
    return for_widths(_bars(label, rows, 880, 150, 520, 30, 0), _bars(label, rows, 360, 8, 344, 46, 16))


def _bars(
    label: str, rows: Sequence[tuple[str, float, float, str]], total: int, left: int, width: int, height: int, top: int
) -> Drawing:
    """`top`: how far the bars are below a row's words; 0: the words are beside them."""
    parts = []
    for i, (name, before, after, words) in enumerate(rows):
        y = 4 + i * height
        short = name if len(name) <= 20 else name[:19] + "…"
        ends = [_text(left, y + 12, short, "above"), _text(left + width, y + 12, words, "value end")]
        sides = [_text(left - 8, y + 16, short, "name"), _text(left + width + 10, y + 16, words, "value")]
        parts += [
            *(ends if top else sides),
            f'<rect class="delta" x="{left}" y="{y + top + 2}" width="{max(0.5, width * before):.1f}" height="10"/>',
            f'<rect class="key" x="{left}" y="{y + top + 13}" width="{max(0.5, width * after):.1f}" height="10"/>',
        ]
    return _svg(total, len(rows) * height + 8, label, parts)
