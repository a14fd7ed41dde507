"""`docs/papers/deepsz.md` from `results/deepsz.json`."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.docs.deepsz_tables import (
    TABLE_3,
    TITLES,
    bounds,
    figure_2,
    figure_4,
    figure_7,
    first,
    fold,
    in_points,
    lost,
    paper_step,
    retrained,
    sentence_chosen,
    table_3,
    table_4,
    table_5,
    table_chosen,
    tables_2,
)
from experiments.lab.record import RESULTS

_IMAGES = RESULTS.parent.parent / "docs" / "images"
Row = dict[str, Any]


# ---- plots -----------------------------------------------------------------------------------------------------


def _plots(networks: list[Row]) -> None:
    figure, axes = plt.subplots(1, 2 * len(networks), figsize=(8 * len(networks), 3.6), layout="constrained")
    for i, network in enumerate(networks):
        _plot_5(axes[2 * i], network)
        _plot_6(axes[2 * i + 1], network)
    figure.savefig(_IMAGES / "deepsz-figures.png", dpi=110)
    plt.close(figure)


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
    pairs = 100 * _pairs(network)
    slope, at_zero = np.polyfit(*_below(pairs / 100), 1)
    ends = np.array([0, 2])
    ax.plot(*pairs, "o", ms=3)
    ax.plot(ends, ends, "k:", lw=1, label="equal")
    ax.plot(ends, slope * ends + 100 * at_zero, "-", lw=1, label=f"slope {slope:.2f}")
    ax.set(xlabel="sum of the layers' own losses, points", ylabel="loss together, points",
           title=f"{TITLES[network['network']]}, Figure 6")  # fmt: skip
    ax.legend()


def _pairs(network: Row) -> np.ndarray:
    """Expected and actual losses, shape (2, n)."""
    return np.array([(r["expected"], r["actual"]) for r in network["linearity"]]).T


# ---- the page --------------------------------------------------------------------------------------------------


def page(result: Row) -> str:
    """The page, and its picture in `docs/images`."""
    networks = result["networks"]
    _plots(networks)
    machine = result["machine"]
    commits = ", ".join(sorted({c for row in networks for c in (row["commit"], row["times"]["commit"])}))
    where = f"{machine['cpu']}, {machine['cores']} cores; commit {commits}, {result['date']}"
    n_validation = f"{result['n_validation']:,}".replace(",", " ")
    allowed, margin = in_points(result["max_loss"]), f"{result['margin']:.2f}"
    return f"""# DeepSZ's tables and figures

Jin et al., HPDC 2019; [the method](../methods/deepsz.md). Made by `scripts/bench papers` from
`experiments/results/deepsz.json` ({where}).

LeNet-300-100 and Caffe's LeNet-5 on MNIST, trained here; their fully connected layers pruned step by step and
retrained with the zeros held and {100 * result["dropout"]:g} % dropout; that, and for how long, was settled on the
held-out images of seeds 0 and 1. *The paper's shares* keeps as many weights of each layer as the paper does; the other
pruning steps are named by what they keep of the largest layer. {allowed} points of the original, unpruned network's
accuracy may be lost, as in the paper.

KB are 1000 bytes, as in the paper. Compressed sizes are those of the layers' blocks; "whole file" is the ratio with
biases, which are kept exactly, header, index and checksums as well.

## What is chosen, and what it loses

One rule for both networks, both methods and every seed. Error bounds come from `nz.tune(strategy="deepsz")` on
{n_validation} training images that no training saw. It is given the accuracy less {margin} standard errors of what was
lost of the original (from the answers that changed, either way), and may lose {allowed} points of that; what pruning
lost counts. Of the pruning steps the one with the smallest layers is taken.

Test images are as many as held-out ones, so the two disagree about a loss by √2 standard errors, in 95 of 100 cases by
less than 1.645 times that to the worse side: {margin}, set before anything was measured with it. A search tries much
and takes what looks good, so less would not do. The test images give the accuracies below and enter no choice.

One setting was made when a first run had been judged by the test images, for what that run's held-out images showed.
Where pruning has left less than the 0.1 points that Algorithm 1 calls a distortion, its ranges begin at what is left
(`distortion=`). Before, it knew no bound between 0.001 and 0.01 for a layer that lost 0.08 points at 0.01, where 0.06
were left.

{table_chosen(networks)}

{sentence_chosen(networks, result["max_loss"])}

The tables that follow are of seed {first(networks[0])["seed"]}.

## Table 2: sizes of the fully connected layers

{tables_2(networks)}

{_sentence_2(networks)}

## Table 3: accuracy

{table_3(networks)}

One of the 10 000 test images is 0.01 points; after ± stands one standard error. "The paper's bounds" are those that its
search chose for its own networks. "Zero loss" may lose nothing of what pruning left on the held-out images; "no margin"
spends all {allowed} points there, and shows what the margin is for.

{_sentence_3(networks)}

{_sentence_ratio(networks)}

## Table 4: ratios beside Deep Compression and Weightless

All with the paper's shares, on one pruned network. Deep Compression has 5 bits a weight and trained centroids;
Weightless has the largest layer in a filter and leaves the others as they are.

{table_4(networks)}

Deep Compression's gaps have 5 bits and a Huffman code of their own. A filter takes 1.23 slots a weight whatever its
weights are: with slots of 9 bits, the 60x that DeepSZ's authors take from Weightless's own paper asks for less than 5 %
of the weights. Overall Weightless pays for the layers that it leaves as they are.

What their retraining leaves of accuracy, and Weightless's false positives:

{retrained(networks)}

## Table 5: accuracy lost without retraining at comparable ratios

Points lost of the pruned network on the test images; ratio of all fully connected layers in parentheses. Deep
Compression with as many bits a weight as DeepSZ's values take.

{table_5(networks)}

{_sentence_5()}

## Figure 2: SZ against ZFP

Ratios on the data arrays.

{figure_2(networks)}

{_sentence_figure_2(networks)}

## Figure 4: coders of the index array

{figure_4(networks)}

Of gzip, zstd and blosc, which the paper compares, {_sentence_4(networks)}.
The last column codes gaps without padding symbols, compared with
the bytes of the padded index array.

## Figures 5 and 6: assessment and linearity

![accuracy lost by error bound, and the sum of losses against the loss of the sum](../images/deepsz-figures.png)

{_sentence_6(networks)}

## Figure 7: time

Encoding: DeepSZ's search (assessment, choice, compression) with the paper's shares, against retraining and compression
of the others; pruning is shared and left out. Decoding on one core, all fully connected layers (of Weightless the one
in the filter). Medians. The paper's are of its section 5.2.3: encoding on four V100, decoding on one core of a Core i7,
LeNet-5 only; those of LeNet-300-100 are almost the same, it says.

{figure_7(networks)}

{_sentence_7(networks)}
"""


def _sentence_2(networks: list[Row]) -> str:
    same = " and ".join(
        f"{TITLES[n['network']]} comes to {fold(n['paper_bounds']['ratio'])} (the paper: {TABLE_3[n['network']][3]}x)"
        for n in networks
    )
    return f"""The paper contradicts itself on LeNet-300-100. Its Table 2 has 1.6 KB for ip2, which would be 75x, its
Table 4 37.97x, which is 3.2 KB; with that the layers add up to its 19.1 KB, with 1.6 they do not. Its 1056 KB
overall are 1065 by its own layers, and 55.8x counts from those. Tables 3 and 5 have 0.04 and 0.12 points for one loss.

With the paper's shares the two arrays are as large as the paper's, but for paddings. With its bounds
as well {same};
what differs beyond that are the bounds."""


def _sentence_3(networks: list[Row]) -> str:
    return "\n".join(_pruning_or_bounds(network) for network in networks)


def _pruning_or_bounds(network: Row) -> str:
    """Where the loss with the paper's shares comes from."""
    pruned, free, paper = paper_step(network)["pruned"], network["no_margin"], network["paper_bounds"]
    more = [in_points(row["test_loss"] - pruned["test_loss"]) for row in (free, paper)]
    return f"""* {TITLES[network["network"]]}, the paper's shares: pruning alone loses {in_points(pruned["test_loss"])}
  points on the test images. The bounds that the search takes without a margin ({bounds(free, network)})
  lose {more[0]} more there, and {in_points(free["validation_loss"] - pruned["validation_loss"])} on the held-out
  images where they were chosen; the paper's bounds ({bounds(paper, network)}) lose {more[1]}."""


def _sentence_ratio(networks: list[Row]) -> str:
    return "\n".join(
        f"* {TITLES[n['network']]}, expected-ratio mode at {n['expected_ratio']['wanted']}x with the paper's shares: "
        f"{fold(n['expected_ratio']['ratio'])}, {lost(n['expected_ratio'], 'test')} points lost "
        f"({bounds(n['expected_ratio'], n)})."
        for n in networks
    )


def _sentence_5() -> str:
    return """Weightless is not tuned to a ratio here: without the retraining that it relies on, its false positives are
all that matters. Deep Compression's clusters follow the weights; on LeNet-5 two bits lose little even without
retraining, unlike in the paper."""


def _sentence_figure_2(networks: list[Row]) -> str:
    rows = [(n, row, row["ratios"]) for n in networks for row in n["sz_against_zfp"]]
    wins = sum(r["sz3"] > r["zfp"] for *_, r in rows)
    none = sum(r["sz3 NOPRED"] >= r["sz3 INTERP_LORENZO"] for *_, r in rows)
    lost = [
        f"{TITLES[n['network']]}'s {_paper_name(n, row['layer'])} at {row['bound']:g} ({r['zfp']:.2f} against "
        f"{r['sz3']:.2f}), an array of {row['n']}\nvalues"
        for n, row, r in rows
        if r["sz3"] <= r["zfp"]
    ]
    text = (
        "The paper shows the layers of AlexNet and VGG-16, with SZ ahead of ZFP throughout. Here SZ3 is smaller in\n"
        f"{wins} of {len(rows)} cases, and smaller without its predictors in {none}."
    )
    exception = "; ".join(lost)
    return text + (f"\nThe exception: {exception}, where SZ3's header and Huffman table weigh most." if lost else "")


def _sentence_4(networks: list[Row]) -> str:
    rows = [row["ratios"] for n in networks for row in n["index_coders"]]
    wins = sum(max(("gzip", "zstd", "blosc"), key=lambda coder: row[coder]) == "zstd" for row in rows)
    return f"zstd is the smallest in {wins} of {len(rows)} cases (the paper: always)"


def _paper_name(network: Row, tensor: str) -> str:
    return next(paper for paper, name in network["layers"].items() if name == tensor)


def _sentence_6(networks: list[Row]) -> str:
    lines = [f"* {TITLES[n['network']]}: {_fit(_pairs(n))};\n  {_fit(_below(_pairs(n)))}." for n in networks]
    return f"""Error bounds drawn so that the layers' own losses add up to anything between 0 and 2 points; held-out
images, the paper's shares. For each network all combinations, then those that lose less than 2 points together, where
the paper finds the relation linear (the fitted lines):

{chr(10).join(lines)}

The losses do grow together, but faster than their sum: the paper's derivation leaves out the products of the layers'
errors, and bounds that cost a point are not small beside the weights that pruning leaves. The search therefore measures
its choice, and backs off where the sum was too hopeful."""


def _below(pairs: np.ndarray) -> np.ndarray:
    return pairs[:, pairs[1] < 0.02]


def _fit(pairs: np.ndarray) -> str:
    slope, _ = np.polyfit(*pairs, 1)
    expected, actual = pairs
    return (
        f"{expected.size} combinations, slope {slope:.2f}, correlation {np.corrcoef(pairs)[0, 1]:.2f}, "
        f"expected {in_points(expected.min())} to {in_points(expected.max())} points, "
        f"lost {in_points(actual.min())} to {in_points(actual.max())}"
    )


def _sentence_7(networks: list[Row]) -> str:
    times = next(n["times"] for n in networks if n["network"] == "lenet-5")
    whole = {method: row["whole"] for method, row in times["decode_ms"].items() if method != "forward"}
    seconds, deepsz = times["encode_s"], times["decode_ms"]["deepsz"]
    return f"""On LeNet-5:

* Encoding: DeepSZ's search takes {seconds["deepsz"]:.0f} s where two epochs of retraining and compression take Deep
  Compression {seconds["deep-compression"]:.0f}: the paper's order. What its minutes consist of it does not say.
* DeepSZ's decoding, {whole["deepsz"]:.1f} ms against 2.7: gaps and matrix take {deepsz["gaps"] + deepsz["matrix"]:.1f},
  the values pass through a child process with limits, since SZ3 can crash on damaged bytes. deepsz-nearzip needs no
  child: {whole["deepsz-nearzip"]:.1f} ms.
* Deep Compression, {whole["deep-compression"]:.1f} ms against 13.9: Huffman codes of values and of gaps are looked up
  16 bits at once, in compiled code.
* Weightless, {whole["weightless"]:.1f} ms against 520 from Weightless's own paper: four hashes for each weight in
  compiled code."""
