"""What compression does to a network's behaviour, and what training for it gives back."""

from __future__ import annotations

import statistics
from typing import Any

from experiments.docs.markdown import Row, circumstances, table

#: Column to metric; a loss is what the original scores more.
_COLUMNS = {
    "top-1": "top1", "worst class": "class", "wrong now": "flips/worse", "changed": "agreement",
    "cost, by kind": "cost/kind",
    "cost, one-sided": "cost/one-sided", "KL": "kl", "features": "embedding/cosine", "saliency": "attribution/saliency",
    "occlusion": "attribution/occlusion", "boundary, random": "boundary/random", "worst": "boundary/worst",
}  # fmt: skip
_ROBUST = {
    "attack 1/255": "linf:1", "attack 2/255": "linf:2", "the original's 2/255": "transfer:2",
    "noise 0.08": "gauss:0.08",
    "shift": "shift:2", "blur": "blur:0.7",
}  # fmt: skip


def behaviour(result: Row) -> str:
    """For each network a table of methods; robustness and verdicts below."""
    parts = []
    for name in dict.fromkeys(row["network"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["network"] == name]
        original, others = rows[0], rows[1:]
        if not others:
            continue
        columns = {head: m for head, m in _COLUMNS.items() if m == "class" or m in original["metrics"]}
        lines = [[row["method"], f"{row['bytes']:,}", *(_cell(m, original, row) for m in columns.values())]
                 for row in others]  # fmt: skip
        parts.append(f"**{name}** ({original['trained']}), top-1 {100 * original['metrics']['top1']:.1f} %:")
        parts.append(table(["method", "bytes", *columns], lines))
        robust = {head: f"robust/{m}" for head, m in _ROBUST.items() if f"robust/{m}" in original["metrics"]}
        if robust:
            lines = [[row["method"], *(f"{100 * row['metrics'][m]:.0f}" for m in robust.values())] for row in rows]
            parts.append(table(["accuracy in %", *robust], lines))
        parts.append(_said(others, original))
    head = (
        f"Each method at the size of rounding to 8 bits with lossless coding, or the closest setting below it that was "
        f"tried; {result['images']} test images ({32 * 127:,} characters), {result['deep_images']} of them for "
        f"attributions, boundary and robustness. Costs, features and shares are losses against the original, 0 for the "
        f"same network; attributions and boundary are similarities, 1 for the same."
    )
    return "\n\n".join([head, *parts, f"{circumstances(result)}{_commits(result)}."])


def _commits(result: Row) -> str:
    """Networks that were measured before the last one, with their commits."""
    earlier: dict[str, list[str]] = {}
    for row in result["rows"]:
        commit = row.get("commit", result["commit"])
        if commit != result["commit"] and row["network"] not in earlier.setdefault(commit, []):
            earlier[commit].append(row["network"])
    return "".join(f"; {', '.join(names)}: commit {commit}" for commit, names in earlier.items() if names)


def _cell(metric: str, original: Row, row: Row) -> str:
    before, after = original["metrics"], row["metrics"]
    if metric == "class":
        return f"{100 * max(before[name] - after[name] for name in before if name.startswith('class/')):.1f}"
    if metric in ("top1",):
        return f"{100 * (before[metric] - after[metric]):.1f}"
    if metric == "agreement":
        return f"{100 * (1 - after[metric]):.1f} %"
    if metric == "flips/worse":
        return f"{-100 * after[metric]:.1f} %"
    if metric.startswith(("attribution", "boundary")):
        return f"{after[metric]:.2f}"
    return f"{before[metric] - after[metric]:.2g}"


def _said(others: list[Row], original: Row) -> str:
    """Whether equal accuracy hides what changed."""
    same = [row for row in others if abs(original["metrics"]["top1"] - row["metrics"]["top1"]) <= 0.01]
    lines = [f"* {len(same)} of {len(others)} methods lose at most a point of accuracy."]
    if same:
        churn = [1 - row["metrics"]["agreement"] for row in same]
        lines[0] += f" They change {100 * min(churn):.1f} to {100 * max(churn):.1f} % of the predictions"
        maps = [row["metrics"]["attribution/saliency"] for row in same if "attribution/saliency" in row["metrics"]]
        if maps:
            chance = max(row["yardsticks"]["attribution/saliency/chance"] for row in same)
            lines[0] += f", and share {min(maps):.2f} to {max(maps):.2f} of their saliency (chance {chance:.2f})"
        lines[0] += "."
    best = min(others, key=lambda row: -row["metrics"]["kl"])
    lines.append(f"* The smallest divergence is that of {best['method']}, with {best['bytes']:,} bytes.")
    return "\n".join(lines)


def seconds(result: Row) -> str:
    """What the measures take, and a certificate beside an evaluation."""
    groups, found = result["groups"], result["certificate"]
    total = sum(group["seconds"] for group in groups.values())
    lines = [[name, group["metrics"], f"{group['seconds']:.1f}"] for name, group in groups.items()]
    lines.append(["all", sum(group["metrics"] for group in groups.values()), f"{total:.0f}"])
    once = found["seconds"]
    words = (
        f"A certificate of {found['images']:,} images takes {once['certificate']:.2f} s, an evaluation of the same "
        f"metrics {once['evaluation']:.2f} s, {found['ratio']:.2f} times as much; two bare passes, one of either "
        f"network, take {once['forward']:.2f} s."
    )
    logs = result["answers"]
    words += (
        f" Logs of {logs['tasks']} tasks with {logs['lines']:,} samples are compared in {logs['seconds']:.1f} s, the "
        f"start of Python included, {'with' if logs['imports_torch'] else 'without'} PyTorch."
    )
    head = (
        f"The original and a compressed {result['network']}, {result['images']} test images, processor seconds with "
        "one thread:"
    )
    return "\n\n".join([head, table(["measures", "metrics", "seconds"], lines), words, f"{circumstances(result)}."])


def objective(result: Row) -> str:
    """Plain fine-tuning beside the objective, seed by seed, and what of the aims was reached."""
    names = {"top-1": "top1", "changed": "agreement", "wrong now": "flips/worse", "cost": "cost", "KL": "kl",
             "saliency": "attribution/saliency", "boundary, random": "boundary/random"}  # fmt: skip
    lines = []
    for row in result["rows"]:
        for kind in ("plain", "objective"):
            found = row[kind]
            log_ratio = found["yardsticks"]["boundary/random/abs-log2-ratio/median"]
            lines.append([row["network"], row["seed"], kind, *(_plain(m, found["metrics"][m]) for m in names.values()),
                          f"{log_ratio:.2f}", f"{found['seconds']:.0f}"])  # fmt: skip
    head = (
        f"Networks pruned to {100 * result['kept']:.0f} % of their weights, fine-tuned with a learning rate of "
        f"{result['learning_rate']:g}, the same batches with only cross entropy and with the objective (limits "
        + ", ".join(f"{name} {limit:g}" for name, limit in result["limits"].items())
        + f"). On {result['rows'][0]['test']:,} test images, {result['rows'][0]['measured']} for attributions and "
        "boundary:"
    )
    columns = ["network", "seed", "training", *names, "median abs(log2 ratio)", "processor s"]
    found = circumstances(result, ", ".join(dict.fromkeys(row["commit"] for row in result["rows"])))
    return "\n\n".join([head, table(columns, lines), _reached(result["rows"]), f"{found}."])


def _plain(metric: str, value: float) -> str:
    if metric == "top1":
        return f"{100 * value:.1f} %"
    if metric == "agreement":
        return f"{100 * (1 - value):.1f} %"
    return f"{value:.2f}" if metric.startswith(("attribution", "boundary")) else f"{-value:.3f}"


def _original(metrics: Row) -> float:
    """The original's accuracy, from what became wrong and right."""
    return float(metrics["top1"] - metrics["flips/worse"] - metrics["flips/better"])


def _reached(rows: list[dict[str, Any]]) -> str:
    """Medians over seeds, by network."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]

        def change(get: Any, own: list[dict[str, Any]] = own) -> float:
            return statistics.median(get(row["objective"]) / get(row["plain"]) - 1 for row in own)

        def gain(metric: str, own: list[dict[str, Any]] = own) -> float:
            return statistics.median(
                row["objective"]["metrics"][metric] - row["plain"]["metrics"][metric] for row in own
            )

        changed = change(lambda found: found["metrics"]["agreement"] - 1)
        flips = change(lambda found: found["metrics"]["flips/worse"])
        cost = change(lambda found: found["metrics"]["cost"])
        ratio = change(lambda found: found["yardsticks"]["boundary/random/abs-log2-ratio/median"])
        lines.append(
            f"* {network} (the original: top-1 {100 * _original(own[0]['plain']['metrics']):.1f} %; "
            f"{own[0]['images']:,} images, {own[0]['epochs']} epochs), {len(own)} seed{'s' * (len(own) > 1)}, median: "
            f"changed {100 * changed:+.0f} %, wrong now "
            f"{100 * flips:+.0f} %, "
            f"cost {100 * cost:+.0f} %, "
            f"saliency {gain('attribution/saliency'):+.2f}, boundary log ratio {100 * ratio:+.0f} %, accuracy "
            f"{100 * gain('top1'):+.1f} points. The aims were -25 % wrong now, -25 % cost, +0.10, -50 % and at "
            f"least -0.3."
        )
    return "\n".join(lines)
