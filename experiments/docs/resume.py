"""`docs/resume.md` and the memory of a save in `docs/training.md`, made from `results/*.json`."""

from __future__ import annotations

import itertools
import math

from experiments.claims.resume.cases import CASES
from experiments.claims.resume.resume import BYTES, trials
from experiments.claims.resume.sizes import ZSTD
from experiments.docs.markdown import Row, commits, machine, table

#: How many times smaller than AdamW's state a stored state should be.
GOAL = 70
_PARTS = ("weights", "optimizer", "whole")


def _where(result: Row) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return f"{machine(result)}; commit {commits(result['commit'])}; {result['date']}; {packages}."


def _bits(n_bytes: Row, parameters: int) -> list[str]:
    return [f"{8 * n_bytes[key] / parameters:.2f}" for key in _PARTS]


def _times(case: Row, n_bytes: int) -> str:
    return f"{BYTES[case['case']['optimizer']] * case['parameters'] / n_bytes:.1f}"


def levels_of_nearzip(case: Row) -> list[Row]:
    return [row for row in case["rows"] if row["level"].startswith("rms:")]


def levels_of_excp(case: Row) -> list[Row]:
    return [row for row in case["rows"] if not row["level"].startswith("rms:")]


def smallest(rows: list[Row]) -> Row | None:
    """The coarsest of the rows, which become coarser, that is equivalent as all before it are."""
    found = list(itertools.takewhile(lambda row: row["equivalent"], rows))
    return found[-1] if found else None


def best_of(case: Row) -> Row | None:
    """The smaller end of our two series of ever coarser levels: first moments as rounded, and unbiased."""
    by_size = sorted(levels_of_nearzip(case), key=lambda row: -row["bytes"]["whole"])
    series = [[row for row in by_size if ("unbiased" in row["level"]) == unbiased] for unbiased in (False, True)]
    ends = [row for row in map(smallest, series) if row is not None]
    return max(ends, key=lambda row: row["times_smaller"], default=None)


def summary(cases: dict[str, Row]) -> str:
    """One row for each setting: what is smallest where nothing is lost."""
    rows = []
    for name, case in cases.items():
        zstd = case["sizes"][ZSTD]["whole"]
        best, excp = best_of(case), smallest(levels_of_excp(case))
        cells = ["none", "-", "-", "-", "-"]
        if best is not None:
            cells = [best["level"], *_bits(best["bytes"], case["parameters"]), f"**{best['times_smaller']:.1f}**"]
        said = "not equivalent" if excp is None else f"{excp['times_smaller']:.1f}"
        far = [abs(row["difference"]) / case["rows"][0]["deviation"] for row in levels_of_excp(case)]
        said, worst = (said, f"{max(far):.1f}") if far else ("not measured", "")
        rows.append([name, *cells, _times(case, zstd), said, worst])
    head = ["setting", "coarsest equivalent level", "weights, bits", "state, bits", "whole, bits", "times smaller",
            "safetensors + zstd", "ExCP-like, times smaller", "its difference, in deviations"]  # fmt: skip
    return table(head, rows)


def verdict(cases: dict[str, Row]) -> str:
    """The goal beside what was found."""
    found = {name: best_of(case) for name, case in cases.items() if case["case"]["optimizer"] == "adamw"}
    reached = [name for name, row in found.items() if row is not None and row["times_smaller"] >= GOAL]
    missed = [f"{n} ({'none' if r is None else r['times_smaller']})" for n, r in found.items() if n not in reached]
    text = f"The goal, {GOAL} times smaller than AdamW's 12 bytes per parameter where resuming is equivalent, is "
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


def context(result: Row, saving: Row) -> Row:
    """Size against difference, together and case by case; and what a save costs."""
    cases = result["cases"]
    return {
        "summary": summary(cases),
        "verdict": verdict(cases),
        "details": "\n\n".join(_detail(name, case) for name, case in cases.items()),
        "where": _where(result),
        "cost": cost(saving),
        "where_cost": _where(saving),
    }


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
    return table(head, rows)


#: Largest share by which saving may lengthen a run.
_SHARE = 0.03


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
