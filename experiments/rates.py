"""Bits at the same divergence without calibration: rules for steps that an encoder can follow without data.

Every rule is swept over the step, densely: what is restored by one step is one draw of its rounding, and the divergence
of one draw differs from the next by several percent. A parabola averages them.
NNCodec without its trellis is swept the same way. Bits are those of whole files.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import fidelity, pairs, record, traces
from experiments.curves import TARGETS
from experiments.peers.nnc import NncodecPeer
from experiments.traces import Tensors
from nearzip.archive import write_archive
from nearzip.recipes import Setting, Settings
from nearzip.recipes.nearzip import Nearzip
from nearzip.tensors import Array, Checkpoint

Point = dict[str, float]
#: Steps an octave: quarters, each of them at two offsets.
_PER_OCTAVE = 8
_NNCODEC = "NNCodec plain"
#: Points whose step is within so many octaves of where a divergence is reached take part in its parabola.
_REACH = 0.8


@dataclass(frozen=True)
class Rule:
    """A step for every tensor, by what the encoder sees: both versions and the network's step."""

    steps: Callable[[Tensors, Tensors, float], Mapping[str, float]]
    options: Mapping[str, Any]


def same(old: Tensors, new: Tensors, step: float) -> dict[str, float]:
    return dict.fromkeys(_floats(new), step)


def finer(parts: float) -> Callable[[Tensors, Tensors, float], dict[str, float]]:
    """Tensors of one dimension at a part of the step."""

    def steps(old: Tensors, new: Tensors, step: float) -> dict[str, float]:
        return {name: step / parts if new[name].ndim < 2 else step for name in _floats(new)}

    return steps


def _floats(tensors: Tensors) -> list[str]:
    return [name for name, values in tensors.items() if values.dtype.kind == "f"]


RULES: dict[str, Rule] = {
    "one step": Rule(same, {}),
    "one dimension 2 times finer": Rule(finer(2), {}),
    "one dimension 4 times finer": Rule(finer(4), {}),
    "one dimension 8 times finer": Rule(finer(8), {}),
    "one step, unbiased": Rule(same, {"unbiased": True}),
}


def coded(rule: Rule, pair: pairs.Pair, step: float) -> tuple[int, Tensors]:
    """Bytes of the file, and what its reader gets."""
    source, base, stream = Checkpoint.of(pair.new), Checkpoint.of(pair.old), io.BytesIO()
    own = rule.steps(pair.old, pair.new, step)
    settings = Settings(
        Setting.of(Nearzip()), {name: Setting.of(Nearzip(value, **rule.options)) for name, value in own.items()}
    )
    restored: dict[str, Array] = {}
    write_archive(source, base, settings, stream, restored.__setitem__, 1)
    return len(stream.getvalue()), restored


def at_divergence(points: Sequence[Point], kl: float) -> float | None:
    """Bits at a divergence; None outside the sweep.

    The logarithm of the divergence is a parabola over that of the step, through the points around; bits have no noise.
    """
    ordered = sorted(points, key=lambda p: p["step"])
    step, found, bits = (np.log2([max(p[key], 1e-300) for p in ordered]) for key in ("step", "kl", "bits"))
    above = found > math.log2(kl)
    if not above.any() or above.all():
        return None
    crossing = step[int(above.argmax())]
    near = np.abs(step - crossing) <= _REACH
    curve = np.polyfit(step[near] - crossing, found[near], min(2, int(near.sum()) - 1))
    finely = np.linspace(step[near].min(), step[near].max(), 1001)
    at = finely[np.abs(np.polyval(curve, finely - crossing) - math.log2(kl)).argmin()]
    return float(2 ** np.interp(at, step, bits))


def swept(rule: Rule, pair: pairs.Pair, judge: fidelity.Judge) -> list[Point]:
    """From finer to coarser steps, until the divergence has passed all targets on both sides by the parabola's reach,
    or 4 octaves."""
    n = sum(w.size for w in pair.new.values())
    points: dict[int, Point] = {}

    def measure(at: int) -> float:
        step = 2 * pair.unit * 2 ** (at / _PER_OCTAVE)
        n_bytes, restored = coded(rule, pair, step)
        points[at] = {"step": step, "bits": 8 * n_bytes / n, "kl": judge(restored)["kl"]}
        return points[at]["kl"]

    at = 0
    while measure(at) < 2 * max(TARGETS) and at < 3 * _PER_OCTAVE:
        at += 1
    at = -1
    while measure(at) > min(TARGETS) / 2 and at > -3 * _PER_OCTAVE:
        at -= 1
    return [points[at] for at in sorted(points)]


def nncodec(pair: pairs.Pair, judge: fidelity.Judge) -> list[Point]:
    """NNCodec without its trellis at every QP around the pair's unit: a quarter of an octave each."""
    n = sum(w.size for w in pair.new.values())
    peer = NncodecPeer()
    middle = round(4 * math.log2(2 * pair.unit))
    settings = [{"qp": middle + shift} for shift in range(-7, 8)]
    with tempfile.TemporaryDirectory() as name:
        answer = fidelity.ask(peer, pair, settings, 1, Path(name))
        return [
            {"step": 2 ** (raw["setting"]["qp"] / 4), "bits": 8 * raw["bytes"] / n, "kl": judge(fidelity.restored(Path(name), i))["kl"]}
            for i, raw in enumerate(answer["points"])
        ]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench rates", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--pairs", nargs="+", choices=pairs.NAMES, default=[p for p in pairs.NAMES if "quick" not in p])
    parser.add_argument("--only", nargs="+", choices=[*RULES, _NNCODEC], default=[*RULES, _NNCODEC])
    parser.add_argument("--share", type=float, default=0.5, help="how much of the held-out data to use")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench rates needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    for name in options.pairs:
        pair = pairs.load(name, where)
        judge = fidelity.Judge(pair, where.parent / "data", options.share, fresh=False)
        for rule in options.only:
            points = nncodec(pair, judge) if rule == _NNCODEC else swept(RULES[rule], pair, judge)
            row = {"bits": {f"{kl:g}": at_divergence(points, kl) for kl in TARGETS}, "points": points}
            print(name, rule, row["bits"], file=sys.stderr, flush=True)
            found = record.load("rates").get("pairs", {})
            found.setdefault(name, {})[rule] = row
            record.save("rates", {"share": options.share, "pairs": found}, ("nearzip", "numpy", "torch"))
