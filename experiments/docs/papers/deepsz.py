"""`docs/papers/deepsz.md` from `results/deepsz.json`."""

from __future__ import annotations

import numpy as np

from experiments.docs.markdown import Row, commits
from experiments.docs.papers.deepsz_tables import (
    TABLE_3,
    TITLES,
    below,
    bounds,
    figure_2,
    figure_4,
    figure_7,
    first,
    fold,
    in_points,
    lost,
    pairs,
    paper_step,
    retrained,
    sentence_chosen,
    table_3,
    table_4,
    table_5,
    table_chosen,
    tables_2,
)


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
    lines = [f"* {TITLES[n['network']]}: {_fit(pairs(n))};\n  {_fit(below(pairs(n)))}." for n in networks]
    return f"""Error bounds drawn so that the layers' own losses add up to anything between 0 and 2 points; held-out
images, the paper's shares. For each network all combinations, then those that lose less than 2 points together, where
the paper finds the relation linear (the fitted lines):

{chr(10).join(lines)}

The losses do grow together, but faster than their sum: the paper's derivation leaves out the products of the layers'
errors, and bounds that cost a point are not small beside the weights that pruning leaves. The search therefore measures
its choice, and backs off where the sum was too hopeful."""


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


def context(result: Row) -> Row:
    """Figures of the page."""
    networks, m = result["networks"], result["machine"]
    measured = commits(*sorted({c for row in networks for c in (row["commit"], row["times"]["commit"])}))
    tables = (tables_2, table_3, table_4, table_5, table_chosen, figure_2, figure_4, figure_7, retrained)
    return {
        "where": f"{m['cpu']}, {m['cores']} cores; commit {measured}, {result['date']}",
        "dropout_percent": f"{100 * result['dropout']:g}",
        "n_validation": f"{result['n_validation']:,}".replace(",", " "),
        "allowed": in_points(result["max_loss"]), "margin": f"{result['margin']:.2f}",
        "first_seed": first(networks[0])["seed"],
        "chosen": sentence_chosen(networks, result["max_loss"]),
        "SENTENCE_2": _sentence_2(networks), "SENTENCE_3": _sentence_3(networks), "SENTENCE_5": _sentence_5(),
        "SENTENCE_FIGURE_2": _sentence_figure_2(networks), "zstd_smallest": _sentence_4(networks),
        "SENTENCE_6": _sentence_6(networks), "SENTENCE_7": _sentence_7(networks),
        "expected_ratio": _sentence_ratio(networks),
        **{of.__name__: of(networks) for of in tables},
    }  # fmt: skip
