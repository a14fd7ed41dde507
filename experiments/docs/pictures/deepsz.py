"""DeepSZ's Figures 5 and 6: assessment of each layer, and linearity."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.docs.markdown import Row
from experiments.docs.papers.deepsz_tables import TITLES, below, pairs


def draw(result: Row) -> Figure:
    """Figures 5 and 6 of each network."""
    networks = result["networks"]
    figure, axes = plt.subplots(1, 2 * len(networks), figsize=(8 * len(networks), 3.6), layout="constrained")
    for i, network in enumerate(networks):
        _plot_5(axes[2 * i], network)
        _plot_6(axes[2 * i + 1], network)
    return figure


def _plot_5(ax: Any, network: Row) -> None:
    for paper, tensor in network["layers"].items():
        points = sorted((t["bound"], 100 * t["loss"]) for t in _assessed(network) if t["layer"] == tensor)
        ax.plot(*zip(*points, strict=True), "o-", ms=3, label=paper)
    ax.set(xscale="log", xlabel="error bound of one layer", ylabel="points lost, held-out images",
           ylim=(-0.3, 3), title=f"{TITLES[network['network']]}, Figure 5")  # fmt: skip
    ax.legend()


def _assessed(network: Row) -> list[Row]:
    trials: list[Row] = network["no_margin"]["trials"]
    return trials


def _plot_6(ax: Any, network: Row) -> None:
    losses = 100 * pairs(network)
    slope, at_zero = np.polyfit(*below(losses / 100), 1)
    ends = np.array([0, 2])
    ax.plot(*losses, "o", ms=3)
    ax.plot(ends, ends, "k:", lw=1, label="equal")
    ax.plot(ends, slope * ends + 100 * at_zero, "-", lw=1, label=f"slope {slope:.2f}")
    ax.set(xlabel="sum of the layers' own losses, points", ylabel="loss together, points",
           title=f"{TITLES[network['network']]}, Figure 6")  # fmt: skip
    ax.legend()
