"""`docs/papers/qd-compressor.md` from `results/qd_compressor.json`."""

from __future__ import annotations

import functools
import statistics

from experiments.docs.markdown import Row, commits, table

#: The paper's Table 1: ratios of global quantization, local after and local before the difference.
TABLE_1 = {
    "VGG-16": (8.92, 20.77, 24.17),
    "ResNet-18": (10.41, 15.46, 19.26),
    "GoogleNet": (10.21, 18.21, 22.35),
    "MobileNet": (10.05, 11.41, 14.96),
    "ShuffleNet (1)": (9.61, 10.73, 14.15),
    "ShuffleNet (2)": (11.45, 13.34, 17.82),
}
#: Table 4: ratios at 8 and 16 bits.
TABLE_4 = {"MobileNet": (16.79, 3.49), "VGG-16": (29.04, 4.05)}
#: Table 5: MB of a version, GB of all, ratios of Zstd, SZ, Delta-DNN, LC, QD at 8 and at 4 to 8 bits.
TABLE_5 = {
    "VGG-16": ("56.19", "10.974", 1.079, 4.643, 8.92, 8.10, 29.04, 39.99),
    "ResNet-18": ("42.66", "8.333", 1.084, 4.763, 10.41, 8.24, 21.51, 27.98),
    "GoogleNet": ("23.58", "4.606", 1.082, 4.731, 10.21, 8.56, 25.22, 33.22),
    "MobileNet": ("8.9", "1.738", 1.080, 4.631, 10.05, 7.98, 16.79, 21.70),
    "ShuffleNet (1)": ("4.88", "0.977", 1.076, 4.469, 9.61, 7.61, 15.50, 20.30),
    "ShuffleNet (2)": ("20.49", "4.002", 1.083, 4.590, 11.45, 7.75, 19.70, 25.29),
}
_COLUMNS_5 = ("Zstd", "SZ", "Delta-DNN", "LC, 2 bits", "LC, 3 bits", "LC, 4 bits", "QD, 8 bits", "QD, 4-8 bits")


def _ratio(row: Row, label: str) -> str:
    return f"{row['ways'][label]['ratio']:.2f}"


def _ratios(chains: dict[str, Row], labels: tuple[str, ...]) -> list[list[str]]:
    return [[name, *(_ratio(row, label) for label in labels)] for name, row in chains.items()]


def _larger(chains: dict[str, Row], label: str, *others: str) -> str:
    """`3 of 7`: on how many chains one way's ratio is larger than all the others'."""
    ratios = [{name: way["ratio"] for name, way in row["ways"].items()} for row in chains.values()]
    return f"{sum(all(r[label] > r[other] for other in others) for r in ratios)} of {len(ratios)}"


def _where_updates_are_small(chains: dict[str, Row]) -> str:
    """The chain of the largest ratio at 8 bits."""
    name, row = max(chains.items(), key=lambda item: item[1]["ways"]["QD, 8 bits"]["ratio"])
    return f"{_ratio(row, 'QD, 8 bits')} and {_ratio(row, 'QD, 4-8 bits')} ({name})"


def _median_gap(chains: dict[str, Row], label: str, other: str) -> str:
    """Quotient of two ways' ratios, the median over the chains."""
    return f"{statistics.median(r['ways'][label]['ratio'] / r['ways'][other]['ratio'] for r in chains.values()):.2f}"


def _lengths(chains: dict[str, Row]) -> str:
    """`4 to 12`: how many versions the chains have."""
    updates = [row["updates"] for row in chains.values()]
    return f"{min(updates) + 1} to {max(updates) + 1}"


def _largest_update(chains: dict[str, Row], label: str) -> str:
    """The largest ratio of a single update, and of which chain."""
    found = [(row["version_bytes"] / min(row["ways"][label]["bytes"]), name) for name, row in chains.items()]
    ratio, name = max(found)
    return f"{ratio:,.0f} ({name})"


def _times_worse(chains: dict[str, Row]) -> str:
    """Divergence of 4 to 8 bits over that of 8 bits."""
    found = [row["ways"]["QD, 4-8 bits"]["kl"] / row["ways"]["QD, 8 bits"]["kl"] for row in chains.values()]
    return f"{min(found):.0f} to {max(found):,.0f}"


def _rises(chains: dict[str, Row], label: str) -> str:
    """`2 of 3`: on how many chains of more than two updates the last is smaller than the first."""
    sizes = [row["ways"][label]["bytes"] for row in chains.values() if row["updates"] > 2]
    return f"{sum(found[-1] < found[0] for found in sizes)} of {len(sizes)}"


def _lc_first(chains: dict[str, Row], update: int) -> str:
    """`5 of 7`: on how many chains LC at 3 bits makes one update smaller than QD with 4 to 8."""
    sizes = [(row["ways"]["LC, 3 bits"]["bytes"], row["ways"]["QD, 4-8 bits"]["bytes"])
             for row in chains.values() if row["updates"] > 2]  # fmt: skip
    return f"{sum(lc[update] < qd[update] for lc, qd in sizes)} of {len(sizes)}"


def table_1(chains: dict[str, Row]) -> str:
    """Global against local, before and after the difference is taken."""
    labels = ("Delta-DNN", "QD, 8 bits, one range", "QD, 8 bits, difference first", "QD, 8 bits")
    rows = _ratios(chains, labels)
    rows += [[f"*{n} (paper)*", f"{a:.2f}", "", f"{b:.2f}", f"{c:.2f}"] for n, (a, b, c) in TABLE_1.items()]
    return table(["versions", "global (Delta-DNN)", "one range, quantized first", "local, difference first",
                  "local, quantized first"], rows)  # fmt: skip


def table_4(chains: dict[str, Row]) -> str:
    """8 against 16 bits."""
    rows = _ratios(chains, ("QD, 8 bits", "QD, 16 bits"))
    rows += [[f"*{n} (paper)*", f"{a:.2f}", f"{b:.2f}"] for n, (a, b) in TABLE_4.items()]
    return table(["versions", "8 bits", "16 bits"], rows)


def table_5(chains: dict[str, Row]) -> str:
    """All compressors."""
    rows = []
    for name, row in chains.items():
        size = row["version_bytes"]
        rows.append([name, f"{size / 1e6:.2f} MB", f"{size * row['updates'] / 1e9:.4f} GB",
                     *(_ratio(row, label) for label in _COLUMNS_5), _ratio(row, "nearzip, abs 0.1 %")])  # fmt: skip
    for name, (one, whole, *ratios) in TABLE_5.items():
        zstd, sz, delta, lc, fixed, varied = (f"{r:.2f}" for r in ratios)
        rows.append([f"*{name} (paper)*", f"{one} MB", f"{whole} GB", zstd, sz, delta, f"{lc} (bits not given)", "", "",
                     fixed, varied, ""])  # fmt: skip
    return table(["versions", "one", "all updates", *_COLUMNS_5, "nearzip, abs 0.001"], rows)


def losses(chains: dict[str, Row]) -> str:
    """Ratio, divergence and change of accuracy after the whole chain."""
    labels = ("SZ", "Delta-DNN", "Delta-DNN, absolute 0.1 %", "LC, 2 bits", "LC, 3 bits", "LC, 4 bits", "QD, 4 bits",
              "QD, 4-8 bits", "QD, 8 bits", "QD, 16 bits", "nearzip, abs 0.1 %")  # fmt: skip
    rows = []
    for label in labels:
        cells = []
        for row in chains.values():
            found = row["ways"][label]
            cells.append(f"{found['ratio']:.1f}; {found['kl']:.1e}; {100 * found['accuracy_change']:+.2f}")
        rows.append([label, *cells])
    return table(["method: ratio; KL; accuracy, points", *chains], rows)


def _entropies(row: Row) -> dict[str, float]:
    """Means over the pairs of a chain."""
    return {label: statistics.fmean(values) for label, values in row["figure_4"].items()}


def figure_4(chains: dict[str, Row]) -> str:
    """Mean over the pairs of a chain."""
    labels = next(iter(chains.values()))["figure_4"]
    rows = [[name, *(f"{bits:.3f}" for bits in _entropies(row).values())] for name, row in chains.items()]
    return table(["versions", *labels], rows)


def _local_below(chains: dict[str, Row], label: str) -> str:
    """`3 of 7`: on how many chains the local entropy is below the other."""
    found = [_entropies(row) for row in chains.values()]
    return f"{sum(bits['local'] < bits[label] for bits in found)} of {len(found)}"


def figure_5(chains: dict[str, Row]) -> str:
    """MDM and CorrCoef of the first and the last pair."""
    rows = []
    for name, row in chains.items():
        mdm, corr = row["figure_5"]["mdm"], row["figure_5"]["corrcoef"]
        rows.append([name, f"{mdm[0]:.3f} -> {mdm[-1]:.3f}", f"{corr[0]:.5f} -> {corr[-1]:.5f}"])
    return table(["versions", "MDM", "CorrCoef"], rows)


def figure_7(chains: dict[str, Row]) -> str:
    """The three back ends."""
    return table(["versions", "LZMA", "Zstd", "Gzip"],
                 _ratios(chains, ("QD, 8 bits", "QD, 8 bits, Zstd", "QD, 8 bits, Gzip")))  # fmt: skip


def context(result: Row) -> Row:
    """Figures of the page; the template calls some of them with the labels of methods."""
    chains = result["chains"]
    of_labels = {"larger": _larger, "median_gap": _median_gap, "largest_update": _largest_update,
                 "local_below": _local_below, "rises": _rises, "lc_first": _lc_first}  # fmt: skip
    tables = (table_1, table_4, table_5, losses, figure_4, figure_5, figure_7)
    return {
        "machine": result["machine"], "commit": commits(result["commit"]), "date": result["date"],
        "held_out_percent": f"{100 * result['held_out_share']:g}",
        "lengths": _lengths(chains), "largest_ratios": _where_updates_are_small(chains),
        "times_worse": _times_worse(chains),
        **{name: functools.partial(of, chains) for name, of in of_labels.items()},
        **{of.__name__: of(chains) for of in tables},
    }  # fmt: skip
