"""Sizes: bits per parameter beside other methods and programs, lossless bytes, rules for steps."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, commits, machine, span, table
from experiments.lab.curves import TARGETS, at_divergence, bits_at


def sizes(result: Row) -> str:
    """Bits per parameter by method, whole files."""
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
        + f"\n\nDelta-DNN's files are {span([row['delta_dnn_over_nearzip'] for row in result['rows']], 2)} times as "
        "large; least where the step is so fine that five bits remain and little but noise is left to code."
        + f"\n\n{circumstances(result)}."
    )


def lossless(result: Row) -> str:
    """Bit-exact bytes beside the smallest of the other programs."""
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
            "alone, after exclusive or with the base, or by the program's own difference.",
            table(head, rows),
            f"nearzip is the smallest in {_smallest(result, 'base')} with a base, "
            f"in {_smallest(result, 'alone')} without.",
            f"{circumstances(result)}.",
        ]
    )


def _smallest(result: Row, mode: str) -> str:
    ratios = [row[f"best_other_over_nearzip_{mode}"] for row in result["rows"]]
    return f"{sum(ratio > 1 for ratio in ratios)} of {len(ratios)} cases"


#: Rules for steps that the table shows.
_RULES = ("one step", "small tensors finer, 2 %", "small tensors finer, 5 %", "small tensors finer", "NNCodec plain")


def rates(result: Row) -> str:
    """Bits at given divergences by rules for steps, beside plain rounding of NNCodec."""
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
            f"{circumstances(result)}.",
        ]
    )


#: Rounding, and points of E8.
_POINTS = ("small tensors finer, 2 %", "small tensors finer, 2 %, lattice",
           "small tensors finer, 2 %, unbiased", "small tensors finer, 2 %, unbiased, lattice")  # fmt: skip


def points(result: Row) -> str:
    """Bits at given divergences by rounding and by points of E8, and how often the points take fewer."""
    rows = []
    over: dict[str, list[float]] = {}
    for pair, rules in result["pairs"].items():
        for kl in TARGETS:
            bits = [at_divergence(rules[name], kl) if name in rules else None for name in _POINTS]
            rows.append([pair, f"{kl:g}", *(_beside(value, bits[0]) for value in bits)])
            if bits[0] and bits[1]:
                over.setdefault(pair.split()[0], []).append(bits[1] / bits[0])
    verdict = "; ".join(
        f"{network}: fewer bits in {sum(ratio < 1 for ratio in ratios)} of {len(ratios)} cases, "
        f"{100 * (min(ratios) - 1):+.0f} % to {100 * (max(ratios) - 1):+.0f} %"
        for network, ratios in over.items()
    )
    return "\n\n".join(
        [
            f"Bits per parameter, whole files, in brackets over those of rounding; {100 * result['share']:g} % of the "
            "held-out data, eight steps an octave.",
            table(["update", "divergence", "rounding", "lattice", "unbiased", "unbiased, lattice"], rows),
            f"Points of E8 beside rounding: {verdict}.",
            f"{circumstances(result)}.",
        ]
    )


def _beside(bits: float | None, first: float | None) -> str:
    if bits is None or bits == first:
        return "" if bits is None else f"{bits:.3f}"
    return f"{bits:.3f}" + (f" ({bits / first:.3f})" if first else "")


#: Columns of the calibrated archives' table.
_CALIBRATED = ("nearzip calibrated", "nearzip unbiased", "nearzip", "NNCodec trellis", "NNCodec plain")


def calibrated(result: Row) -> str:
    """Bits at given divergences, beside the codec whose quantizer looks ahead."""
    rows = []
    entries = [
        row["entries"][name] for row in result["pairs"].values() for name in _CALIBRATED if name in row["entries"]
    ]
    measured = {entry["commit"] for entry in entries if "commit" in entry}
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
    return (
        table(["update", "divergence", *_CALIBRATED, "trellis / calibrated"], rows)
        + f"\n\n{circumstances(result, commits(*sorted(measured)))}."
    )


#: Limits whose variances are the update's own, and their heads: with one variance the bits are another source's.
_LIMITS = {
    "training batches": "limit, training batches",
    "held-out data": "limit, held-out data",
    "held-out data, undamped": "the same, undamped",
}


def limit(result: Row, fidelity: Row) -> str:
    """Bits of calibrated archives and of the limit, and the gap, at measured divergences."""
    rows, checks = [], []
    for pair, row in result["pairs"].items():
        points = fidelity["pairs"][pair]["entries"]["nearzip calibrated"]["points"]
        for kl in TARGETS:
            ours = bits_at(points, kl)
            found = {name: bits_at(row["limits"].get(name, {"points": []})["points"], kl) for name in _LIMITS}
            gaps = [ours - bits if ours and bits else None for bits in list(found.values())[:2]]
            cells = [ours, *found.values(), *gaps]
            rows.append([pair, f"{kl:g}", *("" if cell is None else f"{cell:.3f}" for cell in cells)])
        for name, of in row["limits"].items():
            ratios = [point["kl"] / point["estimated_kl"] for point in of["points"]]
            whole = row["base_kl"] / of["base_estimated_kl"]
            checks.append([pair, name, span(ratios, 2), f"{whole:.2f}", f"{of['seconds']:.1f}"])
    head = ["update", "divergence", "calibrated", *_LIMITS.values(), "gap to training batches", "gap to held-out data"]
    return "\n\n".join(
        [
            "Bits per parameter at measured divergences: of archives, whole files; of limits, where samples of their "
            "test channel are measured to diverge as much. The gap is in bits per parameter.",
            table(head, rows),
            "Measured over estimated divergence of the samples, and of the base alone; processor seconds of the limit:",
            table(["update", "limit", "samples", "base", "seconds"], checks),
            f"{circumstances(result, commits(*sorted({row['commit'] for row in result['pairs'].values()})))}.",
        ]
    )


def largest_shares(result: Row, count: int = 2) -> str:
    """Tensors that make most of the divergence, each rounded by itself."""
    rows = []
    for pair, row in result["pairs"].items():
        tensors = row["tensors"]
        n_values, kl = (sum(tensor[key] for tensor in tensors.values()) for key in ("n", "kl"))
        ordered = sorted(tensors.items(), key=lambda item: -item[1]["kl"])
        largest = max(tensors.items(), key=lambda item: item[1]["n"])
        for name, tensor in dict([*ordered[:count], largest]).items():
            note = "the largest" if name == largest[0] else ""
            rows.append(
                [pair, f"`{name}`", note, f"{100 * tensor['n'] / n_values:.2g} %", f"{100 * tensor['kl'] / kl:.0f} %"]
            )
    head = ["update", "tensor", "", "of the values", "of the sum of divergences"]
    return table(head, rows) + f"\n\n{circumstances(result)}."


#: README's update, and the divergence at which methods with a loss are compared there.
_README_PAIR, _README_KL = "transformer late", 3e-4


def readme(exact: Row, swept: Row, hub: Row) -> str:
    """One update, as bytes: beside zstd and the smallest of the other programs."""
    row = next(row for row in exact["rows"] if row["pair"] == f"{_README_PAIR}, float32")
    n_bytes, n_values = row["bytes"], row["bytes"] / 4
    best = {mode: row[f"best_other_{mode}"] for mode in ("alone", "base")}
    outputs = f"outputs, KL {_README_KL:g}"
    entries = swept["pairs"][_README_PAIR]["entries"]

    def at(*names: str) -> float:
        found = [bits_at(entries[name]["points"], _README_KL) for name in names]
        return min(bits for bits in found if bits is not None) * n_values / 8

    rows = [
        ["deduplicated chunks, as on the Hugging Face Hub (imitated)", "every bit", hub["bytes"]],
        ["zstd -19", "every bit", row["programs"]["zstd -19"]["alone"]["bytes"]],
        [f"{best['alone']['program'].partition(',')[0]}, the smallest without the older version", "every bit",
         best["alone"]["bytes"]],
        [f"{best['base']['program'].partition(',')[0]}, the smallest with it", "every bit", best["base"]["bytes"]],
        ["**nearzip**", "every bit", row["nearzip"]["base"]["bytes"]],
        ["SZ3 on the difference", outputs, at("SZ3", "SZ3 NOPRED")],
        ["NNCodec on the difference", outputs, at("NNCodec trellis", "NNCodec plain")],
        ["**nearzip**", outputs, at("nearzip")],
        ["**nearzip**, option `unbiased`", outputs, at("nearzip unbiased")],
        ["**nearzip**, calibrated on a few batches", outputs, at("nearzip calibrated")],
    ]  # fmt: skip
    commit = commits(exact["commit"], hub["commit"], *sorted({entries[name]["commit"] for name in _README_ENTRIES}))
    cells = [[name, what, f"{size / 1e3:,.0f}", f"{n_bytes / size:,.1f}"] for name, what, size in rows]
    return (
        f"An update of a character transformer ({n_values / 1e6:.1f} M float32 parameters, {n_bytes / 1e6:.1f} MB), "
        "50 training steps after the version that the reader has:\n\n"
        + table(["program", "keeps", "kB", "times smaller"], cells)
        + f"\n\nKL: divergence of the predictions, nats. Chunks: {hub['n_new_chunks']} of {hub['n_chunks']} are new, "
        f"each as it is or by LZ4, the smaller. {machine(exact)}; commits {commit}."
    )


_README_ENTRIES = ("SZ3", "SZ3 NOPRED", "NNCodec trellis", "NNCodec plain", "nearzip", "nearzip unbiased",
                   "nearzip calibrated")  # fmt: skip
