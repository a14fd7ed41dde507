"""Delta-DNN's Figures 1, 3, 4 and 5 and Table 1 on the networks that were trained here, in both readings.

The networks are those of the quick set and of the shared traces. `docs/papers/delta-dnn.md` is made from the result by
`bench docs`; what needs a whole training (Tables 2 and 3, Figures 8 and 9) is `bench papers`.
"""

from __future__ import annotations

import argparse
import lzma
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

import nearzip as nz
from experiments.lab import evaluate, record, traces
from experiments.lab.algorithm_1 import ALPHA, BETA, LAMBDA, THETA, Point, choose
from experiments.lab.differences import integers
from experiments.lab.sz_floats import sz_each, sz_pointwise
from experiments.lab.traces import Tensors

#: The paper's candidates, and bounds that suit updates as small as these: in the absolute reading 1 % is more than most
#: of their weights move.
PAPER_EPS = tuple(k / 100 for k in range(1, 11))
FINE_EPS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
MODES = ("absolute", "relative")
BACKENDS = ("rle+lzma", "rle+zstd", "lzma", "zstd")


def mean_of(old: Tensors, new: Tensors) -> Tensors:
    """Half way from one version to the other; what is no floating-point number as in the newer."""
    return {name: ((old[name].astype(np.float64) + w) / 2).astype(w.dtype) if w.dtype.kind == "f" else w
            for name, w in new.items()}  # fmt: skip


class Subject:
    """One pair of versions, the size of the newer one, and its evaluator."""

    def __init__(self, network: str, old: Tensors, new: Tensors, data: Path, share: float):
        self.old, self.new = old, new
        self.n_bytes = sum(w.nbytes for w in new.values())
        self.evaluator = evaluate.Evaluator(network, new, evaluate.held_out(network, data, share))

    def point(self, eps: float, n_bytes: int, restored: Tensors) -> Point:
        found = self.evaluator.compare(restored)
        return {
            "eps": eps,
            "bytes": n_bytes,
            "ratio": self.n_bytes / n_bytes,
            "accuracy": found.accuracy,
            "accuracy_change": found.accuracy_change,
            "kl": found.to_json()["kl"],
        }

    def delta(self, eps: float, mode: str, backend: str = "rle+lzma") -> nz.Archive:
        return nz.compress(
            self.new, base=self.old, method="delta-dnn", options={"eps": eps, "mode": mode, "backend": backend}
        )

    def sweep(self, mode: str, candidates: Sequence[float]) -> list[Point]:
        """Figures 3 and 4: accuracy and ratio over the error bound; restored from the bytes."""
        found = []
        for eps in candidates:
            archive = self.delta(eps, mode)
            found.append(self.point(eps, archive.nbytes, nz.decompress(archive.to_bytes(), base=self.old)))
        return found

    def sz(self, candidates: Sequence[float]) -> list[Point]:
        return [self.point(eps, *sz_pointwise(self.new, eps)) for eps in candidates]

    def ours(self, eps: float, mode: str) -> float:
        """Ratio of nearzip's own method at the same bound."""
        bound = nz.PointwiseRelative(eps) if mode == "relative" else nz.Absolute(eps)
        return self.n_bytes / nz.compress(self.new, base=self.old, bound=bound).nbytes

    def backends(self, eps: float) -> dict[str, dict[str, float]]:
        """Figure 5."""
        return {m: {b: self.n_bytes / self.delta(eps, m, b).nbytes for b in BACKENDS} for m in MODES}

    def lossless(self) -> dict[str, float]:
        raw = b"".join(w.tobytes() for w in self.new.values())
        packed = {"LZMA": lzma.compress(raw), "Zstd": zstandard.ZstdCompressor(level=3).compress(raw)}
        return {name: len(raw) / len(data) for name, data in packed.items()}

    def likeness(self) -> dict[str, Any]:
        """Figure 1, with a few of its points."""
        found = nz.compare(self.old, self.new)
        total = found.total
        assert total.fit is not None
        assert total.ssim is not None
        every = max(1, found.sample[0].size // 300)
        sample = [[round(float(value), 5) for value in side[::every]] for side in found.sample]
        fit = {"slope": total.fit.slope, "intercept": total.fit.intercept, "r": total.fit.r}
        return {**fit, "ssim": total.ssim, "sample": sample}

    def row(self) -> dict[str, Any]:
        """A row of Table 1: every compressor with the bound that Algorithm 1 chooses from the paper's candidates."""
        sweeps = {mode: self.sweep(mode, FINE_EPS + PAPER_EPS) for mode in MODES}
        chosen = {mode: dict(_chosen(points)) for mode, points in sweeps.items()}
        for mode, point in chosen.items():
            point["nearzip_ratio"] = self.ours(point["eps"], mode)
        sz = self.sz((LAMBDA, *PAPER_EPS))
        return {
            "bytes": self.n_bytes,
            "accuracy": self.evaluator.accuracy,
            "lossless": self.lossless(),
            "sz": _chosen(sz),
            "delta_dnn": chosen,
            "sweeps": {**sweeps, "sz": sz},
        }


def moved(old: Tensors, new: Tensors) -> float:
    """Root mean square of the update over that of the weights."""
    pairs = [(old[name].astype(np.float64), w) for name, w in new.items() if w.dtype.kind == "f"]
    update = sum(float(np.sum((w - base) ** 2)) for base, w in pairs)
    return math.sqrt(update / sum(float(np.sum(w.astype(np.float64) ** 2)) for _, w in pairs))


def sz_sizes(tensors: Tensors) -> list[Point]:
    """SZ's ratio at the paper's candidates, and that of its algorithm with predictors."""
    n_bytes, found = sum(w.nbytes for w in tensors.values()), []
    for eps in PAPER_EPS:
        sizes = {name: size for name, (size, _) in sz_each(tensors, eps).items()}
        found.append(
            {"eps": eps, "ratio": n_bytes / min(sizes.values()), "predicted_ratio": n_bytes / sizes["INTERP_LORENZO"]}
        )
    return found


def rest_of(network: str, data: Path, share: float) -> evaluate.HeldOut:
    """The held-out data that `evaluate.held_out` leaves for a share."""
    whole, n = evaluate.held_out(network, data), len(evaluate.held_out(network, data, share).inputs)
    return evaluate.HeldOut(whole.inputs[n:], whole.targets[n:])


def again(network: str, old: Tensors, new: Tensors, held_out: evaluate.HeldOut, eps: dict[str, float]) -> Point:
    """Changes of accuracy on data that had no part in choosing: of what was chosen, by mode or `sz`, of the old
    version, and of the mean of both versions; and the largest share of predictions that one of the chosen changes."""
    evaluator = evaluate.Evaluator(network, new, held_out)
    restored = {"sz": sz_pointwise(new, eps["sz"])[1], "old": old, "mean": mean_of(old, new)}
    for mode in MODES:
        options = {"eps": eps[mode], "mode": mode}
        restored[mode] = nz.compress(new, base=old, method="delta-dnn", options=options).restored
    found = {name: evaluator.compare(tensors) for name, tensors in restored.items()}
    return {
        "predictions": int(evaluator.targets.numel()),
        "accuracy": evaluator.accuracy,
        "changes": {name: one.accuracy_change for name, one in found.items()},
        "changed": max(1 - found[name].agreement for name in eps),
    }


def causes(name: str, where: Path, data: Path, share: float, row: dict[str, Any]) -> dict[str, Any]:
    """For a row of Table 1, the measurements that explain why it differs from the paper's."""
    pair = traces.load_pair(name, where)
    eps = {"sz": row["sz"]["eps"]} | {mode: row["delta_dnn"][mode]["eps"] for mode in MODES}
    return {
        "moved": moved(pair.old, pair.new),
        "still": {mode: float((integers(pair.old, pair.new, eps[mode], mode) == 0).mean()) for mode in MODES},
        "sz": sz_sizes(pair.new),
        "again": again(pair.network, pair.old, pair.new, rest_of(pair.network, data, share), eps),
        "commit": record.commit(),
    }


def network(name: str, where: Path, data: Path, share: float) -> dict[str, Any]:
    """All of a pair of the shared traces or of the quick set, but the causes."""
    pair = traces.load_pair(name, where)
    subject = Subject(pair.network, pair.old, pair.new, data, share)
    backends = {str(eps): subject.backends(eps) for eps in (0.1, LAMBDA)}
    return {**subject.row(), "likeness": subject.likeness(), "backends": backends, "commit": record.commit()}


def choices(name: str, where: Path, data: Path, share: float, row: dict[str, Any]) -> dict[str, Any]:
    """Algorithm 1 again, on a sweep that was measured before; SZ's sweep is measured, and nearzip at what is chosen."""
    pair = traces.load_pair(name, where)
    subject = Subject(pair.network, pair.old, pair.new, data, share)
    sweeps = {**row["sweeps"], "sz": subject.sz((LAMBDA, *PAPER_EPS))}
    found = {mode: _chosen(sweeps[mode]) for mode in MODES}
    chosen = {mode: {**point, "nearzip_ratio": subject.ours(point["eps"], mode)} for mode, point in found.items()}
    return {**row, "sweeps": sweeps, "sz": _chosen(sweeps["sz"]), "delta_dnn": chosen, "choices": record.commit()}


def _with_none(point: Point) -> Point:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in point.items()}


def _chosen(points: Sequence[Point]) -> Point:
    by_eps = {point["eps"]: point for point in points}
    return choose([by_eps[eps] for eps in PAPER_EPS], by_eps[LAMBDA])


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench delta_dnn", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--share", type=float, default=0.25, help="how much of the held-out data to use")
    parser.add_argument("--pairs", nargs="+", choices=traces.pair_names(), default=traces.pair_names())
    parser.add_argument("--choices", action="store_true", help="choose bounds from the sweeps that are there")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench delta_dnn needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    given = (where, where.parent / "data", options.share)
    for name in options.pairs:
        row = choices(name, *given, _rows(record.load("delta_dnn"))[name]) if options.choices else network(name, *given)
        cause = causes(name, *given, row)
        # Read again: another process may have measured another pair.
        had = record.load("delta_dnn")
        rows, found = _rows(had), had.get("causes", {})
        rows[name], found[name] = row, cause
        _save({key: rows[key] for key in traces.pair_names() if key in rows}, found, options.share)


def _rows(had: dict[str, Any]) -> dict[str, Any]:
    """Rows with the commit of their own, and None for what was no number; earlier results had neither."""
    rows: dict[str, Any] = had.get("networks", {})
    for row in rows.values():
        row.setdefault("commit", had.get("commits", {}).get("networks"))
        row["sweeps"] = {way: [_with_none(point) for point in points] for way, points in row["sweeps"].items()}
    return rows


def _save(networks: dict[str, Any], found: dict[str, Any], share: float) -> None:
    rule = {"theta_percent": THETA, "alpha": ALPHA, "beta": BETA, "lambda": LAMBDA}
    record.save(
        "delta_dnn",
        {"rule": rule, "held_out_share": share, "networks": networks, "causes": found},
        ("nearzip", "torch", "pysz"),
    )
