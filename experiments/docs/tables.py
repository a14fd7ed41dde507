"""Tables in README and docs, made from `results/*.json`: what stands between the markers is never typed."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from typing import Any

from experiments.lab.curves import RATES, TARGETS, against, at_divergence, bits_at
from experiments.lab.record import RESULTS

_ROOT = RESULTS.parent.parent


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return loaded


def _where(result: dict[str, Any]) -> str:
    m = result["machine"]
    note = f". {result['note'].removesuffix('.')}" if "note" in result else ""
    return f"{m['cpu']}, {m['cores']} cores, Python {m['python']}; commit {result['commit']}, {result['date']}{note}"


def circumstances(result: dict[str, Any]) -> str:
    """Machine, commit and date of a result, for pages that other modules fill."""
    return _where(result)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    lines = [list(head), ["---"] * len(list(head)), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def sizes() -> str:
    """Bits per parameter by method, whole files."""
    result = _load("size")
    rows = []
    for row in result["rows"]:
        bits = row["bits_per_parameter"]
        cells = [bits["nearzip"], bits["delta-dnn"], row["delta_dnn_over_nearzip"], row["order_0_bits"]]
        cells += [bits["lossless"], bits["zstd"], bits["lzma"]]
        rows.append([row["pair"], f"{row['bound']:g}", *(f"{cell:.3f}" for cell in cells)])
    head = ["update", "bound (abs)", "nearzip", "delta-dnn", "ratio", "entropy, one table"]
    head += ["nearzip lossless", "zstd -19", "LZMA"]
    return (
        "Bits per parameter, whole files, float32 weights; every file restored and checked. Updates between\n"
        "neighbouring checkpoints of a character transformer (1.8 M parameters) and a small VGG (0.8 M).\n\n"
        + table(head, rows)
        + f"\n\n{_where(result)}."
    )


#: Load below which two cores are ours.
_IDLE = 1.0


def speeds() -> str:
    """MB/s on one core and two."""
    result = _load("speed")
    run = result["end_to_end"]
    one, two = run["one_core_mb_s"], run["two_cores_mb_s"]
    sides = {
        f"nearzip, to verified bytes ({run['bits_per_parameter']:.2f} bits)": ("encode", "decode"),
        f"finer ({run['fine_bits_per_parameter']:.2f} bits)": ("fine encode", "fine decode"),
        f"lossless ({run['lossless_bits_per_parameter']:.2f} bits)": ("lossless encode", "lossless decode"),
        "lossless, no base": ("lossless encode, no base", "lossless decode, no base"),
        "zstd -3 on the raw weights": ("zstd -3 encode", "zstd -3 decode"),
    }
    rows = [[name, *(f"{one[side]:.0f}" for side in both)] for name, both in sides.items()]
    rows += [["a copy in memory", f"{one['memory copy']:.0f}", ""]]
    # By the clock, which means nothing where others use the cores as well.
    idle = (result["load_average"] or 0) < _IDLE
    if idle:
        rows += [["nearzip, two cores, by the clock", f"{two['encode']:.0f}", f"{two['decode']:.0f}"]]
    ratios = "; ".join(
        f"{name}: {row['encode_ratio']:.0f} and {row['decode_ratio']:.1f} times"
        for name, row in result["entropy_coding"].items()
    )
    shares = ", ".join(f"{name} {share:.0f} %" for name, share in result["profile_percent"]["encode"].items())
    scaling = (
        f"Quantizing, coding and checking blocks on two cores: {result['scaling']['two_cores_over_one']:.2f} times one."
    )
    busy = f"Measured while others used the machine (load {result['load_average']}), so two cores are not shown."
    return "\n\n".join(
        [
            f"Speed on {run['megabytes']:.0f} MB of weights ({result['source']}), MB of float32 per processor "
            "second of one core, medians:",
            table(["", "encode", "decode"], rows),
            f"Where encoding spends its time: {shares}.",
            scaling if idle else busy,
            f"The entropy coder against LZMA on the same symbols, encoding and decoding: {ratios}.",
            f"{_where(result)}.",
        ]
    )


def lossless() -> str:
    """Bit-exact bytes beside the smallest of the other programs."""
    result = _load("lossless")
    rows = []
    for row in result["rows"]:
        cells = [row["pair"], f"{100 * row['changed']:.4g} %"]
        for mode in ("base", "alone"):
            best = row[f"best_other_{mode}"]
            cells += [f"{row['nearzip'][mode]['bytes']:,}", f"{best['bytes']:,} ({best['program']})"]
            cells += [f"{row[f'best_other_over_nearzip_{mode}']:.3f}"]
        rows.append(cells)
    head = ["update", "values changed", "with base", "best other", "ratio", "without", "best other", "ratio"]
    programs = ", ".join(result["rows"][0]["programs"])
    return "\n\n".join(
        [
            f"Bytes, bit-exact, beside the smallest of what {programs} make of the same values:\n"
            "alone, their exclusive or with the base's, or the program's own difference.",
            table(head, rows),
            f"{_where(result)}.",
        ]
    )


def memory() -> str:
    """File to file."""
    result = _load("memory")
    rows = [
        [f"{row['checkpoint_mb']:.0f} MB"]
        + [f"{row[step][what]:{form}}" for step in ("compress", "decompress")
           for what, form in (("seconds", ".1f"), ("anonymous_mb", ".0f"))]
        for row in result["rows"]
    ]  # fmt: skip
    head = ["checkpoint", "compress, s", "its memory, MB", "decompress, s", "its memory, MB"]
    return "From file to file against a base (anonymous memory, start of Python included):\n\n" + table(head, rows)


_SEARCHES = {
    "nearzip, calibrated": "ours, calibrated", "nearzip": "ours", "delta-dnn": "Delta-DNN's", "deepsz": "DeepSZ's",
    "nearzip, more": "ours, more evaluations",
}  # fmt: skip


#: Which of ours is compared with which of the papers'.
_BESIDE = (
    ("nearzip, calibrated", "delta-dnn"), ("nearzip, calibrated", "deepsz"),
    ("nearzip", "delta-dnn"), ("nearzip", "deepsz"), ("nearzip, more", "deepsz"),
)  # fmt: skip


def budgets() -> str:
    """Searches under one accuracy budget."""
    result = _load("budget")
    rows = [
        [f"{row['network']}, {row['what']}", f"{row['metric']} {row['max_loss']:g}"]
        + [_found(row["searches"].get(name)) for name in _SEARCHES]
        for row in result["rows"]
    ]
    head = ["network", "at most lost", *_SEARCHES.values()]
    commits = ", ".join(sorted({row["commit"] for row in result["rows"]}))
    return "\n\n".join([table(head, rows), _tally(result["rows"]), f"{_where({**result, 'commit': commits})}."])


def _found(search: dict[str, Any] | None) -> str:
    if search is None:
        return ""
    if "nothing_fits" in search:
        return "nothing fits"
    return f"{search['bytes']:,} ({search['evaluations']}), {search['measured_again']:.2g}"


def _tally(rows: list[dict[str, Any]]) -> str:
    """How often plans kept their budget, and how ours compares in bytes and evaluations."""
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
    return " ".join(lines)


#: Columns of the calibrated archives' table.
_CALIBRATED = ("nearzip calibrated", "nearzip unbiased", "nearzip", "NNCodec trellis", "NNCodec plain")


def calibrated() -> str:
    """Bits at given divergences, beside the codec whose quantizer looks ahead."""
    result = _load("fidelity")
    rows = []
    for pair, row in result["pairs"].items():
        for kl in TARGETS:
            sweeps = {name: row["entries"][name].get("points", []) for name in _CALIBRATED if name in row["entries"]}
            bits = {name: bits_at(points, kl) for name, points in sweeps.items()}
            if bits["nearzip calibrated"] is None and bits["nearzip"] is None:
                continue
            both = bits["nearzip calibrated"], bits["NNCodec trellis"]
            ratio = f"{both[1] / both[0]:.1f}" if both[0] and both[1] else ""
            cells = ("" if bits.get(name) is None else f"{bits[name]:.3f}" for name in _CALIBRATED)
            rows.append([pair, f"{kl:g}", *cells, ratio])
    return table(["update", "divergence", *_CALIBRATED, "trellis / calibrated"], rows) + f"\n\n{_where(result)}."


#: Of calibration.
_PARTS = ("gather", "factors", "round", "tune")


def calibration() -> str:
    """What calibrating costs: beside an evaluation pass, and by the size of a layer."""
    result = _load("calibration")
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
        + f"\n\n{_where(result)}."
    )


def trace_times() -> str:
    """How long the sets of traces take."""
    result = _load("trace_times")
    rows = []
    for name, networks in result["sets"].items():
        cells = [f"{network} {row['seconds']:.0f}{' (estimated)' if row['estimated'] else ''}"
                 for network, row in networks.items()]  # fmt: skip
        rows.append([f"`{name}`", f"{sum(row['seconds'] for row in networks.values()) / 60:.1f}", ", ".join(cells)])
    return table(["set", "minutes", "seconds of each network"], rows) + f"\n\n{_where(result)}."


#: Rules for steps that the table shows.
_RULES = ("one step", "small tensors finer, 2 %", "small tensors finer, 5 %", "small tensors finer", "NNCodec plain")


def rates() -> str:
    """Bits at given divergences by rules for steps, beside plain rounding of NNCodec."""
    result = _load("rates")
    rows = []
    for pair, rules in result["pairs"].items():
        for kl in TARGETS:
            bits = [at_divergence(rules[name], kl) if name in rules else None for name in _RULES]
            rows.append([pair, f"{kl:g}", *(_beside(value, bits[0]) for value in bits)])
    return "\n\n".join(
        [
            f"Bits per parameter, whole files, in brackets over those of one step; {100 * result['share']:g} % of the "
            "held-out data, eight steps an octave, NNCodec every QP.",
            table(["update", "divergence", *_RULES], rows),
            f"{_where(result)}.",
        ]
    )


#: Rounding, and points of E8.
_POINTS = ("small tensors finer, 2 %", "small tensors finer, 2 %, lattice",
           "small tensors finer, 2 %, unbiased", "small tensors finer, 2 %, unbiased, lattice")  # fmt: skip


def points() -> str:
    """Bits at given divergences by rounding and by points of E8."""
    result = _load("rates")
    rows = []
    for pair, rules in result["pairs"].items():
        for kl in TARGETS:
            bits = [at_divergence(rules[name], kl) if name in rules else None for name in _POINTS]
            rows.append([pair, f"{kl:g}", *(_beside(value, bits[0]) for value in bits)])
    return "\n\n".join(
        [
            f"Bits per parameter, whole files, in brackets over those of rounding; {100 * result['share']:g} % of the "
            "held-out data, eight steps an octave.",
            table(["update", "divergence", "rounding", "lattice", "unbiased", "unbiased, lattice"], rows),
            f"{_where(result)}.",
        ]
    )


#: Rules that were left out, and what they are beside.
_LEFT = ("one step", "one dimension 4 times finer", "small tensors finer, fourth root",
         "small tensors finer, vectors by their own size", "small tensors finer")  # fmt: skip


def rules() -> str:
    """Bits over those of one step, by rules that were not kept."""
    result = _load("rates")
    rows = []
    for pair, swept in result["pairs"].items():
        if not set(_LEFT) <= set(swept):
            continue
        bits = [[at_divergence(swept[name], kl) for kl in TARGETS] for name in _LEFT]
        cells = [
            ", ".join("-" if b is None or f is None else f"{b / f:.3f}" for b, f in zip(own, bits[0], strict=True))
            for own in bits[1:]
        ]
        rows.append([pair, *cells])
    return table([f"update, at {', '.join(f'{kl:g}' for kl in TARGETS)}", *_LEFT[1:]], rows) + f"\n\n{_where(result)}."


def streams() -> str:
    """E8 under the package's coder, in each of its ways."""
    result = _load("lattices")
    rows = []
    for pair, swept in result["coded"].items():
        for row in swept:
            over = (_over(value / row["plain"]) for way, value in row.items() if way not in ("step", "plain"))
            rows.append([pair, f"{row['plain']:.3f}", *over])
    ways = [way for way in next(iter(result["coded"].values()))[0] if way not in ("step", "plain")]
    return table(["update", "rounding", *ways], rows) + f"\n\n{_where(result)}."


def _beside(bits: float | None, first: float | None) -> str:
    if bits is None or bits == first:
        return "" if bits is None else f"{bits:.3f}"
    return f"{bits:.3f}" + (f" ({bits / first:.3f})" if first else "")


def lattices() -> str:
    """Bits over those of plain rounding, at the same divergence and at the same mean square error."""
    result = _load("lattices")
    rows = []
    for pair, kinds in result["pairs"].items():
        for kind, swept in kinds.items():
            for name in (name for name in swept if name != "Z"):
                over = against(swept["Z"], swept[name])
                cells = [*over["kl"].values(), *(rate["error"] for rate in over["rate"].values())]
                rows.append([pair + ("" if kind == "plain" else f", {kind}"), name, *(_over(cell) for cell in cells)])
    head = ["update", "lattice", *(f"KL {kl:g}" for kl in TARGETS), *(f"error, {rate:g} bits" for rate in RATES)]
    return table(head, rows) + f"\n\n{_where(result)}."


def _over(quotient: float | None) -> str:
    return "" if quotient is None else f"{100 * (quotient - 1):+.1f} %"


def fill(path: str, name: str, text: str) -> None:
    """Replace what stands between two markers of a Markdown file."""
    place = _ROOT / path
    old = place.read_text()
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    new, n = re.subn(f"{begin}.*?{end}", lambda _: f"{begin}\n{text}\n{end}", old, flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"{path}: no markers for {name!r}")
    place.write_text(new)


def main(arguments: list[str]) -> None:
    # It takes `table` from here.
    from experiments.docs import method_tables

    for (page, name), text in method_tables.TABLES.items():
        fill(f"docs/methods/{page}.md", name, text())
    fill("docs/methods/nearzip.md", "lossless", lossless())
    fill("docs/methods/nearzip.md", "rates", rates())
    fill("docs/methods/nearzip.md", "points", points())
    fill("docs/tried.md", "rules", rules())
    fill("docs/tried.md", "lattices", lattices())
    fill("docs/tried.md", "streams", streams())
    fill("README.md", "figures", "\n\n".join([sizes(), speeds(), memory()]))
    fill("docs/tune.md", "budget", budgets())
    fill("docs/experiments.md", "trace-times", trace_times())
    fill("docs/calibration.md", "calibrated", calibrated())
    fill("docs/calibration.md", "cost", calibration())
