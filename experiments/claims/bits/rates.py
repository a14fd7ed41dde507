"""Bits at the same divergence without calibration: rules for steps that an encoder can follow without data.

Every rule is swept over the step, densely: each step is one draw of the rounding, and divergences of neighbouring draws
differ by several percent. A curve through neighbours averages them.
NNCodec without its trellis is swept the same way. Bits are those of whole files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from experiments.lab import record, traces
from experiments.lab.curves import TARGETS, Point, at_divergence
from experiments.lab.peers import running
from experiments.lab.peers.nnc import NncodecPeer
from experiments.lab.traces import Tensors
from nearzip.coding import Coding, Codings
from nearzip.recipes import fine_steps
from nearzip.recipes.nearzip import Nearzip
from nearzip.tensors import Array, Checkpoint
from nearzip.writing import write_archive

#: Steps an octave: quarters, each of them at two offsets.
_PER_OCTAVE = 8
_NNCODEC = "NNCodec plain"
_ALONE = "alone"


@dataclass(frozen=True)
class Rule:
    """Settings of the recipe besides the network's step.

    Parameters
    ----------
    options : mapping
        Of the recipe.
    vectors : float
        Tensors of one dimension get a step that many times finer, each tensor planned by itself.
    law : mapping
        Constants of `nearzip.recipes.fine_steps`, changed.
    """

    options: Mapping[str, Any]
    vectors: float = 1.0
    law: Mapping[str, float] = field(default_factory=dict)

    def codings(self, tensors: Tensors, step: float) -> Codings:
        def coding(own: float) -> Coding:
            return Coding.of(Nearzip(own, **self.options))

        finer = [n for n, w in tensors.items() if w.ndim < 2 and w.dtype.kind == "f"] if self.vectors > 1 else []
        return Codings(coding(step), dict.fromkeys(finer, coding(step / self.vectors)))


#: One step for all, unless said otherwise.
RULES: dict[str, Rule] = {
    "one step": Rule({"finer": 0.0}),
    "small tensors finer, 1 %": Rule({"finer": 0.01}),
    "small tensors finer, 2 %": Rule({"finer": 0.02}),
    "small tensors finer, 5 %": Rule({"finer": 0.05}),
    "small tensors finer, 10 %": Rule({"finer": 0.1}),
    "small tensors finer": Rule({"finer": 1.0}),
    "small tensors finer, fourth root": Rule({"finer": 1.0}, law={"_EXPONENT": 0.25}),
    "small tensors finer, vectors by their own size": Rule({"finer": 1.0}, law={"_VECTOR": 1}),
    "one dimension 4 times finer": Rule({"finer": 0.0}, vectors=4),
    "one step, unbiased": Rule({"finer": 0.0, "unbiased": True}),
    "small tensors finer, 2 %, unbiased": Rule({"finer": 0.02, "unbiased": True}),
    "small tensors finer, unbiased": Rule({"finer": 1.0, "unbiased": True}),
    "one step, lattice": Rule({"finer": 0.0, "lattice": True}),
    "small tensors finer, 2 %, lattice": Rule({"finer": 0.02, "lattice": True}),
    "small tensors finer, 2 %, unbiased, lattice": Rule({"finer": 0.02, "unbiased": True, "lattice": True}),
}


@contextlib.contextmanager
def changed(module: ModuleType, constants: Mapping[str, float]) -> Iterator[None]:
    """Constants of a module have other values, for as long as this lasts."""
    usual = {name: getattr(module, name) for name in constants}
    try:
        for name, value in constants.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in usual.items():
            setattr(module, name, value)


def coded(rule: Rule, pair: traces.Pair, step: float) -> tuple[int, Tensors]:
    """Bytes of the file, and what its reader gets."""
    source, base, stream = Checkpoint.of(pair.new), Checkpoint.of(pair.old), io.BytesIO()
    restored: dict[str, Array] = {}
    with changed(fine_steps, rule.law):
        write_archive(source, base, rule.codings(pair.new, step), stream, restored.__setitem__, 1)
    return len(stream.getvalue()), restored


def swept(rule: Rule, pair: traces.Pair, evaluate: running.CachedEvaluator) -> list[Point]:
    """Sweep from finer to coarser steps, until the divergence is past all targets on both sides by some points,
    or 4 octaves."""
    n = sum(w.size for w in pair.new.values())
    points: dict[int, Point] = {}

    def measure(at: int) -> float:
        step = 2 * pair.unit * 2 ** (at / _PER_OCTAVE)
        n_bytes, restored = coded(rule, pair, step)
        points[at] = {"step": step, "bits": 8 * n_bytes / n, "kl": evaluate(restored)["kl"]}
        return points[at]["kl"]

    at = 0
    while measure(at) < 1.6 * max(TARGETS) and at < 3 * _PER_OCTAVE:
        at += 1
    at = -1
    while measure(at) > min(TARGETS) / 1.8 and at > -3 * _PER_OCTAVE:
        at -= 1
    return [points[at] for at in sorted(points)]


def nncodec(pair: traces.Pair, evaluate: running.CachedEvaluator) -> list[Point]:
    """NNCodec without its trellis at every QP around the pair's unit: a quarter of an octave each."""
    n = sum(w.size for w in pair.new.values())
    peer = NncodecPeer()
    middle = round(4 * math.log2(2 * pair.unit))
    settings = [{"qp": middle + shift} for shift in range(-7, 8)]
    with tempfile.TemporaryDirectory() as name:
        answer = running.run_worker(peer, pair, settings, 1, Path(name))
        return [
            {
                "step": 2 ** (raw["setting"]["qp"] / 4),
                "bits": 8 * raw["bytes"] / n,
                "kl": evaluate(running.restored(Path(name), i))["kl"],
            }
            for i, raw in enumerate(answer["points"])
        ]


def alone(pair: traces.Pair, evaluate: running.CachedEvaluator) -> dict[str, dict[str, float]]:
    """Divergence where one tensor alone is rounded by the step that suits all of them."""
    found = {}
    for name, w in pair.new.items():
        if w.dtype.kind == "f":
            levels = np.rint((w.astype(np.float64) - pair.old[name]) / (2 * pair.unit))
            rounded = (pair.old[name] + levels * (2 * pair.unit)).astype(w.dtype)
            found[name] = {"n": w.size, "dimensions": w.ndim, "kl": evaluate({**pair.new, name: rounded})["kl"]}
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench rates", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument(
        "--pairs", nargs="+", choices=traces.pair_names(), default=[p for p in traces.pair_names() if "quick" not in p]
    )
    parser.add_argument("--only", nargs="+", choices=[*RULES, _NNCODEC, _ALONE], default=[*RULES, _NNCODEC])
    parser.add_argument("--share", type=float, default=0.2, help="how much of the held-out data to use")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench rates needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    for name in options.pairs:
        pair = traces.load_pair(name, where)
        evaluate = running.CachedEvaluator(pair, where.parent / "data", options.share, fresh=False)
        if _ALONE in options.only:
            known = record.load("rates_alone").get("pairs", {})
            known[name] = {"share": options.share, "tensors": alone(pair, evaluate)}
            record.save("rates_alone", {"pairs": known}, ("nearzip", "numpy", "torch"))
        for rule in (rule for rule in options.only if rule != _ALONE):
            points = nncodec(pair, evaluate) if rule == _NNCODEC else swept(RULES[rule], pair, evaluate)
            print(name, rule, [at_divergence(points, kl) for kl in TARGETS], file=sys.stderr, flush=True)
            found = record.load("rates").get("pairs", {})
            found.setdefault(name, {})[rule] = points
            record.save("rates", {"share": options.share, "pairs": found}, ("nearzip", "numpy", "torch"))
