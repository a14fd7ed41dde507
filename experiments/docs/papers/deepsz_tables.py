"""DeepSZ's tables: ours in the paper's layout, the paper's own figures beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from experiments.docs.markdown import Row, table
from experiments.papers.deepsz.rule import METHODS

TITLES = {"lenet-300-100": "LeNet-300-100", "lenet-5": "LeNet-5"}
#: The paper's Table 2: original KB, pruning ratio in percent, KB as two arrays, KB compressed; its ratio, for a layer
#: that of the printed sizes.
_TABLE_2 = {
    "lenet-300-100": {
        "ip1": (941, 8, 94, 15.2, 61.9), "ip2": (120, 9, 14, 1.6, 75.0), "ip3": (4, 26, 1.3, 0.7, 5.7),
        "overall": (1056, 8.25, 109, 19.1, 55.8),
    },
    "lenet-5": {
        "ip1": (1600, 8, 160, 27.3, 58.6), "ip2": (20, 19, 4.8, 0.93, 21.5), "overall": (1620, 8.1, 165, 28.27, 57.3),
    },
}  # fmt: skip
#: Its Table 3: accuracy of the original and of DeepSZ in percent, KB, ratio.
TABLE_3 = {"lenet-300-100": (98.35, 98.31, 19.1, 55.8), "lenet-5": (99.13, 99.16, 28.3, 57.3)}
#: Its Table 4: ratios of Deep Compression, Weightless and DeepSZ ("-": not given).
TABLE_4 = {
    "lenet-300-100": {
        "ip1": ("43.1", "60.1", "61.81"), "ip2": ("32.9", "64.3", "37.97"), "ip3": ("7.9", "-", "5.6"),
        "overall": ("41.0", "7.6", "55.77"),
    },
    "lenet-5": {
        "ip1": ("40.8", "74.2", "58.5"), "ip2": ("16.3", "-", "21.5"), "overall": ("40.1", "39.0", "57.3"),
    },
}  # fmt: skip
#: Its Table 5: points of accuracy lost at comparable ratios by Deep Compression, Weightless and DeepSZ.
_TABLE_5 = {"lenet-300-100": ("0.22", "-", "0.12"), "lenet-5": ("0.30", "-", "-0.03")}
#: Its section 5.2.3, LeNet-5 (those of LeNet-300-100 are "almost identical"): to encode, to decode.
_TIMES = {"deepsz": ("< 1 min", "2.7 ms"), "deep-compression": ("4 min", "13.9 ms"), "weightless": ("-", "520 ms")}


def _kb(n_bytes: float) -> str:
    return f"{n_bytes / 1000:.1f} KB" if n_bytes >= 10_000 else f"{n_bytes / 1000:.2f} KB"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def fold(ratio: float) -> str:
    return f"{ratio:.1f}x"


def in_points(loss: float) -> str:
    # Not "-0.00".
    return f"{100 * loss + 0.0 if abs(loss) > 4e-5 else 0.0:.2f}"


def lost(row: Row, images: str) -> str:
    """Points lost of the original, and a standard error."""
    return f"{in_points(row[f'{images}_loss'])} ± {in_points(row[f'{images}_error'])}"


def bounds(row: Row, network: Row) -> str:
    named = {tensor: paper for paper, tensor in network["layers"].items()}
    found = {named[name]: bound for name, bound in row["bounds"].items()}
    return ", ".join(f"{name} {found[name]:g}" if found.get(name) else f"{name} exact" for name in network["layers"])


def _step_title(name: str) -> str:
    return "the paper's shares" if name == "paper" else f"{name} kept"


def first(network: Row) -> Row:
    """The training that the tables are of."""
    seed: Row = network["seeds"][0]
    return seed


def paper_step(network: Row) -> Row:
    step: Row = first(network)["steps"]["paper"]
    return step


# ---- the rule --------------------------------------------------------------------------------------------------


def _chosen(seed: Row, method: str) -> Row | None:
    name = seed["chosen"][method]
    return None if name is None else seed["steps"][name][method]


def table_chosen(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        for seed in network["seeds"]:
            for method in METHODS:
                row, head = _chosen(seed, method), [TITLES[network["network"]], seed["seed"], method]
                if row is None:
                    rows.append([*head, "none fits"] + [""] * 5)
                    continue
                rows.append([
                    *head, _step_title(seed["chosen"][method]), f"**{fold(row['ratio'])}**",
                    fold(row["archive_ratio"]), lost(row, "validation"), f"**{in_points(row['test_loss'])}**"
                    f" ± {in_points(row['test_error'])}", f"{_percent(seed['original']['test'])}",
                ])  # fmt: skip
    head = ["network", "seed", "method", "chosen", "ratio", "whole file", "points lost, held-out", "points lost, test",
            "original, test"]  # fmt: skip
    return table(head, rows)


def sentence_chosen(networks: Iterable[Row], allowed: float) -> str:
    lines = []
    for network in networks:
        for method in METHODS:
            rows, n = _all_chosen(network, method), len(network["seeds"])
            losses = [row["test_loss"] for row in rows]
            within = sum(loss <= allowed + 1e-9 for loss in losses)
            larger = sum(row["ratio"] >= TABLE_3[network["network"]][3] for row in rows)
            none = f", and {n - len(rows)} in which nothing fits" if len(rows) < n else ""
            lines.append(
                f"* {TITLES[network['network']]}, {method}: {_range(fold, [row['ratio'] for row in rows])} "
                f"(the paper: {TABLE_3[network['network']][3]}x);\n  {_range(in_points, losses)} points lost on the "
                f"test images, {in_points(sum(losses) / len(losses))} in the mean;\n"
                f"  within {in_points(allowed)} in {within} of {n} trainings, no less than the paper's ratio in "
                f"{larger}{none}."
            )
    return "\n".join(lines)


def _all_chosen(network: Row, method: str) -> list[Row]:
    return [row for seed in network["seeds"] if (row := _chosen(seed, method))]


def _range(shown: Callable[[float], str], values: list[float]) -> str:
    return f"{shown(min(values))} to {shown(max(values))}"


def summary(networks: Iterable[Row]) -> str:
    """For the method's page: what the rule chose, over all trainings."""
    rows = []
    for network in networks:
        top, theirs, _, ratio = TABLE_3[network["network"]]
        cells = []
        for method in METHODS:
            found = _all_chosen(network, method)
            ratios, losses = [row["ratio"] for row in found], [row["test_loss"] for row in found]
            cells.append(f"{_range(fold, ratios)}, {_range(in_points, losses)} points lost")
        lost = f"{top - theirs:.2f}" if theirs <= top else f"a gain of {theirs - top:.2f}"
        rows.append([TITLES[network["network"]], *cells, f"{ratio}x, {lost}"])
    return table(["network", *METHODS, "the paper"], rows)


# ---- tables ----------------------------------------------------------------------------------------------------


def _table_2(network: Row, name: str) -> str:
    step, theirs = first(network)["steps"][name], _TABLE_2[network["network"]]
    stored = {method: step[method] for method in METHODS}
    rows = []
    for paper, tensor in network["layers"].items():
        size = network["fc_layers"][tensor]
        rows.append([
            paper, _kb(size), f"{100 * step['keep'][tensor]:.1f} %", _kb(step["csr_bytes"][tensor]),
            _kb(stored["deepsz"]["layers"][tensor]["bytes"]), fold(stored["deepsz"]["layers"][tensor]["ratio"]),
            fold(stored["deepsz-nearzip"]["layers"][tensor]["ratio"]), *_their_size(theirs[paper]),
        ])  # fmt: skip
    csr = sum(step["csr_bytes"].values())
    share = sum(step["keep"][t] * n for t, n in network["fc_layers"].items()) / sum(network["fc_layers"].values())
    rows.append([
        "overall", _kb(network["fc_bytes"]), f"{100 * share:.1f} %",
        f"{_kb(csr)} ({fold(network['fc_bytes'] / csr)})",
        _kb(stored["deepsz"]["bytes"]), f"**{fold(stored['deepsz']['ratio'])}**",
        f"**{fold(stored['deepsz-nearzip']['ratio'])}**", *_their_size(theirs["overall"]),
    ])  # fmt: skip
    head = ["layer", "original", "kept", "two arrays", "deepsz", "ratio", "deepsz-nearzip", "paper: kept", "two arrays",
            "DeepSZ", "ratio"]  # fmt: skip
    title = f"{TITLES[network['network']]}, {_step_title(name)}. Error bounds: {bounds(stored['deepsz'], network)}"
    ours = bounds(stored["deepsz-nearzip"], network)
    return f"{title} (deepsz-nearzip: {ours}).\n\n" + table(head, rows)


def tables_2(networks: Iterable[Row]) -> str:
    """Tables with the paper's shares, and with the shares chosen."""
    shown = [
        _table_2(network, name)
        for network in networks
        for name in dict.fromkeys(("paper", first(network)["chosen"]["deepsz"]))
    ]
    return "\n\n".join(shown)


def _their_size(figures: tuple[float, ...]) -> list[str]:
    _, share, csr, compressed, ratio = figures
    return [f"{share:g} %", f"{csr:g} KB", f"{compressed:g} KB", fold(ratio)]


#: Further rows of Table 3 with the paper's shares, and their labels.
_ROWS_3 = (
    ("paper_bounds", "deepsz, the paper's bounds"), ("zero_loss", "deepsz, zero loss"),
    ("no_margin", "deepsz, no margin"),
)  # fmt: skip


def table_3(networks: Iterable[Row]) -> str:
    rows: list[list[str]] = []
    for network in networks:
        title, theirs = TITLES[network["network"]], TABLE_3[network["network"]]
        original = _percent(first(network)["original"]["test"])
        rows.append([f"{title} original", original, *[""] * 3, _kb(network["fc_bytes"]), "", "", f"{theirs[0]} %", ""])
        for name, step in first(network)["steps"].items():
            named = [(method, step[method]) for method in METHODS]
            if name == "paper":
                named += [(shown, network[key]) for key, shown in _ROWS_3]
            for method, row in named:
                what = f"{title} {method}, {_step_title(name)}"
                ours = _row_3(row, step["pruned"]) if row else ["over the budget", *[""] * 6]
                same = (method, name) == ("deepsz", "paper")
                rows.append([what, *ours, *([f"{theirs[1]} %", f"{theirs[3]}x"] if same else ["", ""])])
    head = ["network", "top-1, test images", "points lost", "of these by pruning", "points lost, held-out images",
            "fully connected layers", "ratio", "whole file", "paper: top-1", "ratio"]  # fmt: skip
    return table(head, rows)


def _row_3(row: Row, pruned: Row) -> list[str]:
    return [
        _percent(row["test"]), lost(row, "test"), in_points(pruned["test_loss"]), lost(row, "validation"),
        _kb(row["bytes"]), fold(row["ratio"]), fold(row["archive_ratio"]),
    ]  # fmt: skip


def table_4(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        step, weightless = paper_step(network), network["weightless"][0]
        for paper, tensor in [*network["layers"].items(), ("overall", "")]:
            cells = [
                side["layers"][tensor]["ratio"] if tensor else side["ratio"]
                for side in (network["deep_compression"], weightless, step["deepsz"], step["deepsz-nearzip"])
            ]
            gain = cells[2] / max(cells[:2])
            rows.append([TITLES[network["network"]], paper, *map(fold, cells), f"{gain:.2f}x",
                         *TABLE_4[network["network"]][paper]])  # fmt: skip
    head = ["network", "layer", "deep-compression", "weightless", "deepsz", "deepsz-nearzip", "deepsz over best other",
            "paper: Deep Compression", "Weightless", "DeepSZ"]  # fmt: skip
    return table(head, rows)


def table_5(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        step = paper_step(network)
        cells = [network["deep_compression_at_our_bits"], network["weightless_without_retraining"], step["deepsz"],
                 step["deepsz-nearzip"]]  # fmt: skip
        shown = [f"{in_points(step['pruned']['test'] - cell['test'])} ({fold(cell['ratio'])})" for cell in cells]
        rows.append([TITLES[network["network"]], f"{network['deep_compression_at_our_bits']['bits']}", *shown,
                     *_TABLE_5[network["network"]]])  # fmt: skip
    head = ["network", "bits a weight", "deep-compression", "weightless", "deepsz", "deepsz-nearzip",
            "paper: Deep Compression", "Weightless", "DeepSZ"]  # fmt: skip
    return table(head, rows)


def retrained(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        title, shared = TITLES[network["network"]], network["deep_compression"]
        rows.append([title, "deep-compression, 5 bits", fold(shared["ratio"]), lost(shared, "test"), ""])
        rows += [
            [title, f"weightless, {row['clusters']} clusters in {row['bits']} bits",
             f"{fold(row['layers'][row['layer']]['ratio'])} ({fold(row['ratio'])} overall)",
             lost(row, "test"), f"{row['false_positives']:,} of {row['zeros']:,} zeros"]
            for row in network["weightless"]
        ]  # fmt: skip
    return table(["network", "method", "ratio", "points lost of the original", "false positives"], rows)


def figure_2(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        named = {tensor: paper for paper, tensor in network["layers"].items()}
        for row in network["sz_against_zfp"]:
            ratios = [f"{row['ratios'][k]:.2f}" for k in ("sz3 INTERP_LORENZO", "sz3 NOPRED", "sz3", "zfp")]
            rows.append([TITLES[network["network"]], named[row["layer"]], f"{row['bound']:g}", *ratios])
    return table(["network", "layer", "bound", "SZ3, predictors", "SZ3, none", "SZ3, smaller", "ZFP"], rows)


def figure_4(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        named = {tensor: paper for paper, tensor in network["layers"].items()}
        rows += [
            [TITLES[network["network"]], named[row["layer"]],
             *(f"{row['ratios'][k]:.3f}" for k in ("gzip", "zstd", "blosc", "lzma", "rans"))]
            for row in network["index_coders"]
        ]  # fmt: skip
    return table(["network", "layer", "gzip", "zstd", "blosc", "LZMA", "gaps without padding, rANS"], rows)


def figure_7(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        title, times = TITLES[network["network"]], network["times"]
        for method, seconds in times["encode_s"].items():
            row, theirs = times["decode_ms"][method], _TIMES.get(method, ("", ""))
            parts = [f"{row[k]:.2f}" if k in row else "" for k in ("gaps", "values", "matrix")]
            shown = theirs if network["network"] == "lenet-5" else ("", "")
            rows.append([title, method, f"{seconds:.1f} s", shown[0], *parts, f"{row['whole']:.2f} ms", shown[1]])
        forward = f"{times['decode_ms']['forward']:.2f} ms"
        rows.append([title, "forward pass, 50 images", *[""] * 5, forward, ""])
    head = ["network", "method", "encoding", "paper: encoding", "gaps, ms", "values, ms", "matrix, ms", "decoding",
            "paper: decoding"]  # fmt: skip
    return table(head, rows)


# ---- linearity ------------------------------------------------------------


def pairs(network: Row) -> np.ndarray:
    """Expected and actual losses, shape (2, n)."""
    return np.array([(r["expected"], r["actual"]) for r in network["linearity"]]).T


def below(losses: np.ndarray) -> np.ndarray:
    """Combinations that lose less than 2 points together."""
    return losses[:, losses[1] < 0.02]
