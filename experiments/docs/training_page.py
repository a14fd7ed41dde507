"""`docs/resume.md` and the memory of a save in `docs/training.md`, made from `results/*.json`."""

from __future__ import annotations

import argparse
import itertools
import math
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from experiments.claims.resume.resume import BYTES, trials
from experiments.claims.resume.resume_cases import CASES
from experiments.claims.resume.resume_sizes import ZSTD
from experiments.docs.tables import fill, table
from experiments.lab.record import RESULTS, load

_DOCS = RESULTS.parent.parent / "docs"
_GOAL = 70
_PARTS = ("weights", "optimizer", "whole")

Row = dict[str, Any]


def _where(result: Row) -> str:
    m = result["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    circumstances = f"commit {result['commit']}; {result['date']}; {packages}."
    return f"{m['cpu']}, {m['cores']} cores, Python {m['python']}; {circumstances}"


def _bits(n_bytes: Row, parameters: int) -> list[str]:
    return [f"{8 * n_bytes[key] / parameters:.2f}" for key in _PARTS]


def _times(case: Row, n_bytes: int) -> str:
    return f"{BYTES[case['case']['optimizer']] * case['parameters'] / n_bytes:.1f}"


def _ours(case: Row) -> list[Row]:
    return [row for row in case["rows"] if row["level"].startswith("rms:")]


def _theirs(case: Row) -> list[Row]:
    return [row for row in case["rows"] if not row["level"].startswith("rms:")]


def smallest(rows: list[Row]) -> Row | None:
    """The coarsest of the rows, which become coarser, that is equivalent as all before it are."""
    found = list(itertools.takewhile(lambda row: row["equivalent"], rows))
    return found[-1] if found else None


def best_of(case: Row) -> Row | None:
    """Of our two series of ever coarser levels, with first moments as rounded and unbiased, the smaller of the ends."""
    by_size = sorted(_ours(case), key=lambda row: -row["bytes"]["whole"])
    series = [[row for row in by_size if ("unbiased" in row["level"]) == unbiased] for unbiased in (False, True)]
    ends = [row for row in map(smallest, series) if row is not None]
    return max(ends, key=lambda row: row["times_smaller"], default=None)


def summary(cases: dict[str, Row]) -> str:
    """One row for each setting: what is smallest where nothing is lost."""
    rows = []
    for name, case in cases.items():
        zstd = case["sizes"][ZSTD]["whole"]
        best, excp = best_of(case), smallest(_theirs(case))
        cells = ["none", "-", "-", "-", "-"]
        if best is not None:
            cells = [best["level"], *_bits(best["bytes"], case["parameters"]), f"**{best['times_smaller']:.1f}**"]
        said = "not equivalent" if excp is None else f"{excp['times_smaller']:.1f}"
        far = [abs(row["difference"]) / case["rows"][0]["deviation"] for row in _theirs(case)]
        said, worst = (said, f"{max(far):.1f}") if far else ("not measured", "")
        rows.append([name, *cells, _times(case, zstd), said, worst])
    head = ["setting", "coarsest equivalent level", "weights, bits", "state, bits", "whole, bits", "times smaller",
            "safetensors + zstd", "ExCP-like, times smaller", "its difference, in deviations"]  # fmt: skip
    return table(head, rows)


def verdict(cases: dict[str, Row]) -> str:
    """The goal beside what was found."""
    found = {name: best_of(case) for name, case in cases.items() if case["case"]["optimizer"] == "adamw"}
    reached = [name for name, row in found.items() if row is not None and row["times_smaller"] >= _GOAL]
    missed = [f"{n} ({'none' if r is None else r['times_smaller']})" for n, r in found.items() if n not in reached]
    text = f"The goal, {_GOAL} times smaller than AdamW's 12 bytes per parameter where resuming is equivalent, is "
    text += f"reached in {len(reached)} of the {len(found)} settings with AdamW that were measured"
    text += f" ({'; '.join(reached)})" if reached else ""
    text += f"; not in {'; '.join(missed)}." if missed else "."
    missing = [name for name in CASES if len(cases.get(name, {}).get("rows", ())) < len(trials(CASES[name]))]
    return text + (f" Not measured, or not to the end: {'; '.join(missing)}." if missing else "")


def _later(case: Row) -> str:
    """Commits of rows that were added to a setting later."""
    found = sorted({row["commit"] for row in case["rows"] if "commit" in row} - {case["commit"]})
    return f" (unbiased levels: {', '.join(found)})" if found else ""


def _detail(name: str, case: Row) -> str:
    """Every level of one setting."""
    rows: list[list[str]] = []
    n, setting = case["parameters"], case["case"]
    for what, sizes in case["sizes"].items():
        rows.append([what, *_bits(sizes, n), _times(case, sizes["whole"]), "", "", "yes", "", ""])
    for row in case["rows"]:
        low, high = row["interval"]
        epochs = [epoch for epoch in row["recovery_epochs"] if epoch is not None]
        late = len(row["recovery_epochs"]) - len(epochs)
        recovery = (f"{sum(epochs) / len(epochs):.1f}" if epochs else "-") + (f" ({late} not yet)" if late else "")
        rows.append([
            row["level"], *_bits(row["bytes"], n), f"**{row['times_smaller']:.1f}**",
            f"{row['difference']:+.5f}", f"{low:+.5f} .. {high:+.5f}", "yes" if row["equivalent"] else "not shown",
            "yes" if high <= row["margin"] else "not shown", recovery,
        ])  # fmt: skip
    first = case["rows"][0]
    return (
        f"### {name}\n\n`{setting['network']}`, {n} parameters; crash at step {setting['crash']} of "
        f"{setting['total']}, "
        f"the version before {setting['every']} steps earlier; then {setting['epochs']} x {setting['steps']} steps, "
        f"{len(first['seeds'])} seeds; commit {case['commit']}{_later(case)}. Allowed: +-{first['margin']:.5f}.\n\n"
        + table(["level", "weights, bits", "state, bits", "whole, bits", "times smaller", "difference in loss", "95 %",
                 "equivalent", "no worse", "epochs to recover"], rows)
    )  # fmt: skip


def resume(result: Row, draw: bool = True) -> str:
    """Size against difference: together, as a picture, and case by case."""
    cases = result["cases"]
    parts = ["## What a resume loses, and at what size", _RESUME, summary(cases), verdict(cases)]
    if draw:
        _draw(cases)
        parts.append("![Size against difference](images/resume.png)")
    parts += [_detail(name, case) for name, case in cases.items()]
    return "\n\n".join([*parts, _where(result)])


def _draw(cases: dict[str, Row]) -> None:
    """The curve of size against difference, in deviations from seed to seed, with its intervals."""
    columns = 4 if len(cases) > 6 else 3
    lines = -(-len(cases) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), layout="constrained", squeeze=False)
    for place, (name, case) in zip(axes.flat, cases.items(), strict=False):
        unit = case["rows"][0]["deviation"]
        place.axhspan(-0.25, 0.25, color="#dddddd", label="equivalent")
        ours = sorted(_ours(case), key=lambda row: -row["bytes"]["whole"])  # also those measured later
        for rows, label, mark in ((ours, "nearzip", "o-"), (_theirs(case), "ExCP-like", "s--")):
            at = [8 * row["bytes"]["whole"] / case["parameters"] for row in rows]
            middle = [row["difference"] / unit for row in rows]
            half = [(row["interval"][1] - row["interval"][0]) / 2 / unit for row in rows]
            place.errorbar(at, middle, half, fmt=mark, markersize=4, capsize=2, label=label)
        bits = 8 * BYTES[case["case"]["optimizer"]]
        place.axvline(bits / _GOAL, color="#888888", linewidth=0.8, linestyle=":", label=f"{_GOAL} times smaller")
        place.set(title=name, xscale="log", xlabel="bits per parameter", ylabel="difference / deviation")
        place.set_yscale("symlog", linthresh=0.5)
        place.xaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4, 8]))
        place.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        place.xaxis.set_minor_locator(NullLocator())
    for place in list(axes.flat)[len(cases) :]:
        place.axis("off")
    axes.flat[0].legend(fontsize=7)
    (_DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(_DOCS / "images" / "resume.png", dpi=80, metadata={"Software": None})
    plt.close(figure)


_RESUME = """Networks are trained to a crash, saved on the way, closed loop, and go on from what a reader gets: with
the same order of data as from the exact state, for several seeds. *Equivalent*: the 95 % interval of the
paired difference in the final loss lies within a quarter of the deviation from seed to seed. *No worse*: its
upper end does. *Not shown*: it reaches beyond, which with few seeds says as much of the seeds as of the
state. Level: the weights' bound in units of each tensor's root mean square, then the steps of m / (√v + ε)
and of log₂ v, or of SGD's momentum in its root mean square (`inf`: left out; for v: by row and column;
*unbiased*: first moments keep their length along themselves).
Bits per parameter, weights and state apart and together (with index and document); *times smaller* than 12
bytes per parameter with AdamW, 8 with SGD. ExCP-like: residual of the weights pruned by its size and √v,
moments where weight and moment are large, 15 centres and zero, 4 bits, LZMA; our writing, after the paper,
without names and document. The first table has the coarsest level that is equivalent as all finer ones are, and
how far the worse of the two ExCP-like levels ends from the exact run. Training goes on for as many steps as
each setting says: what a longer training makes of a difference is not measured. The picture's bars are the
95 % intervals."""


def cost(result: Row) -> str:
    """Seconds and bytes of saving."""
    rows = []
    for name, n in result["networks"].items():
        blocked, copied, whole = n["blocked"], n["copy of the state"], n["epoch and save"] - n["epoch"]
        step = n["epoch"] / n["steps"]
        rows.append([
            name, f"{n['parameters'] / 1e6:.1f} M", f"{n['snapshot_bytes'] / 1e6:.1f}", n["tensors"],
            f"{1000 * copied:.2f}", f"{1000 * blocked:.2f}", f"{blocked / copied:.2f}",
            f"{1000 * (blocked - copied):.2f}", f"{whole:.3f}", f"{1000 * step:.1f}",
            f"{n['steps']}: {100 * whole / n['epoch']:+.1f} %",
            f"{math.ceil(blocked / step / _SHARE)} / {math.ceil(whole / step / _SHARE)}",
            n.get("steps of an epoch") or "-", round(n["bytes_of_a_save"] / 1000), n.get("commit", ""),
        ])  # fmt: skip
    head = ["network", "parameters", "state and its copy, MB", "tensors", "a copy, ms", "a save, ms", "in copies",
            "beyond a copy, ms", "whole cost of a save, s", "a step, ms", "steps measured, with a save on one core",
            "under 3 % from so many steps on", "steps of an epoch", "bytes of a save, kB",
            "commit"]  # fmt: skip
    return "\n\n".join(["## What saving costs", _COST, table(head, rows), _where(result)])


#: What a run may take longer by saving.
_SHARE = 0.03
_COST = """AdamW, `rms:0.05`; medians, turn by turn. Processor time, since machines are shared. *A save*: what the
training's thread does in `Saver.save`; *a copy*: of all tensors into memory that is there, after steps like the save,
so that caches are as a training leaves them. What a save takes beyond a copy is to walk through the state, the random
generators, and names: it grows with the number of tensors, not with their size. *Whole cost*: some steps with a save
less the same without, all threads together: what the run takes longer on one core. With a core to spare only *a save*
is on the training's way, and what the two threads take from each other. *Under 3 %*: how many steps there must be
from save to save, with a core to spare / on one core; after that how many an epoch of its data has."""


def memory(result: Row) -> str:
    """Memory of a save beyond its snapshot: a part of docs/training.md."""
    rows = []
    for row in result["rows"]:
        peaks = [f"{(row[name] - row['before'] - row['snapshot']) / 1e6:.0f}" for name in ("first", "second", "third")]
        kept = (row["after third"] - row["before"] - row["snapshot"]) / 1e6
        sizes = [f"{n_bytes / 1e6:.0f}" for n_bytes in (12 * row["parameters"], row["snapshot"])]
        per_parameter = f"{row['beyond'] / row['parameters']:.1f}"
        rows.append([f"{row['parameters'] / 1e6:.0f} M", *sizes, *peaks, f"{kept:.0f}", per_parameter])
    head = ["parameters", "state, MB", "snapshot, MB", "beyond it, save 1", "save 2", "save 3", "kept between saves",
            "most, bytes per parameter"]  # fmt: skip
    text = (
        f"Measured: anonymous memory of a process that trains and saves (AdamW, `{result['bound']}`, matrices of 1024 "
        "x 1024), less what it held before its first save and less the snapshot; MB, the peaks sampled every 2 ms. "
        "*Kept*: the version before, which the next one is coded against."
    )
    return "\n\n".join([text, table(head, rows), _where(result)])


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="bench training_page", description=__doc__).parse_args(arguments)
    parts = [
        "# Resuming, measured",
        "Made by `scripts/bench training_page` from `experiments/results`. How: [training](training.md). Error "
        "feedback and recovery in the layout of QD-Compressor's paper: [its tables](papers/qd-feedback.md).",
    ]
    for name, section in (("resume", resume), ("save_cost", cost)):
        result = load(name)
        if result:
            parts.append(section(result))
    (_DOCS / "resume.md").write_text("\n\n".join(parts) + "\n")
    measured = load("save_memory")
    if measured:
        fill("docs/training.md", "memory", memory(measured))
