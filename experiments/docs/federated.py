"""Federated learning: accuracy against bits, residuals, and what rounds cost."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.docs.markdown import Row, circumstances, commits, table

_TITLES = {
    "mnist": "MNIST, labels by Dirichlet 0.3, all clients in every round",
    "mnist-iid": "MNIST, independent and identically distributed",
    "mnist-part": "MNIST, Dirichlet 0.3, three of ten clients in a round",
    "mnist-iid-part": "MNIST, independent and identically distributed, three of ten clients in a round",
    "mnist-lost": "MNIST, Dirichlet 0.3, a fifth of the replies lost",
    "cifar": "CIFAR-10, Dirichlet 0.3",
    "text": "Text, split by place",
}
_FEDAVG = "FedAvg fp32"


def _spread(row: Row) -> str:
    return f"{100 * row['accuracy']:.2f}" + (f" ± {50 * row['spread']:.2f}" if row["seeds"] > 1 else "")


def _on_same_seeds(row: Row, reference: Row | None) -> float | None:
    """Accuracy of the reference over the seeds of the row."""
    if reference is None or not set(row["by_seed"]) <= set(reference["by_seed"]):
        return None
    return statistics.fmean(reference["by_seed"][seed] for seed in row["by_seed"])


def _gap(row: Row, reference: Row | None) -> str:
    """Points of accuracy below FedAvg over the same seeds."""
    there = _on_same_seeds(row, reference)
    return "-" if there is None else f"{100 * (there - row['accuracy']):.2f}"


def _bits(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"


def _methods(methods: Row) -> str:
    reference = methods.get(_FEDAVG)
    rows = [
        [label, _spread(row), _gap(row, reference), _bits(row["bits_up"]),
         "32 or lossless" if _is_up_only(label) else _bits(row.get("bits_down")), row["seeds"],
         f"{1000 * row['coding_seconds']:.1f}"]
        for label, row in sorted(methods.items(), key=lambda item: -item[1]["accuracy"]) if ", R " not in label
    ]  # fmt: skip
    head = [
        "method",
        "accuracy, %",
        "below FedAvg on the same seeds, points",
        "bits up",
        "bits down",
        "seeds",
        "ms a message",
    ]
    return table(head, rows)


def _is_up_only(label: str) -> bool:
    return "both" not in label and label not in (_FEDAVG, "fp16")


def accuracy(result: Row) -> str:
    """A table for each setting."""
    parts = []
    for name, title in _TITLES.items():
        if name in result["settings"]:
            found = result["settings"][name]
            parts.append(f"**{title}**, {found['setup']['rounds']} rounds:\n\n{_methods(found['methods'])}")
    measured = commits(*result["measured_at"])
    return "\n\n".join(parts) + f"\n\n{circumstances(result)}. Runs at commit {measured}."


def residuals(result: Row) -> str:
    """Figure 13 and Table 7: accuracy and size of the residual by how it is stored."""
    found = result["settings"]["mnist"]["methods"]
    n_bytes = result["residual_bytes"]
    rows = []
    for label, row in found.items():
        base, _, way = label.partition(", R ")
        if way or f"{label}, R dropped" in found:
            kept, raw = row["residual_bytes"], _on_same_seeds(row, found.get(base))
            rows.append([base, way or "raw", _spread(row), "-" if raw is None else f"{100 * raw:.2f}", row["seeds"],
                         f"{n_bytes / kept:.1f}" if kept else "-"])  # fmt: skip
    rows.sort(key=lambda row: (row[0], row[1] != "dropped", row[1] != "raw", row[1]))
    return table(["updates", "residual", "accuracy, %", "raw, same seeds", "seeds", "times smaller than raw"], rows)


def costs(result: Row) -> str:
    """Table 8 for every way to store a residual, and the server's memory."""
    columns = ("ratio", "encode_1", "encode_2", "decode_1", "decode_2")
    rows = [
        [label, ways.get("alone", {}).get("ratio", "-"), *(_rounded(ways["previous"].get(c)) for c in columns)]
        for label, ways in result["ways"].items()
    ]
    head = [
        "residual stored by", "times smaller", "with the residual before", "s to compress, one core", "two cores",
        "s to restore, one core", "two cores",
    ]  # fmt: skip
    memory = result["memory"]
    network = memory["network_bytes"]
    rounds = [
        f"{one['accepted_bytes'] / network:.1f} networks while it accepts them and "
        f"{one['averaged_bytes'] / network:.1f} with the average, of which {one['reply_bytes'] / network:.1f} replies"
        for one in memory["rounds"]
    ]
    text = (
        f"A residual of {result['residual_bytes'] / 1e6:.0f} MB, coded against the one before. A server of a "
        f"{network / 1e6:.0f} MB network that holds {memory['replies']} replies peaks, beyond Python and the caller's "
        f"first model, at {rounds[0]}; in the second round, when it holds what the first one left out as well, at "
        f"{rounds[1]}."
    )
    return table(head, rows) + f"\n\n{text} {circumstances(result)}."


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
