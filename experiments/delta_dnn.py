"""Delta-DNN's Figures 1, 3, 4 and 5 and Tables 1 and 2 on the networks that were trained here, in both readings.

The networks are those of the quick set and of the shared traces; Table 2 takes the epochs of the `chains` trace of
`vgg-small` whose accuracy improved, as the paper's section 5.2 does. `docs/papers/delta-dnn.md` is made from the result
by `bench papers`.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

import nearzip as nz
from experiments import evaluate, pairs, record, trace_sets, traces
from experiments.traces import Tensors

#: The paper's candidates, and bounds that suit updates as small as these: in the absolute reading 1 % is more than most
#: of their weights move.
PAPER_EPS = tuple(k / 100 for k in range(1, 11))
FINE_EPS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
MODES = ("absolute", "relative")
BACKENDS = ("rle+lzma", "rle+zstd", "lzma", "zstd")
THETA, ALPHA, BETA, LAMBDA = 0.2, 0.5, 0.5, 1e-3
Point = dict[str, Any]


def sz_pointwise(tensors: Tensors, eps: float) -> tuple[int, Tensors]:
    """SZ on raw floats as the paper runs it, without a base: SZ3 on log|x| with bound log(1 + eps), as SZ does for
    pointwise relative bounds; signs and zeros apart. Bytes, and what comes back."""
    from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode

    flat = np.concatenate([w.reshape(-1) for w in tensors.values() if w.dtype == np.float32])
    logs = np.log(np.maximum(np.abs(flat), np.finfo(np.float32).tiny)).astype(np.float32)
    config = szConfig((logs.size,))
    config.errorBoundMode, config.absErrorBound = szErrorBoundMode.ABS, float(np.log1p(eps))
    sizes, restored = [], flat
    for name in ("INTERP_LORENZO", "NOPRED"):
        config.cmprAlgo = getattr(szAlgorithm, name)
        packed, _ = sz.compress(logs, config)
        if not sizes or packed.nbytes < min(sizes):
            back = sz.decompress(packed.copy(), np.float32, (logs.size,))[0]
            restored = (np.sign(flat) * np.exp(back)).astype(np.float32)
        sizes.append(packed.nbytes)
    signs = zstandard.compress(np.packbits(np.signbit(flat)).tobytes() + np.packbits(flat == 0).tobytes())
    back_tensors, at = {}, 0
    for name, w in tensors.items():
        if w.dtype == np.float32:
            back_tensors[name] = restored[at : at + w.size].reshape(w.shape)
            at += w.size
        else:
            back_tensors[name] = w
    return min(sizes) + len(signs), back_tensors


def choose(points: Sequence[Point], fallback: Point) -> Point:
    """Algorithm 1 on points already measured: of those whose loss is below theta the best score, Phi = -loss in percent
    so that a loss lowers it; the fallback at lambda if none is."""
    best, best_score = fallback, 0.0
    for point in points:
        score = ALPHA * 100 * point["accuracy_change"] + BETA * point["ratio"]
        if -100 * point["accuracy_change"] < THETA and score > best_score:
            best, best_score = point, score
    return best


class Subject:
    """One pair of versions, its original's size and its judge."""

    def __init__(self, network: str, old: Tensors, new: Tensors, data: Path, share: float):
        self.old, self.new = old, new
        self.n_bytes = sum(w.nbytes for w in new.values())
        self.judge = evaluate.Evaluator(network, new, evaluate.held_out(network, data, share))

    def point(self, eps: float, n_bytes: int, restored: Tensors) -> Point:
        found = self.judge.compare(restored)
        return {
            "eps": eps,
            "bytes": n_bytes,
            "ratio": self.n_bytes / n_bytes,
            "accuracy": found.accuracy,
            "accuracy_change": found.accuracy_change,
            "kl": found.kl,
        }

    def delta(self, eps: float, mode: str, backend: str = "rle+lzma") -> nz.Archive:
        return nz.compress(
            self.new, base=self.old, method="delta-dnn", options={"eps": eps, "mode": mode, "backend": backend}
        )

    def sweep(self, mode: str, candidates: Sequence[float]) -> list[Point]:
        """Figures 3 and 4: accuracy and ratio over the error bound; what is judged is what the bytes restore to."""
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
        chosen = {}
        for mode, points in sweeps.items():
            by_eps = {point["eps"]: point for point in points}
            chosen[mode] = choose([by_eps[eps] for eps in PAPER_EPS], by_eps[LAMBDA])
            chosen[mode]["nearzip_ratio"] = self.ours(chosen[mode]["eps"], mode)
        sz = self.sz((LAMBDA, *PAPER_EPS))
        return {
            "bytes": self.n_bytes,
            "accuracy": self.judge.accuracy,
            "lossless": self.lossless(),
            "sz": choose(sz[1:], sz[0]),
            "delta_dnn": chosen,
            "sweeps": sweeps,
        }


def improved(folder: Path, last: int = 5) -> list[tuple[Path, Path, int]]:
    """Reference, target and epoch of the last epochs whose accuracy beat all before them; each against the improved one
    before it."""
    best, kept = -1.0, []
    document = trace_sets.read(folder)
    if document is None:
        raise SystemExit(f"no trace in {folder}; run: python -m experiments traces --set chains")
    for row in document["versions"]:
        if row["test"]["accuracy"] > best:
            best = row["test"]["accuracy"]
            kept.append((folder / row["file"], row["epoch"]))
    return [(a, b, epoch) for (a, _), (b, epoch) in pairwise(kept)][-last:]


def networks(where: Path, data: Path, share: float) -> dict[str, Any]:
    """All but Table 2, of each pair of the shared traces and of the quick set."""
    rows: dict[str, Any] = {}
    for name in pairs.NAMES:
        pair = pairs.load(name, where)
        subject = Subject(pair.network, pair.old, pair.new, data, share)
        rows[name] = {**subject.row(), "likeness": subject.likeness(),
                      "backends": {str(eps): subject.backends(eps) for eps in (0.1, LAMBDA)}}  # fmt: skip
        print(name, rows[name]["delta_dnn"], file=sys.stderr)
    return rows


def epochs(data: Path, share: float) -> dict[str, Any]:
    """Table 2."""
    rows: dict[str, Any] = {}
    for older, newer, epoch in improved(trace_sets.traces_folder() / "chains" / "vgg-small"):
        subject = Subject("vgg-small", traces.load_file(older), traces.load_file(newer), data, share)
        rows[str(epoch)] = {key: value for key, value in subject.row().items() if key != "sweeps"}
        print("epoch", epoch, file=sys.stderr)
    return rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench delta_dnn", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--share", type=float, default=0.25, help="how much of the held-out data to use")
    parser.add_argument("--only", choices=("networks", "epochs"), help="measure this part; the other stays as it was")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench delta_dnn needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    data = where.parent / "data"
    had = record.load("delta_dnn") if options.only else {}
    parts = {part: had.get(part, {}) for part in ("networks", "epochs")}
    commits = had.get("commits", {part: had.get("commit") for part in parts})
    if options.only != "epochs":
        parts["networks"], commits["networks"] = networks(where, data, options.share), record.commit()
    if options.only != "networks":
        parts["epochs"], commits["epochs"] = epochs(data, options.share), record.commit()
    rule = {"theta_percent": THETA, "alpha": ALPHA, "beta": BETA, "lambda": LAMBDA}
    record.save(
        "delta_dnn",
        {"rule": rule, "held_out_share": options.share, "commits": commits, **parts},
        ("nearzip", "torch", "pysz"),
    )
