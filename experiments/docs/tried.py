"""What was tried and left out: the tables of docs/tried.md."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table
from experiments.lab.curves import RATES, TARGETS, against, at_divergence

#: The rule for comparison, and rules that were not kept.
_LEFT = ("one step", "one dimension 4 times finer", "small tensors finer, fourth root",
         "small tensors finer, vectors by their own size", "small tensors finer")  # fmt: skip


def rules(result: Row) -> str:
    """Bits over those of one step, by rules that were not kept."""
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
    return (
        table([f"update, at {', '.join(f'{kl:g}' for kl in TARGETS)}", *_LEFT[1:]], rows)
        + f"\n\n{circumstances(result)}."
    )


def lattices(result: Row) -> str:
    """Bits over those of plain rounding, at the same divergence and at the same mean square error."""
    rows = []
    for pair, kinds in result["pairs"].items():
        for kind, swept in kinds.items():
            for name in (name for name in swept if name != "Z"):
                over = against(swept["Z"], swept[name])
                cells = [*over["kl"].values(), *(rate["error"] for rate in over["rate"].values())]
                rows.append([pair + ("" if kind == "plain" else f", {kind}"), name, *(_over(cell) for cell in cells)])
    head = ["update", "lattice", *(f"KL {kl:g}" for kl in TARGETS), *(f"error, {rate:g} bits" for rate in RATES)]
    return table(head, rows) + f"\n\n{circumstances(result)}."


def _over(quotient: float | None) -> str:
    return "" if quotient is None else f"{100 * (quotient - 1):+.1f} %"


def streams(result: Row) -> str:
    """E8 under the package's coder, in each of its ways."""
    rows = []
    for pair, swept in result["coded"].items():
        for row in swept:
            over = (_over(value / row["plain"]) for way, value in row.items() if way not in ("step", "plain"))
            rows.append([pair, f"{row['plain']:.3f}", *over])
    ways = [way for way in next(iter(result["coded"].values()))[0] if way not in ("step", "plain")]
    return table(["update", "rounding", *ways], rows) + f"\n\n{circumstances(result)}."


def calibration(result: Row) -> str:
    """Calibration with one thing changed: bits at one divergence."""
    ((pair, variants),) = result["pairs"].items()
    rows = sorted(([_VARIANTS[name], f"{row['bits']:.3f}"] for name, row in variants.items()), key=lambda row: row[1])
    head = ["one change", f"bits at {result['kl']:g}, {pair}"]
    return table(head, rows) + f"\n\n{circumstances(result)}."


#: Variant to its row.
_VARIANTS = {
    "as built, without tuning": "as built, without tuning",
    "places in their order": "columns and rows in their order, not by energy",
    "damping 0.3 and 0.3": "damping 0.3 of inputs and 0.3 of gradients, in place of 0.1 and 0.3",
    "most energy first": "most energy first",
    "damping 0.1 and 0.1": "damping 0.1 and 0.1",
    "damping 0.03 and 0.1": "damping 0.03 and 0.1",
}


def agreement(result: Row) -> str:
    """The figures of the first design, measured again at the same steps."""
    rows = []
    for label, row in result["rows"].items():
        if "not_measured" in row:
            rows.append([label, "", "", f"not measured: `{row['not_measured']}`", "", ""])
            continue
        bits, ideal = row["bits_per_parameter"], row.get("entropy")
        compared = bits if ideal is None else ideal
        rows.append([label, f"{row['then_bits']:.3f}", f"{row['then_kl']:.1e}",
                     f"{bits:.3f}" + (f" (entropy {ideal:.3f})" if ideal is not None else ""),
                     f"{100 * (compared / row['then_bits'] - 1):+.0f} %", f"{row['kl']:.1e}"])  # fmt: skip
    head = ["codec", "bits, design", "KL, design", "bits, here", "difference", "KL, here"]
    return table(head, rows) + f"\n\n{circumstances(result)}."
