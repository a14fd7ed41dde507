"""`docs/papers/qd-feedback.md`: Tables 3, 6, 9 and 10 and Figure 11 of QD-Compressor's paper, ours beside its own."""

from __future__ import annotations

from experiments.docs.markdown import Row, commits, table
from experiments.papers.qd.feedback import METHODS, WAYS

#: The paper's Table 3, percent: full precision, 4 bits, 8 bits.
_TABLE_3 = {
    "VGG-16": ("92.00", "87.76 (-4.24)", "91.92 (-0.08)"),
    "ResNet18": ("93.65", "92.35 (-1.30)", "93.89 (+0.24)"),
    "GoogleNet": ("93.68", "80.92 (-12.76)", "93.72 (+0.04)"),
    "MobileNet": ("92.38", "91.67 (-0.71)", "92.36 (-0.02)"),
    "ShuffleNet (1)": ("90.44", "89.76 (-0.68)", "90.34 (-0.10)"),
    "ShuffleNet (2)": ("91.34", "N/A", "91.53 (+0.19)"),
}
#: Its Table 6: full precision, on M*, on M.
_TABLE_6 = {
    "VGG-16": ("92.00", "91.49 (-0.51)", "91.92 (-0.08)"),
    "ResNet-18": ("93.65", "93.39 (-0.26)", "93.72 (+0.07)"),
    "GoogleNet": ("93.68", "93.51 (-0.17)", "93.72 (+0.04)"),
    "MobileNet": ("92.38", "92.05 (-0.33)", "92.36 (-0.02)"),
    "ShuffleNet (1)": ("90.44", "89.93 (-0.51)", "90.37 (-0.07)"),
    "ShuffleNet (2)": ("91.34", "91.21 (-0.13)", "91.53 (+0.19)"),
}
#: Its Table 9, QD-Compressor / LC-Checkpoint by phase of 200 epochs.
_PHASES = ("1-50", "51-100", "101-150", "151-200", "1-100", "101-200")
_TABLE_9 = {
    "VGG-16": ("1/3", "2/2", "5/2", "3/2", "1/17", "1/6"),
    "ResNet-18": ("1/2", "1/3", "3/3", "1/2", "2/32", "1/14"),
    "GoogleNet": ("2/3", "4/7", "1/6", "2/3", "1/27", "1/15"),
    "MobileNet": ("3/8", "1/5", "1/4", "1/1", "2/16", "1/12"),
    "ShuffleNet (1)": ("2/5", "2/4", "2/5", "2/2", "3/16", "1/10"),
    "ShuffleNet (2)": ("2/3", "2/12", "2/4", "2/6", "4/9", "2/7"),
}
#: Its Table 10, seconds.
_COLUMNS = ("Training", "Store", "Quan", "LZMA Comp.", "LZMA Decomp.", "Restore")
_TABLE_10 = {
    "VGG-16": (9.15, 0.14, 0.02, 10.66, 0.17, 0.03),
    "ResNet-18": (15.56, 0.15, 0.03, 5.37, 0.43, 0.03),
    "GoogleNet": (62.01, 0.13, 0.06, 2.35, 0.23, 0.08),
    "MobileNet": (18.51, 0.06, 0.05, 0.70, 0.09, 0.06),
    "ShuffleNet (1)": (12.2, 0.06, 0.05, 0.33, 0.07, 0.05),
    "ShuffleNet (2)": (18.92, 0.07, 0.04, 1.82, 0.19, 0.05),
}


def _final(network: Row, way: str) -> list[float]:
    return [100 * run[-1] for run in network["accuracy"][way]["accuracy"]]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _cells(network: Row, ways: tuple[str, ...]) -> list[str]:
    """Mean accuracy of each way, with the difference to the first of them."""
    means = [mean(_final(network, way)) for way in ways]
    return [f"{means[0]:.2f}", *(f"{mean:.2f} ({mean - means[0]:+.2f})" for mean in means[1:])]


def _beside(ours: dict[str, Row], ways: tuple[str, ...], paper: dict[str, tuple[str, ...]]) -> list[list[str]]:
    """Our networks' rows, then the paper's."""
    rows = [[name, f"here, {n['setting']['epochs']} epochs", *_cells(n, ways)] for name, n in ours.items()]
    return rows + [[name, "paper, 200 epochs", *row] for name, row in paper.items()]


def _spread(networks: dict[str, Row]) -> str:
    """Spread of the seeds at full precision, to compare differences with."""
    said = [f"{max(v) - min(v):.2f} ({name})" for name, n in networks.items() for v in [_final(n, "full precision")]]
    return "Full precision's own seeds lie apart by " + ", ".join(said) + " points."


def _recovery(networks: dict[str, Row]) -> Row:
    """Table 9: tables of epochs, of accuracies and of bytes, and the paper's."""
    epochs, restored, n_bytes = [], [], []
    head = ["network", *(f"phase {i} of 6" for i in range(1, 7))]
    for name, n in networks.items():
        if "recovery" not in n:
            continue
        phases = list(n["recovery"]["qd-compressor"])
        cells = [[n["recovery"][method][phase] for method in METHODS] for phase in phases]
        epochs.append(
            [name, *(f"{p}: " + "/".join(_epochs(c) for c in row) for p, row in zip(phases, cells, strict=True))]
        )
        n_bytes.append([name, *("/".join(f"{sum(c['bytes']) / 1000:.0f}" for c in row) for row in cells)])
        restored.append(
            [name, *("/".join(f"{100 * (c['restored'] - c['before']):+.2f}" for c in row) for row in cells)]
        )
    return {
        "methods": "/".join(METHODS),
        "epochs": table(head, epochs),
        "paper": table(["network", *_PHASES], [[name, *row] for name, row in _TABLE_9.items()]),
        "restored": table(head, restored),
        "sizes": table(head, n_bytes),
    }


def _epochs(row: Row) -> str:
    return "never" if row["epochs"] is None else str(row["epochs"])


def _figure_11(networks: dict[str, Row]) -> str:
    rows = []
    for name, n in networks.items():
        for way in WAYS:
            runs = n["accuracy"][way]["accuracy"]
            means = [f"{100 * mean([run[i] for run in runs]):.2f}" for i in range(len(runs[0]))]
            rows.append([name, way.replace("*", "\\*"), *means])
    most = max(len(row) - 2 for row in rows)
    return table(["network", "accuracy after epoch", *map(str, range(1, most + 1))],
                 [row + [""] * (most + 2 - len(row)) for row in rows])  # fmt: skip


def _table_10(result: Row) -> str:
    ours = [
        [name, *(f"{row[key]:.3f}" for key in (*_COLUMNS, "Quan, all steps", "Delta, check"))]
        for name, row in result["networks"].items()
    ]
    paper = [[f"{name}, paper", *(f"{value:.2f}" for value in row), "", ""] for name, row in _TABLE_10.items()]
    head = ["network", *_COLUMNS, "Quan, all steps of an epoch", "Delta, check"]
    return table(head, ours + paper) + f"\n\nCommit {commits(result['commit'])}, {result['date']}."


def _of_networks(networks: dict[str, Row]) -> str:
    """`abc1234 (lenet-5), ..`: each network's commit."""
    return ", ".join(f"{commits(row['commit'])} ({name})" for name, row in networks.items())


def _again(networks: dict[str, Row], newest: str) -> str:
    """How to measure those of earlier commits again."""
    old = [name for name, row in networks.items() if row["commit"] != newest]
    if not old:
        return ""
    return (
        f" `ErrorFeedback` has changed since the earlier ones; `scripts/bench feedback --networks {','.join(old)} "
        "--data DIR` measures them again."
    )


def complete(result: Row) -> dict[str, Row]:
    """Networks that were measured in all ways."""
    return {name: n for name, n in result["networks"].items() if set(n["accuracy"]) == set(WAYS)}


def context(result: Row, times: Row) -> Row:
    """Figures of the page."""
    networks = complete(result)
    first = next(iter(networks.values()))
    head_6 = ["network", "", "full precision", "8 bits, on M\\*", "8 bits, on M"]
    return {
        "machine": result["machine"], "commit": _of_networks(networks), "date": result["date"],
        "again": _again(networks, result["commit"]),
        "names": ", ".join(networks), "epochs": first["setting"]["epochs"], "seeds": first["seeds"],
        "spread": _spread(networks),
        "table_3": table(
            ["network", "", "full precision", "4 bits", "8 bits"],
            _beside(networks, ("full precision", "4 bits, M", "8 bits, M"), _TABLE_3),
        ),
        "table_6": table(head_6, _beside(networks, ("full precision", "8 bits, M*", "8 bits, M"), _TABLE_6)),
        "figure_11": _figure_11(networks),
        "recovery": _recovery(networks),
        "table_10": _table_10(times),
    }  # fmt: skip
