"""`docs/resume.md`, made from `results/resume.json`, `feedback.json` and `save_cost.json`; nothing is typed by hand."""

from __future__ import annotations

import argparse
import json
from typing import Any

from experiments.record import RESULTS
from experiments.tables import table

_DOCS = RESULTS.parent.parent / "docs"

Row = dict[str, Any]

#: Table 3 and Table 6 of the paper: (full precision, 8 bits, 4 bits) by its networks, accuracy in percent.
_PAPER_3 = {
    "VGG-16": (92.00, 91.92, 87.76), "ResNet18": (93.65, 93.89, 92.35), "GoogleNet": (93.68, 93.72, 80.92),
    "MobileNet": (92.38, 92.36, 91.67), "ShuffleNet (1)": (90.44, 90.34, 89.76),
}  # fmt: skip


def _load(name: str) -> Row | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _where(result: Row) -> str:
    m = result["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    circumstances = f"commit {result['commit']}; {result['date']}; {packages}."
    return f"{m['cpu']}, {m['cores']} cores, Python {m['python']}; {circumstances}"


def resume(result: Row) -> str:
    """Size against difference, case by case."""
    parts = ["## What a resume loses, and at what size", _RESUME]
    for name, case in result["cases"].items():
        rows = []
        for row in case["rows"]:
            low, high = row["interval"]
            epochs = [epoch for epoch in row["recovery_epochs"] if epoch is not None]
            late = len(row["recovery_epochs"]) - len(epochs)
            recovery = (f"{sum(epochs) / len(epochs):.1f}" if epochs else "-") + (f" ({late} never)" if late else "")
            bits = [8 * row["bytes"][key] / case["parameters"] for key in ("weights", "optimizer", "whole")]
            rows.append([
                row["level"], *(f"{b:.2f}" for b in bits), f"**{row['times_smaller']:.1f}**",
                f"{row['difference']:+.5f}", f"{low:+.5f} .. {high:+.5f}", "yes" if row["equivalent"] else "not shown",
                recovery,
            ])  # fmt: skip
        exact, packed = case["exact"], case["safetensors + zstd"]
        first = case["rows"][0]
        setting = case["case"]
        parts.append(
            f"### {name}\n\n{case['parameters']} parameters; crash at step {setting['crash']} of {setting['total']}, "
            f"the version before {setting['every']} steps earlier; then {setting['epochs']} x {setting['steps']} "
            "steps, "
            f"{len(first['seeds'])} seeds. Exact state {exact} bytes, safetensors + zstd -19 {packed} "
            f"({exact / packed:.2f} times smaller). Allowed: +-{first['margin']:.5f}.\n\n"
            + table(["level", "weights, bits", "optimizer, bits", "whole, bits", "times smaller", "difference in loss",
                     "95 %", "equivalent", "epochs to recover"], rows)
        )  # fmt: skip
    return "\n\n".join([*parts, _where(result)])


_RESUME = """Networks are trained to a crash, saved on the way, closed loop, and go on from what a reader gets: with
the same order of data as from the exact state, for several seeds. *Equivalent*: the 95 % interval of the
paired difference in the final loss lies within a quarter of the deviation from seed to seed. *Not shown*:
the interval reaches beyond, which with few seeds says as much of the seeds as of the state. Level: the
weights' bound in units of each tensor's root mean square, then the steps of m / (√v + ε), of log₂ v, and
of SGD's momentum in its root mean square (`inf`: left out; for v: by row and column). Bits per parameter,
weights and state apart and together (with index and document). ExCP-like: residual of the weights pruned
and clustered, moments clustered, 4 bits, LZMA; our writing, after the paper."""


def _mean(runs: list[list[float]]) -> float:
    return 100 * sum(run[-1] for run in runs) / len(runs)


def feedback(result: Row) -> str:
    """Tables 3, 6, 9, 10 and Figure 11 in the paper's layout."""
    networks = result["networks"]
    parts = ["## Error feedback: QD-Compressor's tables", _FEEDBACK]
    ways = ("full precision", "8 bits, M", "4 bits, M")
    paper = [[name, "paper, 200 epochs", *(f"{value:.2f}" for value in row)] for name, row in _PAPER_3.items()]
    ours = [
        [
            name,
            f"here, {n['setting']['epochs']} epochs",
            *(f"{_mean(n['accuracy'][way]['accuracy']):.2f}" for way in ways),
        ]
        for name, n in networks.items()
    ]
    parts.append("### Table 3: accuracy with full precision, at 8 and at 4 bits\n\n"
                 + table(["network", "", "full precision", "8 bits", "4 bits"], [*ours, *paper]))  # fmt: skip
    ways = ("full precision", "8 bits, M", "8 bits, M*", "4 bits, M", "4 bits, M*")
    rows = [[name, *(f"{_mean(n['accuracy'][way]['accuracy']):.2f}" for way in ways)] for name, n in networks.items()]
    parts.append(
        "### Table 6: updating on M and on M\\*\n\n" + table(["network", *(w.replace("*", "\\*") for w in ways)], rows)
    )
    for name, n in networks.items():
        rows = []
        for way in ways:
            runs = n["accuracy"][way]["accuracy"]
            means = [f"{100 * sum(run[i] for run in runs) / len(runs):.2f}" for i in range(len(runs[0]))]
            rows.append([way.replace("*", "\\*"), *means])
        head = ["accuracy after epoch", *map(str, range(1, n["setting"]["epochs"] + 1))]
        parts.append(f"### Figure 11, as a table: {name}\n\n" + table(head, rows))
    for name, n in networks.items():
        crashes = list(next(iter(n["recovery"].values())))
        rows = []
        for method, by_crash in n["recovery"].items():
            cells = []
            for crash in crashes:
                row = by_crash[crash]
                epochs = "never" if row["epochs"] is None else row["epochs"]
                cells.append(f"{epochs} ({100 * row['restored']:.2f} of {100 * row['before']:.2f})")
            rows.append([method, *cells, sum(by_crash[crashes[-1]]["bytes"])])
        parts.append(f"### Table 9: epochs to recover, {name}\n\n"
                     + table(["method", *(f"crash {c}" for c in crashes), "bytes of all versions"], rows))  # fmt: skip
    keys = [key for key in next(iter(networks.values()))["seconds"] if key != "bytes"]
    rows = [[name, *(f"{n['seconds'][key]:.3f}" for key in keys)] for name, n in networks.items()]
    parts.append("### Table 10: seconds\n\n" + table(["network", *keys], rows))
    return "\n\n".join([*parts, _where(result)])


_FEEDBACK = """The paper trains CIFAR-10 networks for 200 epochs on GPUs; these are LeNets on a part of MNIST for a few
epochs on one core, so the tables have the paper's layout and not its networks. Forward and backward run
on the restored network M\\* at every step; accuracy is that of M\\*, percent, mean over the seeds. Table
9: qd-compressor (8 bits, with feedback), lc-checkpoint, delta-dnn and nearzip (abs:0.001, without
feedback) on the chain of all epochs; a restored network trains on, its momentum beginning at zero as in
the paper, until it is as good as before the crash (in brackets: accuracy restored of accuracy before).
Table 10: one epoch, and one version's way to bytes and back, on a machine that was busy with other work."""


def cost(result: Row) -> str:
    """Seconds and bytes of saving."""
    rows = []
    for name, n in result["networks"].items():
        rows.append([
            name, f"{n['epoch']:.2f}", f"{100 * n['longer']:+.1f} %", f"{1000 * n['blocked']:.1f}",
            f"{1000 * n['copy of the state']:.1f}", f"{n['behind']:.2f}",
            n["snapshot_bytes"], round(n["bytes_of_a_save"]),
        ])  # fmt: skip
    head = ["network", "an epoch, s", "with a save", "training waits, ms", "a copy of the state, ms", "behind, s",
            "memory of the copy, bytes", "bytes of a save"]  # fmt: skip
    text = "One save an epoch, AdamW, `rms:0.05`; epochs with and without take turns; medians."
    return "\n\n".join(["## What saving costs", text, table(head, rows), _where(result)])


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="bench training_page", description=__doc__).parse_args(arguments)
    parts = [
        "# Resuming, measured",
        "Made by `scripts/bench training_page` from `experiments/results`. How: [training](training.md).",
    ]
    for name, section in (("resume", resume), ("save_cost", cost), ("feedback", feedback)):
        result = _load(name)
        if result is not None:
            parts.append(section(result))
    (_DOCS / "resume.md").write_text("\n\n".join(parts) + "\n")
