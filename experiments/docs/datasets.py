"""Data sets: codecs at equal divergence, Table I, decoding, and subsets."""

from __future__ import annotations

import itertools
import math
import statistics

from experiments.claims.datasets.networks import WITHOUT_NORMS
from experiments.docs.markdown import Row, circumstances, table

#: Divergences at which sizes are compared, and peers in the order of the table.
_TARGETS = (0.05, 0.02)
_PEERS = ("WebP", "JPEG 4:4:4", "ZFP precision, int32")
#: What the sizes should be of each peer's.
_GOALS = {
    (0.05, "WebP"): 0.75, (0.05, "JPEG 4:4:4"): 0.38, (0.05, "ZFP precision, int32"): 0.33, (0.02, "WebP"): 0.6,
}  # fmt: skip
_OURS = "nearzip"
#: Table I of the paper, percent of the uncompressed data: at most 2 and 5 points lost.
_TABLE_I = {
    "AlexNet (no batch norm)": {"JPEG": ("2.3", "2.1"), "ZFP-R": ("1.9", "1.5"), "ZFP-P": ("1.6", "1.6")},
    "VGG19-BN": {"JPEG": ("3.4", "2.8"), "ZFP-R": ("3.2", "2.3"), "ZFP-P": ("3.5", "2.5")},
    "DenseNet-BC (100, 12)": {"JPEG": ("3.9", "3.2"), "ZFP-R": ("4.1", "3.2"), "ZFP-P": ("4.6", "3.5")},
    "DenseNet-BC (190, 40)": {"JPEG": ("3.9", "3.1"), "ZFP-R": ("3.6", "2.8"), "ZFP-P": ("3.5", "3.5")},
    "ResNeXt-29, 16x64d": {"JPEG": ("2.3", "2.1"), "ZFP-R": ("1.9", "1.5"), "ZFP-P": ("2.4", "1.6")},
    "WRN-28-10-drop": {"JPEG": ("3.5", "3.0"), "ZFP-R": ("3.2", "2.8"), "ZFP-P": ("3.5", "2.5")},
    "ResNeXt-29, 8x64d": {"JPEG": ("3.5", "3.0"), "ZFP-R": ("3.6", "2.8"), "ZFP-P": ("3.5", "2.5")},
}
_OF_TABLE_I = (
    "JPEG 4:2:0", "JPEG 4:4:4", "WebP", "ZFP rate, float32", "ZFP precision, float32", "ZFP precision, int32", _OURS,
)  # fmt: skip


def bytes_at(rows: list[Row], network: str, kl: float) -> float | None:
    """Bytes an image at a divergence, between the two settings around it (log of the divergence, straight)."""
    points = sorted((-row["networks"][network]["kl"], row["bytes"]) for row in rows if network in row["networks"])
    for (low, large), (high, small) in itertools.pairwise(points):
        if 0 < low <= kl <= high:
            share = math.log(kl / low) / math.log(high / low)
            return large + share * (small - large)
    return None


#: Its Table II: percent correct after training on ZFP's coefficients at a precision, and on pixels.
_TABLE_II_NETWORKS = ("VGG19-BN", "ResNet-110", "PreResNet-110", "WRN-28-10-drop", "DenseNet-BC (100, 12)")
_TABLE_II = {
    2: "40.75 40.67 41.28 40.98 40.83", 3: "64.84 63.76 65.14 66.33 64.84", 4: "76.91 76.91 77.42 79.58 77.84",
    5: "83.51 84.55 84.48 87.61 86.05", 6: "87.79 87.62 88.03 91.55 90.04", 7: "89.23 88.53 89.67 92.77 91.2",
    8: "89.87 89.03 90.4 93.54 92.35", 9: "89.99 89.67 90.4 93.68 92.59", 10: "89.79 90.46 90.88 93.79 92.4",
    11: "90.43 90.2 90.42 93.76 93.18", 12: "90.15 90.4 90.66 94.09 92.49", 0: "93.43 93.41 94.02 96.12 95.24",
}  # fmt: skip


def _by_codec(result: Row) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in result["rows"]:
        found.setdefault(row["codec"], []).append(row)
    return found


def sizes(result: Row) -> str:
    """Bytes an image at equal divergence, whole files with index."""
    by_codec = _by_codec(result)
    names = [_OURS, *(name for name in by_codec if name.startswith("nearzip, calibrated")), *_PEERS]
    lines = []
    for network in result["original"]:
        for kl in _TARGETS:
            found = [bytes_at(by_codec[name], network, kl) for name in names]
            best = min((x for name, x in zip(names, found, strict=True) if x and name.startswith(_OURS)), default=None)
            cells = [_size(name, x, best) for name, x in zip(names, found, strict=True)]
            lines.append([network, f"{kl:g}", *cells])
    head = ["network", "KL", *names]
    return "\n\n".join([table(head, lines), _goals(result, by_codec), f"{_index(result)} {circumstances(result)}."])


def _size(name: str, found: float | None, best: float | None) -> str:
    if found is None:
        return "-"
    of = f" (ours {best / found:.2f})" if best is not None and not name.startswith(_OURS) else ""
    return f"{found:.0f}{of}"


def _index(result: Row) -> str:
    own = [row["index"] for row in result["rows"] if row["codec"] == _OURS]
    return (
        f"{result['n']:,} images; of ours {statistics.mean(own):.1f} bytes an image are container, labels, index, "
        "tables and weights, which a larger file divides by more images. In brackets: the best of ours over the peer."
    )


def _goals(result: Row, by_codec: dict[str, list[Row]]) -> str:
    ours = [name for name in by_codec if name.startswith(_OURS)]
    lines = []
    for (kl, peer), goal in _GOALS.items():
        ratios = []
        for network in result["original"]:
            theirs = bytes_at(by_codec[peer], network, kl)
            own = min((x for name in ours if (x := bytes_at(by_codec[name], network, kl))), default=None)
            if theirs and own:
                ratios.append(own / theirs)
        if ratios:
            met = sum(ratio <= goal for ratio in ratios)
            said = f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else f"{ratios[0]:.2f}"
            lines.append(f"* KL {kl:g}: {said} of {peer}'s files; at most {goal:g} on {met} of {len(ratios)} networks.")
    return "\n".join(lines)


def table_1(result: Row) -> str:
    """The smallest setting tried that loses at most 2 and 5 points, by network."""
    by_codec = _by_codec(result)
    lines = []
    for network, clean in result["original"].items():
        norm = "" if network not in WITHOUT_NORMS else " (no batch norm)"
        for name in _OF_TABLE_I:
            cells = []
            for points in (2, 5):
                fits = [
                    row["bytes"] for row in by_codec[name]
                    if 100 * (clean["top1"] - row["networks"][network]["top1"]) <= points + 1e-9
                ]  # fmt: skip
                cells.append(_shares(min(fits), result["raw_bytes"]) if fits else "no setting tried")
            lines.append([f"{network}{norm}", name, *cells])
    head = ["network", "codec", "2 points", "5 points"]
    return table(head, lines) + f"\n\n{result['n']:,} test images. {circumstances(result)}."


def _shares(n_bytes: float, raw: int) -> str:
    return f"{n_bytes:.0f} B: {' / '.join(f'{100 * n_bytes / (raw * k):.1f}' for k in (1, 4, 8))} %"


def paper_1() -> str:
    """The paper's Table I."""
    lines = [
        [network, *(" / ".join(rows[codec]) for codec in ("JPEG", "ZFP-R", "ZFP-P"))]
        for network, rows in _TABLE_I.items()
    ]
    return table(["network (paper)", "JPEG, 2 / 5 points, %", "ZFP rate", "ZFP precision"], lines)


def norms(result: Row) -> str:
    """The pair with and without batch norm: points lost by each codec and setting."""
    lines = []
    with_norms, without = "strided-small", "strided-plain"
    more = []
    for row in result["rows"]:
        if row["codec"] not in _OF_TABLE_I:
            continue
        lost = [100 * (result["original"][n]["top1"] - row["networks"][n]["top1"]) for n in (with_norms, without)]
        if max(lost) >= 2:
            more.append(lost[0] > lost[1])
            lines.append([row["codec"], f"{row['setting']:g}", f"{row['bytes']:.0f}", *(f"{x:.1f}" for x in lost)])
    said = (
        f"With batch norm more is lost in {sum(more)} of {len(more)} settings that cost either of the two 2 points or"
    )
    said += " more."
    head = ["codec", "setting", "bytes", f"{with_norms}, points lost", f"{without}, points lost"]
    return f"{said}\n\n{table(head, lines)}"


def speed(result: Row) -> str:
    """Images decoded per second."""
    rates = result["images_per_second"]
    pillow = next(rate for name, rate in rates.items() if name.startswith("Pillow"))
    lines = [[name, f"{rate:,.0f}", f"{rate / pillow:.2f}"] for name, rate in rates.items()]
    zfp = ", ".join(f"{s:.1f} s at precision {p}" for p, s in result["zfp"].items())
    planes = result["planes"]
    return "\n\n".join([
        table(["images of 32 x 32, shuffled", "images a second of one core", "of Pillow's"], lines),
        f"ZFP's coefficients of 50,000 CIFAR-10 images: {zfp}, on one core. Against the library: {planes['different']} "
        f"of {planes['fields']:,} fields differ (2-D and 3-D, float32 and int32, odd sizes, zero blocks, precisions 1 "
        "to 24).",
        f"{circumstances(result)}.",
    ])  # fmt: skip


def subsets(result: Row) -> str:
    """Accuracy by ranking and size, and what `select` would choose: the best on the validation images."""
    found = {(row["share"], row["ranking"]): row for row in result["rows"]}
    shares, rankings = (list(dict.fromkeys(key[i] for key in found)) for i in (0, 1))
    tested = {key: 100 * statistics.mean(row["accuracy"]) for key, row in found.items()}
    lines, worse, failing = [], [], []
    # Results from before validation images were kept say nothing of a choice.
    validates = all("validation" in row for row in result["rows"])
    for share in shares:
        of_size = {name: tested[share, name] for name in rankings}
        lines.append([f"{share:.0%}", *(_marked(x, max(of_size.values())) for x in of_size.values())])
        if validates:
            validated = {name: statistics.mean(found[share, name]["validation"]) for name in rankings}
            choice = max(validated, key=lambda name: validated[name])
            lines[-1].append(f"{of_size[choice]:.1f} ({choice})")
            if of_size[choice] < of_size["random"]:
                worse.append(f"{share:.0%}, by {of_size['random'] - of_size[choice]:.1f} points")
        failing += [f"{share:.0%}"] if of_size["el2n"] < of_size["random"] else []
    whole = 100 * statistics.mean(result["all"])
    (share, name), best = max(((key, x) for key, x in tested.items() if key[0] <= 0.2), key=lambda pair: pair[1])
    said = (
        f"All {result['n']:,} images: {whole:.1f} %. The best at 20 % or less is {best:.1f} % ({name}, {share:.0%}): "
        f"{best - whole:+.1f} points. The hardest samples (el2n) are worse than random at "
        f"{', '.join(failing) or 'no size'}."
    )
    if validates:
        said += " `select` chooses on 2,000 validation images; its choice is worse than random at "
        said += f"{', '.join(worse) or 'no size'}."
    head = ["kept", *rankings, *(["chosen"] if validates else [])]
    return f"{table(head, lines)}\n\n{said} Means of {len(result['all'])} seeds. {circumstances(result)}."


def _marked(value: float, best: float) -> str:
    return f"**{value:.1f}**" if value == best else f"{value:.1f}"


def attributions(result: Row) -> str:
    """Occlusion maps of decoded images beside those of the original ones."""
    lines = [
        [
            row["codec"],
            f"{row['bytes']:.0f}",
            f"{row['jaccard']:.2f}",
            f"{row['tenth']:.2f}",
            f"{100 * row['agreement']:.0f} %",
        ]
        for row in result["rows"]
    ]
    head = ["codec", "bytes an image", "maps alike, mean", "a tenth of images below", "same class"]
    best = max(result["rows"], key=lambda row: row["jaccard"])
    return (
        f"{table(head, lines)}\n\n{result['n']} test images, vgg-small, the setting of each codec whose file comes "
        f"nearest to {result['bytes']:.0f} bytes an image. Maps of different images are alike by "
        f"{result['chance']:.2f}. Most alike: {best['codec']}. {circumstances(result)}."
    )


_LAYOUT = {"in-place": "in place", "stacked": "stacked"}
_KIND = {"pixels": "pixels", "zfp": "ZFP", "dct": "8 x 8 cosines"}


def coefficients(result: Row) -> str:
    """Networks that learn from coefficients, beside the paper's Table II."""
    found = {(row["layout"], row["input"], row["precision"]): row["accuracy"] for row in result["rows"]}
    inputs = sorted({key[1:] for key in found}, key=lambda key: (list(_KIND).index(key[0]), key[1]))
    layouts = [layout for layout in _LAYOUT if any(key[0] == layout for key in found)]
    lines = []
    for kind, precision in inputs:
        paper = _TABLE_II[precision].split() if kind != "dct" else ["-"] * len(_TABLE_II_NETWORKS)
        rows = [found.get((layout, kind, precision)) for layout in layouts]
        cells = ["-" if row is None else _spread(row) for row in rows]
        lines.append([_KIND[kind], f"{precision or '-'}", *cells, *paper])
    head = [
        "input",
        "precision",
        *(f"{_LAYOUT[layout]}, %" for layout in layouts),
        *(f"{n} (paper)" for n in _TABLE_II_NETWORKS),
    ]
    columns = list(zip(*(map(float, row.split()) for precision, row in _TABLE_II.items() if precision), strict=True))
    gaps = [float(raw) - max(of) for raw, of in zip(_TABLE_II[0].split(), columns, strict=True)]
    said = [_nearest(found, layout) for layout in _LAYOUT if any(key[:2] == (layout, "zfp") for key in found)]
    most = max(map(len, found.values()))
    return (
        f"{table(head, lines)}\n\n{' '.join(said)} The paper's networks stay {min(gaps):.1f} to {max(gaps):.1f} "
        f"points below pixels. {result['n']:,} training images, {result['epochs']} epochs, {result['n_test']:,} test "
        f"images; after ± the standard deviation of {most} seeds, other rows are of one. {circumstances(result)}."
    )


def _nearest(found: dict[tuple[str, str, int], list[float]], layout: str) -> str:
    """Of several seeds, how far below pixels the best precision is, and the coarsest."""
    pixels = 100 * statistics.mean(found[layout, "pixels", 0])
    below = {
        key[2]: pixels - 100 * statistics.mean(accuracy) for key, accuracy in found.items()
        if key[:2] == (layout, "zfp") and len(accuracy) > 1
    }  # fmt: skip
    best, coarsest = min(below, key=lambda precision: below[precision]), min(below)
    cosines = found.get((layout, "dct", 0))
    also = "" if cosines is None else f"; cosines are {_from_pixels(pixels - 100 * statistics.mean(cosines))}"
    name = _LAYOUT[layout].capitalize()
    more = "" if best == coarsest else f", {_from_pixels(below[coarsest])} at {coarsest}"
    return f"{name}, ZFP's coefficients are {_from_pixels(below[best])} pixels at precision {best}{more}{also}."


def _from_pixels(below: float) -> str:
    return f"{abs(below):.1f} points {'below' if below >= 0 else 'above'}"


def from_disk(result: Row) -> str:
    """Images a second of one core, loaded and trained with."""
    rows = result["images_per_second"]
    lines = [[name, f"{row['loaded']:,.0f}", f"{row['trained']:,.0f}"] for name, row in rows.items()]
    head = ["from disk, shuffled, batches of 64", "images a second of one core", "with a step of training"]
    return f"{table(head, lines)}\n\n1,024 images; the step is strided-small's. {circumstances(result)}."


def for_network(result: Row, codecs: Row) -> str:
    """Images rounded for a network, judged by it and by others, beside plain rounding and WebP."""
    plain, peers = _by_codec(codecs)[_OURS], _by_codec(codecs)["WebP"]
    lines, ratios = [], []
    for target, rows in _by_codec(result).items():
        own = target.split(" and ")
        for kl in _TARGETS:
            sizes = {
                n: (bytes_at(rows, n, kl), bytes_at(plain, n, kl), bytes_at(peers, n, kl)) for n in codecs["original"]
            }
            for name in own:
                size, flat, webp = sizes[name]
                said = ""
                if size is None:
                    # No setting tried reaches the divergence: the file of the coarsest is larger than needed.
                    size = min((row["bytes"] for row in rows if -row["networks"][name]["kl"] <= kl), default=None)
                    said = "at most "
                if size is None or flat is None:
                    continue
                others = [s / f for n, (s, f, _) in sizes.items() if n not in own and s and f]
                ratios += others
                between = f"{min(others):.2f} to {max(others):.2f}" if others else "-"
                lines.append([
                    target, name, f"{kl:g}", f"{said}{size:.0f}", f"{flat:.0f} ({size / flat:.2f})",
                    "-" if webp is None else f"{webp:.0f} ({size / webp:.2f})", between,
                ])  # fmt: skip
    head = ["rounded for", "judged by", "KL", "bytes", "rounded plainly", "WebP", "others: of plain rounding's bytes"]
    ms = [row["ms"] for row in result["rows"]]
    return (
        f"{table(head, lines)}\n\nIn brackets: what is left of them. For networks that images were not rounded "
        f"for, files at equal divergence are {min(ratios):.2f} to {max(ratios):.2f} of those of plain rounding. "
        f"Writing takes {min(ms):.0f} to {max(ms):.0f} ms an image of one core. {result['n']:,} images, steps "
        f"calibrated on the same networks. {circumstances(result)}."
    )


def _spread(accuracy: list[float]) -> str:
    mean = f"{100 * statistics.mean(accuracy):.1f}"
    return f"{mean} ± {100 * statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else mean
