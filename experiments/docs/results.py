"""`docs/results.md`: sweeps, speeds beside other programs, and the same measured twice."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.docs import bits, trust
from experiments.docs import speed as of_speed
from experiments.docs.markdown import Row, commits, machine, table
from experiments.lab.curves import TARGETS, bits_at, gap
from experiments.lab.peers import METHODS, PEERS

OURS = "nearzip"


def measured(row: Row, lossless: bool) -> Iterator[tuple[str, list[Row]]]:
    for name in (kind.name for kind in METHODS + PEERS):
        entry = row["entries"].get(name, {})
        if "points" in entry and entry["lossless"] == lossless:
            yield name, entry["points"]


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _setting(setting: Row) -> str:
    """`abs 0.001`; `keep 0.2, bits 5`."""
    texts = (f"{what} {value:g}" if isinstance(value, (int, float)) else f"{what}: {value}"
             for what, value in setting.items())  # fmt: skip
    return ", ".join(texts)


def picture_name(pair: str) -> str:
    """File of a pair's plot."""
    return f"fidelity-{pair.replace(' ', '-')}.png"


_LIMIT = "limit of a Gaussian code"


def _limit_points(limits: Row, pair: str) -> list[Row]:
    """Of the limit on the held-out data: samples as they were measured."""
    row = limits["pairs"].get(pair)
    return [] if row is None else row["limits"]["held-out data"]["points"]  # type: ignore[no-any-return]


def headline(pairs: dict[str, Row], limits: Row) -> str:
    """Bits at given KL; how many times ours, and how far above the limit."""
    rows = []
    for pair, row in pairs.items():
        ours, least = row["entries"][OURS]["points"], _limit_points(limits, pair)
        for name, points in [*measured(row, lossless=False), *([(_LIMIT, least)] if least else [])]:
            cells = []
            for kl in TARGETS:
                bits, times, limit = bits_at(points, kl), gap(points, ours, kl), bits_at(least, kl)
                beside = [] if name in (OURS, _LIMIT) or times is None else [f"{times:.2f}x"]
                beside += [] if name == _LIMIT or bits is None or limit is None else [f"{bits - limit:+.2f}"]
                cells.append(_number(bits) + (f" ({', '.join(beside)})" if beside else ""))
            rows.append([pair, f"**{name}**" if name == OURS else name, *cells])
    return table(["update", "method", *(f"KL {kl:.0e}" for kl in TARGETS)], rows)


def keeping(pairs: dict[str, Row]) -> str:
    """Sizes of the updates, and the network of a reader who keeps the older version."""
    rows = [
        [pair, row["parameters"], f"{row['update_rms']:.2e}", f"{row['update_max']:.2e}", f"{row['base']['kl']:.2e}",
         f"{row['original']['loss']:.4f}", f"{row['original']['accuracy']:.4f}", f"{row['base']['accuracy']:.4f}"]
        for pair, row in pairs.items()
    ]  # fmt: skip
    return table(["update", "values", "rms of the update", "largest", "KL of keeping the old version", "loss",
                  "accuracy", "accuracy of the old version"], rows)  # fmt: skip


def points_table(row: Row, least: list[Row]) -> str:
    """Every point of a pair, and of the limit."""
    rows = [
        [
            name, _setting(p["setting"]), f"{p['bits_per_parameter']:.4f}", f"{p['ratio']:.1f}",
            _number(p["kl"], ".2e"), _number(p["loss_change"], "+.5f"), f"{100 * p['accuracy_change']:+.2f}",
            f"{100 * p['agreement']:.2f}", f"{p['encode_mb_s']:.1f}", f"{p['decode_mb_s']:.1f}",
            f"{p['max_error']:.2e}",
            p.get("values_outside_bound", ""),
        ]
        for name, points in measured(row, lossless=False) for p in points
    ]  # fmt: skip
    rows += [
        [_LIMIT, f"estimated KL {p['estimated_kl']:g}", f"{p['bits_per_parameter']:.4f}",
         f"{32 / p['bits_per_parameter']:.1f}", _number(p["kl"], ".2e"), *[""] * 7]
        for p in least
    ]  # fmt: skip
    head = ["method", "setting", "bits", "ratio", "KL", "loss", "accuracy, %", "agreement, %", "encode", "decode",
            "largest error", "outside the bound"]  # fmt: skip
    return table(head, rows)


def lossless(pairs: dict[str, Row]) -> str:
    """Bits with and without a base; speed on the first pair."""
    found: dict[str, dict[str, list[Row]]] = {}
    for pair, row in pairs.items():
        for name, points in measured(row, lossless=True):
            found.setdefault(name, {})[pair] = points
    rows = []
    for name, by_pair in found.items():
        first = next(iter(by_pair.values()))[-1]
        cells = [
            " / ".join(f"{p['bits_per_parameter']:.2f}" for p in by_pair[pair]) if pair in by_pair else "-"
            for pair in pairs
        ]
        rows.append([name, *cells, f"{first['encode_mb_s']:.1f}", f"{first['decode_mb_s']:.1f}"])
    return table(["method", *pairs, "encode", "decode"], rows)


def speeds(result: Row) -> str:
    """Speed on one core and on all, and memory, each program in a process of its own."""
    rows = []
    for name, entry in result["entries"].items():
        if "not_measured" in entry:
            rows.append([name, f"not measured: `{entry['not_measured']}`", "", "", "", "", ""])
            continue
        one, every = entry["one_core"], entry["all_cores"]
        cells = [f"{side[way]:.1f}" for side in (one, every) for way in ("encode_mb_s", "decode_mb_s")]
        rows.append([name, _setting(one["setting"]), *cells, _number(one["peak_mib"], ".0f")])
    head = ["method", "setting", "encode, one core", "decode, one core", "encode, all cores", "decode, all cores",
            "peak memory, MiB"]  # fmt: skip
    return table(head, rows)


def missing(pairs: dict[str, Row]) -> str:
    """Entries that could not be measured, with the reason, or that were not part of the run."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for pair, row in pairs.items():
        for kind in METHODS + PEERS:
            entry = row["entries"].get(kind.name)
            if entry is None or "not_measured" in entry:
                reason = "not part of the run" if entry is None else f"`{entry['not_measured']}`"
                reasons.setdefault((kind.name, reason), []).append(pair)
    if not reasons:
        return "Every method and peer could be installed and was measured on every pair."
    rows = [[name, reason, ", ".join(found)] for (name, reason), found in reasons.items()]
    return "Not measured:\n\n" + table(["method or peer", "reason", "updates"], rows)


def repeated(result: Row) -> str:
    """Agreement of two runs."""
    measured = {name: row for name, row in result["fidelity"].items() if "same" in row}
    other = [name for name, row in measured.items() if not row["same"]]
    n = sum(row["points"] for row in measured.values())
    same = f"all {n} points of {len(measured)} methods and programs have" if not other else (
        f"of {len(measured)} methods and programs all but {', '.join(other)} have"
    )  # fmt: skip
    rows = []
    for name, ways in result["speed"].items():
        cells = []
        for way in ways.values():
            cells += [" / ".join(f"{speed:.0f}" for speed in way["mb_s"]), f"{100 * way['ratio_changed']:+.1f} %"]
        rows.append([name, *cells])
    head = ["program", "encode, MB/s", f"as a multiple of {result['yardstick']}'s", "decode, MB/s", "as a multiple"]
    return (
        f"Run twice over {result['pair']}, {same} the same bytes, bits, divergence, loss and accuracy to the last\n"
        f"digit (`bench repeat`). Speeds on one core over {result['speed_pair']}, two runs of five starts each,\n"
        f"medians, and by how much their multiple of {result['yardstick']}'s changed:\n\n"
        + table(head, rows)
        + f"\n\nCommit {result['commit']}."
    )


def context(
    result: Row,
    throughput: Row,
    tiled: Row,
    twice: Row,
    size: Row,
    speed: Row,
    memory: Row,
    checked: Row,
    turns: Row,
    limits: Row,
) -> Row:
    """Figures of the page."""
    pairs = result["pairs"]
    entries = [entry for row in pairs.values() for entry in row["entries"].values()]
    found = sorted({entry["commit"] for entry in entries if "commit" in entry})
    used = {k: v for entry in entries for k, v in entry.get("versions", {}).items()} | result["versions"]
    shares = {row["held_out_share"] for row in pairs.values()}
    where = f"{machine(result)}; commits {commits(*found)}; {result['date']}; " + ", ".join(
        f"{name} {number}" for name, number in sorted(used.items())
    )
    tables = {pair: points_table(row, _limit_points(limits, pair)) for pair, row in pairs.items()}
    points = "\n\n".join(f"<details><summary>{pair}</summary>\n\n{of}\n\n</details>" for pair, of in tables.items())
    plots = "\n\n".join(f"![{pair}: bits per parameter against KL](images/{picture_name(pair)})" for pair in pairs)
    return {
        "where": where, "share": " or ".join(f"{100 * share:g} %" for share in sorted(shares)), "seed": result["seed"],
        "keeping": keeping(pairs), "headline": headline(pairs, limits), "plots": plots, "lossless": lossless(pairs),
        "missing": missing(pairs), "points": points,
        "repeated": repeated(twice), "sizes": bits.sizes(size), "speed": of_speed.speeds(speed),
        "memory": of_speed.memory(memory), "bounds": trust.bounds(checked),
        "before_after": of_speed.before_after(turns),
        "speeds": speeds(throughput), "speed_pair": throughput["pair"], "cores": throughput["machine"]["cores"],
        "speed_commit": commits(throughput["commit"]), "tiled": speeds(tiled), "tiled_pair": tiled["pair"],
        "tiled_commit": commits(tiled["commit"]),
    }  # fmt: skip
