"""Federated rounds: accuracy against bits per parameter, up and down, of real messages.

Ten clients, one local epoch each round, over each method and seed: the same split, first weights and batches for all
methods. The accuracy of a run is the mean of its last four rounds, on test data, of the model that clients hold.
Runs are kept in `build/federated` and taken up again; `--save` writes what is there, over earlier results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.lab import record
from experiments.lab.federation import Federation, Setting
from experiments.lab.links import Link, Ours, Plain

_CACHE = Path(__file__).parents[3] / "build" / "federated"
#: Rounds at the end whose mean accuracy counts.
_LAST = 4

MNIST = Setting(rounds=20, lr=0.1)
CIFAR = Setting("strided-small", samples=10_000, rounds=20, batch=64, lr=0.05)
TEXT = Setting("transformer-small", rounds=20, batch=16, lr=1e-3, optimizer="adam")
SETTINGS = {
    "mnist": MNIST,
    "mnist-iid": replace(MNIST, alpha=0.0),
    "mnist-part": replace(MNIST, taking_part=0.3),
    "mnist-iid-part": replace(MNIST, alpha=0.0, taking_part=0.3),
    "mnist-lost": replace(MNIST, lost=0.2),
    "mnist-away": replace(MNIST, away=3),
    "mnist-restarts": replace(MNIST, restarts=5),
    "mnist-resets": replace(MNIST, resets=1),
    "cifar": CIFAR,
    "text": TEXT,
}


@dataclass(frozen=True)
class Method:
    """`both`: whether the downlink is compressed as well."""

    label: str
    make: Callable[[], Link]
    both: bool = False


def _ours(label: str, both: bool = False, down: dict[str, Any] | None = None, **up: Any) -> Method:
    if not both:
        return Method(label, lambda: Ours(up, {"method": "lossless"}))
    same = {key: value for key, value in up.items() if key in ("method", "bound", "options")}
    return Method(label, lambda: Ours(up, down or same), True)


def _sparse(label: str, method: str, residual: str | None = "exact", both: bool = False, **options: Any) -> Method:
    return _ours(label, both, method=method, options=options, residual=residual)


def _both(up: float, down: float, residual: str | None = "nearzip", **more: Any) -> Method:
    """Steps of both directions, in root mean squares of the update; and how the residual is kept."""
    kept = {"nearzip": more.get("residual_bound", "rms:0.5"), "exact": "float32", None: "none"}[residual]
    label = f"nearzip both, {up:g} up, {down:g} down, residual {kept}"
    return _ours(label, True, {"bound": f"rms:{down}"}, bound=f"rms:{up}", residual=residual, **more)


METHODS = {
    method.label: method
    for method in (
        Method("FedAvg fp32", lambda: Plain("fp32", False)),
        Method("fp16", lambda: Plain("fp16", False, "fp16"), True),
        _ours("nearzip rms:1", bound="rms:1"),
        _ours("nearzip rms:1.5", bound="rms:1.5"),
        _ours("nearzip rms:2", bound="rms:2"),
        _ours("nearzip rms:2.5", bound="rms:2.5"),
        _ours("nearzip rms:3", bound="rms:3"),
        *(_both(up, down) for up, down in ((2.1, 1.95), (2.3, 2.2), (2.5, 2.2), (2.5, 2.5), (2.3, 2.0), (2.2, 2.1))),
        *(
            _both(up, down, "exact")
            for up, down in ((1.5, 1.5), (2.1, 1.95), (2.3, 2.2), (2.3, 2.4), (2.3, 3.0), (2.5, 2.35))
        ),
        *(_both(2.3, 2.2, residual_bound=f"rms:{r}") for r in (0.125, 0.25)),
        *(_both(up, down, None) for up, down in ((1.5, 2.0), (1.8, 2.1), (2.0, 2.2), (2.2, 2.2))),
        *(_ours(f"nearzip {up:g} up, residual float32", bound=f"rms:{up}", residual="exact") for up in (2.3, 2.6, 3.0)),
        _ours("nearzip both rms:1", True, bound="rms:1"),
        _ours("nearzip both rms:1.5", True, bound="rms:1.5"),
        _ours("nearzip both rms:2", True, bound="rms:2"),
        _ours("nearzip both rms:2.5", True, bound="rms:2.5"),
        _sparse("top-k 1 %", "topk", keep=0.01),
        _sparse("top-k 10 %", "topk", keep=0.1),
        _sparse("SBC 1 %", "sbc", keep=0.01),
        _sparse("STC 1 %", "stc", keep=0.01),
        _sparse("STC 2 %", "stc", keep=0.02),
        _sparse("STC 5 %", "stc", keep=0.05),
        _sparse("STC both 1 %", "stc", both=True, keep=0.01),
        _sparse("STC both 5 %", "stc", both=True, keep=0.05),
        _sparse("STC both 10 %", "stc", both=True, keep=0.1),
        _sparse("QSGD 7 levels", "qsgd", None, levels=7),
        _sparse("QSGD 1 level", "qsgd", None, levels=1),
        _sparse("SKCompress 1 %", "skcompress", keep=0.01),
        _sparse("DeepReduce 1 %", "deepreduce", keep=0.01),
        _sparse("DeepReduce both 10 %", "deepreduce", both=True, keep=0.1),
        Method("3LC", lambda: Plain("3lc", True)),
        Method("EDEN 1 bit", lambda: Plain("eden", False)),
        Method("EDEN 2 bits", lambda: Plain("eden", False, bits=2)),
        Method("PowerSGD rank 2", lambda: Plain("powersgd", True)),
        *(Method(f"NNCodec {s:g}", lambda s=s: Plain("nncodec", True, step=s)) for s in (4.0, 6.0, 8.0, 10.0)),
        Method("FedSZ 1e-2", lambda: Plain("fedsz", False)),
    )
}
#: Algorithm 2 and Figure 13: each method without its residual, with it, and with it compressed.
for _name, _method in (("SBC 1 %", "sbc"), ("SKCompress 1 %", "skcompress"), ("DeepReduce 1 %", "deepreduce"),
                       ("top-k 1 %", "topk")):  # fmt: skip
    for _residual in (None, "qd-compressor", "lc-checkpoint", "nearzip"):
        _label = f"{_name}, R {_residual or 'dropped'}"
        _bound = {"residual_bound": "rms:0.5"} if _residual == "nearzip" else {}
        METHODS[_label] = _ours(_label, method=_method, options={"keep": 0.01}, residual=_residual, **_bound)


def _path(setting: str, label: str, seed: int) -> Path:
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"{setting} {label} {seed}")
    return _CACHE / f"{name}.json"


def measure(setting: str, label: str, seed: int, folder: str | None) -> dict[str, Any]:
    """One run, or what is kept of it."""
    path = _path(setting, label, seed)
    if path.is_file():
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    link = METHODS[label].make()
    try:
        row = Federation(SETTINGS[setting], folder, seed).run(link)
    finally:
        link.close()
    row = {"setting": setting, "method": label, "seed": seed, "commit": record.commit(), **row}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row) + "\n")
    return row


def final(row: dict[str, Any]) -> float:
    """Accuracy of a run: the mean of its last rounds."""
    return statistics.fmean(row["accuracy"][-_LAST:])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the runs of one method in one setting: means and the spread over seeds."""
    accuracies = [final(row) for row in rows]
    names = [n for n in ("bits_up", "bits_down", "residual_bytes", "coding_seconds") if rows[0][n] is not None]
    means = {name: float(f"{statistics.fmean(row[name] for row in rows):.5g}") for name in names}
    curves = zip(*(row["accuracy"] for row in rows), strict=True)
    return {
        "seeds": len(rows),
        "accuracy": round(statistics.fmean(accuracies), 5),
        "by_seed": {str(row["seed"]): round(final(row), 5) for row in sorted(rows, key=lambda row: row["seed"])},
        "spread": round(max(accuracies) - min(accuracies), 5),
        **means,
        "curve": [round(statistics.fmean(values), 4) for values in curves],
    }


def kept_rows() -> list[dict[str, Any]]:
    """All runs there are."""
    return [json.loads(path.read_text()) for path in sorted(_CACHE.glob("*.json"))]


def save() -> None:
    """Write the results of all runs; what was measured of other methods, or over more seeds, stays."""
    known = record.load("federated")
    settings: dict[str, dict[str, Any]] = {name: dict(s["methods"]) for name, s in known.get("settings", {}).items()}
    by_setting: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in kept_rows():
        by_setting.setdefault(row["setting"], {}).setdefault(row["method"], []).append(row)
    for setting, methods in by_setting.items():
        kept = settings.setdefault(setting, {})
        for label, rows in methods.items():
            if len(rows) >= kept.get(label, {"seeds": 0})["seeds"]:
                kept[label] = summary(rows)
    result = {
        "settings": {
            setting: {"setup": asdict(SETTINGS[setting]), "methods": dict(sorted(methods.items()))}
            for setting, methods in settings.items()
        },
        "residual_bytes": 4 * 266_610,
        "measured_at": sorted({*known.get("measured_at", ()), *(row["commit"] for row in kept_rows())}),
    }
    record.save("federated", result, ("nearzip", "numpy", "torch"))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench federated", description=__doc__)
    parser.add_argument("--data", help="folder with the data (or NEARZIP_DATA)")
    parser.add_argument("--settings", nargs="*", choices=list(SETTINGS), default=["mnist"])
    parser.add_argument("--only", nargs="*", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--save", action="store_true", help="write the results of all runs made so far, and no more")
    options = parser.parse_args(arguments)
    if options.save:
        save()
        return
    torch.set_num_threads(1)
    for setting in options.settings:
        for seed in options.seeds:
            for label in options.only:
                row = measure(setting, label, seed, options.data)
                bits = f"{row['bits_up']:.4f} up, {row['bits_down'] or 0:.4f} down"
                print(setting, seed, label, f"{final(row):.4f}", bits, file=sys.stderr, flush=True)
    save()
