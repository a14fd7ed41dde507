"""Bits against divergence: a picture for each update, a panel for each other method, beside nearzip twice."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.docs.markdown import Row
from experiments.docs.results import measured
from experiments.lab.curves import TARGETS, envelope

Curve = list[tuple[float, float]]
#: In every panel: label, colour, marker.
_OURS = (("nearzip calibrated", "#00798c", "D"), ("nearzip", "#000000", "o"))
#: One in each panel: the entries whose best points it shows.
_OTHERS = {
    "NNCodec": ("NNCodec trellis", "NNCodec plain"),
    "SZ3": ("SZ3", "SZ3 NOPRED"),
    "delta-dnn": ("delta-dnn absolute", "delta-dnn relative"),
    "qd-compressor": ("qd-compressor",),
}
_OTHER_COLOUR = "#d1495b"
_LIMIT_COLOUR = "#6c757d"


def draw(result: Row, limits: Row, pair: str) -> Figure:
    """Bits against KL, both logarithmic; the axes hold every point of the methods. Dashed: the Gaussian limit."""
    row = result["pairs"][pair]
    limit = _limit(limits, pair)
    swept = dict(measured(row, lossless=False))
    ours = {label: _curve(swept, (label,)) for label, _, _ in _OURS}
    others = {label: curve for label, names in _OTHERS.items() if (curve := _curve(swept, names))}
    figure, panels = plt.subplots(2, 2, figsize=(8.4, 6.4), layout="constrained", sharey=True)
    held = [point for curve in ours.values() for point in curve]
    bits = _range(bits for curve in (held, *others.values()) for _, bits in curve)
    for axes, (label, curve) in zip(panels.flat, others.items(), strict=False):
        for name, colour, mark in _OURS:
            axes.plot(*_columns(ours[name]), marker=mark, color=colour, label=name, linewidth=2.2, markersize=4.5)
        axes.plot(*_columns(limit), color=_LIMIT_COLOUR, linewidth=1.5, linestyle="--")
        axes.plot(*_columns(curve), marker="v", color=_OTHER_COLOUR, label=label, linewidth=1.5, markersize=4.5)
        axes.set_title(label, color=_OTHER_COLOUR, fontsize=10)
        axes.set(xscale="log", yscale="log", xlim=_range(kl for kl, _ in held + curve), ylim=bits)
        _mark(axes, row["base"]["kl"])
    for axes in panels.flat[len(others) :]:
        axes.set_axis_off()
    handles = [plt.Line2D([], [], color=colour, marker=mark, linewidth=2.2, label=name) for name, colour, mark in _OURS]
    handles.append(plt.Line2D([], [], color=_OTHER_COLOUR, marker="v", label="the method above the panel"))
    if limit:
        handles.append(plt.Line2D([], [], color=_LIMIT_COLOUR, linestyle="--", label="limit of a Gaussian code"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, title=pair)
    figure.supxlabel("KL(original || restored), nats per prediction: further left is better", fontsize=10)
    figure.supylabel("bits per parameter: lower is better", fontsize=10)
    return figure


def _curve(swept: dict[str, list[Row]], names: tuple[str, ...]) -> Curve:
    """The best points of some entries."""
    return envelope([point for name in names for point in swept.get(name, ())])


def _limit(limits: Row, pair: str) -> Curve:
    """Of the held-out data, at what its samples were measured to diverge by."""
    row = limits["pairs"].get(pair)
    return [] if row is None else envelope(row["limits"]["held-out data"]["points"])


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [kl for kl, _ in curve], [bits for _, bits in curve]


def _range(values: Iterable[float]) -> tuple[float, float]:
    """From below the least to above the largest, so that markers are whole."""
    found = list(values)
    return min(found) / 1.5, max(found) * 1.5


def _mark(axes: Axes, kept: float) -> None:
    """Grid, plain numbers, the divergences of the table, and what keeping the old version costs."""
    right = axes.get_xlim()[1]
    axes.grid(alpha=0.25, which="major", linewidth=0.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for kl in TARGETS:
        axes.axvline(kl, color="#bbbbbb", linewidth=0.9, linestyle=":", zorder=1)
    if kept < right:
        axes.axvspan(kept, right, color="#eeeeee", zorder=0)
        axes.text(0.985, 0.97, "grey: worse than\nkeeping the old version", transform=axes.transAxes, ha="right",
                  va="top", color="#555555", fontsize=7)  # fmt: skip
