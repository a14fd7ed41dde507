"""`docs/papers/delta-dnn.md` from `results/delta_dnn.json`."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt

from experiments.record import RESULTS
from experiments.tables import table

_IMAGES = RESULTS.parent.parent / "docs" / "images"
Row = dict[str, Any]

#: The paper's Table 1: size in MB; ratios of LZMA, Zstd, SZ and Delta-DNN with the bounds chosen, in percent;
#: accuracies of the original, SZ and Delta-DNN, in percent.
_TABLE_1 = {
    "VGG-16": (56.2, 1.096, 1.088, 4.415, 7, 7.394, 8, 92.45, 92.31, 92.32),
    "ResNet101": (162.6, 1.098, 1.078, 4.192, 5, 9.341, 10, 93.05, 92.87, 93.44),
    "GoogLeNet": (23.6, 1.097, 1.078, 3.565, 2, 7.811, 2, 94.95, 94.88, 94.95),
    "EfficientNet": (11.3, 1.099, 1.078, 3.204, 1, 10.266, 10, 84.82, 84.76, 84.88),
    "MobileNet": (8.9, 1.101, 1.077, 3.788, 3, 9.627, 9, 92.68, 92.57, 93.16),
    "ShuffleNet": (3.5, 1.097, 1.076, 3.192, 1, 11.291, 10, 86.29, 86.19, 86.18),
}
#: Its Table 2, VGG-16 by epoch: the same without the size.
_TABLE_2 = {
    "740": (1.090, 1.081, 4.154, 5, 5.702, 6, 91.19, 91.04, 91.25),
    "744": (1.090, 1.081, 3.959, 4, 7.130, 7, 91.99, 91.81, 91.92),
    "747": (1.089, 1.080, 4.277, 6, 6.626, 5, 92.13, 92.09, 92.07),
    "761": (1.089, 1.080, 3.775, 3, 6.717, 10, 92.23, 92.30, 92.16),
    "765": (1.088, 1.079, 4.310, 6, 7.394, 8, 92.45, 92.44, 92.32),
}
_HEAD = ["LZMA", "Zstd", "SZ", "Δ-DNN relative", "Δ-DNN absolute", "nearzip, bound of Δ-DNN relative",
         "nearzip, bound of Δ-DNN absolute", "original", "SZ", "Δ-DNN relative", "Δ-DNN absolute"]  # fmt: skip


def _with_bound(ratio: float, percent: float) -> str:
    return f"{ratio:.3f} ({percent:g} %)"


def _accuracy(point: Row) -> str:
    return f"{100 * point['accuracy']:.2f} % ({100 * point['accuracy_change']:+.2f})"


def _ours(row: Row) -> list[str]:
    relative, absolute = row["delta_dnn"]["relative"], row["delta_dnn"]["absolute"]
    cells = [f"{row['lossless'][name]:.3f}" for name in ("LZMA", "Zstd")]
    cells += [_with_bound(p["ratio"], 100 * p["eps"]) for p in (row["sz"], relative, absolute)]
    cells += [f"{p['nearzip_ratio']:.3f}" for p in (relative, absolute)]
    return [*cells, f"{100 * row['accuracy']:.2f} %", *(_accuracy(p) for p in (row["sz"], relative, absolute))]


def _theirs(figures: tuple[float, ...]) -> list[str]:
    lzma, zstd, sz, sz_eps, delta, eps, original, sz_accuracy, accuracy = figures
    cells = [f"{lzma:.3f}", f"{zstd:.3f}", _with_bound(sz, sz_eps), _with_bound(delta, eps), "", "", ""]
    change, sz_change = accuracy - original, sz_accuracy - original
    return [*cells, f"{original:.2f} %", f"{sz_accuracy:.2f} % ({sz_change:+.2f})",
            f"{accuracy:.2f} % ({change:+.2f})", ""]  # fmt: skip


def table_1(networks: dict[str, Row]) -> str:
    """Ratios and accuracies of the last version."""
    rows = [[name, f"{row['bytes'] / 1e6:.1f} MB", *_ours(row)] for name, row in networks.items()]
    rows += [[f"*{name} (paper)*", f"{figures[0]} MB", *_theirs(figures[1:])] for name, figures in _TABLE_1.items()]
    return table(["network", "size", *_HEAD], rows)


def table_2(epochs: dict[str, Row]) -> str:
    """The last epochs of a VGG whose accuracy improved."""
    rows = [[epoch, *_ours(row)] for epoch, row in epochs.items()]
    rows += [[f"*{epoch} (paper)*", *_theirs(figures)] for epoch, figures in _TABLE_2.items()]
    return table(["epoch", *_HEAD], rows)


def figure_1(networks: dict[str, Row]) -> str:
    """Fit and similarity of neighbouring versions."""
    rows = [
        [name, f"{found['slope']:.4f}", f"{found['intercept']:+.1e}", f"{found['r']:.5f}", f"{found['ssim']:.4f}"]
        for name, found in ((name, row["likeness"]) for name, row in networks.items())
    ]
    return table(["network", "slope", "intercept", "correlation", "SSIM"], rows)


def figure_5(networks: dict[str, Row]) -> str:
    """Ratios of the four back ends."""
    rows = []
    for name, row in networks.items():
        for eps, by_mode in row["backends"].items():
            for mode, ratios in by_mode.items():
                best = max(ratios.values())
                cells = [f"**{r:.2f}**" if r == best else f"{r:.2f}" for r in ratios.values()]
                rows.append([name, f"{100 * float(eps):g} %", mode, *cells])
    return table(["network", "bound", "reading", "RLE+LZMA", "RLE+Zstd", "LZMA", "Zstd"], rows)


def _draw_likeness(networks: dict[str, Row]) -> None:
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
    _save(figure, "delta-dnn-figure-1")


def _draw_sweeps(networks: dict[str, Row]) -> None:
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained", sharex=True)
    colours = plt.get_cmap("tab10").colors  # type: ignore[attr-defined]
    for column, mode in enumerate(("relative", "absolute")):
        for colour, (name, row) in zip(colours, networks.items(), strict=False):
            points = row["sweeps"][mode]
            eps = [100 * p["eps"] for p in points]
            style = {"marker": "o", "markersize": 3, "linewidth": 1.1, "color": colour, "label": name}
            panels[0, column].plot(eps, [100 * p["accuracy_change"] for p in points], **style)
            panels[1, column].plot(eps, [p["ratio"] for p in points], **style)
        panels[0, column].axhline(-0.2, color="#888888", linewidth=0.8, linestyle=":")
        panels[0, column].set(title=f"{mode} reading", yscale="symlog", xscale="log")
        panels[1, column].set(xlabel="error bound, %", yscale="log")
    panels[0, 0].set_ylabel("change of accuracy, points (Figure 3)")
    panels[1, 0].set_ylabel("compression ratio (Figure 4)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    _save(figure, "delta-dnn-figures-3-4")


def _save(figure: Any, name: str) -> None:
    _IMAGES.mkdir(exist_ok=True)
    figure.savefig(_IMAGES / f"{name}.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


def _commits(result: Row) -> str:
    commits = result.get("commits", {})
    if len(set(commits.values())) < 2:
        return f"commit {result['commit']}"
    return f"commit {commits['networks']}, Table 2 of {commits['epochs']}"


def page(result: Row) -> str:
    """The whole page; draws its pictures."""
    networks = result["networks"]
    _draw_likeness(networks)
    _draw_sweeps(networks)
    m, rule = result["machine"], result["rule"]
    return f"""# Delta-DNN: the paper's figures and tables, on networks trained here

Hu et al., ICPP 2020; [the method](../methods/delta-dnn.md). Made by `scripts/bench papers` from
`experiments/results/delta_dnn.json` (measured by `scripts/bench delta_dnn --data DIR`); nothing here is typed by hand
but the paper's own figures. {m["cpu"]}, {m["cores"]} cores; {_commits(result)}, {result["date"]}.

The paper trains six CIFAR-10 networks for hundreds of epochs on a GPU; here stand small networks on MNIST, CIFAR-10 and
tinyshakespeare after a few epochs, the last version against the one before ("quick": the quick set). Accuracies are on
{100 * result["held_out_share"]:g} % of the held-out data. Both readings of the paper's bound are shown: *relative* (the
step applies to log|x|, |A - A'| <= eps |A|) and *absolute* (equations 1 and 2 as printed, |A - A'| <= eps). Bounds are
chosen by Algorithm 1 among 1 % to 10 % with theta = {rule["theta_percent"]} points, alpha = {rule["alpha"]},
beta = {rule["beta"]} and, where none fits, the fallback of {100 * rule["lambda"]:g} %, measured like the others. SZ
runs on raw floats: SZ3 (with its predictors and without, the smaller) on log|x| with bound log(1 + eps), signs and
zeros apart.

## Table 1

{table_1(networks)}

Lossless ratios agree with the paper's. In the relative reading so does the order of Delta-DNN's ratios (7 to 11 in the
paper); its absolute reading at 1 % and more sets nearly every difference to zero on networks whose weights move by less
than that in an epoch, so that Algorithm 1 picks whatever bound happens to pass theta: the ratios in the hundreds are
the old version kept, not a better coder. nearzip stands beside at the very same bounds.

## Table 2

The last epochs of a small VGG whose test accuracy beat all before, each against the one before it.

{table_2(result["epochs"])}

## Figure 1: neighbouring versions are alike

{figure_1(networks)}

![Parameters of neighbouring versions](../images/delta-dnn-figure-1.png)

## Figures 3 and 4: accuracy and ratio over the error bound

The dotted line is the paper's theta, 0.2 points.

![Accuracy and compression ratio over the error bound](../images/delta-dnn-figures-3-4.png)

## Figure 5: the four back ends

The paper shows them at 10 %, where RLE+LZMA wins on all of its networks; 0.1 % is its default bound.

{figure_5(networks)}
"""
