"""Federated learning: accuracy against bits, residuals, and what rounds cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from experiments.docs.markdown import Row, circumstances, commits, table

_TITLES = {
    "mnist": "MNIST, labels by Dirichlet 0.3, all clients in every round",
    "mnist-iid": "MNIST, independent and identically distributed",
    "mnist-part": "MNIST, Dirichlet 0.3, three of ten clients in a round",
    "mnist-iid-part": "MNIST, independent and identically distributed, three of ten clients in a round",
    "cifar": "CIFAR-10, Dirichlet 0.3",
    "text": "tinyshakespeare, every client with a tenth of the text in one piece, and so other speakers",
}
#: Settings with a fault that the first one has not.
_FAULTS = {
    "mnist": "none",
    "mnist-lost": "a fifth of the replies lost",
    "mnist-away": "three clients away for rounds 5 to 14",
    "mnist-restarts": "server and clients restored from their states every fifth round",
    "mnist-resets": "each round one client has lost its state",
}
_FEDAVG = "FedAvg fp32"
_OURS = "nearzip both, 2.3 up, 2.2 down, residual float32"
_STC = "STC both 5 %"
#: What the other tables show of methods that were measured with several settings.
_SHOWN = (
    _OURS,
    "nearzip both, 2.3 up, 2.2 down, residual rms:0.25",
    "nearzip both, 2 up, 2.2 down, residual none",
    _STC,
)
#: Points below FedAvg at which bits are compared.
_EQUAL = 0.3


def _spread(row: Row) -> str:
    return f"{100 * row['accuracy']:.2f}" + (f" ± {50 * row['spread']:.2f}" if row["seeds"] > 1 else "")


def _on_same_seeds(row: Row, reference: Row | None) -> float | None:
    """Accuracy of the reference over the seeds of the row."""
    if reference is None or not set(row["by_seed"]) <= set(reference["by_seed"]):
        return None
    return statistics.fmean(reference["by_seed"][seed] for seed in row["by_seed"])


def _below(row: Row, reference: Row | None) -> float:
    there = _on_same_seeds(row, reference)
    return -row["accuracy"] if there is None else there - row["accuracy"]


def _gap(row: Row, reference: Row | None) -> str:
    """Points of accuracy below FedAvg over the same seeds."""
    there = _on_same_seeds(row, reference)
    return "-" if there is None else f"{100 * (there - row['accuracy']):.2f}"


def _bits(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}"


_HEAD = [
    "method",
    "accuracy, %",
    "below FedAvg on the same seeds, points",
    "bits up",
    "bits down",
    "seeds",
    "ms a message",
]


def _methods(methods: Row, labels: Iterable[str]) -> str:
    """A row for each label, what loses least against FedAvg first: labels have different seeds."""
    reference = methods.get(_FEDAVG)
    chosen = sorted(((label, methods[label]) for label in labels), key=lambda item: _below(item[1], reference))
    rows = [
        [label, _spread(row), _gap(row, reference), _bits(row["bits_up"]),
         "32 or lossless" if _is_up_only(label) else _bits(row.get("bits_down")), row["seeds"],
         f"{1000 * row['coding_seconds']:.1f}"]
        for label, row in chosen
    ]  # fmt: skip
    return table(_HEAD, rows)


def _is_swept(label: str) -> bool:
    return " both" in label and label not in _SHOWN


def _is_up_only(label: str) -> bool:
    return "both" not in label and label not in (_FEDAVG, "fp16")


def accuracy(result: Row) -> str:
    """A table for each setting."""
    parts = []
    for name, title in _TITLES.items():
        if name in result["settings"]:
            found = result["settings"][name]
            labels = [label for label in found["methods"] if ", R " not in label and not _is_swept(label)]
            parts.append(f"**{title}**, {found['setup']['rounds']} rounds:\n\n{_methods(found['methods'], labels)}")
    measured = commits(*result["measured_at"])
    return "\n\n".join(parts) + f"\n\n{circumstances(result)}. Runs at commit {measured}."


#: Methods with several settings, by what their labels begin and end with; the last two compress the uplink alone.
_FAMILIES = (
    ("nearzip both ways, residual in float32", "nearzip both", "residual float32"),
    ("nearzip both ways, residual within 0.5", "nearzip both", "residual rms:0.5"),
    ("STC both ways", "STC both", ""),
    ("nearzip, uplink alone, residual in float32", "nearzip ", " up, residual float32"),
    ("NNCodec, uplink alone, residual in float32", "NNCodec", ""),
)


def _members(methods: Row, begin: str, end: str) -> list[Row]:
    up_only = begin == "nearzip "
    return [
        row
        for label, row in methods.items()
        if label.startswith(begin) and label.endswith(end) and not (up_only and " both" in label)
    ]


def sweep(result: Row) -> str:
    """Methods with several settings, both ways compressed, and the bits that they take at equal accuracy."""
    methods = result["settings"]["mnist"]["methods"]
    parts = [_methods(methods, [label for label in methods if " both" in label])]
    for name, title in _TITLES.items():
        of = result["settings"].get(name, {"methods": {}})["methods"]
        families = [(family, members) for family, *ends in _FAMILIES if len(members := _members(of, *ends)) > 1]
        if families:
            found = [f"* {family}: {_at_equal(members, of[_FEDAVG])}" for family, members in families]
            parts.append(f"{title}, bits at {_EQUAL} points below FedAvg, interpolated:\n\n" + "\n".join(found))
    return "\n\n".join(parts)


def _at_equal(rows: list[Row], reference: Row) -> str:
    """Bits at `_EQUAL` points below the reference: their logarithms interpolated between neighbouring settings."""
    gaps = []
    for row in rows:
        there = _on_same_seeds(row, reference)
        assert there is not None
        gaps.append((100 * (there - row["accuracy"]), row))
    gaps.sort(key=lambda pair: pair[0])
    near = [pair for pair in gaps if pair[0] <= _EQUAL]
    far = [pair for pair in gaps if pair[0] > _EQUAL]
    if not near:
        gap, row = gaps[0]
        return f"not reached; {gap:.2f} points below at {_both_ways(row['bits_up'], row['bits_down'])}"
    if not far:
        gap, row = gaps[-1]
        return f"at most {_both_ways(row['bits_up'], row['bits_down'])}, {gap:.2f} points below"
    (low, fine), (high, coarse) = near[-1], far[0]
    share = (_EQUAL - low) / (high - low)
    up, down = (fine[way] * (coarse[way] / fine[way]) ** share for way in ("bits_up", "bits_down"))
    return _both_ways(up, down)


def _both_ways(up: float, down: float) -> str:
    """Bits; those of a downlink that is raw or lossless are not compared."""
    return f"{up:.2f} up" + (f" and {down:.2f} down" if down < 1 else "")


def faults(result: Row) -> str:
    """Accuracy with and without faults, by method."""
    settings = result["settings"]
    measured = {name: settings[name]["methods"] for name in _FAULTS if name in settings}
    with_faults = {label for name, methods in measured.items() if name != "mnist" for label in methods}
    labels = [label for label in (_FEDAVG, _OURS, _STC) if label in with_faults]
    rows = []
    for name, methods in measured.items():
        cells: list[Any] = [_FAULTS[name]]
        for label in labels:
            row = methods.get(label)
            clean = settings["mnist"]["methods"][label]
            cells += ["-"] if row is None else [_with_and_without(row, clean)]
        rows.append(cells)
    ours = [methods[_OURS] for methods in measured.values()]
    n_seeds = min(methods[label]["seeds"] for methods in measured.values() for label in labels if label in methods)
    spread = 50 * ours[0]["spread"]
    worst = max(100 * (ours[0]["by_seed"][seed] - row["by_seed"][seed]) for row in ours for seed in row["by_seed"])
    verdict = "within" if worst <= spread else "beyond"
    text = (
        f"In brackets: points below the same method without faults, over the same seeds, {n_seeds} or more. The "
        f"largest loss of nearzip in a single run is {worst:.2f} points, {verdict} the spread of the seeds without "
        f"faults (± {spread:.2f})."
    )
    return table(["fault", *labels], rows) + "\n\n" + text


def _with_and_without(row: Row, clean: Row) -> str:
    there = _on_same_seeds(row, clean)
    assert there is not None
    change = 100 * (there - row["accuracy"])
    return _spread(row) + (f" ({change:.2f})" if row is not clean else "")


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
        f"{(one['accepted_bytes'] - one['reply_bytes']) / network:.1f} networks beside them while it accepts and "
        f"{(one['averaged_bytes'] - one['reply_bytes']) / network:.1f} with the average"
        for one in memory["rounds"]
    ]
    text = (
        f"A residual of {result['residual_bytes'] / 1e6:.0f} MB, coded against the one before; processor time, for two "
        f"cores half of it or that of the busiest thread. By a client: rounded at random first, as `Client` does. A "
        f"server of a {network / 1e6:.0f} MB network that holds {memory['replies']} replies "
        f"({memory['rounds'][0]['reply_bytes'] / 1e6:.0f} MB) takes, beyond Python and the caller's first model, "
        f"at most {rounds[0]}; in the second round, when it holds what the first one left out as well, {rounds[1]}. "
        f"Buffers of the coder, some 15 MB a thread, are part of it."
    )
    return table(head, rows) + f"\n\n{text} {circumstances(result)}."


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
