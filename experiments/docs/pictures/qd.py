"""QD-Compressor's Figures 11 and 12."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.docs.markdown import Row
from experiments.docs.papers.feedback import complete, mean
from experiments.papers.qd.feedback import WAYS


def draw_ratios(result: Row) -> Figure:
    """Figure 12: the ratio of every version."""
    chains = result["chains"]
    long = {name: row for name, row in chains.items() if row["updates"] > 2}
    columns = 4
    figure, panels = plt.subplots(-(-len(long) // columns), columns, figsize=(3.3 * columns, 6), layout="constrained",
                                  squeeze=False)  # fmt: skip
    for axes in panels.flat[len(long) :]:
        axes.set_axis_off()
    for axes, (name, row) in zip(panels.flat, long.items(), strict=False):
        for label in ("SZ", "Delta-DNN", "LC, 3 bits", "QD, 8 bits", "QD, 4-8 bits"):
            sizes = row["ways"][label]["bytes"]
            axes.plot(range(1, len(sizes) + 1), [row["version_bytes"] / n for n in sizes], marker="o", markersize=3,
                      label=label)  # fmt: skip
        axes.set(yscale="log", xticks=range(1, row["updates"] + 1, 1 + row["updates"] // 6))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(name, fontsize=9)
    figure.supxlabel("update")
    figure.supylabel("compression ratio")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    return figure


def draw_accuracy(result: Row) -> Figure:
    """Figure 11: accuracy by epoch, mean over the seeds."""
    networks = complete(result)
    figure, axes = plt.subplots(
        1, len(networks), figsize=(4.2 * len(networks), 3.6), layout="constrained", squeeze=False
    )
    for place, (name, n) in zip(axes[0], networks.items(), strict=True):
        for way in WAYS:
            runs = n["accuracy"][way]["accuracy"]
            means = [100 * mean([run[i] for run in runs]) for i in range(len(runs[0]))]
            style = (
                {"linestyle": "--"} if way.endswith("*") else {"linewidth": 2.4 if way in ("full precision",) else 1.4}
            )
            place.plot(range(1, len(means) + 1), means, marker="o", markersize=3, label=way, **style)
        place.set(title=name, xlabel="epoch", ylabel="accuracy of what is restored, %")
        place.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    return figure
