"""Sections of `docs/papers/deepsz.md` from `results/deepsz_seeds.json` (ten trainings) and `deepsz_more.json`."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, commits, table
from experiments.docs.papers.deepsz_tables import TITLES, fold, in_points, lost

#: Trainings of each network that the rule is to be shown on.
_PLANNED = 10


def trainings(result: Row) -> str:
    """A row for each training: what pruning lost, how many retrainings it took, what was found."""
    rows = []
    for network, found in result["networks"].items():
        for seed in found["seeds"]:
            last = seed["attempts"][-1]
            row = last["deepsz"]
            cells = ["nothing", "", ""]
            if row:
                cells = [f"**{fold(row['ratio'])}**", lost(row, "validation"), lost(row, "test")]
            rows.append([TITLES[network], seed["seed"], f"{100 * seed['original']['test']:.2f} %",
                         in_points(last["pruned"]["test_loss"]), len(seed["attempts"]) - 1, *cells])  # fmt: skip
    head = ["network", "seed", "original, test", "points lost by pruning, test", "further retrainings", "ratio",
            "points lost, held-out", "points lost, test"]  # fmt: skip
    return table(head, rows)


def sentences(result: Row) -> str:
    """Medians and failures."""
    said = []
    for network, found in result["networks"].items():
        s, paper = found["summary"], result["paper_ratios"][network]
        medians = (
            f"the median is {fold(s['median_ratio'])} at {in_points(s['median_loss'])} points on the test images; "
            if s["median_ratio"] else ""
        )  # fmt: skip
        said.append(
            f"* {TITLES[network]}: {s['as_small']} of {s['trainings']} trainings have at least the paper's {paper}x, "
            f"{s['within']} lose at most {in_points(result['max_loss'])} points on the test images, {s['nothing']} "
            f"have no result; {medians}{s['at_once']} needed no further retraining.{_missing(network, s['trainings'])}"
        )
    said += [
        f"* {TITLES[name]}:{_missing(name, 0)}" for name in result["paper_ratios"] if name not in result["networks"]
    ]
    return "\n".join(said)


def _missing(network: str, measured: int) -> str:
    """How many of the ten trainings are still to be measured, and how."""
    if measured >= _PLANNED:
        return ""
    return (
        f" {_PLANNED - measured} of {_PLANNED} are not measured yet: `scripts/bench deepsz_seeds --networks {network}` "
        "goes on with them."
    )


def context(result: Row) -> Row:
    """Figures of the section."""
    return {
        "trainings": trainings(result), "sentences": sentences(result),
        "circumstances": circumstances(result, ", ".join(dict.fromkeys(
            row["commit"] for found in result["networks"].values() for row in found["seeds"]
        ))),
        "rounds": result["rounds"], "more": result["epochs_of_a_round"],
        "shares": "; ".join(
            f"{TITLES[network]} " + ", ".join(f"{100 * share:g} %" for share in steps[-1][0])
            for network, steps in result["shares"].items() if network in result["networks"]
        ),
    }  # fmt: skip


def matrices(result: Row) -> str:
    """SZ on pruned matrices, with its predictors and without, beside SZ on their values with coded gaps."""
    rows = []
    for network, found in result["networks"].items():
        for row in found["matrices"]:
            cells = [TITLES[network], f"{row['bound']:g}"]
            for label in ("predicted", "matrix"):
                cells += [fold(row[f"{label}_ratio"]), f"{100 * row[f'{label}_zeros']:.1f} %",
                          f"{100 * row[f'{label}_accuracy']:.2f} %"]  # fmt: skip
            rows.append([*cells, fold(row["arrays_ratio"]), f"{100 * row['arrays_accuracy']:.2f} %"])
    head = ["network", "bound", "matrix, predictors: ratio", "zeros lost", "accuracy", "matrix, none: ratio",
            "zeros lost", "accuracy", "values and gaps: ratio", "accuracy"]  # fmt: skip
    return table(head, rows)


def zeros(result: Row) -> str:
    """Verdict: what predictors and their absence do to zeros and accuracy."""
    rows = [row for found in result["networks"].values() for row in found["matrices"]]
    kept = sum(row["matrix_zeros"] == 0 for row in rows)
    worse = sum(row["predicted_accuracy"] < row["arrays_accuracy"] - 0.01 for row in rows)
    smaller = sum(row["arrays_ratio"] > row["matrix_ratio"] for row in rows)
    return (
        f"Without predictors SZ3 keeps every zero on {kept} of {len(rows)} bounds, so the network restored is that of "
        f"the two arrays; with predictors it loses over a point of accuracy beyond them on {worse}. The two arrays are "
        f"smaller than the matrix without predictors on {smaller}."
    )


def curve(result: Row) -> str:
    """Accuracy with one layer compressed, by bound."""
    rows = []
    for network, found in result["networks"].items():
        named = {tensor: paper for paper, tensor in found["layers"].items()}
        for name, accuracies in found["curve"].items():
            rows.append([TITLES[network], named[name], *(f"{100 * one:.2f}" for one in accuracies)])
    bounds = next(iter(result["networks"].values()))["bounds"]
    return table(["network", "layer", *(f"{bound:g}" for bound in bounds)], rows)


def expected_ratios(result: Row) -> str:
    """What the mode finds for each ratio."""
    rows = []
    for network, found in result["networks"].items():
        named = {tensor: paper for paper, tensor in found["layers"].items()}
        for row in found["expected_ratios"]:
            cells = ["nothing is as small", "", "", ""]
            if "nothing" not in row:
                chosen = ", ".join(f"{named[n]} {bound:g}" for n, bound in row["bounds"].items() if n in named)
                cells = [chosen, fold(row["archive_ratio"]), lost(row, "validation"), lost(row, "test")]
            rows.append([TITLES[network], f"{row['wanted']}x", *cells])
    head = ["network", "asked for", "bounds", "whole file", "points lost, held-out", "points lost, test"]
    return table(head, rows)


def clock(result: Row) -> str:
    """Processor seconds from the trained network to the archive."""
    rows = []
    for network, found in result["networks"].items():
        for method, steps in found["seconds"].items():
            pruning, own = steps.values()
            rows.append([TITLES[network], method, f"{pruning:.1f}", f"{own:.1f}", f"{pruning + own:.1f}"])
    head = ["network", "method", "pruning and its retraining, s", "search, or retraining, and compression, s", "all, s"]
    return table(head, rows)


#: The paper's Table 1: convolutional layers, milliseconds of both parts, MB, share of the fully connected layers.
_TABLE_1 = {"lenet-300-100": ("0", "0", "0.30", "1.1", "100 %"), "lenet-5": ("3", "0.5", "0.12", "1.7", "95.3 %")}


def table_1(result: Row) -> str:
    """Layers, sizes and forward times of the networks."""
    rows = []
    for network, found in result["networks"].items():
        row = found["architecture"]
        layers = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in row["layers"].items())
        ours = [str(row["convolutions"]), f"{row['convolutions_ms']:.2f}", f"{row['fully_connected_ms']:.2f}",
                f"{row['bytes'] / 1e6:.2f}", f"{row['fc_bytes'] / row['bytes']:.1%}".replace("%", " %")]  # fmt: skip
        rows += [[TITLES[network], layers, *ours], [f"*{TITLES[network]} (paper)*", "the same", *_TABLE_1[network]]]
    head = ["network", "fully connected layers", "convolutional layers", "their forward pass, ms",
            "that of the fully connected layers, ms", "MB", "of these in fully connected layers"]  # fmt: skip
    return table(head, rows)


def _commit(result: Row, part: str) -> str:
    """With which a part was measured, on every network."""
    rows = result["networks"].values()
    return commits(*(row.get("commits", {}).get(part, row.get("commit", result["commit"])) for row in rows))


def more(result: Row) -> Row:
    """Figures of these sections."""
    pruned = ", ".join(f"{TITLES[name]} {100 * found['pruned']:.2f} %" for name, found in result["networks"].items())
    makers = (matrices, zeros, curve, expected_ratios, clock, table_1)
    return {
        "circumstances": circumstances(result, _commit(result, "seconds")),
        "expected_commit": _commit(result, "expected_ratios"),
        "pruned": pruned,
        **{make.__name__: make(result) for make in makers},
    }
