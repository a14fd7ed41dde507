"""Accuracy budgets, and what calibration costs."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.docs.markdown import Row, circumstances, commits, table

_SEARCHES = {
    "nearzip, calibrated": "ours, calibrated", "nearzip": "ours", "delta-dnn": "Delta-DNN's", "deepsz": "DeepSZ's",
    "nearzip, more": "ours, more evaluations",
}  # fmt: skip


#: Which of ours is compared with which of the papers'.
_BESIDE = (
    ("nearzip, calibrated", "delta-dnn"), ("nearzip, calibrated", "deepsz"),
    ("nearzip", "delta-dnn"), ("nearzip", "deepsz"), ("nearzip, more", "deepsz"),
)  # fmt: skip


def budgets(result: Row) -> str:
    """Searches under one accuracy budget."""
    rows = [
        [f"{row['network']}, {row['what']}", f"{row['metric']} {row['max_loss']:g}"]
        + [_found(row["searches"].get(name)) for name in _SEARCHES]
        for row in result["rows"]
    ]
    head = ["network", "at most lost", *_SEARCHES.values()]
    own = (search.get("commit") for row in result["rows"] for search in row["searches"].values())
    found = commits(*sorted({row["commit"] for row in result["rows"]} | {each for each in own if each}))
    return "\n\n".join([table(head, rows), _tally(result["rows"]), f"{circumstances(result, found)}."])


def _found(search: dict[str, Any] | None) -> str:
    if search is None:
        return ""
    if "nothing_fits" in search:
        return "nothing fits"
    losses = f"{search['measured_again']:.2g} / {search['loss_on_unseen_data']:.2g}"
    return f"{search['bytes']:,} ({search['evaluations']}), {losses}"


def _tally(rows: list[dict[str, Any]]) -> str:
    """Verdicts: how often plans kept their budget, and how ours compares in bytes and evaluations."""
    found = [(s["measured_again"], row["max_loss"]) for row in rows for s in row["searches"].values() if "bytes" in s]
    # As the search counts: 0.978 - 0.976 is not over 0.002.
    within = sum(loss <= most * (1 + 1e-12) for loss, most in found)
    lines = [f"Measured again on the stored archive, {within} of {len(found)} plans are within their budget."]
    for own, name in _BESIDE:
        both = [row for row in rows if {own, name} <= set(row["searches"])]
        pairs = [(row["searches"][own], row["searches"][name]) for row in both]
        no_larger = ["bytes" not in theirs or ours["bytes"] <= theirs["bytes"] for ours, theirs in pairs]
        by_metric = ", ".join(
            f"{metric} {sum(won for won, row in zip(no_larger, both, strict=True) if row['metric'] == metric)}"
            f" of {sum(row['metric'] == metric for row in both)}"
            for metric in ("kl", "top1")
        )
        ratios = [theirs["bytes"] / ours["bytes"] for ours, theirs in pairs if "bytes" in theirs]
        times = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
        most = max(ours["evaluations"] / theirs["evaluations"] for ours, theirs in pairs if "bytes" in theirs)
        lines.append(
            f"Beside {_SEARCHES[name]} search, {_SEARCHES[own]} is no larger in {sum(no_larger)} of {len(pairs)} cases "
            f"({by_metric}; theirs over ours "
            f"{min(ratios):.3f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}), with at most "
            f"{100 * most:.0f} % of the evaluations, in {statistics.median(times):.2f} times the time (median)."
        )
    return "\n".join(f"* {line}" for line in [*lines, _unseen(rows)])


def _unseen(rows: list[Row]) -> str:
    """Losses on data that no search saw."""
    parts = []
    for metric in ("kl", "top1"):
        found = [(s["loss_on_unseen_data"], row["max_loss"]) for row in rows if row["metric"] == metric
                 for s in row["searches"].values() if "bytes" in s]  # fmt: skip
        over = [loss / most for loss, most in found if loss > most * (1 + 1e-12)]
        worst = f", the worst by {max(over):.1f} times" if over else ""
        parts.append(f"{metric}: {len(found) - len(over)} of {len(found)} plans within the budget{worst}")
    return f"On data that no search saw, {'; '.join(parts)}. The budget is a promise only about the search's data."


def gates(result: Row) -> str:
    """Plans over their budget on data never seen, with a confidence and without."""
    names = {"None": "the measured loss", "0.95": "its 95 % confidence bound"}
    body = [
        [name, found["plans"], found["over"], f"{found['median_ratio']:.1f}x"]
        for name, found in ((names[key], found) for key, found in result["summary"].items())
    ]
    bounded = result["summary"]["0.95"]
    kept = 100 * (1 - bounded["over"] / bounded["plans"])
    return "\n\n".join([
        table(["within the budget is", "plans", "over it on data never seen", "smaller (median)"], body),
        f"Budget {result['max_loss']:g} of top-1 accuracy, {result['samples']:,} samples to tune on, "
        f"{result['unseen_samples']:,} others; five networks on digits. With the confidence asked for, "
        f"{kept:.0f} % of the plans keep it. {circumstances(result)}.",
    ])  # fmt: skip


#: Of calibration.
_PARTS = ("gather", "factors", "round", "tune")


def calibration(result: Row) -> str:
    """Cost of calibration: beside an evaluation pass, and by the size of a layer."""
    costs = [
        [pair, cost["evaluation_pass_s"], *(f"{cost[f'{part}_in_passes']:.1f}" for part in _PARTS)]
        for pair, cost in result["cost"].items()
    ]
    sizes = [
        [
            f"{n} x {n}",
            *(row[part] for part in ("moments_of_4096_vectors_s", "both_factors_s", "round_s")),
            row["memory_peak_mib"] - row["memory_before_mib"],
        ]
        for n, row in result["sizes"].items()
    ]
    return (
        table(["update", "a pass (s)", "moments", "factors", "rounding", "biases and norms"], costs)
        + "\n\nOf one layer, seconds of one core, and memory beyond the data:\n\n"
        + table(["layer", "moments of 4,096 vectors (s)", "both factors (s)", "rounding (s)", "memory (MiB)"], sizes)
        + f"\n\n{circumstances(result)}."
    )


def calibration_scale(result: Row) -> str:
    """Time, passes and memory by number of parameters, and what they come to for a billion."""
    rows: list[list[str]] = []
    lines: dict[str, list[tuple[int, float, float]]] = {"all in memory": [], "limited": []}
    for name, row in result["sizes"].items():
        whole, limited = row["all in memory"], row["limited"]
        for kind, points in lines.items():
            points.append((row["parameters"], row[kind]["memory_bytes"], row[kind]["processor_seconds"]))
        rows.append(
            [
                f"{name} ({row['layers']} x {row['width']})", f"{whole['evaluation_pass_s']:.1f}",
                f"{whole['processor_seconds']:.0f}", f"{whole['passes']:.1f}",
                f"{whole['memory_bytes'] / 1e6:,.0f}", f"{limited['memory_bytes'] / 1e6:,.0f}",
                f"{limited['processor_seconds']:.0f}",
                f"{8 * whole['bytes'] / row['parameters']:.2f}", f"{whole['divergence']:.1e}",
            ]
        )  # fmt: skip
    limit = f"within {result['memory'] >> 20} MiB"
    head = ["parameters (layers x width)", "a pass (s)", "calibration (s)", "in passes", "memory (MB)",
            f"{limit} (MB)", f"{limit} (s)", "bits a parameter", "divergence"]  # fmt: skip
    growth = "; ".join(_growth(kind, points) for kind, points in lines.items())
    return (
        table(head, rows)
        + f"\n\nOne call at the step {result['step']:g}, on {result['predictions']:,} predictions; processor seconds "
        f"of one thread, and the most anonymous memory beyond network and base. {growth}. {circumstances(result)}."
    )


def _growth(kind: str, points: list[tuple[int, float, float]]) -> str:
    """From the smallest to the largest size, how the middle one lies to that line, and a billion on it."""
    (n, memory, seconds), middle, (most, memory_most, seconds_most) = points[0], points[1], points[-1]
    each, each_s = (memory_most - memory) / (most - n), (seconds_most - seconds) / (most - n)
    between = middle[1] / (memory + each * (middle[0] - n)), middle[2] / (seconds + each_s * (middle[0] - n))
    return (
        f"{kind.capitalize()}: {each:.1f} bytes and {1e9 * each_s:,.0f} ns for each parameter more, the middle size at "
        f"{between[0]:.2f} and {between[1]:.2f} of those lines; a billion parameters would take "
        f"{(memory + each * (1e9 - n)) / 1e9:.0f} GB beyond network and base"
    )


def roundings(result: Row) -> str:
    """Bits that each knob finds within one divergence, and the options found."""
    rows = []
    for pair, found in result["pairs"].items():
        bits = [f"{row['bits_per_parameter']:.3f} ({row['trials']})" for row in found.values()]
        chosen = [name for name in ("unbiased", "lattice") if found["step"]["options"].get(name)]
        ratio = found["abs"]["bits_per_parameter"] / found["step"]["bits_per_parameter"]
        seconds = " / ".join(f"{row['seconds']:.1f}" for row in found.values())
        rows.append([pair, *bits, f"{ratio:.2f}", ", ".join(chosen) or "none", seconds])
    head = ["update", "bound", "step, five trials", "step", "bound / step", "found", "seconds"]
    over = [row["kl"] for found in result["pairs"].values() for row in found.values()]
    return (
        f"Bits per parameter within a divergence of {result['max_kl']:g} on {100 * result['share']:g} % of the "
        f"held-out data, by knob, in brackets the trials; processor seconds of the three searches. Decoded and "
        f"measured again, {sum(kl <= result['max_kl'] for kl in over)} of {len(over)} are within it.\n\n"
        + table(head, rows)
        + f"\n\n{circumstances(result)}."
    )
