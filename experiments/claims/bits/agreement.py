"""The codecs that were measured before this package existed, at the same steps on a trace of the same kind.

The design's figures are of a transformer's versions late in training, 50 steps apart; which ones is not known. Here two
neighbouring updates of the full set's transformer are mixed so that they are as large as the design's: the order-0
entropy of differences in steps of 0.002 tells. All figures are means of the two in that mixture.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from experiments.claims.bits import fidelity
from experiments.lab import pairs, record, trace_sets
from experiments.lab.peers import by_name
from experiments.lab.peers.environments import NotInstalledError
from experiments.lab.traces import Tensors
from experiments.papers.qd.measure import entropy
from nearzip.stages import Context, ExponentBuckets

#: Distance between levels that the design's row of plain rounding has, and the entropy that it found.
STEP, ENTROPY = 0.002, 0.602
#: What the design calls it: the peer here and its setting, bits and KL as they were. NNCodec's QP is the one nearest to
#: the step (a quarter of a power of two); the design does not say which it had.
CODECS: dict[str, tuple[str, dict[str, Any], float, float]] = {
    "Delta-DNN, eps 0.1 % (LZMA)": ("delta-dnn absolute", {"abs": 0.001}, 0.719, 1.6e-4),
    "QD-Compressor, fixed 8 bit": ("qd-compressor", {"bits": 8}, 0.905, 2.3e-4),
    "QD-Compressor, 4-8 bit": ("qd-compressor", {"b_max": 8}, 0.736, 1.3e-2),
    "LC-Checkpoint, 3 bit": ("lc-checkpoint", {"bits": 3}, 1.754, 1.6e-4),
    "SZ3 NOPRED on the delta, 1e-3": ("SZ3 NOPRED", {"abs": 0.001}, 0.663, 1.6e-4),
    "NNCodec, trellis": ("NNCodec trellis", {"qp": -36}, 0.525, 2.0e-4),
    "nearzip, step 0.002": ("nearzip", {"abs": 0.001}, ENTROPY, 1.5e-4),
}


def differences(old: Tensors, new: Tensors) -> dict[str, np.ndarray]:
    """Every float tensor's difference, float32."""
    return {name: (w - old[name]).reshape(-1) for name, w in new.items() if w.dtype == np.float32}


def rounded_entropy(old: Tensors, new: Tensors) -> float:
    """Of all differences together, in steps of `STEP`."""
    levels = np.rint(np.concatenate(list(differences(old, new).values())) / STEP).astype(np.int64)
    return entropy(levels - levels.min())


def bucket_entropy(old: Tensors, new: Tensors, bits: int) -> float:
    """Of LC-Checkpoint's symbols, an ideal coder for each tensor; without the buckets' means."""
    delta = differences(old, new)
    total = sum(entropy(ExponentBuckets(bits).encode(d, Context.alone(d)).symbols) * d.size for d in delta.values())
    return total / sum(d.size for d in delta.values())


def bracket(files: list[Path]) -> tuple[list[tuple[Path, Path]], float]:
    """Two neighbouring updates late in training, the design's size between theirs, and the share of the first.

    Raises ValueError if there are none.
    """
    updates = list(pairwise(files[len(files) // 2 :]))
    sizes = [rounded_entropy(load_file(old), load_file(new)) for old, new in updates]
    for i, (larger, smaller) in enumerate(pairwise(sizes)):
        if larger >= ENTROPY >= smaller:
            return updates[i : i + 2], (ENTROPY - smaller) / (larger - smaller)
    raise ValueError("no update of the trace is as large as the design's")


def measure(pair: pairs.Pair, judge: fidelity.Judge) -> dict[str, Any]:
    """Bits, KL and, where the design has one, the entropy of every codec at its one setting."""
    rows: dict[str, Any] = {}
    for label, (name, setting, _, _) in CODECS.items():
        try:
            (point,) = fidelity.points(by_name(name), pair, judge, [setting], 1)[0]
        except NotInstalledError as error:
            rows[label] = {"not_measured": str(error)}
            continue
        rows[label] = {"bits_per_parameter": point["bits_per_parameter"], "kl": point["kl"]}
    rows["LC-Checkpoint, 3 bit"]["entropy"] = bucket_entropy(pair.old, pair.new, 3)
    rows["nearzip, step 0.002"]["entropy"] = rounded_entropy(pair.old, pair.new)
    return rows


def mixed(first: dict[str, Any], second: dict[str, Any], share: float) -> dict[str, Any]:
    """Weighted means of two rows."""
    if "not_measured" in first:
        return first
    return {key: share * value + (1 - share) * second[key] for key, value in first.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench agreement", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data sets")
    options = parser.parse_args(arguments)
    files = trace_sets.version_files(trace_sets.traces_folder() / "full" / "transformer")
    if not files:
        raise SystemExit("bench agreement needs a trace: python -m experiments traces --set full --only transformer")
    torch.set_num_threads(1)
    updates, share = bracket(files)
    measured = []
    for old, new in updates:
        pair = pairs.Pair(f"{old.stem} to {new.stem}", "transformer", load_file(old), load_file(new), STEP / 2)
        measured.append(measure(pair, fidelity.Judge(pair, options.data, 1.0, fresh=True)))
        print(pair.name, measured[-1], file=sys.stderr)
    rows = {
        label: {"then_bits": bits, "then_kl": kl, **mixed(measured[0][label], measured[1][label], share)}
        for label, (_, _, bits, kl) in CODECS.items()
    }
    names = [f"{old.stem} to {new.stem}" for old, new in updates]
    result = {"updates": names, "share_of_the_first": share, "of": len(files), "each": measured, "rows": rows}
    record.save("agreement", result, ("nearzip", "numpy", "torch", "pysz"))
