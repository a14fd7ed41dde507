"""`docs/papers/trainings.md`: tables of both papers that need whole trainings, at every scale that was measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TypeVar

from experiments.docs.markdown import Row, circumstances, table
from experiments.docs.papers.delta_dnn import TABLE_2 as VGG_16
from experiments.docs.papers.delta_dnn import percent_change
from experiments.docs.papers.qd import TABLE_4, TABLE_5
from experiments.papers.scale.chains import CODINGS
from experiments.papers.scale.measure import SCALES

T = TypeVar("T")

#: Delta-DNN's section 5.3, Mbit/s: wired up, wired down, wireless down.
BANDWIDTHS = {"wired, up": 40.83, "wired, down": 74.32, "wireless, down": 31.95}
#: Its Table 3: versions saved, total as they are and with Delta-DNN, ratio, mean loss of accuracy in percent.
TABLE_3 = {
    "VGG-16": (95, "5.21 GB", "693 MB", 7.702, -0.0003),
    "ResNet101": (89, "14.1 GB", "2.18 GB", 6.488, -0.0015),
    "GoogLeNet": (83, "1.91 GB", "191 MB", 10.259, -0.0009),
    "EfficientNet": (110, "1.21 GB", "208 MB", 5.946, 0.0001),
    "MobileNet": (115, "1.00 GB", "140 MB", 7.311, -0.0004),
    "ShuffleNet": (113, "391 MB", "73 MB", 5.302, 0.0),
}
#: QD-Compressor's Table 2: parameters in millions, operations in thousand millions.
TABLE_2 = {
    "densenet121": (7.98, 2.90), "densenet169": (14.15, 3.44), "mobilenet_v2": (3.50, 0.33),
    "inception_v3": (27.16, 5.75), "VGG11": (132.86, 7.74), "VGG16": (138.36, 15.61), "resnet18": (11.69, 1.82),
    "resnet34": (21.80, 3.68),
}  # fmt: skip
_FULL = "full precision"
_FIGURE_11 = (_FULL, "8 bits, M", "8 bits, M*")
#: Of columns and rows.
_ORDER = ("Zstd", "SZ", "Delta-DNN", "LC", "QD, 8 bits", "QD, 4-8 bits", "QD, 16 bits", "nearzip, abs 0.1 %")
_SCALES = {"papers_small": "here", "papers_paper": "the papers' networks, here"}


def _networks(results: dict[str, Row], paper: str) -> Iterator[tuple[str, Row]]:
    """Label and row of every network of a paper, of all scales."""
    for scale, result in results.items():
        for name, row in result["tables"].get(paper, {}).items():
            yield (name if len(results) == 1 else f"{name} ({_SCALES[scale]})"), row


def _ratio(chain: list[Row], first: int = 0) -> float:
    return float(sum(row["raw"] for row in chain[first:]) / sum(row["bytes"] for row in chain[first:]))


def _ordered(row: Row) -> list[tuple[str, list[Row]]]:
    chains = row.get("chains", {})
    return [(label, chains[label]) for label in _ORDER if label in chains]


# ---- QD-Compressor -------------------------------------------------------------------------------------------------


def table_5(results: dict[str, Row]) -> str:
    """Ratios of whole chains: every epoch saved, QD-Compressor's trained with error feedback."""
    known = {label for _, row in _networks(results, "qd") for label in row.get("chains", {})}
    labels = [label for label in _ORDER if label in known]
    rows = []
    for name, row in _networks(results, "qd"):
        chains = row.get("chains", {})
        if not chains:
            continue
        total = sum(version["raw"] for version in next(iter(chains.values())))
        cells = [f"{_ratio(chains[label]):.2f}" if label in chains else "-" for label in labels]
        rows.append([name, len(next(iter(chains.values()))), f"{total / 1e6:.1f} MB", *cells])
    for name, (_, total, zstd, sz, delta, lc, qd_8, qd_4_8) in TABLE_5.items():
        theirs = {"Zstd": zstd, "SZ": sz, "Delta-DNN": delta, "LC": lc, "QD, 8 bits": qd_8, "QD, 4-8 bits": qd_4_8}
        theirs |= {"QD, 16 bits": TABLE_4[name][1]} if name in TABLE_4 else {}
        cells = [f"{theirs[label]:.2f}" if label in theirs else "" for label in labels]
        rows.append([f"*{name} (paper)*", 200, f"{total} GB", *cells])
    return table(["network", "versions", "all versions", *labels], rows)


def verdicts(results: dict[str, Row]) -> str:
    """Whether QD-Compressor is ahead, as it always is in the paper."""
    chains = [dict(_ordered(row)) for _, row in _networks(results, "qd") if "QD, 4-8 bits" in row.get("chains", {})]

    def ahead(ours: str, theirs: str) -> str:
        return f"{sum(_ratio(one[ours]) > _ratio(one[theirs]) for one in chains)} of {len(chains)}"

    than = [ahead("QD, 4-8 bits", other) for other in ("QD, 8 bits", "Delta-DNN", "LC")]
    return (
        f"4 to 8 bits have a larger ratio than 8 bits on {than[0]} networks, than Delta-DNN on {than[1]} and than LC "
        f"at 3 bits on {than[2]}; in the paper they always have."
    )


def losses(results: dict[str, Row]) -> str:
    """What is restored of the last version beside the training's own last version and full precision's."""
    rows = []
    for name, row in _networks(results, "qd"):
        for label, chain in _ordered(row):
            full = row["accuracy"][_FULL][-1]
            rows.append([name, label, f"{100 * full:.2f} %", f"{100 * chain[-1]['accuracy']:.2f} %",
                         f"{100 * (chain[-1]['accuracy'] - full):+.2f}"])  # fmt: skip
    head = ["network", "coding", "full precision, last epoch", "restored, last epoch", "points"]
    return table(head, rows)


def figure_12(results: dict[str, Row]) -> str:
    """Ratio of single versions over the training: of the second, the middle and the last."""
    rows = []
    for name, row in _networks(results, "qd"):
        for label, chain in _ordered(row):
            each = [version["raw"] / version["bytes"] for version in chain]
            shown = (each[0], each[1], each[len(each) // 2], each[-1])
            rows.append([name, label, *(f"{ratio:.2f}" for ratio in shown)])
    return table(["network", "coding", "first epoch", "second", "middle", "last"], rows)


def accuracies(results: dict[str, Row]) -> str:
    """Tables 3 and 6: accuracy after the last epoch, of what would be restored."""
    ways = (_FULL, "4 bits, M", "8 bits, M", "8 bits, M*", "4-8 bits, M", "16 bits, M")
    rows = []
    for name, row in _networks(results, "qd"):
        found = row.get("accuracy", {})
        full = found.get(_FULL, [math.nan])[-1]
        cells = [f"{100 * found[way][-1]:.2f} ({100 * (found[way][-1] - full):+.2f})" if way in found else "-"
                 for way in ways[1:]]  # fmt: skip
        rows.append([name, f"{100 * full:.2f}", *cells])
    return table(["network", *(way.replace("*", "\\*") for way in ways)], rows)


def figure_11(results: dict[str, Row]) -> str:
    """Accuracy after every epoch, of what would be restored."""
    rows = []
    for name, row in _networks(results, "qd"):
        rows += [[name, way.replace("*", "\\*"), " ".join(f"{100 * one:.2f}" for one in _spread(found))]
                 for way, found in row.get("accuracy", {}).items() if way in _FIGURE_11]  # fmt: skip
    return table(["network", "training", "accuracy by epoch, %"], rows)


def figure_1(results: dict[str, Row]) -> str:
    """Ranges by layer: the smallest, the median and the largest, and how many times the one is the other."""
    rows = []
    for name, row in _networks(results, "qd"):
        spans = sorted(layer["high"] - layer["low"] for layer in row.get("ranges", []))
        if spans:
            middle = spans[len(spans) // 2]
            rows.append([name, len(spans), *(f"{span:.3f}" for span in (spans[0], middle, spans[-1])),
                         f"{spans[-1] / spans[0]:.1f}x"])  # fmt: skip
    return table(["network", "layers", "smallest range", "median", "largest", "largest over smallest"], rows)


def table_2(results: dict[str, Row]) -> str:
    """Parameters and operations."""
    found = next(iter(results.values()))["tables"].get("networks", {})
    rows = []
    for name, row in found.items():
        n, operations = row["parameters"], row["multiply_adds"]
        shape = "x".join(map(str, row["input"][1:]))
        rows.append([name, f"{n / 1e6:.2f}", f"{operations / 1e9:.4f}", shape, f"{operations / n:.0f}"])
    rows += [[f"*{name} (paper)*", f"{n:.2f}", f"{flops:.2f}", "not given", f"{1000 * flops / n:.0f}"]
             for name, (n, flops) in TABLE_2.items()]  # fmt: skip
    return table(["network", "parameters, M", "operations, G", "input", "operations per parameter"], rows)


# ---- Delta-DNN -----------------------------------------------------------------------------------------------------


def delta_3(results: dict[str, Row]) -> str:
    """Storage over a run with Delta-DNN's rule of saving and its Algorithm 1 for every version."""
    rows = []
    for name, row in _networks(results, "delta"):
        for label, chain in row.get("chains", {}).items():
            changes = [percent_change(_as_point(version)) for version in chain if "change" in version]
            mean = sum(changes) / len(changes) if changes else 0.0
            rows.append([name, label, len(chain), f"{sum(v['raw'] for v in chain) / 1e6:.2f} MB",
                         f"{sum(v['bytes'] for v in chain) / 1e6:.2f} MB", f"{_ratio(chain):.3f}",
                         f"{_ratio(chain, 1):.3f}" if len(chain) > 1 else "-", f"{-mean:+.4f} %"])  # fmt: skip
    rows += [[f"*{name} (paper)*", "Δ-DNN", n, raw, coded, f"{ratio:.3f}", "", f"{lost:+.4f} %"]
             for name, (n, raw, coded, ratio, lost) in TABLE_3.items()]  # fmt: skip
    head = ["network", "coding", "versions", "as they are", "coded", "ratio", "without the first version", "mean loss"]
    return table(head, rows)


def _as_point(version: Row) -> Row:
    return {"accuracy": version["accuracy"], "accuracy_change": version["change"]}


def delta_1(results: dict[str, Row]) -> str:
    """Tables 1 and 2 on the same runs: the last five saved versions."""
    rows = []
    for name, row in _networks(results, "delta"):
        chains = row.get("chains", {})
        epochs = {one["file"]: one for one in row.get("epochs", []) if "file" in one}
        for i, version in list(enumerate(next(iter(chains.values()), [])))[1:][-5:]:
            cells = [f"{version['raw'] / row['lossless'][way][i]:.3f}" for way in ("LZMA", "Zstd")]
            for label in ("SZ", "Δ-DNN relative", "Δ-DNN absolute"):
                one = chains[label][i]
                cells.append(f"{one['raw'] / one['bytes']:.3f} ({100 * one['eps']:g} %), "
                             f"{percent_change(_as_point(one)):+.2f} %")  # fmt: skip
            epoch = epochs[version["file"]]
            rows.append([name, epoch["epoch"], f"{100 * epoch['accuracy']:.2f} %", *cells])
    for epoch, figures in VGG_16.items():
        lzma, zstd, sz, sz_eps, delta, eps, original, sz_accuracy, accuracy = figures
        theirs = [f"{ratio:.3f} ({bound:g} %), {100 * (after / original - 1):+.2f} %"
                  for ratio, bound, after in ((sz, sz_eps, sz_accuracy), (delta, eps, accuracy))]  # fmt: skip
        rows.append(["*VGG-16 (paper)*", epoch, f"{original:.2f} %", f"{lzma:.3f}", f"{zstd:.3f}", *theirs, ""])
    head = ["network", "epoch", "original", "LZMA", "Zstd", "SZ", "Δ-DNN relative", "Δ-DNN absolute"]
    return table(head, rows)


def figure_8(results: dict[str, Row]) -> str:
    """Seconds to send the last version over the paper's connections; bytes over bandwidth."""
    rows = []
    for name, row in _networks(results, "delta"):
        chains = row.get("chains", {})
        if len(chains) < 3:
            continue
        sizes = {"as it is": chains["SZ"][-1]["raw"], "LZMA": row["lossless"]["LZMA"][-1],
                 "Zstd": row["lossless"]["Zstd"][-1]}  # fmt: skip
        sizes |= {label: chains[label][-1]["bytes"] for label in ("SZ", "Δ-DNN relative", "Δ-DNN absolute")}
        for label, n_bytes in sizes.items():
            seconds = [f"{8 * n_bytes / (1e6 * speed):.4f}" for speed in BANDWIDTHS.values()]
            rows.append([name, label, f"{n_bytes / 1e3:.1f} KB", *seconds])
    head = ["network", "coding", "bytes", *(f"{way} ({speed} Mbit/s)" for way, speed in BANDWIDTHS.items())]
    return table(head, rows)


def figure_9(results: dict[str, Row]) -> str:
    """Accuracy by epoch of two trainings: one that goes on from itself, one from what was restored."""
    rows = []
    for name, row in _networks(results, "delta"):
        for way, epochs in row.get("trainings", {}).items():
            rows.append([name, way, " ".join(f"{100 * one['accuracy']:.2f}" for one in _spread(epochs)),
                         f"{100 * max(one['accuracy'] for one in epochs):.2f}"])  # fmt: skip
    return table(["network", "training", "accuracy by epoch, %", "best"], rows)


def _spread(epochs: list[T], n: int = 10) -> list[T]:
    """At most `n` of the epochs, evenly, the last among them."""
    if len(epochs) <= n:
        return epochs
    return [epochs[round(i * (len(epochs) - 1) / (n - 1))] for i in range(n)]


def _not_measured(results: dict[str, Row]) -> str:
    """Networks of a scale that are not in its result yet, and the command that adds them."""
    said = []
    for name, result in results.items():
        scale = name.removeprefix("papers_")
        measured = result["tables"].get("qd", {})
        chains = {network: set(measured.get(network, {}).get("chains", {})) for network in SCALES[scale].qd}
        missing = [network for network, known in chains.items() if set(CODINGS) - known]
        if missing:
            said.append(
                f"Not measured yet: {', '.join(missing)}; `scripts/bench papers --scale {scale} --networks "
                f"{' '.join(missing)} --data DIR` goes on with what is missing."
            )
    return " ".join(said)


def _lost(results: dict[str, Row]) -> str:
    """What the second trainings lose at their best epoch, in points."""
    found = []
    for name, row in _networks(results, "delta"):
        ways = row.get("trainings", {})
        if len(ways) == 2:
            best = [100 * max(one["accuracy"] for one in ways[way]) for way in ways]
            found.append(f"{best[1] - best[0]:+.2f} ({name})")
    return ", ".join(found)


def context(*results: Row) -> Row:
    """Figures of the page; results in the order of `_SCALES`."""
    by_scale = {result["name"]: result for result in results}
    said = itertools.chain.from_iterable(
        (f"{_SCALES[name]}: {circumstances(result)}, {result['device']}",) for name, result in by_scale.items()
    )
    first = next(iter(by_scale.values()))
    return {
        "circumstances": "; ".join(said), "qd": first["qd_training"], "delta": first["delta_training"],
        "lost": _lost(by_scale), "not_measured": _not_measured(by_scale),
        **{make.__name__: make(by_scale) for make in (
            table_5, verdicts, losses, figure_12, accuracies, figure_11, figure_1, table_2, delta_1, delta_3, figure_8,
            figure_9)},
    }  # fmt: skip
