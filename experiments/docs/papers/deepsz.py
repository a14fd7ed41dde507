"""`docs/papers/deepsz.md` from `results/deepsz.json`."""

from __future__ import annotations

import numpy as np

from experiments.docs.markdown import Row, commits
from experiments.docs.papers import deepsz_seeds
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


def _paper_bounds(networks: list[Row]) -> str:
    return " and ".join(
        f"{TITLES[n['network']]} comes to {fold(n['paper_bounds']['ratio'])} (the paper: {TABLE_3[n['network']][3]}x)"
        for n in networks
    )


def _pruning_or_bounds(network: Row) -> str:
    """The loss with the paper's shares, split into pruning and bounds."""
    pruned, free, paper = paper_step(network)["pruned"], network["no_margin"], network["paper_bounds"]
    more = [in_points(row["test_loss"] - pruned["test_loss"]) for row in (free, paper)]
    return f"""* {TITLES[network["network"]]}, the paper's shares: pruning itself loses {in_points(pruned["test_loss"])}
  points on the test images. The bounds that the search takes without a margin ({bounds(free, network)})
  lose {more[0]} more there, and {in_points(free["validation_loss"] - pruned["validation_loss"])} on the held-out
  images where they were chosen; the paper's bounds ({bounds(paper, network)}) lose {more[1]}."""


def _expected_ratio(networks: list[Row]) -> str:
    return "\n".join(
        f"* {TITLES[n['network']]}, expected-ratio mode at {n['expected_ratio']['wanted']}x with the paper's shares: "
        f"{fold(n['expected_ratio']['ratio'])}, {lost(n['expected_ratio'], 'test')} points lost "
        f"({bounds(n['expected_ratio'], n)})."
        for n in networks
    )


def _sz_against_zfp(networks: list[Row]) -> str:
    rows = [(n, row, row["ratios"]) for n in networks for row in n["sz_against_zfp"]]
    wins = sum(r["sz3"] > r["zfp"] for *_, r in rows)
    none = sum(r["sz3 NOPRED"] >= r["sz3 INTERP_LORENZO"] for *_, r in rows)
    larger = [
        f"{TITLES[n['network']]}'s {_paper_name(n, row['layer'])} at {row['bound']:g} ({r['zfp']:.2f} against "
        f"{r['sz3']:.2f}), an array of {row['n']} values"
        for n, row, r in rows
        if r["sz3"] <= r["zfp"]
    ]
    text = f"Here SZ3 is smaller in {wins} of {len(rows)} cases, and smaller without its predictors in {none}."
    exception = f" The exception: {'; '.join(larger)}, where SZ3's header and Huffman table weigh most."
    return text + (exception if larger else "")


def _zstd_smallest(networks: list[Row]) -> str:
    rows = [row["ratios"] for n in networks for row in n["index_coders"]]
    wins = sum(max(("gzip", "zstd", "blosc"), key=lambda coder: row[coder]) == "zstd" for row in rows)
    return f"zstd is the smallest in {wins} of {len(rows)} cases (the paper: always)"


def _paper_name(network: Row, tensor: str) -> str:
    return next(paper for paper, name in network["layers"].items() if name == tensor)


def _linearity(networks: list[Row]) -> str:
    return "\n".join(f"* {TITLES[n['network']]}: {_fit(pairs(n))};\n  {_fit(below(pairs(n)))}." for n in networks)


def _fit(losses: np.ndarray) -> str:
    slope, _ = np.polyfit(*losses, 1)
    expected, actual = losses
    return (
        f"{expected.size} combinations, slope {slope:.2f}, correlation {np.corrcoef(losses)[0, 1]:.2f}, "
        f"expected {in_points(expected.min())} to {in_points(expected.max())} points, "
        f"lost {in_points(actual.min())} to {in_points(actual.max())}"
    )


def _times(networks: list[Row]) -> dict[str, str]:
    """Seconds of encoding and milliseconds of decoding LeNet-5."""
    times = next(n["times"] for n in networks if n["network"] == "lenet-5")
    whole = {method: row["whole"] for method, row in times["decode_ms"].items() if method != "forward"}
    seconds, deepsz = times["encode_s"], times["decode_ms"]["deepsz"]
    return {
        "search": f"{seconds['deepsz']:.0f}",
        "retraining": f"{seconds['deep-compression']:.0f}",
        "gaps": f"{deepsz['gaps'] + deepsz['matrix']:.1f}",
        **{method.replace("-", "_"): f"{ms:.1f}" for method, ms in whole.items()},
    }


def context(result: Row, seeds: Row, more: Row) -> Row:
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
        "paper_bounds": _paper_bounds(networks), "expected_ratio": _expected_ratio(networks),
        "pruning_or_bounds": "\n".join(_pruning_or_bounds(network) for network in networks),
        "sz_against_zfp": _sz_against_zfp(networks), "zstd_smallest": _zstd_smallest(networks),
        "linearity": _linearity(networks), "times": _times(networks),
        **{of.__name__: of(networks) for of in tables}, "seeds": deepsz_seeds.context(seeds),
        "more": deepsz_seeds.more(more),
    }  # fmt: skip
