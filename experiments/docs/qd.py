"""`docs/papers/qd-compressor.md` from `results/qd_compressor.json`."""

from __future__ import annotations

import statistics
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.docs.tables import table
from experiments.lab.record import RESULTS

_IMAGES = RESULTS.parent.parent / "docs" / "images"
Row = dict[str, Any]

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
    """How many times one way's ratio is another's, the median over the chains."""
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
    """How many times the divergence of 8 bits 4 to 8 bits have."""
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
    """What the last version lost on the way."""
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
    """From the first to the last pair."""
    rows = []
    for name, row in chains.items():
        mdm, corr = row["figure_5"]["mdm"], row["figure_5"]["corrcoef"]
        rows.append([name, f"{mdm[0]:.3f} -> {mdm[-1]:.3f}", f"{corr[0]:.5f} -> {corr[-1]:.5f}"])
    return table(["versions", "MDM", "CorrCoef"], rows)


def figure_7(chains: dict[str, Row]) -> str:
    """The three back ends."""
    return table(["versions", "LZMA", "Zstd", "Gzip"],
                 _ratios(chains, ("QD, 8 bits", "QD, 8 bits, Zstd", "QD, 8 bits, Gzip")))  # fmt: skip


def _draw(chains: dict[str, Row]) -> None:
    """Figure 12: the ratio of every version."""
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
    _IMAGES.mkdir(exist_ok=True)
    figure.savefig(_IMAGES / "qd-compressor-figure-12.png", dpi=100, metadata={"Software": None})
    plt.close(figure)


def page(result: Row) -> str:
    """The whole page; draws its picture."""
    chains, m = result["chains"], result["machine"]
    _draw(chains)
    return f"""# QD-Compressor and LC-Checkpoint: the paper's tables, on versions trained here

Jin et al., TPDS 2023; [the method](../methods/qd-compressor.md), [LC-Checkpoint](../methods/lc-checkpoint.md). Made by
`scripts/bench papers` from `experiments/results/qd_compressor.json` (measured by `scripts/bench qd_compressor --data
DIR`); nothing here is typed by hand but the paper's own figures. {m["cpu"]}, {m["cores"]} cores; commit
{result["commit"]}, {result["date"]}.

The paper trains six CIFAR-10 networks for 200 epochs, with error feedback. Here stand chains of
{_lengths(chains)} versions of small networks that were trained without knowing of compression; every version is
coded against what a reader has decoded of the one before, and restored from its bytes. Ratios are those of all updates
together, the first version left out. Differences and losses are on {100 * result["held_out_share"]:g} % of the held-out
data.

## Table 5: all compressors

{table_5(chains)}

Zstd is at its default level; SZ is SZ3 on raw floats within 0.001 of each tensor's range (the paper names no bound;
this one comes near its ratios); Delta-DNN is in the relative reading at 5 %, near its ratios as well where versions are
as far apart. QD's ratios are below the paper's where versions differ more than the paper's do (Figure 5): most of the
paper's 200 epochs are late ones, ours are early. Its largest ratios at 8 and 4 to 8 bits are
{_where_updates_are_small(chains)}.

4 to 8 bits are smaller than 8 on {_larger(chains, "QD, 4-8 bits", "QD, 8 bits")} chains, and than LC at 4 bits on
{_larger(chains, "QD, 4-8 bits", "LC, 4 bits")}; in the paper both always hold. The paper does not say how many bits LC
has; its ratio of about 8 is nearest that of 4 bits here.

nearzip with an error of at most 0.001 has {_median_gap(chains, "nearzip, abs 0.1 %", "QD, 8 bits")} times the ratio of
QD at 8 bits in the median; the next table says at what loss. Where an update is smaller than that error nearly all
of it becomes zero, and its ratio is as large as {_largest_update(chains, "nearzip, abs 0.1 %")}: the loss
there is that of keeping the version before.

## What is lost

Ratio, KL divergence of the last version's outputs from the original's in nats per prediction, and change of accuracy in
points, after the whole chain.

{losses(chains)}

This is what the paper's ratios leave out. Without error feedback, the divergence at 4 to 8 bits is
{_times_worse(chains)} times that at 8 bits: a tensor with few values and a wide range, such as a norm's running
variance, gets few bits. A ratio is worth comparing at equal loss only. LC at 2 bits has three buckets for a tensor, too
few most of all for the small VGG.

## Table 1: global and local, before and after the difference

{table_1(chains)}

Quantizing first has the larger ratio on {_larger(chains, "QD, 8 bits", "QD, 8 bits, difference first")} chains, as in
the paper. But the two local columns are not of one quality: the difference in its own range is divided into the same
number of levels, which are far finer, so it is larger and more exact (KL in the JSON). The paper's global column is
Delta-DNN, one error for all layers, and local quantization always has the larger ratio; here quantizing first has it on
{_larger(chains, "QD, 8 bits", "Delta-DNN")} chains and differences first on
{_larger(chains, "QD, 8 bits, difference first", "Delta-DNN")}. One range for all layers in the same number of bits has
large ratios at a far larger loss.

## Table 4: 8 and 16 bits

{table_4(chains)}

As in the paper 16 bits cost several times as much as 8.

## Figure 4: entropy of the quantized difference, bits for a value

{figure_4(chains)}

The paper finds local entropies *below* global ones, where its "global" is Delta-DNN's step, the same for all layers; it
does not name the bound. At Delta-DNN's default, 0.1 %, so does this table in the relative reading, on
{_local_below(chains, "Delta-DNN, relative 0.1 %")} chains; in the absolute one, the equations as printed, on
{_local_below(chains, "Delta-DNN, absolute 0.1 %")}, and at the 5 % of the tables above on
{_local_below(chains, "Delta-DNN, relative 5 %")}. So which of the two is smaller is a matter of the step. With one
range of the same number of bits for all layers the local entropy is the smaller on
{_local_below(chains, "one range")}: most layers use few of that range's levels.

## Figure 5: likeness of quantized neighbours, 8 bits, first to last pair

{figure_5(chains)}

The paper: MDM from 0 to 3, CorrCoef above 0.99 and rising. Where MDM is above 3 here, versions lie farther apart than
any of the paper's.

## Figure 7: back ends, 8 bits

{figure_7(chains)}

LZMA has the largest ratio on {_larger(chains, "QD, 8 bits", "QD, 8 bits, Zstd", "QD, 8 bits, Gzip")} chains, Zstd on
{_larger(chains, "QD, 8 bits, Zstd", "QD, 8 bits", "QD, 8 bits, Gzip")}, within a few percent of each other; in the
paper LZMA is ahead on all six networks.

## Figure 12: ratio by version

![Ratio of every version](../images/qd-compressor-figure-12.png)

As in the paper the ratios of QD (8 bits: {_rises(chains, "QD, 8 bits")} chains) and of Delta-DNN
({_rises(chains, "Delta-DNN")}) are larger at the end than at the beginning: versions come closer to each other.
In the paper QD is ahead of the others from the beginning; here LC at 3 bits has the larger ratio on the first update of
{_lc_first(chains, 0)} chains and on the last of {_lc_first(chains, -1)}.
"""
