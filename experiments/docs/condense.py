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
        f"gradual: {said}: {verdict}{behind}. {circumstances(result)}.",
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
    settings = "; ".join(
        f"{network}: at most {100 * one['max_loss']:g} points, {one['epochs']} epochs"
        + (f" of {one['per_epoch']:,} images" if one["per_epoch"] else "")
        + f", {one['trainings']} trainings, reference {100 * one['reference']:.2f} %"
        for network, one in result["networks"].items()
    )
    return "\n\n".join([
        table(["network", "method", "kept", "whole file", "Condensa's count", "points lost, validation", "test"],
              [*body, *published]),
        "Whole file: float32 tensors over all bytes of the archive. Condensa's count: four bytes a weight over two for "
        "each nonzero, without positions; the published rows have no other. The share was chosen on validation images; "
        "the methods below ours have the same share and epochs, pruned at once. "
        f"{settings}. {circumstances(result)}.",
    ])  # fmt: skip


def speed(result: Row) -> str:
    """Measured throughput beside the operations."""
    body = []
    for network, one in result["networks"].items():
        fast = one["speed"]
        body.append([
            network, f"{fast['ratio']:.2f}x ({fast['lower']:.2f} to {fast['upper']:.2f})", f"{one['flops']:.2f}x",
            f"{one['ratio']:.0f}x", f"{100 * one['losses']['top1']:.2f}",
            f"{100 * (one['reference'] - one['test']):.2f}", ", ".join(map(str, one["widths"])),
        ])  # fmt: skip
    settings = "; ".join(
        f"{network}: at most {100 * one['max_loss']:g} points, {one['epochs']} epochs of {one['per_epoch']:,} images, "
        f"{one['recovery']}, batches of {one['batch']}, reference {100 * one['reference']:.2f} %, widths "
        f"{', '.join(map(str, one['original_widths']))}"
        for network, one in result["networks"].items()
    )
    return "\n\n".join([
        table(["network", "throughput (quartiles)", "operations", "whole file", "points lost, validation", "test",
               "widths"], body),
        "On one thread, in turns with the original. Published for VGG-19 on CIFAR-10, filters: 2.59x, on a GPU. "
        f"{settings}. {circumstances(result)}.",
    ])  # fmt: skip
