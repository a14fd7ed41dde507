"""What calibration costs: beside an evaluation pass, by size of a layer, and in memory.

Each size is measured in a process of its own, on one thread: square layers with correlated inputs and gradients.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.lab import evaluate, record, traces
from experiments.lab.record import timed

_SIZES = (256, 512, 1024, 2048, 4096)
_PAIRS = ("transformer late", "vgg-small late")


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def size_row(n: int) -> dict[str, float]:
    """Moments, both factors and the rounding of one n x n layer; runs in a process of its own."""
    from nearzip.calibrate.gram import Gram
    from nearzip.calibrate.rounding import round_matrix, triangular

    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(n) + torch.randn(n, n, generator=generator) / n**0.5
    vectors = torch.randn(4096, n, generator=generator) @ mixing
    target = np.random.default_rng(0).normal(0, 2, (n, n)).astype(np.float32)
    before = _peak_mib()
    gram, moments_s = timed(lambda: Gram.of(vectors[None]))
    factor, factor_s = timed(lambda: triangular(gram, 0.1)[0])
    levels, round_s = timed(lambda: round_matrix(target, factor, factor, 1.0))
    error, plain = (
        mixing @ torch.from_numpy((of - target).astype(np.float32)) @ mixing.T for of in (levels, np.rint(target))
    )
    return {
        "values": n * n,
        "error_over_plain": round(float(error.square().mean() / plain.square().mean()), 3),
        "moments_of_4096_vectors_s": round(moments_s, 3),
        "both_factors_s": round(2 * factor_s, 3),
        "round_s": round(round_s, 3),
        "memory_before_mib": round(before),
        "memory_peak_mib": round(_peak_mib()),
    }


def sizes() -> dict[str, Any]:
    """Each size in a fresh process."""
    found = {}
    for n in _SIZES:
        command = [sys.executable, "-m", "experiments", "calibration", "--size", str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[str(n)] = json.loads(done.stdout)
        print(n, found[str(n)], file=sys.stderr)
    return found


def cost(where: Path, pair: str) -> dict[str, Any]:
    """Processor seconds of each part, beside one evaluation pass over the same batches."""
    from nearzip.calibrate.network import Predictor
    from nearzip.calibrate.rounder import Rounder
    from nearzip.calibrate.sensitivity import gather

    old, new = traces.pair(where, pair)
    name = traces.PAIRS[pair][0].split("/")[0]
    module, batches = evaluate.loaded(name, new), evaluate.batches_of(name, where.parent / "data")

    def evaluation_pass() -> None:
        with torch.inference_mode():
            for batch in batches:
                module(batch)

    evaluation_pass()
    _, pass_s = timed(evaluation_pass, 3)
    predictor = Predictor(module, batches)
    keep = {*predictor.held, *predictor.fitted}
    sensitivity, gather_s = timed(lambda: gather(predictor, keep=keep), 3)
    floats = {n: w for n, w in new.items() if w.dtype == np.float32}
    calibration, factors_s = timed(lambda: Rounder(predictor, sensitivity, floats, old))
    step = calibration.steps.for_divergence(3e-4)
    assert step is not None
    rounded, round_s = timed(lambda: calibration.round(step, fitted=False), 3)
    _, tune_s = timed(lambda: calibration.with_fitted_biases(rounded))
    parts = {"gather": gather_s, "factors": factors_s, "round": round_s, "tune": tune_s}
    return {
        "predictions": sensitivity.n_predictions,
        "evaluation_pass_s": round(pass_s, 3),
        **{f"{part}_s": round(seconds, 3) for part, seconds in parts.items()},
        **{f"{part}_in_passes": round(seconds / pass_s, 2) for part, seconds in parts.items()},
        "estimated_divergence": 3e-4,
        "measured_divergence": rounded.divergence,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench calibration", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.size:
        with contextlib.redirect_stdout(sys.stderr):
            row = size_row(options.size)
        print(json.dumps(row))
        return
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench calibration needs data and traces: --data DIR or NEARZIP_DATA")
    costs = {pair: cost(where, pair) for pair in _PAIRS}
    print(json.dumps(costs, indent=1), file=sys.stderr)
    record.save("calibration", {"cost": costs, "sizes": sizes()}, ("nearzip", "numpy", "torch"))
