"""Bits against divergence, one picture for each update: six series, and axes limited to useful updates."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.docs.markdown import Row
from experiments.docs.results import measured
from experiments.lab.curves import TARGETS, envelope

#: Label: the entries whose best points it shows, colour, marker, line width.
_SERIES = {
    "nearzip calibrated": (("nearzip calibrated",), "#00798c", "D", 2.4),
    "nearzip": (("nearzip",), "#000000", "o", 2.4),
    "NNCodec": (("NNCodec trellis", "NNCodec plain"), "#d1495b", "v", 1.4),
    "SZ3": (("SZ3", "SZ3 NOPRED"), "#c46210", "s", 1.4),
    "delta-dnn": (("delta-dnn absolute", "delta-dnn relative"), "#30638e", "^", 1.4),
    "qd-compressor": (("qd-compressor",), "#8d5a97", "P", 1.4),
}
#: Below this divergence no prediction changes.
_LEAST_KL = 1e-6
#: Beyond it, a network has become another; shown where our own sweep lies there.
_USEFUL_KL = 3e-2


def draw(result: Row, pair: str) -> Figure:
    """Bits against KL, both logarithmic, up to where keeping the old version would do."""
    row = result["pairs"][pair]
    swept = dict(measured(row, lossless=False))
    figure, axes = plt.subplots(figsize=(8.0, 4.4), layout="constrained")
    kept = row["base"]["kl"]
    ours = envelope(swept["nearzip"])
    right = min(3 * kept, max(_USEFUL_KL, 1.5 * ours[len(ours) // 2][0]))
    shown: list[float] = []
    for label, (names, colour, mark, width) in _SERIES.items():
        curve = envelope([point for name in names for point in swept.get(name, ())])
        if not curve:
            continue
        axes.plot(*zip(*curve, strict=True), marker=mark, color=colour, label=label, linewidth=width,
                  markersize=5, zorder=3 if label.startswith("nearzip") else 2)  # fmt: skip
        shown += [bits for kl, bits in curve if _LEAST_KL <= kl <= right]
    axes.set(xscale="log", yscale="log", xlim=(_LEAST_KL, right), ylim=(0.8 * max(min(shown), 0.01), 1.25 * max(shown)),
             xlabel="KL(original || restored), nats per prediction: further left is better",
             ylabel="bits per parameter: lower is better", title=pair)  # fmt: skip
    _mark(axes, kept, right)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _mark(axes: Axes, kept: float, right: float) -> None:
    """Grid, plain numbers, the divergences of the table, and what keeping the old version costs."""
    axes.grid(alpha=0.25, which="major", linewidth=0.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for kl in TARGETS:
        axes.axvline(kl, color="#bbbbbb", linewidth=0.9, linestyle=":", zorder=1)
    if kept < right:
        axes.axvspan(kept, right, color="#eeeeee", zorder=0)
        axes.text(math.sqrt(kept * right), 0.97, "worse than\nkeeping the\nold version",
                  transform=axes.get_xaxis_transform(), ha="center", va="top", color="#555555", fontsize=7)  # fmt: skip
