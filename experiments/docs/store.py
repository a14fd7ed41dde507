"""The figures in docs/store.md: storage, transmission, speed, scale and the long fault runs."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.docs.markdown import Row, commits, machine, table


def _mb(n: float) -> str:
    return f"{n / 1e6:.2f}"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f}"


def storage(rows: list[Row]) -> str:
    """Bytes, checkout times and accuracy for every chain, bound and policy."""
    out = []
    for row in rows:
        out += [
            f"**{row['network']}**, {row['versions']} versions, {_mb(row['raw'])} MB as safetensors, "
            f"{_mb(row['zstd'])} MB with zstd -19:",
            "",
            "| bound | policy | MB | ratio | newest, ms | oldest, ms | one between, ms | accuracy: mean, worst change "
            "| pruned to every 4th, MB |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for bound, policies in row["bounds"].items():
            out += [_policy_line(row, bound, one) for one in policies]
        out += ["", *_accuracies(row)]
    return "\n".join(out)


def _accuracies(row: Row) -> list[str]:
    """Accuracy of every version, of the original and as restored: Figure 9 of the paper."""
    measured = {bound: one for bound, (one, *_) in row["bounds"].items() if "accuracy" in one}
    if not measured:
        return []
    originals = next(iter(measured.values()))["accuracy"]
    lines = [
        "| version | " + " | ".join(str(i) for i in range(len(originals))) + " |",
        "| --- |" + " --- |" * len(originals),
        "| original, accuracy in % | " + " | ".join(f"{100 * a:.2f}" for a in originals) + " |",
    ]
    for bound, one in measured.items():
        restored = [a + change for a, change in zip(one["accuracy"], one["accuracy_change"], strict=True)]
        lines.append(f"| restored, {bound} | " + " | ".join(f"{100 * a:.2f}" for a in restored) + " |")
    return [*lines, ""]


def transmission(result: Row) -> str:
    """Updates beside whole networks: the paper's Figure 8."""
    rates = list(result["pairs"][0]["full"]["seconds"])
    out = [
        "| network | what is fetched | MB on the link | requests | s without a limit | "
        + " | ".join(f"s at {rate} Mbps" for rate in rates) + " | accuracy |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(rates) + " --- |",
    ]  # fmt: skip
    for row in result["pairs"]:
        ways = {"safetensors": row["full"], "zstd -19": row["zstd"]}
        ways |= {f"update, {bound}": found for bound, found in row["updates"].items()}
        for what, found in ways.items():
            change = found.get("accuracy_change")
            measured = (found["unlimited_seconds"], *(found["seconds"][rate] for rate in rates))
            seconds = " | ".join(f"{each:.2f}" for each in measured)
            accuracy = "" if change is None else f"{100 * change:+.2f} %"
            size = f"{found['bytes'] / 1e6:.3f} | {found['requests']}"
            out.append(f"| {row['pair']} | {what} | {size} | {seconds} | {accuracy} |")
    out += [
        "",
        "A client of a `forward` store that takes every version, and one that comes back only for the last, and has "
        "to fetch all deltas before it, MB:",
        "",
        "| network | updates | safetensors | zstd -19 | rms:0.01 | lossless "
        "| only the last: zstd -19 | rms:0.01 | lossless |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["chains"]:
        lossy, exact = row["bounds"]["rms:0.01"], row["bounds"]["lossless"]
        every = (row["full"], row["zstd"], lossy["each"], exact["each"])
        sizes = (*every, row["last_zstd"], lossy["at_once"], exact["at_once"])
        out.append(f"| {row['network']} | {row['updates']} | " + " | ".join(_mb(size) for size in sizes) + " |")
    pairs, chains = (_commits(result[part], result) for part in ("pairs", "chains"))
    return "\n".join(out) + f"\n\nUpdates: commit {pairs}; clients that follow: {chains}; {result['date']}.\n"


def _commits(rows: Iterable[Row], result: Row) -> str:
    """Those that were measured, in order; the result's own for rows that name none."""
    return commits(*(row.get("commit", result["commit"]) for row in rows))


def _policy_line(row: Row, bound: str, one: Row) -> str:
    newest, oldest, between = one["checkout_seconds"].values()
    changes = one.get("accuracy_change")
    accuracy = ""
    if changes:
        worst = max(changes, key=abs)
        accuracy = f"{100 * sum(changes) / len(changes):+.3f} %, {100 * worst:+.2f} %"
    elif bound == "lossless":
        accuracy = "none"
    return (
        f"| {bound} | {one['policy']} | {_mb(one['bytes'])} | {row['raw'] / one['bytes']:.2f} | {_ms(newest)} | "
        f"{_ms(oldest)} | {_ms(between)} | {accuracy} | {_mb(one['pruned']['bytes'])} |"
    )


def speed(result: Row) -> str:
    """Commit and checkout beside the codec, verify beside the disk."""
    s, n = result["seconds"], result["bytes"] / 1e6
    p = result.get("processor_seconds")

    def times(one: str, other: str) -> str:
        processor = f", {p[one] / p[other]:.2f} times its processor time" if p else ""
        return f"({s[one] / s[other]:.2f} times its time{processor})"

    v = result["verify"]
    read, verify = (v["bytes"] / 1e6 / v["seconds"][name] for name in ("read", "verify"))
    work = v.get("processor_seconds")
    spent = f", with one core's work of {v['bytes'] / 1e6 / work['verify']:.0f} MB/s" if work else ""
    return (
        f"Speed on {n:.0f} MB ({result['source']}), local disk, medians of sides that took turns: commit "
        f"{n / s['commit']:.0f} MB/s where compressing without a store does {n / s['compress']:.0f} "
        f"{times('commit', 'compress')}; checkout of a keyframe "
        f"{n / s['checkout of a keyframe']:.0f} MB/s where decompressing does {n / s['decompress']:.0f} "
        f"{times('checkout of a keyframe', 'decompress')}. A full verify reads {verify:.0f} MB/s, "
        f"the disk gives {read:.0f} ({verify / read:.2f} of it{spent}).\n"
    )


def scale(result: Row) -> str:
    """Many versions."""

    def spent(what: str) -> str:
        processor = result.get(f"{what}_processor_seconds")
        return f" ({processor:.2f} s of processor time)" if processor is not None else ""

    return (
        f"With {result['versions']:,} versions: log {result['log_seconds']:.2f} s{spent('log')}, "
        f"checkout of the newest {_ms(result['checkout_newest_seconds'])} ms, "
        f"of `best:accuracy` {result['checkout_best_seconds']:.2f} s"
        f"{spent('checkout_best')}.\n"
    )


def faults(result: Row) -> str:
    """The long fault runs."""
    lines = ["| fault | points | held |", "| --- | --- | --- |"]
    for name, run in result["runs"].items():
        held = "yes" if run["passed"] else f"no: {run.get('problem', '')}"
        lines.append(f"| {name} | {run.get('operations', run.get('tests', ''))} | {held} |")
    return "\n".join(lines) + f"\n\nFaults: commit {_commits(result['runs'].values(), result)}.\n"


def figures(result: Row, shipped: Row, fault_runs: Row) -> str:
    """The whole block."""
    parts = [storage(result["storage"]), transmission(shipped), speed(result["speed"]), scale(result["scale"])]
    measured = ", ".join(f"{part} on commit {commits(commit)}" for part, commit in result["commits"].items())
    m = result["machine"]
    parts += [
        faults(fault_runs),
        f"{m['cpu']}, {m['cores']} cores, shared with other work; {measured}; {result['date']}.",
    ]
    return "\n".join(parts)


def fire(result: Row) -> str:
    """Hours of processes that are killed at random."""
    head = ["where", "minutes", "kills", "commits", "reads", "manifests damaged on purpose", "not as promised"]
    rows = [
        [kind, f"{row['seconds'] / 60:.0f}", f"{row['kills']:,}", f"{row['commits']:,}", f"{row['reads']:,}",
         row["damaged"], row["n_wrong"]]
        for kind, row in sorted(result["runs"].items())
    ]  # fmt: skip
    found = sorted({row["commit"] for row in result["runs"].values()})
    return table(head, rows) + f"\n\n{machine(result)}; commit {commits(*found)}, {result['date']}."
