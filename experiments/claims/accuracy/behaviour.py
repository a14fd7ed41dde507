"""Which method hurts what, at equal size? Accuracy by class, costs, features, attributions, boundary, robustness.

The questions of "Correctness-preserving Compression", section II. For each network the size is that of rounding to 8
bits (one scale a tensor, the numbers coded losslessly); every other method gets the setting whose archive comes
closest to it from below.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nearzip as nz
from experiments.lab import behaviour, evaluate, record, trace_sets, traces
from experiments.lab.networks import data_of
from experiments.lab.traces import Tensors
from nearzip import calibrate
from nearzip.stages.prune import largest

#: Trials of a setting, and of the calibrated one, each of which rounds a network again.
_TRIALS, _CALIBRATED_TRIALS = 7, 3

#: From a setting, larger ones giving smaller archives, to bytes and restored tensors.
Method = Callable[[float], tuple[int, Tensors]]


def is_layer(values: np.ndarray) -> bool:
    return values.ndim >= 2 and values.dtype == np.float32


def rounded(tensors: Tensors, bits: int) -> tuple[int, Tensors]:
    """Layers to integers of `bits`, the largest magnitude of each tensor at the end; everything else exact."""
    codes, restored = dict(tensors), dict(tensors)
    for name, w in tensors.items():
        if is_layer(w):
            scale = float(np.abs(w).max()) / (2 ** (bits - 1) - 1) or 1.0
            codes[name] = np.round(w / scale).astype(np.int8)
            restored[name] = (codes[name] * np.float32(scale)).astype(np.float32)
    return nz.compress(codes, bound=nz.Lossless()).nbytes, restored


def methods(name: str, tensors: Tensors, where: Path, bits: int) -> dict[str, tuple[Method, float, float, int]]:
    """By name: the method, the range of its setting, and how many trials it gets."""
    exact = {n: nz.Lossless() for n, w in tensors.items() if not is_layer(w)}
    module, batches = evaluate.loaded(name, tensors), evaluate.batches_of(name, where, 2)

    def archived(**how: Any) -> tuple[int, Tensors]:
        found = nz.compress(tensors, **how)
        return found.nbytes, found.restored

    def pruned(drop: float) -> tuple[int, Tensors]:
        kept = {n: w * largest(w.astype(np.float64).reshape(-1), 1 - drop).reshape(w.shape) if is_layer(w) else w
                for n, w in tensors.items()}  # fmt: skip
        restored = {n: w.astype(tensors[n].dtype) for n, w in kept.items()}
        return nz.compress(restored, bound=nz.Lossless()).nbytes, restored

    def calibrated(step: float) -> tuple[int, Tensors]:
        found = calibrate.compress(module, batches, step=step)
        return found.nbytes, found.restored

    keep = 0.8 if bits == 8 else 0.4
    return {
        "nearzip": (lambda t: archived(bound={**exact, "*": nz.Absolute(t)}), 1e-4, 0.3, _TRIALS),
        "nearzip calibrated": (calibrated, 2e-3, 0.08, _CALIBRATED_TRIALS),
        "deepsz": (
            lambda t: archived(method="deepsz", bound=nz.Absolute(t), options={"keep": keep}), 1e-4, 0.3, _TRIALS,
        ),
        "deep-compression": (
            lambda t: archived(method="deep-compression", options={"keep": 1 - t, "bits": 8 if bits == 8 else 5}),
            0.02, 0.98, _TRIALS,
        ),
        "pruning": (pruned, 0.02, 0.99, _TRIALS),
    }  # fmt: skip


def of_size(method: Method, low: float, high: float, trials: int, n_bytes: int) -> tuple[int, Tensors, float]:
    """The result closest to `n_bytes` from below, by bisection: geometric for bounds and steps."""
    best: tuple[int, Tensors, float] | None = None
    for _ in range(trials):
        middle = (low + high) / 2 if high > 0.9 else math.sqrt(low * high)
        size, restored = method(middle)
        if size <= n_bytes:
            high = middle
            if best is None or size > best[0]:
                best = size, restored, middle
        else:
            low = middle
    if best is None:
        size, restored = method(high)
        best = size, restored, high
    return best


def originals(where: Path) -> Iterator[tuple[str, Path, str]]:
    """Networks, their files, and what they are."""
    for name, version in (("vgg-small", "008"), ("transformer", "00950")):
        yield name, where / name / f"{version}.safetensors", "shared trace"
    quick = trace_sets.version_files(trace_sets.traces_folder() / "quick" / "lenet-5")
    if quick:
        yield "lenet-5", quick[-1], "quick set"
    own = trace_sets.version_files(trace_sets.traces_folder() / "correctness" / "resnet-20")
    if own:
        settings = trace_sets.read(trace_sets.traces_folder() / "correctness" / "resnet-20")["versions"][-1]
        yield "resnet-20", own[-1], f"20,000 images, {settings['epoch']} epochs"


def measured(
    name: str, tensors: Tensors, where: Path, n: int, n_deep: int, all_bits: list[int]
) -> Iterator[dict[str, Any]]:
    """A row for every size and method."""
    network, kind = evaluate.loaded(name, tensors), data_of(name)
    found = evaluate.held_out(name, where)
    text = (where / "tinyshakespeare" / "input.txt").read_text() if kind == "tinyshakespeare" else ""
    batches = list(zip(found.inputs, [t.view(x.shape) if text else t for x, t in
                                      zip(found.inputs, found.targets, strict=True)], strict=True))  # fmt: skip
    judges = behaviour.judges_of(network, kind, batches[:1] if text else behaviour.first(batches, n), n_deep, text)
    yield {"method": "original", "bytes": sum(w.nbytes for w in tensors.values()), "bits": 32,
           **behaviour.behaviour(judges, tensors)}  # fmt: skip
    for bits in all_bits:
        size, restored = rounded(tensors, bits)
        yield {"method": "rounding", "bits": bits, "bytes": size, **behaviour.behaviour(judges, restored)}
        for method, (run, low, high, trials) in methods(name, tensors, where, bits).items():
            begin = time.process_time()
            got, restored, setting = of_size(run, low, high, trials, size)
            yield {"method": method, "bits": bits, "bytes": got, "setting": setting,
                   "seconds": round(time.process_time() - begin, 1),
                   **behaviour.behaviour(judges, restored)}  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench behaviour", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", nargs="+", default=["lenet-5", "vgg-small", "resnet-20", "transformer"])
    parser.add_argument("--bits", type=int, nargs="+", default=[8], help="of the rounding whose size all methods get")
    parser.add_argument("--images", type=int, default=500, help="test images of outputs and features")
    parser.add_argument("--deep", type=int, default=50, help="of attributions, boundary and robustness")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where, folder = traces.folder(options.data), Path(options.data)
    if where is None:
        raise SystemExit("behaviour: the shared traces are not there; give --data DIR")
    files = {name: (file, what) for name, file, what in originals(where)}
    # Hours on two cores: networks that are not measured now keep their rows, with the commit of that time.
    before = record.load("behaviour")
    rows: list[dict[str, Any]] = [{"commit": before["commit"], **row} for row in before.get("rows", [])
                                  if row["network"] not in {*options.networks} & {*files}]  # fmt: skip
    for name in options.networks:
        if name not in files:
            print(f"{name}: not trained yet; see python -m experiments traces", file=sys.stderr)
            continue
        file, what = files[name]
        for row in measured(name, traces.load_file(file), folder, options.images, options.deep, options.bits):
            rows.append({"network": name, "trained": what, "commit": record.commit(), **row})
            print(name, row["method"], row["bits"], row["bytes"], row["metrics"], flush=True)
            record.save("behaviour", {
                "images": options.images, "deep_images": options.deep,
                "networks": list(dict.fromkeys(row["network"] for row in rows)),
                "perturbations": list(behaviour.PERTURBATIONS), "classes": {"cifar-10": list(behaviour.CIFAR)},
                "rows": rows,
            }, ("nearzip", "numpy", "torch", "captum", "foolbox"))  # fmt: skip
