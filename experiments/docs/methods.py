"""Tables of the pages in `docs/methods`: what was measured beside the papers' figures, from `results/*.json`."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.docs.markdown import Row, circumstances, commits, span, table
from experiments.docs.papers.deepsz_tables import TABLE_4, TITLES, fold, lost, summary
from experiments.docs.papers.delta_dnn import TABLE_1, TABLE_2, percent_change
from experiments.docs.papers.qd import TABLE_5


def _accuracies(changes: Iterable[float]) -> str:
    found = list(changes)
    return f"{min(found):+.2f} % to {max(found):+.2f} %"


def delta_dnn(result: Row) -> str:
    """Ratios at the bounds that Algorithm 1 chooses."""
    rows = []
    for name, row in result["networks"].items():
        found = [row["sz"], *(row["delta_dnn"][mode] for mode in ("relative", "absolute"))]
        cells = [f"{p['ratio']:.1f} ({100 * p['eps']:g} %), {percent_change(p):+.2f} %" for p in found]
        rows.append([name, *(f"{row['lossless'][key]:.2f}" for key in ("LZMA", "Zstd")), *cells])
    for name, figures in (
        ("six networks (the paper's Table 1)", [row[1:] for row in TABLE_1.values()]),
        ("VGG-16, five epochs (its Table 2)", list(TABLE_2.values())),
    ):
        lzma, zstd, sz, _, delta, _, original, sz_accuracy, accuracy = zip(*figures, strict=True)
        changes = [
            [100 * (b / a - 1) for a, b in zip(original, after, strict=True)] for after in (sz_accuracy, accuracy)
        ]
        rows.append([f"*{name}*", span(lzma, 2), span(zstd, 2), f"{span(sz)}, {_accuracies(changes[0])}",
                     f"{span(delta)}, {_accuracies(changes[1])}", ""])  # fmt: skip
    head = ["update", "LZMA", "Zstd", "SZ", "Delta-DNN, relative", "Delta-DNN, absolute"]
    return "\n\n".join(
        [
            "Ratios, in brackets the bound that Algorithm 1 chooses from 1 % to 10 % (0.1 % where none fits), and the "
            "change of\naccuracy in percent of the original's:",
            table(head, rows),
            f"{circumstances(result)}.",
        ]
    )


def _chains(result: Row, labels: tuple[str, ...], paper: str, *figures: tuple[float, ...]) -> str:
    """Ratio and divergence of some ways over the chains, and the spans of the paper's figures below them."""
    rows = []
    for name, row in result["chains"].items():
        ways = [row["ways"][label] for label in labels]
        rows.append([name, row["updates"], *(f"{way['ratio']:.1f}; {way['kl']:.0e}" for way in ways)])
    cells = [span(column) if column else "" for column in figures]
    rows.append([f"*{paper}*", 199, *cells])
    return "\n\n".join(
        [
            "Ratio of all updates together, and KL divergence of the last version from the original, after the whole "
            "chain:",
            table(["versions", "updates", *labels], rows),
            f"{circumstances(result)}.",
        ]
    )


def _table_5(column: int) -> tuple[float, ...]:
    return tuple(float(row[column]) for row in TABLE_5.values())


def qd_compressor(result: Row) -> str:
    """8 bits, and 4 to 8."""
    labels = ("QD, 8 bits", "QD, 4-8 bits")
    return _chains(result, labels, "six networks (the paper's Table 5)", _table_5(6), _table_5(7))


def lc_checkpoint(result: Row) -> str:
    """2 to 4 bits."""
    labels = ("LC, 2 bits", "LC, 3 bits", "LC, 4 bits")
    return _chains(result, labels, "six networks (QD-Compressor's Table 5, bits not given)", (), (), _table_5(5))


#: Methods of `foreign.md` that lose something, and ours.
_LOSSY = ("sz3 method", "zfp method", "nearzip")


def _at_bound(entries: Row, name: str, bound: float) -> str:
    """Bits and divergence where a method was given an absolute bound."""
    point = next(p for p in entries[name]["points"] if p["setting"].get("abs") == bound)
    return f"{point['bits_per_parameter']:.2f}; {point['kl']:.0e}"


def _exact(entries: Row, name: str, setting: str) -> float:
    """Bits per parameter of a lossless method."""
    found: float = next(p["bits_per_parameter"] for p in entries[name]["points"] if p["setting"]["lossless"] == setting)
    return found


def foreign(result: Row) -> str:
    """Bits over nine updates."""
    rows = []
    for pair, row in result["pairs"].items():
        entries = row["entries"]
        lossy = [_at_bound(entries, name, row["unit"]) for name in _LOSSY]
        exact = [f"{_exact(entries, name, 'base'):.2f}" for name in ("blosc method", "nearzip lossless")]
        rows.append([pair, f"{row['unit']:g}", *lossy, *exact])
    head = ["update", "bound (abs)", *(f"`{name.split()[0]}`" for name in _LOSSY)]
    head += ["`blosc`, bit-exact", "`nearzip`, bit-exact"]
    return "\n\n".join(
        [
            "Bits per parameter, whole files, of 32; and KL divergence from the original:",
            table(head, rows),
            f"{circumstances(result, _commits(result, (*_LOSSY, 'blosc method', 'nearzip lossless')))}.",
        ]
    )


def _commits(result: Row, names: Iterable[str]) -> str:
    """Commits of some entries, over all pairs."""
    entries = [row["entries"][name] for row in result["pairs"].values() for name in names]
    return commits(*sorted({entry["commit"] for entry in entries}))


def raw_floats(chains: Row, networks: Row, pruned: Row) -> str:
    """SZ, ZFP and blosc without a base, where the papers have figures."""
    deepsz = pruned["networks"]
    sz = [row["ways"]["SZ"]["ratio"] for row in chains["chains"].values()]
    chosen = [row["sz"]["ratio"] for row in networks["networks"].values()]
    against = [found["ratios"] for network in deepsz for found in network["sz_against_zfp"]]
    coders = [found["ratios"] for network in deepsz for found in network["index_coders"]]
    wins = sum(found["sz3"] > found["zfp"] for found in against)
    zstd = sum(found["zstd"] > found["blosc"] for found in coders)
    rows = [
        ["SZ on whole networks (QD-Compressor's Table 5; here within 0.001 of the range)", span(sz, 2),
         span(_table_5(3), 2)],
        ["SZ at the bound that Algorithm 1 chooses (Delta-DNN's Table 1)", span(chosen, 2),
         span([row[3] for row in TABLE_1.values()], 2)],
        ["SZ over ZFP on pruned layers at 0.01, 0.001, 0.0001 (DeepSZ's Figure 2)",
         f"{span([found['sz3'] / found['zfp'] for found in against], 2)}; SZ ahead in {wins} of {len(against)}",
         "SZ ahead in all"],
        ["zstd over blosc on gaps between kept weights (DeepSZ's Figure 4)",
         f"{span([found['zstd'] / found['blosc'] for found in coders], 2)}; zstd ahead in {zstd} of {len(coders)}",
         "zstd ahead in all"],
    ]  # fmt: skip
    return table(["ratios", "here", "the papers"], rows)


def baselines(result: Row) -> str:
    """Ratios of general-purpose compressors on whole networks."""
    names = {"gzip": "gzip method", "zstd": "zstd method", "lzma": "lzma method", "nearzip": "nearzip lossless"}
    rows = []
    for pair, row in result["pairs"].items():
        cells = [f"{32 / _exact(row['entries'], name, 'no base'):.3f}" for name in names.values()]
        rows.append([pair, *cells])
    theirs = {"zstd": [row[2] for row in TABLE_1.values()], "lzma": [row[1] for row in TABLE_1.values()]}
    rows.append(["*six networks (Delta-DNN's Table 1)*", *(span(theirs[n], 3) if n in theirs else "" for n in names)])
    rows.append(["*six networks (QD-Compressor's Table 5)*", "", span(_table_5(2), 3), "", ""])
    return "\n\n".join(
        [
            table(["newer version of", *(f"`{name}`" for name in names)], rows),
            f"{circumstances(result, _commits(result, names.values()))}.",
        ]
    )


def deepsz(result: Row) -> str:
    """Settings chosen, over all trainings."""
    found = commits(*sorted({row["commit"] for row in result["networks"]}))
    return "\n\n".join([summary(result["networks"]), f"{circumstances(result, found)}."])


def _pruned(result: Row) -> str:
    found = commits(*sorted({row["commit"] for row in result["networks"]}))
    return f"{circumstances(result, found)}."


def deep_compression(result: Row) -> str:
    """The paper's shares of weights, centroids trained."""
    rows = []
    for network in result["networks"]:
        shared = network["deep_compression"]
        theirs = TABLE_4[network["network"]]["overall"][0]
        rows.append([TITLES[network["network"]], f"{shared['bits']}", fold(shared["ratio"]), lost(shared, "test"),
                     f"{theirs}x"])  # fmt: skip
    head = ["network", "bits, centroids trained", "ratio", "points lost of the original", "as DeepSZ's paper gives it"]
    return "\n\n".join([table(head, rows), _pruned(result)])


def weightless(result: Row) -> str:
    """The largest layer in a filter, by clusters and bits of a slot."""
    rows = []
    for network in result["networks"]:
        theirs = TABLE_4[network["network"]]["ip1"][1]
        rows += [
            [TITLES[network["network"]], f"{row['clusters']} in {row['bits']} bits",
             fold(row["layers"][row["layer"]]["ratio"]), fold(row["ratio"]), lost(row, "test"),
             f"{row['false_positives']:,} of {row['zeros']:,}", f"{theirs}x"]
            for row in network["weightless"]
        ]  # fmt: skip
    head = ["network", "clusters", "largest layer", "all fully connected layers", "points lost of the original",
            "zeros that come back as weights", "largest layer, as DeepSZ's paper gives it"]  # fmt: skip
    return "\n\n".join([table(head, rows), _pruned(result)])
