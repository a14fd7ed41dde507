"""`docs/papers/delta-dnn.md` from `results/delta_dnn.json`."""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib.pyplot as plt

from experiments.docs.tables import table
from experiments.lab.record import RESULTS

_IMAGES = RESULTS.parent.parent / "docs" / "images"
Row = dict[str, Any]

#: The paper's Table 1: size in MB; ratios of LZMA, Zstd, SZ and Delta-DNN with the bounds chosen, in percent;
#: accuracies of the original, SZ and Delta-DNN, in percent.
TABLE_1 = {
    "VGG-16": (56.2, 1.096, 1.088, 4.415, 7, 7.394, 8, 92.45, 92.31, 92.32),
    "ResNet101": (162.6, 1.098, 1.078, 4.192, 5, 9.341, 10, 93.05, 92.87, 93.44),
    "GoogLeNet": (23.6, 1.097, 1.078, 3.565, 2, 7.811, 2, 94.95, 94.88, 94.95),
    "EfficientNet": (11.3, 1.099, 1.078, 3.204, 1, 10.266, 10, 84.82, 84.76, 84.88),
    "MobileNet": (8.9, 1.101, 1.077, 3.788, 3, 9.627, 9, 92.68, 92.57, 93.16),
    "ShuffleNet": (3.5, 1.097, 1.076, 3.192, 1, 11.291, 10, 86.29, 86.19, 86.18),
}
#: Its Table 2, VGG-16 by epoch: the same without the size.
TABLE_2 = {
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
    rows += [[f"*{name} (paper)*", f"{figures[0]} MB", *_theirs(figures[1:])] for name, figures in TABLE_1.items()]
    return table(["network", "size", *_HEAD], rows)


def table_2(epochs: dict[str, Row]) -> str:
    """The last epochs of a VGG whose accuracy improved."""
    rows = [[epoch, *_ours(row)] for epoch, row in epochs.items()]
    rows += [[f"*{epoch} (paper)*", *_theirs(figures)] for epoch, figures in TABLE_2.items()]
    return table(["epoch", *_HEAD], rows)


#: A relative ratio so many times the paper's largest is called far above it.
_FAR = 1.5


def _paper_ratios(column: int) -> list[float]:
    return [figures[column] for figures in TABLE_1.values()]


def _span(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def _relative(row: Row) -> Row:
    found: Row = row["delta_dnn"]["relative"]
    return found


def _still(row: Row, cause: Row, mode: str) -> str:
    return f"{100 * cause['still'][mode]:.1f} % at {100 * row['delta_dnn'][mode]['eps']:g} %"


def far_above(networks: dict[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    """Networks whose relative ratio is near the paper's, and those far above."""
    most = _FAR * max(_paper_ratios(5))
    far = {name: row for name, row in networks.items() if _relative(row)["ratio"] > most}
    return {name: row for name, row in networks.items() if name not in far}, far


def updates(networks: dict[str, Row], causes: dict[str, Row]) -> str:
    """How far the versions are apart, by falling relative ratio."""
    rows = []
    for name, row in sorted(networks.items(), key=lambda item: -float(_relative(item[1])["ratio"])):
        cause = causes[name]
        still = [_still(row, cause, mode) for mode in ("relative", "absolute")]
        rows.append([name, f"{_relative(row)['ratio']:.1f}", f"{100 * cause['moved']:.2f} %", *still])
    head = ["update", "ratio, relative", "rms over that of the weights", "values left as they were, relative",
            "the same, absolute"]  # fmt: skip
    return table(head, rows)


def sz_by_bound(causes: dict[str, Row]) -> str:
    """SZ at each bound that the paper's tables name: its ratios, ours, and ours with SZ3's predictors."""
    theirs: dict[float, list[float]] = {}
    for figures in TABLE_1.values():
        theirs.setdefault(figures[4], []).append(figures[3])
    for figures in TABLE_2.values():
        theirs.setdefault(figures[3], []).append(figures[2])
    rows = []
    for percent, ratios in sorted(theirs.items()):
        points = [p for cause in causes.values() for p in cause["sz"] if round(100 * p["eps"]) == percent]
        predicted = _span([p["predicted_ratio"] for p in points], 2)
        rows.append([f"{percent:g} %", ", ".join(f"{r:.2f}" for r in sorted(ratios)),
                     _span([p["ratio"] for p in points], 2), predicted])  # fmt: skip
    return table(["bound", "the paper's SZ", "SZ3, the smaller", "SZ3 with predictors"], rows)


def _noise(again: Row) -> float:
    """Largest standard error of a change of accuracy, where no more than the changed predictions can change it."""
    error: float = (again["changed"] / again["predictions"]) ** 0.5
    return error


def accuracy_again(networks: dict[str, Row], causes: dict[str, Row]) -> str:
    """Changes of accuracy on data that chose nothing."""
    rows = []
    for name, row in networks.items():
        again = causes[name]["again"]
        changes = [again["changes"][key] for key in ("sz", "relative", "absolute", "old", "mean")]
        rows.append([name, f"{100 * (_relative(row)['accuracy_change']):+.2f}", f"{100 * again['accuracy']:.2f} %",
                     *(f"{100 * change:+.2f}" for change in changes), f"{100 * _noise(again):.2f}"])  # fmt: skip
    head = ["network", "Table 1's Δ-DNN relative", "original", "SZ", "Δ-DNN relative", "Δ-DNN absolute",
            "the old version", "mean of both versions", "standard error, at most"]  # fmt: skip
    return table(head, rows)


def _named(rows: dict[str, Row]) -> str:
    return ", ".join(f"{_relative(row)['ratio']:.1f} ({name})" for name, row in rows.items())


def _percents(networks: dict[str, Row]) -> str:
    bounds = [100 * row["sz"]["eps"] for row in networks.values()]
    return f"{min(bounds):g} % to {max(bounds):g} %"


def _no_predictors(causes: dict[str, Row]) -> str:
    """`90 of 90`: of all points of SZ, those where it is smaller without predictors."""
    points = [p for cause in causes.values() for p in cause["sz"]]
    return f"{sum(p['predicted_ratio'] < p['ratio'] for p in points)} of {len(points)}"


def _changes(cause: Row) -> tuple[str, str]:
    """In points: of Delta-DNN, relative, and of the mean of both versions."""
    changes = cause["again"]["changes"]
    return f"{100 * changes['relative']:+.2f}", f"{100 * changes['mean']:+.2f}"


def _gain_cause(name: str, causes: dict[str, Row], other: str = "vgg-small late") -> str:
    """What is left of the largest gain, and what the mean of both versions gains, there and on another network."""
    (gain, mean), (other_gain, other_mean) = _changes(causes[name]), _changes(causes[other])
    return f"""Of the gain of {name}, {gain} points are left there. The mean of its two versions gains
{mean}: at a learning rate as high as its last one, networks near the new one can well be better, and the
restored one is near it. It is no merit of the method: beside {other}, the mean gains {other_mean}, and
Delta-DNN's restored network has {other_gain}."""


def _predictors_share(causes: dict[str, Row]) -> str:
    """Of the gap between SZ3 and the paper's SZ at equal bounds, what the predictors account for, by their means."""
    theirs = [(figures[4], figures[3]) for figures in TABLE_1.values()]
    theirs += [(figures[3], figures[2]) for figures in TABLE_2.values()]
    shares = []
    for percent, ratio in theirs:
        points = [p for cause in causes.values() for p in cause["sz"] if round(100 * p["eps"]) == percent]
        ours, predicted = (statistics.fmean(p[key] for p in points) for key in ("ratio", "predicted_ratio"))
        shares.append((ours - predicted) / (ours - ratio))
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"


def _over(causes: dict[str, Row], key: str, theta: float) -> str:
    """`2 of 9`: where more than theta, in points, is lost."""
    return f"{sum(-100 * cause['again']['changes'][key] > theta for cause in causes.values())} of {len(causes)}"


def _within_noise(causes: dict[str, Row], key: str) -> str:
    """`7 of 9`: on how many networks a change of accuracy is within a standard error."""
    found = [cause["again"] for cause in causes.values()]
    return f"{sum(again['changes'][key] <= _noise(again) for again in found)} of {len(found)}"


def _largest_gain(networks: dict[str, Row]) -> tuple[str, Row]:
    return max(networks.items(), key=lambda item: float(_relative(item[1])["accuracy_change"]))


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
    commits = result["commits"]
    if len(set(commits.values())) < 2:
        return f"commit {result['commit']}"
    return f"commit {commits['networks']}, Table 2 of {commits['epochs']}, causes of differences of {commits['causes']}"


def page(result: Row) -> str:
    """The whole page; draws its pictures."""
    networks, causes = result["networks"], result["causes"]
    _draw_likeness(networks)
    _draw_sweeps(networks)
    m, rule = result["machine"], result["rule"]
    near, far = far_above(networks)
    near_ratios = [_relative(row)["ratio"] for row in near.values()]
    absolute = [row["delta_dnn"]["absolute"] for row in networks.values()]
    fallback = [point["ratio"] for point in absolute if point["eps"] == rule["lambda"]]
    gain_name, gain = _largest_gain(networks)
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

Lossless ratios agree with the paper's. nearzip stands beside at the very same bounds.

**Ratios of Delta-DNN, relative reading.** On {len(near)} of {len(networks)} updates they are
{_span(near_ratios)}, where the paper's are {_span(_paper_ratios(5))}. On {len(far)} they are far above:
{_named(far)}. How far versions are apart says why:

{updates(networks, causes)}

Most values of these three move by less than the bound and stay what they were in the old version (ResNet-20's root mean
square is mostly that of its norms' running variances). They are late: the transformer's versions are steps 900 and
950 of 1 000, the quick transformer's 150 and 200 of 200, ResNet-20's 50 and 100 of 100, each at the end of a cosine
schedule, where the learning rate goes to zero. The paper's networks are trained at 0.01; so are the small VGGs, whose
ratios are near the paper's. It is the paper's own observation, that neighbours are alike, where they are more so, and
not a better coder.

**Ratios of Delta-DNN, absolute reading.** At 1 % and more nearly every difference becomes zero on networks whose
weights move by less than that in an epoch, so that Algorithm 1 picks whatever bound happens to pass theta: the ratios
in the hundreds and thousands are the old version kept. Where no bound from 1 % on passes, the fallback of
{100 * rule["lambda"]:g} % has {_span(fallback)}.

**Ratios of SZ** are {_span([row["sz"]["ratio"] for row in networks.values()])} where the paper has
{_span(_paper_ratios(3))}, for two reasons. Algorithm 1 lets larger bounds pass: {_percents(networks)} here, 1 % to 7 %
in the paper's table. And at equal bounds SZ3 has larger ratios than the paper's SZ 2. Of that gap
{_predictors_share(causes)} are due to predictors: the smaller of two is taken here, which is the one without
them on {_no_predictors(causes)} points, since weights have no neighbours that foretell them. The rest lies between
SZ 2, which was not at hand, and SZ3, or in the paper's networks.

{sz_by_bound(causes)}

**Gains.** Algorithm 1 lets gains pass and counts them in its score, on the very data that the accuracy is reported
on, as the paper does (its largest gain is +0.48 points). The largest here is
{100 * _relative(gain)["accuracy_change"]:+.2f} ({gain_name}). On the held-out data that had no part in the choice:

{accuracy_again(networks, causes)}

{_gain_cause(gain_name, causes)}
SZ, which knows nothing of the old version, gains no more there than one standard error on
{_within_noise(causes, "sz")} networks. Losses are judged by the data that chose as well; on the others more than
theta is lost by SZ on {_over(causes, "sz", rule["theta_percent"])} networks, by Delta-DNN on
{_over(causes, "relative", rule["theta_percent"])} (relative) and {_over(causes, "absolute", rule["theta_percent"])}
(absolute).

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
