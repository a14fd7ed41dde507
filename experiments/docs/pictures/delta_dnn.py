"""Delta-DNN's Figures 1, 3 and 4."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.docs.markdown import Row
from experiments.docs.papers.delta_dnn import percent_change


def draw_likeness(result: Row) -> Figure:
    """Figure 1: parameters of neighbouring versions."""
    networks = result["networks"]
    figure, panels = plt.subplots(3, 3, figsize=(9, 8.4), layout="constrained")
    for axes, (name, row) in zip(panels.flat, networks.items(), strict=False):
        x, y = row["likeness"]["sample"]
        axes.scatter(x, y, s=4, alpha=0.5, linewidths=0, color="#30638e")
        ends = [min(x), max(x)]
        fit = row["likeness"]
        axes.plot(ends, [fit["slope"] * v + fit["intercept"] for v in ends], color="#d1495b", linewidth=1)
        axes.set_title(f"{name}: SSIM {fit['ssim']:.3f}", fontsize=9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("parameter in the older version")
    figure.supylabel("parameter in the newer version")
    return figure


_MODES = {"relative": ("#30638e", "o"), "absolute": ("#d1495b", "s")}
#: Changes of accuracy, percent: up to the first, axes are linear, beyond logarithmic, so that they hold every point.
_LINEAR_PERCENT = 1.0


def draw_accuracy(result: Row) -> Figure:
    """Figure 3: change of accuracy over the error bound, a panel for each network."""
    figure, panels = _panels(result["networks"])
    for axes, row in zip(panels.flat, result["networks"].values(), strict=False):
        for mode, (colour, mark) in _MODES.items():
            eps = [100 * point["eps"] for point in row["sweeps"][mode]]
            changes = [percent_change(point) for point in row["sweeps"][mode]]
            axes.plot(eps, changes, marker=mark, markersize=3.5, linewidth=1.2, color=colour, label=f"{mode} reading")
        axes.axhline(-result["rule"]["theta_percent"], color="#888888", linewidth=0.9, linestyle=":")
        axes.set_yscale("symlog", linthresh=_LINEAR_PERCENT, linscale=1.5)
        axes.set(ylim=(-130, 5), yticks=(-100, -10, -1, 0, 1))
        axes.yaxis.set_major_formatter("{x:g}")
    figure.supylabel("change of accuracy, % of the original's")
    return figure


def draw_ratio(result: Row) -> Figure:
    """Figure 4: compression ratio over the error bound, a panel for each network."""
    figure, panels = _panels(result["networks"])
    for axes, row in zip(panels.flat, result["networks"].values(), strict=False):
        for mode, (colour, mark) in _MODES.items():
            eps = [100 * point["eps"] for point in row["sweeps"][mode]]
            ratios = [point["ratio"] for point in row["sweeps"][mode]]
            axes.plot(eps, ratios, marker=mark, markersize=3.5, linewidth=1.2, color=colour, label=f"{mode} reading")
        axes.set(yscale="log", ylim=(2, 2e4))
    figure.supylabel("compression ratio")
    return figure


def _panels(networks: dict[str, Row]) -> tuple[Figure, Any]:
    """Three by three panels with the error bound below, and one legend."""
    figure, panels = plt.subplots(3, 3, figsize=(9.5, 8), layout="constrained", sharex=True, sharey=True)
    for axes, name in zip(panels.flat, networks, strict=False):
        axes.set(xscale="log", xticks=(0.01, 0.1, 1, 10))
        axes.set_title(name, fontsize=10)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.supxlabel("error bound, %")
    handles = [plt.Line2D([], [], color=colour, marker=mark, label=f"{mode} reading")
               for mode, (colour, mark) in _MODES.items()]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=10, frameon=False)
    return figure, panels
