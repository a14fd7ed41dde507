"""`docs/papers/delta-dnn.md` from `results/delta_dnn.json`."""

from __future__ import annotations

import functools
import statistics

from experiments.docs.markdown import Row, commits, span, table
from experiments.lab.algorithm_1 import choose

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


def percent_change(point: Row) -> float:
    """Change of accuracy in percent of the original's, as in the brackets of the paper's tables."""
    change: float = point["accuracy_change"]
    return 100 * change / (float(point["accuracy"]) - change)


def _accuracy(point: Row) -> str:
    return f"{100 * point['accuracy']:.2f} % ({percent_change(point):+.2f} %)"


def _ours(row: Row) -> list[str]:
    relative, absolute = row["delta_dnn"]["relative"], row["delta_dnn"]["absolute"]
    cells = [f"{row['lossless'][name]:.3f}" for name in ("LZMA", "Zstd")]
    cells += [_with_bound(p["ratio"], 100 * p["eps"]) for p in (row["sz"], relative, absolute)]
    cells += [f"{p['nearzip_ratio']:.3f}" for p in (relative, absolute)]
    return [*cells, f"{100 * row['accuracy']:.2f} %", *(_accuracy(p) for p in (row["sz"], relative, absolute))]


def _theirs(figures: tuple[float, ...]) -> list[str]:
    lzma, zstd, sz, sz_eps, delta, eps, original, sz_accuracy, accuracy = figures
    cells = [f"{lzma:.3f}", f"{zstd:.3f}", _with_bound(sz, sz_eps), _with_bound(delta, eps), "", "", ""]
    change, sz_change = (100 * (after / original - 1) for after in (accuracy, sz_accuracy))
    return [*cells, f"{original:.2f} %", f"{sz_accuracy:.2f} % ({sz_change:+.2f} %)",
            f"{accuracy:.2f} % ({change:+.2f} %)", ""]  # fmt: skip


def table_1(networks: dict[str, Row]) -> str:
    """Ratios and accuracies of the last version."""
    rows = [[name, f"{row['bytes'] / 1e6:.1f} MB", *_ours(row)] for name, row in networks.items()]
    rows += [[f"*{name} (paper)*", f"{figures[0]} MB", *_theirs(figures[1:])] for name, figures in TABLE_1.items()]
    return table(["network", "size", *_HEAD], rows)


#: A relative ratio so many times the paper's largest is called far above it.
_FAR = 1.5


def _paper_ratios(column: int) -> list[float]:
    return [figures[column] for figures in TABLE_1.values()]


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
    """Distance between versions, by falling relative ratio."""
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
        predicted = span([p["predicted_ratio"] for p in points], 2)
        rows.append([f"{percent:g} %", ", ".join(f"{r:.2f}" for r in sorted(ratios)),
                     span([p["ratio"] for p in points], 2), predicted])  # fmt: skip
    return table(["bound", "the paper's SZ", "SZ3, the smaller", "SZ3 with predictors"], rows)


def _noise(again: Row) -> float:
    """Largest standard error of a change of accuracy, where no more than the changed predictions can change it; in
    percent of the original's accuracy, as all changes here."""
    error: float = 100 * (again["changed"] / again["predictions"]) ** 0.5 / again["accuracy"]
    return error


def _change(again: Row, key: str) -> float:
    change: float = 100 * again["changes"][key] / again["accuracy"]
    return change


def accuracy_again(networks: dict[str, Row], causes: dict[str, Row]) -> str:
    """Changes of accuracy on data that chose nothing."""
    rows = []
    for name, row in networks.items():
        again = causes[name]["again"]
        changes = [_change(again, key) for key in ("sz", "relative", "absolute", "old", "mean")]
        rows.append([name, f"{percent_change(_relative(row)):+.2f}", f"{100 * again['accuracy']:.2f} %",
                     *(f"{change:+.2f}" for change in changes), f"{_noise(again):.2f}"])  # fmt: skip
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


def _gain(name: str, causes: dict[str, Row]) -> Row:
    """Changes of Delta-DNN, relative, and of the mean of both versions."""
    return {"name": name, **{key: f"{_change(causes[name]['again'], key):+.2f}" for key in ("relative", "mean")}}


def _predictors_share(causes: dict[str, Row]) -> str:
    """Share of the gap between SZ3 and the paper's SZ, at equal bounds, that predictors explain; by means."""
    theirs = [(figures[4], figures[3]) for figures in TABLE_1.values()]
    theirs += [(figures[3], figures[2]) for figures in TABLE_2.values()]
    shares = []
    for percent, ratio in theirs:
        points = [p for cause in causes.values() for p in cause["sz"] if round(100 * p["eps"]) == percent]
        ours, predicted = (statistics.fmean(p[key] for p in points) for key in ("ratio", "predicted_ratio"))
        shares.append((ours - predicted) / (ours - ratio))
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"


def _over(causes: dict[str, Row], key: str, theta: float) -> str:
    """`2 of 9`: where more than theta is lost."""
    return f"{sum(-_change(cause['again'], key) > theta for cause in causes.values())} of {len(causes)}"


def _within_noise(causes: dict[str, Row], key: str) -> str:
    """`7 of 9`: on how many networks a change of accuracy is within a standard error."""
    found = [cause["again"] for cause in causes.values()]
    return f"{sum(_change(again, key) <= _noise(again) for again in found)} of {len(found)}"


def _largest_gain(networks: dict[str, Row]) -> tuple[str, Row]:
    return max(networks.items(), key=lambda item: percent_change(_relative(item[1])))


def in_points(networks: dict[str, Row], rule: Row) -> str:
    """The choices of Table 1 that would be others if theta and the score counted points: `name, what: from to to`."""
    found = []
    for name, row in networks.items():
        for what, points in row["sweeps"].items():
            by_eps = {point["eps"]: point for point in points}
            paper = [point for eps, point in by_eps.items() if eps > 5 * rule["lambda"]]
            chosen, other = (choose(paper, by_eps[rule["lambda"]], phi) for phi in ("relative", "points"))
            if chosen["eps"] != other["eps"]:
                found.append(f"{name}, {what}: {other['ratio']:.1f} at {100 * other['eps']:g} %, not "
                             f"{chosen['ratio']:.1f} at {100 * chosen['eps']:g} %")  # fmt: skip
    n = sum(len(row["sweeps"]) for row in networks.values())
    return f"{len(found)} of the {n} choices would differ" + (f" ({'; '.join(found)})" if found else "")


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


def _commits(result: Row) -> str:
    rows = result["networks"].values()
    measured = commits(*(row.get("commit", result["commit"]) for row in rows))
    choices = dict.fromkeys(row["choices"] for row in rows if "choices" in row)
    return f"commit {measured}" + (
        f", choices of bounds and causes of differences of {commits(*choices)}" if choices else ""
    )


def context(result: Row) -> Row:
    """Figures of the page."""
    networks, causes, rule = result["networks"], result["causes"], result["rule"]
    near, far = far_above(networks)
    absolute = [row["delta_dnn"]["absolute"] for row in networks.values()]
    gain_name, gain = _largest_gain(networks)
    theta = rule["theta_percent"]
    return {
        "machine": result["machine"], "commits": _commits(result), "date": result["date"],
        "held_out_percent": f"{100 * result['held_out_share']:g}",
        "theta": theta, "alpha": rule["alpha"], "beta": rule["beta"],
        "fallback_percent": f"{100 * rule['lambda']:g}",
        "table_1": table_1(networks),
        "figure_1": figure_1(networks), "figure_5": figure_5(networks),
        "n_networks": len(networks), "n_near": len(near), "n_far": len(far), "far": _named(far),
        "near_ratios": span(_relative(row)["ratio"] for row in near.values()),
        "paper_ratios": span(_paper_ratios(5)), "updates": updates(networks, causes),
        "fallback_ratios": span(point["ratio"] for point in absolute if point["eps"] == rule["lambda"]),
        "sz_ratios": span(row["sz"]["ratio"] for row in networks.values()),
        "paper_sz_ratios": span(_paper_ratios(3)), "sz_bounds": _percents(networks),
        "predictors_share": _predictors_share(causes), "without_predictors": _no_predictors(causes),
        "sz_by_bound": sz_by_bound(causes),
        "largest_gain": f"{percent_change(_relative(gain)):+.2f}", "gain_name": gain_name,
        "in_points": in_points(networks, rule),
        "gain": _gain(gain_name, causes),
        "other_gain": _gain("vgg-small late", causes),
        "accuracy_again": accuracy_again(networks, causes),
        "within_noise": functools.partial(_within_noise, causes),
        "over_theta": functools.partial(_over, causes, theta=theta),
    }  # fmt: skip
