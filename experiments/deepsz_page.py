"""`docs/papers/deepsz.md` from `results/deepsz.json`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import matplotlib.pyplot as plt

from experiments.record import RESULTS
from experiments.tables import table

_IMAGES = RESULTS.parent.parent / "docs" / "images"
Row = dict[str, Any]

_TITLES = {"lenet-300-100": "LeNet-300-100", "lenet-5": "LeNet-5"}
#: The paper's Table 2: original KB, pruning ratio in percent, KB as two arrays, KB compressed.
_TABLE_2 = {
    "lenet-300-100": {
        "ip1": (941, 8, 94, 15.2), "ip2": (120, 9, 14, 1.6), "ip3": (4, 26, 1.3, 0.7),
        "overall": (1056, 8.25, 109, 19.1),
    },
    "lenet-5": {"ip1": (1600, 8, 160, 27.3), "ip2": (20, 19, 4.8, 0.93), "overall": (1620, 8.1, 165, 28.27)},
}  # fmt: skip
#: Its Table 3: accuracy of the original and of DeepSZ in percent, KB, ratio.
_TABLE_3 = {"lenet-300-100": (98.35, 98.31, 19.1, 55.8), "lenet-5": (99.13, 99.16, 28.3, 57.3)}
#: Its Table 4: ratios of Deep Compression, Weightless and DeepSZ ("-": not given).
_TABLE_4 = {
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


def _kb(n_bytes: float) -> str:
    return f"{n_bytes / 1000:.1f} KB" if n_bytes >= 10_000 else f"{n_bytes / 1000:.2f} KB"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x"


def _points(loss: float) -> str:
    return f"{100 * loss:.2f}"


def _bounds(row: Row, network: Row) -> str:
    named = {tensor: paper for paper, tensor in network["layers"].items()}
    return ", ".join(f"{named[name]} {bound:g}" for name, bound in row["bounds"].items())


def _step_title(name: str) -> str:
    return "the paper's shares" if name == "paper" else f"{name} kept"


#: What Table 3 shows of a step, and how it is called.
_ROWS_3 = (
    ("deepsz", "deepsz"), ("deepsz-nearzip", "deepsz-nearzip"), ("zero_loss", "deepsz, zero loss"),
    ("no_margin", "deepsz, no margin"),
)  # fmt: skip


# ---- tables ----------------------------------------------------------------------------------------------------


def _table_2(network: Row, name: str) -> str:
    step, theirs = network["steps"][name], _TABLE_2[network["network"]]
    rows = []
    for paper, tensor in network["layers"].items():
        size = network["fc_layers"][tensor]
        rows.append([
            paper, _kb(size), f"{100 * step['keep'][tensor]:.1f} %", _kb(step["csr_bytes"][tensor]),
            _kb(step["deepsz"]["layers"][tensor]["bytes"]), _times(step["deepsz"]["layers"][tensor]["ratio"]),
            _times(step["deepsz-nearzip"]["layers"][tensor]["ratio"]), *_their_size(theirs[paper]),
        ])  # fmt: skip
    csr = sum(step["csr_bytes"].values())
    weights = sum(network["fc_layers"].values()) / 4
    share = sum(step["keep"][t] * n / 4 for t, n in network["fc_layers"].items()) / weights
    rows.append([
        "overall", _kb(network["fc_bytes"]), f"{100 * share:.1f} %",
        f"{_kb(csr)} ({_times(network['fc_bytes'] / csr)})",
        _kb(step["deepsz"]["bytes"]), f"**{_times(step['deepsz']['ratio'])}**",
        f"**{_times(step['deepsz-nearzip']['ratio'])}**", *_their_size(theirs["overall"]),
    ])  # fmt: skip
    head = ["layer", "original", "kept", "two arrays", "deepsz", "ratio", "deepsz-nearzip", "paper: kept", "two arrays",
            "DeepSZ", "ratio"]  # fmt: skip
    title = f"{_TITLES[network['network']]}, {_step_title(name)}. Error bounds: {_bounds(step['deepsz'], network)}"
    ours = _bounds(step["deepsz-nearzip"], network)
    return f"{title} (deepsz-nearzip: {ours}).\n\n" + table(head, rows)


def _their_size(figures: tuple[float, ...]) -> list[str]:
    original, share, csr, compressed = figures
    return [f"{share:g} %", f"{csr:g} KB", f"{compressed:g} KB", _times(original / compressed)]


def _table_3(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        title, original = _TITLES[network["network"]], network["original"]
        theirs = _TABLE_3[network["network"]]
        rows.append([f"{title} original", _percent(original["test"]), "", _kb(network["fc_bytes"]), "", "",
                     f"{theirs[0]} %", ""])  # fmt: skip
        for name, step in network["steps"].items():
            for key, method in _ROWS_3:
                if key not in step:
                    continue
                row = step[key]
                their_cells = [f"{theirs[1]} %", f"{theirs[3]}x"] if (key, name) == ("deepsz", "paper") else ["", ""]
                rows.append([
                    f"{title} {method}, {_step_title(name)}", _percent(row["test"]),
                    _points(original["test"] - row["test"]), _kb(row["bytes"]), _times(row["ratio"]),
                    _times(row["archive_ratio"]), *their_cells,
                ])  # fmt: skip
    head = ["network", "top-1, test images", "points lost", "fully connected layers", "ratio", "with header and index",
            "paper: top-1", "ratio"]  # fmt: skip
    return table(head, rows)


def _table_4(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        step, weightless = network["steps"]["paper"], network["weightless"][0]
        for paper, tensor in [*network["layers"].items(), ("overall", "")]:
            cells = [
                side["layers"][tensor]["ratio"] if tensor else side["ratio"]
                for side in (network["deep_compression"], weightless, step["deepsz"], step["deepsz-nearzip"])
            ]
            gain = cells[2] / max(cells[:2])
            rows.append([_TITLES[network["network"]], paper, *map(_times, cells), f"{gain:.2f}x",
                         *_TABLE_4[network["network"]][paper]])  # fmt: skip
    head = ["network", "layer", "deep-compression", "weightless", "deepsz", "deepsz-nearzip", "deepsz over best other",
            "paper: Deep Compression", "Weightless", "DeepSZ"]  # fmt: skip
    return table(head, rows)


def _table_5(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        top, step = network["steps"]["paper"]["test"], network["steps"]["paper"]
        cells = [network["deep_compression_at_our_bits"], network["weightless_without_retraining"], step["deepsz"],
                 step["deepsz-nearzip"]]  # fmt: skip
        shown = [f"{_points(top - cell['test'])} ({_times(cell['ratio'])})" for cell in cells]
        rows.append([_TITLES[network["network"]], f"{network['deep_compression_at_our_bits']['bits']}", *shown,
                     *_TABLE_5[network["network"]]])  # fmt: skip
    head = ["network", "bits a weight", "deep-compression", "weightless", "deepsz", "deepsz-nearzip",
            "paper: Deep Compression", "Weightless", "DeepSZ"]  # fmt: skip
    return table(head, rows)


def _retrained(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        top, title, shared = network["original"]["test"], _TITLES[network["network"]], network["deep_compression"]
        lost = _points(top - shared["test"])
        rows.append([title, "deep-compression, 5 bits", _times(shared["ratio"]), lost, ""])
        rows += [
            [title, f"weightless, {row['clusters']} clusters in {row['bits']} bits",
             f"{_times(row['layers'][row['layer']]['ratio'])} ({_times(row['ratio'])} overall)",
             _points(top - row["test"]), f"{row['false_positives']:,} of {row['zeros']:,} zeros"]
            for row in network["weightless"]
        ]  # fmt: skip
    return table(["network", "method", "ratio", "points lost of the original", "false positives"], rows)


def _figure_2(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        named = {tensor: paper for paper, tensor in network["layers"].items()}
        for row in network["sz_against_zfp"]:
            ratios = [f"{row['ratios'][k]:.2f}" for k in ("sz3 INTERP_LORENZO", "sz3 NOPRED", "sz3", "zfp")]
            rows.append([_TITLES[network["network"]], named[row["layer"]], f"{row['bound']:g}", *ratios])
    return table(["network", "layer", "bound", "SZ3, predictors", "SZ3, none", "SZ3, smaller", "ZFP"], rows)


def _figure_4(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        named = {tensor: paper for paper, tensor in network["layers"].items()}
        rows += [
            [_TITLES[network["network"]], named[row["layer"]],
             *(f"{row['ratios'][k]:.3f}" for k in ("gzip", "zstd", "blosc", "lzma", "rans"))]
            for row in network["index_coders"]
        ]  # fmt: skip
    return table(["network", "layer", "gzip", "zstd", "blosc", "LZMA", "gaps without padding, rANS"], rows)


def _figure_7(networks: Iterable[Row]) -> str:
    rows = []
    for network in networks:
        title, times, step = _TITLES[network["network"]], network["decode_ms"], network["steps"]["paper"]
        encode = {
            "deepsz": step["deepsz"]["seconds"], "deepsz-nearzip": step["deepsz-nearzip"]["seconds"],
            "deep-compression": network["deep_compression"]["seconds"],
            "weightless": network["weightless"][0]["seconds"],
        }  # fmt: skip
        for method, seconds in encode.items():
            row = times[method]
            parts = [f"{row[k]:.2f}" if k in row else "" for k in ("gaps", "values", "matrix")]
            rows.append([title, method, f"{seconds:.1f} s", *parts, f"{row['whole']:.2f} ms"])
        rows.append([title, "forward pass, 50 images", "", "", "", "", f"{times['forward']:.2f} ms"])
    head = ["network", "method", "encoding", "gaps, ms", "values, ms", "matrix, ms", "decoding"]
    return table(head, rows)


# ---- plots -----------------------------------------------------------------------------------------------------


def _plots(networks: list[Row]) -> None:
    figure, axes = plt.subplots(1, 2 * len(networks), figsize=(6.2 * len(networks), 3.2), layout="constrained")
    for i, network in enumerate(networks):
        named = {tensor: paper for paper, tensor in network["layers"].items()}
        ax, trials = axes[2 * i], network["steps"]["paper"]["deepsz"]["trials"]
        for tensor, paper in named.items():
            points = sorted((t["bound"], 100 * t["loss"]) for t in trials if t["layer"] == tensor)
            ax.plot(*zip(*points, strict=True), "o-", ms=3, label=paper)
        ax.set(xscale="log", xlabel="error bound of one layer", ylabel="points lost, held-out images",
               ylim=(-0.3, 3), title=f"{_TITLES[network['network']]}, Figure 5")  # fmt: skip
        ax.legend()
        ax = axes[2 * i + 1]
        pairs = [(100 * r["expected"], 100 * r["actual"]) for r in network["linearity"] if r["expected"] < 0.02]
        ax.plot(*zip(*pairs, strict=True), "o", ms=3)
        ends = [min(min(p) for p in pairs), max(max(p) for p in pairs)]
        ax.plot(ends, ends, "k:", lw=1)
        ax.set(xlabel="sum of the layers' own losses", ylabel="loss together", title="Figure 6")
    figure.savefig(_IMAGES / "deepsz-figures.png", dpi=110)
    plt.close(figure)


# ---- the page --------------------------------------------------------------------------------------------------


def page(result: Row) -> str:
    """The page, and its picture in `docs/images`."""
    networks = result["networks"]
    _plots(networks)
    machine = result["machine"]
    commits = ", ".join(sorted({row.get("commit", result["commit"]) for row in result["networks"]}))
    where = f"{machine['cpu']}, {machine['cores']} cores; commit {commits}, {result['date']}"
    modes = "\n".join(
        f"* {_TITLES[n['network']]}, expected-ratio mode at {n['expected_ratio']['wanted']}x with the paper's shares: "
        f"{_times(n['expected_ratio']['ratio'])}, {_points(n['original']['test'] - n['expected_ratio']['test'])} "
        f"points lost ({_bounds(n['expected_ratio'], n)})."
        for n in networks
    )
    tables_2 = "\n\n".join(_table_2(n, name) for n in networks for name in dict.fromkeys(("paper", n["chosen"])))
    n_validation = f"{result['n_validation']:,}".replace(",", " ")
    return f"""# DeepSZ's tables and figures

Jin et al., HPDC 2019; [the method](../methods/deepsz.md). Made by `scripts/bench papers` from
`experiments/results/deepsz.json` ({where}).

LeNet-300-100 and Caffe's LeNet-5 on MNIST, trained here; their fully connected layers pruned step by step and
retrained with the zeros held. Every choice (shares, error bounds) was made on {n_validation} training images that no
training saw; the test images only give the accuracies below. {_points(result["max_loss"])} points may be lost of the
original, unpruned network. On the held-out images the searches may lose {_points(result["budget"])}: these images tell
a loss to within 0.08 points, and a search picks what looks good on them. What pruning lost is taken off before
error bounds are assessed. *The paper's shares* keeps as many weights of each layer as the paper does; the other
pruning steps are named by what they keep of the largest layer. *Chosen* is the step whose archive is the smallest
within the budget on the held-out images.

KB are 1000 bytes, as in the paper. Compressed sizes are those of the layers' blocks; Table 3 gives the ratio with the
archive's header, index and checksums as well.

## Table 2: sizes of the fully connected layers

{tables_2}

{_sentence_2(networks)}

## Table 3: accuracy

{_table_3(networks)}

One of the 10 000 test images is 0.01 points. "Zero loss" may lose nothing of what pruning left on the held-out
images; "no margin" spends all {_points(result["max_loss"])} points there, and shows what the margin is for. Where the
losses of a choice add up to more than their sum the search halves its budget, which can leave a layer no bound but its
finest (LeNet-300-100 with 5 % kept). Held-out images are not test images: LeNet-5 with 2 % kept loses 0.02 points more
than asked.

{modes}

## Table 4: ratios beside Deep Compression and Weightless

All with the paper's shares, on one pruned network. Deep Compression has 5 bits a weight and trained centroids;
Weightless has the largest layer in a filter and leaves the others as they are.

{_table_4(networks)}

Deep Compression's gaps have 5 bits and a Huffman code of their own. A filter takes 1.23 slots a weight whatever its
weights are: with slots of 9 bits, the 60x that DeepSZ's authors take from Weightless's own paper asks for less than 5 %
of the weights. Overall Weightless pays for the layers that it leaves as they are.

What their retraining leaves of accuracy, and Weightless's false positives:

{_retrained(networks)}

## Table 5: accuracy lost without retraining at comparable ratios

Points lost of the pruned network on the test images; ratio of all fully connected layers in parentheses. Deep
Compression with as many bits a weight as DeepSZ's values take.

{_table_5(networks)}

{_sentence_5()}

## Figure 2: SZ against ZFP

Ratios on the data arrays.

{_figure_2(networks)}

{_sentence_figure_2(networks)}

## Figure 4: coders of the index array

{_figure_4(networks)}

The paper finds zstd the smallest throughout. The last column codes gaps without padding symbols, compared with
the bytes of the padded index array.

## Figures 5 and 6: assessment and linearity

![accuracy lost by error bound, and the sum of losses against the loss of the sum](../images/deepsz-figures.png)

{_sentence_6(networks)}

## Figure 7: time

Encoding: DeepSZ's assessment, choice and compression, against retraining and compression of the others (pruning
is shared and left out). Decoding on one core, all fully connected layers (of Weightless the one in the filter).
Medians, while other programs ran on the machine.

{_figure_7(networks)}

Encoding is not as the paper finds it, where a test is far cheaper than an epoch of training: here an epoch takes
seconds. DeepSZ's values pass through a child process, whose pipes and checks are part of the time. Deep
Compression's Huffman decoder is NumPy, which pays off for larger layers only. The paper's figures are for much
larger layers (26, 108 and 162 ms for gaps, values and matrix of AlexNet).
"""


def _sentence_2(networks: list[Row]) -> str:
    lines = []
    for network in networks:
        title, top = _TITLES[network["network"]], network["original"]["test"]
        paper, chosen = network["steps"]["paper"]["deepsz"], network["steps"][network["chosen"]]["deepsz"]
        before, after, _, ratio = _TABLE_3[network["network"]]
        line = f"* {title}: {_times(paper['ratio'])} at {_points(top - paper['test'])} points lost, the paper's shares;"
        if chosen is not paper:
            lost = _points(top - chosen["test"])
            line += f"\n  {_times(chosen['ratio'])} at {lost}, {_step_title(network['chosen'])} (chosen);"
        lines.append(f"{line}\n  the paper's own: {ratio}x at {before - after:.2f}.")
    return (
        "\n".join(lines)
        + """

With the paper's shares the two arrays are as large as the paper's, but for paddings. SZ3 without predictors, where the
paper has SZ 2.0, and weights retrained for several epochs under weight decay make the rest of the difference."""
    )


def _sentence_5() -> str:
    return """Weightless is not tuned to a ratio here: without the retraining that it relies on, its false positives are
all that matters. Deep Compression's clusters follow the weights; on LeNet-5 two bits lose little even without
retraining, unlike in the paper."""


def _sentence_figure_2(networks: list[Row]) -> str:
    rows = [row["ratios"] for n in networks for row in n["sz_against_zfp"]]
    wins = sum(r["sz3"] > r["zfp"] for r in rows)
    none = sum(r["sz3 NOPRED"] >= r["sz3 INTERP_LORENZO"] for r in rows)
    return f"SZ3 is smaller than ZFP in {wins} of {len(rows)} cases, and smaller without its predictors in {none}."


def _sentence_6(networks: list[Row]) -> str:
    import numpy as np

    parts = []
    for network in networks:
        near = [(r["expected"], r["actual"]) for r in network["linearity"] if r["expected"] < 0.02]
        r = float(np.corrcoef(np.array(near).T)[0, 1]) if len(near) > 2 else float("nan")
        worst = max(abs(a - e) for e, a in near) if near else float("nan")
        parts.append(f"{_TITLES[network['network']]} {r:.2f} (largest difference {_points(worst)} points)")
    return (
        "Correlation of expected and actual loss below 2 points, random choices among the assessed bounds: "
        + ", ".join(parts)
        + ".\nThe search therefore measures its choice, and backs off where the sum was too hopeful."
    )
