"""Tables of docs/condense.md."""

from __future__ import annotations

from experiments.docs.markdown import Row, circumstances, table

#: Published figures: network, scheme, sparsity, their count of memory, accuracy lost. Condensa's examples and notebook.
_PUBLISHED = (
    ("LeNet-5, Condensa's tutorial", "weights and float16", "99.3 %", "239x", "within 0.15 points"),
    ("AlexNet on CIFAR-10, Condensa's notebook", "weights and float16", "98 %", "97.8x", "0.42 gained"),
)


def recovery(result: Row) -> str:
    """Test accuracy by share and recovery, and what the claim comes to."""
    names = list(next(iter(result["means"].values())))
    body = [
        [f"{100 * float(keep):g} %", *(f"{100 * means[name]:.2f}" for name in names)]
        for keep, means in result["means"].items()
    ]
    ahead = {k: 100 * (m["L-C"] - m["gradual"]) for k, m in result["means"].items()}
    said = ", ".join(f"{value:+.2f} points at {100 * float(keep):g} %" for keep, value in ahead.items())
    measured = dict.fromkeys(r.get("commit", result["commit"]) for r in result["rows"])
    sparse = [value for keep, value in ahead.items() if float(keep) <= 0.02]
    verdict = (
        "at 2 % and below it is at least 0.1 points ahead" if min(sparse) >= 0.1
        else "at 2 % and below it is not 0.1 points ahead everywhere"
    )  # fmt: skip
    behind = "" if min(ahead.values()) >= -0.05 else "; it is more than 0.05 points behind somewhere"
    return "\n\n".join([
        table(["weights kept", *names], body),
        f"Test accuracy in percent of {result['network']} after {result['epochs']} epochs of {result['per_epoch']:,} "
        f"images each, mean of {result['seeds']} seeds; the reference has {100 * result['reference']:.2f}. L-C against "
        f"gradual: {said}: {verdict}{behind}. {sum(r['seconds'] for r in result['rows']):.0f} processor seconds. "
        f"{circumstances(result, ', '.join(measured))}.",
    ])  # fmt: skip


def search(result: Row) -> str:
    """How near each search comes to the smallest feasible share of a sweep."""
    body = [
        [network, name, found["trainings"], f"{found['median']:.2f}", f"{found['worst']:.2f}",
         f"{found['within_ten_percent']} of {found['searches']}"]
        for network, one in result["networks"].items()
        for name, found in one["summary"].items()
    ]  # fmt: skip
    settings = "; ".join(
        f"{network}: {100 * one['max_loss']:g} points, {one['epochs']} epochs"
        + (f" of {one['per_epoch']:,} images" if one["per_epoch"] else "")
        for network, one in result["networks"].items()
    )
    return "\n\n".join([
        table(["network", "search", "trainings, at most", "share found over the smallest, median", "worst",
               "within 10 %"], body),
        "The smallest share is that of a sweep of thirty, each trained from the reference; a search whose later "
        f"trainings begin with earlier networks can come below it. Three seeds each. {settings}. "
        f"{circumstances(result)}.",
    ])  # fmt: skip


def files(result: Row) -> str:
    """Whole files beside Condensa's way of counting."""
    body = []
    for network, one in result["networks"].items():
        for row in one["rows"]:
            name = row["name"]
            body.append([
                network, name, f"{100 * one['keep']:.2f} %", f"{row['ratio']:.0f}x", f"{row['condensas_count']:.0f}x",
                f"{100 * row['lost_on_validation']:.2f}", f"{100 * row['lost_on_test']:.2f}",
            ])  # fmt: skip
    published = [[name, scheme, f"{sparsity} removed", "", count, "", lost] for name, scheme, sparsity, count, lost in
                 _PUBLISHED]  # fmt: skip
    settings = "; ".join(_files_settings(network, one) for network, one in result["networks"].items())
    measured = [*_commits(result), *(r["commit"] for one in result["networks"].values() for r in one["rows"]
                                     if "commit" in r)]  # fmt: skip
    seconds = sum(one["seconds"] for one in result["networks"].values())
    verdict = " ".join(_files_verdict(network, one) for network, one in result["networks"].items())
    return "\n\n".join([
        table(["network", "method", "kept", "whole file", "Condensa's count", "points lost, validation", "test"],
              [*body, *published]),
        "Whole file: float32 tensors over all bytes of the archive. Condensa's count: four bytes a weight over two for "
        "each nonzero, without positions; the published rows have no other. The share was chosen on validation images; "
        "the methods below ours have the same share and epochs, pruned at once; Condensa's package (0.5.0b0) has its "
        "own L-C optimizer, with penalties that rise as in its published settings; its files are nearzip's, lossless. "
        f"{verdict} {_missing(result)}{settings}. Searches took {seconds:,} seconds on a busy machine. "
        f"{circumstances(result, ', '.join(dict.fromkeys(measured)))}.",
    ])  # fmt: skip


#: What `scripts/bench condense_files` measures by default.
_FILES = ("lenet-300-100", "lenet-5", "vgg-small")


def _missing(result: Row) -> str:
    names = [name for name in _FILES if name not in result["networks"]]
    return f"Not measured: {', '.join(names)}. " if names else ""


def _files_settings(network: str, one: Row) -> str:
    images = f" of {one['per_epoch']:,} images" if one["per_epoch"] else ""
    margin = f" with confidence {one['confidence']:g}" if one.get("confidence") else ""
    return (
        f"{network}: at most {100 * one['max_loss']:g} points{margin} on {one.get('n_validation', 5000):,} validation "
        f"images, {one['epochs']} epochs{images}, {one['trainings']} trainings, reference "
        f"{100 * one['reference']:.2f} %"
    )


def _files_verdict(network: str, one: Row) -> str:
    ours = one["rows"][0]
    kept = "within" if ours["lost_on_test"] <= one["max_loss"] + 1e-9 else "more than"
    lost = 100 * ours["lost_on_test"]
    return f"{network} {'lost' if lost >= 0 else 'gained'} {abs(lost):.2f} points on test images, {kept} its budget."


def _commits(result: Row) -> list[str]:
    """The commits that the networks of a result were measured at, each once."""
    return list(dict.fromkeys(one["commit"] for one in result["networks"].values()))


#: Condensa's published rows: network, scheme, sparsity, memory, throughput, accuracy (reference). Memory counts two
#: bytes for each nonzero and no positions; throughput on a GPU.
_PAPER = (
    ("LeNet-5 (tutorial)", "weights, float16", "99.3 %", "239x", "", "within 0.15 points"),
    ("LeNet-5 (tutorial)", "structure", "70 %", "", "2.17x (latency)", "within 0.15 points"),
    ("AlexNet, CIFAR-10 (notebook)", "weights, float16", "98 %", "97.8x", "", "77.49 (77.07)"),
    ("AlexNet, CIFAR-10 (notebook)", "filters", "50 %", "", "", "76.81 (77.07)"),
    ("VGG-19, CIFAR-10", "filters", "72 %", "", "2.22x", "0.5 points gained"),
    ("VGG-16, ImageNet", "", "", "25.59x", "1.16x", ""),
    ("abstract", "best of four networks", "", "188x", "2.59x", ""),
)


def paper(found: Row, fast: Row) -> str:
    """The paper's table: what was removed, memory, throughput and accuracy, beside the published rows."""
    body = []
    for network, one in found["networks"].items():
        row, timed = one["rows"][0], one.get("speed")
        body.append([
            network, "weights, bounded values", f"{100 * (1 - one['keep']):.2f} %", f"{row['condensas_count']:.0f}x",
            f"{row['ratio']:.0f}x", f"{timed['ratio']:.2f}x" if timed else "",
            f"{100 * row['test']:.2f} ({100 * one['reference']:.2f})",
        ])  # fmt: skip
    for network, one in fast["networks"].items():
        counted = one.get("parameters")
        body.append([
            network, "feed-forwards" if network == "transformer" else "filters", f"{100 * (1 - one['keep']):.0f} %",
            f"{2 * counted[0] / counted[1]:.1f}x" if counted else "", f"{one['ratio']:.0f}x",
            f"{one['speed']['ratio']:.2f}x", f"{100 * one['test']:.2f} ({100 * one['reference']:.2f})",
        ])  # fmt: skip
    published = [[*row[:4], "", *row[4:]] for row in _PAPER]
    return "\n\n".join([
        table(["network", "scheme", "removed", "memory, Condensa's count", "whole file", "throughput",
               "accuracy (reference)"], [*body, *published]),
        "The rows above are measured here, test accuracy in percent; the last "
        f"{len(published)} are published, with the networks and trainings of their authors. Removed: of all weights, "
        "or of all channels. Condensa's count: four bytes a weight before, two bytes a nonzero after, no positions "
        "(the tutorial's 239x follows from it: 1,724,320 bytes over 3,593 values of two bytes). Throughput here: one "
        "thread, batches in turns with the original, linear layers of mostly zeros as sparse ones; published: a GPU. "
        f"{circumstances(found, ', '.join(dict.fromkeys([*_commits(found), *_commits(fast)])))}.",
    ])  # fmt: skip


def networks(result: Row) -> str:
    """Every network of the experiments masked, thinned and rebuilt."""
    body = []
    for name, one in result["networks"].items():
        if "refused" in one:
            body.append([name, f"{one['parameters']:,}", "", "", "", "", one["refused"]])
            continue
        others = [_short(note) for note in one["not_thinned"]]
        said = "; ".join(others[:3]) + (f"; and {len(others) - 3} more" if len(others) > 3 else "")
        body.append([
            name, f"{one['parameters']:,}", f"{one['thinned_parameters']:,}", one["groups"],
            f"{one['difference']:.1g}", "yes" if one["rebuilt_equal"] else "no", said,
        ])  # fmt: skip
    equal = sum(bool(one.get("rebuilt_equal")) for one in result["networks"].values())
    worst = max((one["difference"] for one in result["networks"].values() if "difference" in one), default=0.0)
    return "\n\n".join([
        table(["network", "parameters", "thinned", "groups", "masked and thinned differ by", "rebuilt bit for bit",
               "not thinned"], body),
        f"At {100 * result['keep']:g} % of the channels, in multiples of {result['align']}, batch-norm statistics as a "
        f"training leaves them. Outputs of the rebuilt network equal the thinned one's bit for bit for {equal} of "
        f"{len(result['networks'])} networks; masked and thinned outputs differ by at most {worst:.1g} of their size, "
        f"the rounding of float32. {circumstances(result, ', '.join(_commits(result)))}.",
    ])  # fmt: skip


def _short(note: str) -> str:
    name, _, why = note.partition(": ")
    return f"`{name}`: {why[:70]}"


def _beside(one: Row) -> str:
    """Points lost against the original after as many epochs, where that was measured."""
    longer = one.get("as_long")
    return f"{100 * (longer['test'] - one['test']):.2f}" if longer else ""


def _speed_verdict(network: str, one: Row) -> str:
    lost = one["reference"] - one["test"]
    said = "within its budget" if lost <= one["max_loss"] + 1e-9 else "more than its budget"
    found = f"On test images {network} lost {100 * lost:.2f} points, {said}."
    longer = one.get("as_long")
    if longer and longer["test"] > one["reference"]:
        gained = 100 * (longer["test"] - one["reference"])
        found += (
            f" Its reference was not trained to the end: trained as long as the thinned one, it gains {gained:.2f}."
        )
    return found


def speed(result: Row) -> str:
    """Measured throughput beside the operations."""
    body = []
    for network, one in result["networks"].items():
        fast = one["speed"]
        body.append([
            network, f"{fast['ratio']:.2f}x ({fast['lower']:.2f} to {fast['upper']:.2f})", f"{one['flops']:.2f}x",
            f"{one['ratio']:.0f}x", f"{100 * one['losses']['top1']:.2f}",
            f"{100 * (one['reference'] - one['test']):.2f}", _beside(one), ", ".join(map(str, one["widths"])),
        ])  # fmt: skip
    settings = "; ".join(
        f"{network}: at most {100 * one['max_loss']:g} points, {one['epochs']} epochs of {one['per_epoch']:,} images, "
        f"{one['recovery']}, batches of {one['batch']}, reference {100 * one['reference']:.2f} %, widths "
        f"{', '.join(map(str, one['original_widths']))}"
        for network, one in result["networks"].items()
    )
    verdicts = " ".join(_speed_verdict(network, one) for network, one in result["networks"].items())
    return "\n\n".join([
        table(["network", "throughput (quartiles)", "operations", "whole file", "points lost, validation", "test",
               "test, against the original trained as long", "widths"], body),
        "On one thread, in turns with the original. Published for VGG-19 on CIFAR-10, filters: 2.59x, on a GPU. "
        f"{verdicts} {settings}. {circumstances(result, ', '.join(_commits(result)))}.",
    ])  # fmt: skip
