"""`docs/results.md` and its plots, made from `results/` (fidelity, throughput, agreement, repeat) and `page.md`.

Nothing in it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt

from experiments.docs.tables import table
from experiments.lab.curves import TARGETS, bits_at, envelope, gap
from experiments.lab.peers import METHODS, PEERS
from experiments.lab.record import RESULTS

_DOCS = RESULTS.parent.parent / "docs"
_TEMPLATE = RESULTS.parent / "docs" / "results.md.template"
#: Beside fidelity.
_RESULTS = ("throughput", "throughput_tiled", "agreement", "repeat")
_OURS = "nearzip"
_COLOURS = ("#000000", "#d1495b", "#edae49", "#00798c", "#30638e", "#7a9e3f", "#8d5a97", "#c46210", "#777777")
_MARKS = "os^Dv<>P*"
#: For each turn through the colours.
_LINES = ("-", "--", ":", "-.")

Row = dict[str, Any]


def _measured(row: Row, lossless: bool) -> Iterator[tuple[str, list[Row]]]:
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


def _slug(pair: str) -> str:
    return pair.replace(" ", "-")


def headline(pairs: dict[str, Row]) -> str:
    """Bits at given KL, and how many times ours."""
    rows = []
    for pair, row in pairs.items():
        ours = row["entries"][_OURS]["points"]
        for name, points in _measured(row, lossless=False):
            cells = []
            for kl in TARGETS:
                bits, times = bits_at(points, kl), gap(points, ours, kl)
                cells.append(_number(bits) + ("" if name == _OURS or times is None else f" ({times:.2f}x)"))
            rows.append([pair, f"**{name}**" if name == _OURS else name, *cells])
    return table(["update", "method", *(f"KL {kl:.0e}" for kl in TARGETS)], rows)


def keeping(pairs: dict[str, Row]) -> str:
    """What a reader has who keeps the older version."""
    rows = [
        [pair, row["parameters"], f"{row['update_rms']:.2e}", f"{row['update_max']:.2e}", f"{row['base']['kl']:.2e}",
         f"{row['original']['loss']:.4f}", f"{row['original']['accuracy']:.4f}", f"{row['base']['accuracy']:.4f}"]
        for pair, row in pairs.items()
    ]  # fmt: skip
    return table(["update", "values", "rms of the update", "largest", "KL of keeping the old version", "loss",
                  "accuracy", "accuracy of the old version"], rows)  # fmt: skip


def points_table(row: Row) -> str:
    """Every point of a pair."""
    rows = [
        [
            name, _setting(p["setting"]), f"{p['bits_per_parameter']:.4f}", f"{p['ratio']:.1f}", f"{p['kl']:.2e}",
            f"{p['loss_change']:+.5f}", f"{100 * p['accuracy_change']:+.2f}", f"{100 * p['agreement']:.2f}",
            f"{p['encode_mb_s']:.1f}", f"{p['decode_mb_s']:.1f}", f"{p['max_error']:.2e}",
            p.get("values_outside_bound", ""),
        ]
        for name, points in _measured(row, lossless=False) for p in points
    ]  # fmt: skip
    head = ["method", "setting", "bits", "ratio", "KL", "loss", "accuracy, %", "agreement, %", "encode", "decode",
            "largest error", "outside the bound"]  # fmt: skip
    return table(head, rows)


def lossless(pairs: dict[str, Row]) -> str:
    """Bits with and without a base; speed on the first pair."""
    found: dict[str, dict[str, list[Row]]] = {}
    for pair, row in pairs.items():
        for name, points in _measured(row, lossless=True):
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
    """What could not be measured, by name and reason, and what this run left out."""
    rows = []
    for pair, row in pairs.items():
        for kind in METHODS + PEERS:
            entry = row["entries"].get(kind.name)
            if entry is None:
                rows.append([pair, kind.name, "not part of this run"])
            elif "not_measured" in entry:
                rows.append([pair, kind.name, f"`{entry['not_measured']}`"])
    if not rows:
        return "Every method and peer could be installed and was measured on every pair."
    return "Not measured:\n\n" + table(["update", "peer", "reason"], rows)


def agreement(result: Row) -> str:
    """Beside the figures from before the first line was written, at the same steps."""
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
    return table(["codec", "bits, design", "KL, design", "bits, here", "difference", "KL, here"], rows)


def repeated(result: Row) -> str:
    """Whether two runs agree."""
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


def plot(pair: str, row: Row) -> None:
    """Bits against KL, both logarithmic."""
    figure, axes = plt.subplots(figsize=(8.6, 4.8), layout="constrained")
    for i, (name, points) in enumerate(_measured(row, lossless=False)):
        curve = envelope(points)
        strong = name == _OURS
        width, size, order = (2.4, 6, 3) if strong else (1.3, 4.5, 2)
        turn = i // len(_COLOURS)
        axes.plot(*zip(*curve, strict=True), marker=_MARKS[(i + turn) % len(_MARKS)], color=_COLOURS[i % len(_COLOURS)],
                  linestyle=_LINES[turn], label=name, linewidth=width, markersize=size, zorder=order)  # fmt: skip
    for kl in TARGETS:
        axes.axvline(kl, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=1)
    axes.set(xscale="log", yscale="log", xlabel="KL(original || restored), nats per prediction",
             ylabel="bits per parameter, whole file", title=f"{pair}: lower and further left is better")  # fmt: skip
    kept = row["base"]["kl"]
    if kept < 3 * axes.get_xlim()[1]:
        axes.axvline(kept, color="#bbbbbb", linewidth=1.2, zorder=1)
        axes.text(kept, 0.03, "keep the \nold version ", transform=axes.get_xaxis_transform(), ha="right",
                  color="#666666", fontsize=8)  # fmt: skip
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    (_DOCS / "images").mkdir(exist_ok=True)
    figure.savefig(_DOCS / "images" / f"fidelity-{_slug(pair)}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def page(result: Row, throughput: Row, tiled: Row, then: Row, twice: Row) -> str:
    """The whole file."""
    pairs, m = result["pairs"], result["machine"]
    commits = sorted(
        {entry["commit"] for row in pairs.values() for entry in row["entries"].values() if "commit" in entry}
    )
    used = {k: v for row in pairs.values() for entry in row["entries"].values()
            for k, v in entry.get("versions", {}).items()} | result["versions"]  # fmt: skip
    shares = {row["held_out_share"] for row in pairs.values()}
    where = (
        f"{m['cpu']}, {m['cores']} cores, Python {m['python']}; commits {', '.join(commits)}; {result['date']}; "
        + ", ".join(f"{name} {number}" for name, number in sorted(used.items()))
    )
    points = "\n\n".join(f"<details><summary>{pair}</summary>\n\n{points_table(row)}\n\n</details>"
                         for pair, row in pairs.items())  # fmt: skip
    plots = "\n\n".join(
        f"![{pair}: bits per parameter against KL](images/fidelity-{_slug(pair)}.png)" for pair in pairs
    )
    return _TEMPLATE.read_text().format(
        where=where, share=" or ".join(f"{100 * share:g} %" for share in sorted(shares)), seed=result["seed"],
        keeping=keeping(pairs), headline=headline(pairs), plots=plots, lossless=lossless(pairs), missing=missing(pairs),
        points=points, agreement=agreement(then), compared=" and ".join(then["updates"]),
        first_share=f"{100 * then['share_of_the_first']:.0f}", agreement_commit=then["commit"],
        repeated=repeated(twice),
        speeds=speeds(throughput), speed_pair=throughput["pair"], cores=throughput["machine"]["cores"],
        speed_commit=throughput["commit"], tiled=speeds(tiled), tiled_pair=tiled["pair"], tiled_commit=tiled["commit"],
    )  # fmt: skip


def main(arguments: list[str]) -> None:
    argparse.ArgumentParser(prog="bench page", description=__doc__).parse_args(arguments)
    result = json.loads((RESULTS / "fidelity.json").read_text())
    for pair, row in result["pairs"].items():
        plot(pair, row)
    others = [json.loads((RESULTS / f"{name}.json").read_text()) for name in _RESULTS]
    (_DOCS / "results.md").write_text(page(result, *others))
