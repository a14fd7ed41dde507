"""Trust: damage to files of several formats, our own long runs, and bounds checked by another implementation."""

from __future__ import annotations

from collections import Counter

from experiments.claims.trust.damage import FORMATS
from experiments.docs.markdown import Row, circumstances, commits, machine, table


def _row(name: str, row: Row) -> list[object]:
    if "missing" in row:
        return [FORMATS[name].label, "not installed", *[""] * 6]
    label, _, rest = FORMATS[name].label.partition(",")
    label = f"{label} {row['version']}" + (f",{rest}" if rest else "")
    c, t = row["changes"], row["truncations"]
    failed = c.get("crash", 0) + c.get("memory", 0) + c.get("hang", 0)
    wrong = c.get("wrong", 0)
    cut, noticed = sum(t.values()), t.get("error", 0)
    how = ", ".join(f"{t[kind]} {text}" for kind, text in (("wrong", "silently wrong"), ("right", "read as if whole"),
                    ("crash", "crash"), ("memory", "out of memory"), ("hang", "hang")) if t.get(kind))  # fmt: skip
    return [
        label, row["bytes"], sum(c.values()), c.get("error", 0), f"**{wrong}**" if wrong else 0, c.get("right", 0),
        f"**{failed}**" if failed else 0, f"{noticed} of {cut}" + (f" ({how})" if how else ""),
    ]  # fmt: skip


def damage(result: Row) -> str:
    """Every format's outcomes."""
    head = ["format", "bytes", "changes tried", "error", "silently wrong", "right all the same",
            "crash, hang or out of memory", "truncations noticed"]  # fmt: skip
    rows = [_row(name, row) for name, row in result["rows"].items()]
    s = result["settings"]
    found = sorted({row["commit"] for row in result["rows"].values() if "commit" in row})
    seconds = sum(row.get("seconds", 0) for row in result["rows"].values())
    return table(head, rows) + (
        f"\n\nMade by `python -m experiments damage_peers` in {seconds:.0f} s: {machine(result)}; "
        f"commit {commits(*found)}, {result['date']}. Each trial in a process of its own with "
        f"{s['address_space_gib']} GiB of address space and {s['cpu_seconds']} s of processor time."
    )


def long_runs(damaged: Row, fuzzed: Row) -> str:
    """Every change of every byte, hostile files, and fuzzing."""
    found, hostile = damaged["damage"], damaged["hostile"]
    wrong = sum(n for row in found["rows"] for kind, n in row.items() if kind not in ("file", "bytes", "refused"))
    refused = sum(row["refused"] for row in found["rows"])
    rows = [
        ["every byte changed, every length", f"{found['files']} archives, {found['decodes']:,} decodings",
         f"{refused:,} refused by a named error, {wrong} with another outcome"],
        ["hostile archives with right checksums", f"{hostile['files']}",
         f"refused after {hostile['median_ms']:g} ms in the median, {hostile['most_ms']:g} at most; memory grew by "
         f"{hostile['most_growth_mib']:g} MiB at most"],
        ["fuzzing", f"{len(fuzzed['targets'])} targets, {fuzzed['executions']:,} executions, "
         f"{fuzzed['cpu_seconds'] / 3600:.1f} hours of one core", f"{_findings(fuzzed)} findings"],
    ]  # fmt: skip
    later = [target["commit"] for target in fuzzed["targets"].values() if "commit" in target]
    dates = sorted({fuzzed["date"][:10], *(t["date"] for t in fuzzed["targets"].values() if "date" in t)})
    where = f"{circumstances(damaged)}. Fuzzing: commit {commits(fuzzed['commit'][:7], *later)}, {', '.join(dates)}."
    return table(["run", "extent", "outcome"], rows) + f"\n\n{where}"


def _findings(fuzzed: Row) -> int:
    return sum(len(target["findings"]) for target in fuzzed["targets"].values())


def damaged_many(result: Row) -> str:
    """Thousands of damaged archives of each method in one process."""
    methods = result["methods"]
    outcomes = Counter(kind for row in methods.values() for kind, n in row["outcomes"].items() for _ in range(n))
    total, decoded = sum(outcomes.values()), outcomes.pop("decoded", 0)
    named = ", ".join(f"{n:,} {kind}" for kind, n in outcomes.most_common())
    unnamed = sum(len(row["unnamed"]) for row in methods.values())
    threads, children, files = (
        max(row[f"more_{what}"] for row in methods.values()) for what in ("threads", "children", "descriptors")
    )
    largest = max(row["address_space_mib"] for row in methods.values())
    return (
        f"{result['archives']:,} damaged archives of each of {len(methods)} methods, one after the other in one "
        f"process per method, in at most {largest:,} MiB of addresses: of {total:,} archives {unnamed} ended in an "
        f"unnamed error; {named}; {decoded:,} decoded to the right values. Beyond those at the start: at most "
        f"{threads} threads, {children} child processes and {files} open files.\n\n{circumstances(result)}."
    )


def promises(result: Row) -> str:
    """Random pairs of checkpoints by every way in."""
    ways = ", ".join(f"{name} {n:,}" for name, n in result["entrances"].items())
    return (
        f"{result['pairs']:,} random pairs of small checkpoints (dtypes, ties, equal tensors, bounds by pattern, bases "
        f"that fit or not), {len(result['methods'])} methods, {len(result['entrances'])} ways in ({ways}): "
        f"{len(result['failures'])} with a tensor outside its bound, an archive larger than what was at hand, or an "
        f"unnamed error. {result['processor_seconds'] / 60:.0f} minutes of one core.\n\n{circumstances(result)}."
    )


def bounds(result: Row) -> str:
    """The promise, checked by an implementation that shares no code with ours."""
    groups = result["dtype_x_bound"]
    dtypes = {name.partition(" x ")[0] for name in groups}
    return (
        f"{result['arrays']:,} random tensors of {len(dtypes)} dtypes under every bound ({result['values']:,} values; "
        f"{result['arrays_rounded']:,} tensors were rounded): {result['arrays_with_violations']} with a "
        f"value outside its bound, {result['decoded_differs_from_restored']} decoded otherwise than promised; the "
        f"largest error is {result['largest_error_over_tolerance']:.6f} of what is allowed.\n\n{circumstances(result)}."
    )
