"""QD-Compressor's Tables 1, 4, 5 and Figures 4, 5, 7, 12, and LC-Checkpoint at 2 to 4 bits, on chains of versions.

Every version is coded after training, against the decoded version before it; training does not use compression.
`docs/papers/qd-compressor.md` is made from the result by `bench docs`.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nearzip as nz
from experiments.lab import evaluate, record, trace_sets, traces
from experiments.lab.differences import integers
from experiments.lab.traces import Tensors, load_file


@dataclass(frozen=True)
class Chain:
    """Versions of one network: files of the shared traces, or those from `first` up to `end` of a cached trace."""

    network: str
    place: tuple[str, ...] | Path
    first: int = 0
    end: int | None = None


#: The full transformer has a version every 50 steps.
CHAINS: dict[str, Chain] = {
    "vgg-small, epochs 6 to 9": Chain("vgg-small", tuple(f"vgg-small/00{k}" for k in range(6, 10))),
    "vgg-small, epochs 1 to 9": Chain("vgg-small", Path("chains/vgg-small"), 0, 9),
    "resnet-20, epochs 1 to 8": Chain("resnet-20", Path("chains/resnet-20")),
    "lenet-300-100, epochs 1 to 12": Chain("lenet-300-100", Path("chains/lenet-300-100")),
    "lenet-5, epochs 1 to 8": Chain("lenet-5", Path("chains/lenet-5")),
    "transformer, steps 50 to 400": Chain("transformer", Path("full/transformer"), 0, 8),
    "transformer, steps 700 to 1000": Chain("transformer", Path("full/transformer"), 13, 20),
}
#: Label: method, bound, options, whether the version before is its base.
Way = tuple[str, str | None, dict[str, Any], bool]
WAYS: dict[str, Way] = {
    "Zstd": ("zstd", None, {"level": 3}, False),
    "SZ": ("sz3", "rel:1e-3", {}, False),
    "Delta-DNN": ("delta-dnn", None, {"mode": "relative", "eps": 0.05}, True),
    "Delta-DNN, absolute 0.1 %": ("delta-dnn", None, {"mode": "absolute", "eps": 1e-3}, True),
    "LC, 2 bits": ("lc-checkpoint", None, {"bits": 2}, True),
    "LC, 3 bits": ("lc-checkpoint", None, {"bits": 3}, True),
    "LC, 4 bits": ("lc-checkpoint", None, {"bits": 4}, True),
    "QD, 8 bits": ("qd-compressor", None, {"bits": 8}, True),
    "QD, 4-8 bits": ("qd-compressor", None, {}, True),
    "QD, 4 bits": ("qd-compressor", None, {"bits": 4}, True),
    "QD, 16 bits": ("qd-compressor", None, {"bits": 16}, True),
    "QD, 8 bits, Zstd": ("qd-compressor", None, {"bits": 8, "backend": "zstd"}, True),
    "QD, 8 bits, Gzip": ("qd-compressor", None, {"bits": 8, "backend": "gzip"}, True),
    "QD, 8 bits, difference first": ("qd-compressor", None, {"bits": 8, "variant": "delta-first"}, True),
    "QD, 8 bits, one range": ("qd-compressor", None, {"bits": 8, "variant": "global"}, True),
    "nearzip, abs 0.1 %": ("nearzip", "abs:1e-3", {}, True),
}


def versions(chain: str, shared: Path) -> list[Tensors]:
    """The versions of a chain, oldest first. Raises FileNotFoundError if they were not trained yet."""
    place, first, end = CHAINS[chain].place, CHAINS[chain].first, CHAINS[chain].end
    if isinstance(place, tuple):
        return [load_file(shared / f"{name}.safetensors") for name in place]
    files = trace_sets.version_files(trace_sets.traces_folder() / place)[first:end]
    if len(files) < 2:
        raise FileNotFoundError(f"no trace {place}; run: python -m experiments traces --set {place.parts[0]}")
    return [load_file(file) for file in files]


def follow(way: Way, chain: list[Tensors]) -> tuple[list[int], Tensors]:
    """Bytes of every version but the first, and what a reader has of the last in the end, from the bytes alone."""
    method, bound, options, with_base = way
    held, sizes = chain[0], []
    for version in chain[1:]:
        base = held if with_base else None
        data = nz.compress(version, base=base, method=method, bound=bound, options=options, threads=1).to_bytes()
        held = nz.decompress(data, base=base, threads=1)
        sizes.append(len(data))
    return sizes, held


def entropy(symbols: np.ndarray) -> float:
    """Bits for a symbol."""
    shares = np.unique(symbols, return_counts=True)[1] / symbols.size
    return float(-(shares * np.log2(shares)).sum())


def _levels(tensors: Tensors, bits: int, one_range: bool) -> np.ndarray:
    """All floating-point values quantized: each tensor by its own range, or all by one."""
    floats = [w.reshape(-1) for w in tensors.values() if w.dtype.kind == "f"]
    groups = [np.concatenate(floats)] if one_range else floats
    return np.concatenate([_quantized(values, bits) for values in groups])


def _quantized(values: np.ndarray, bits: int) -> np.ndarray:
    from nearzip.stages.ranges import Levels

    levels: np.ndarray = Levels(float(values.min()), float(values.max()), bits).quantize(values)
    return levels


#: Figure 4's "global" is Delta-DNN's one step for all layers: its default bound in both readings, and Table 1's.
STEPS: dict[str, tuple[str, float]] = {
    "Delta-DNN, absolute 0.1 %": ("absolute", 1e-3),
    "Delta-DNN, relative 0.1 %": ("relative", 1e-3),
    "Delta-DNN, relative 5 %": ("relative", 0.05),
}


def figure_4(chain: list[Tensors], bits: int = 8) -> dict[str, list[float]]:
    """Entropy of the quantized difference, bits for a value, pair by pair: by Delta-DNN's steps, and of the difference
    modulo 2^bits of what is quantized by one range or by each tensor's own."""
    found: dict[str, list[float]] = {
        label: [entropy(integers(old, new, eps, mode)) for old, new in pairwise(chain)]
        for label, (mode, eps) in STEPS.items()
    }
    for label, one_range in (("one range", True), ("local", False)):
        levels = [_levels(version, bits, one_range) for version in chain]
        found[label] = [entropy((new - old) % 2**bits) for old, new in pairwise(levels)]
    return found


def figure_5(chain: list[Tensors], bits: int = 8) -> dict[str, list[float]]:
    """MDM and CorrCoef of the quantized versions, pair by pair."""
    totals = [nz.compare(old, new, bits=bits).total for old, new in pairwise(chain)]
    return {"mdm": [t.mdm for t in totals], "corrcoef": [t.corrcoef or 0.0 for t in totals]}


def measure(name: str, shared: Path, share: float) -> dict[str, Any]:
    """Every way over one chain."""
    network, chain = CHAINS[name].network, versions(name, shared)
    evaluator = evaluate.Evaluator(network, chain[-1], evaluate.held_out(network, shared.parent / "data", share))
    size = sum(w.nbytes for w in chain[0].values())
    ways: dict[str, Any] = {}
    for label, way in WAYS.items():
        sizes, last = follow(way, chain)
        found = evaluator.compare(last)
        ways[label] = {
            "bytes": sizes, "ratio": size * len(sizes) / sum(sizes), "kl": found.kl, "accuracy": found.accuracy,
            "accuracy_change": found.accuracy_change,
        }  # fmt: skip
        print(name, label, f"{ways[label]['ratio']:.2f}", f"{found.kl:.1e}", file=sys.stderr)
    return {
        "version_bytes": size, "updates": len(chain) - 1, "accuracy": evaluator.accuracy, "ways": ways,
        "figure_4": figure_4(chain), "figure_5": figure_5(chain),
    }  # fmt: skip


def _load() -> dict[str, Any]:
    """Chains measured before."""
    path = record.RESULTS / "qd_compressor.json"
    loaded: dict[str, Any] = json.loads(path.read_text())["chains"] if path.is_file() else {}
    return loaded


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench qd_compressor", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--share", type=float, default=0.1, help="how much of the held-out data to use")
    parser.add_argument("--chains", nargs="+", choices=list(CHAINS), default=list(CHAINS), metavar="NAME")
    options = parser.parse_args(arguments)
    shared = traces.folder(options.data)
    if shared is None:
        raise SystemExit("bench qd_compressor needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    ways = {label: list(way) for label, way in WAYS.items()}
    for name in options.chains:
        found = measure(name, shared, options.share)
        chains = _load() | {name: found}
        ordered = {each: chains[each] for each in CHAINS if each in chains}
        record.save(
            "qd_compressor",
            {"held_out_share": options.share, "ways": ways, "chains": ordered},
            ("nearzip", "numpy", "torch", "pysz"),
        )
