"""The Gaussian limit of every pair of `bench fidelity`: bits at measured divergences.

The limit (`nearzip.calibrate.rate_limit`) is taken twice: on the training batches that calibration has, and on the
held-out data that everything is evaluated on. Its divergence is an estimate, so tensors are drawn from its test channel
and evaluated as archives are; bits are compared at what was measured. Small pairs also have the limits with one
variance for each matrix, and without damping.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from experiments.lab import evaluate, record, traces
from experiments.lab.peers import running

#: Estimated divergences of the limit's curve, nats per prediction.
_ESTIMATED = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
#: Pairs whose limits are taken in two more ways.
_SMALL = ("quick lenet-300-100", "quick lenet-5")
#: Next to none.
_UNDAMPED = 1e-9


def curve(pair: traces.Pair, batches: list[Any], evaluator: running.CachedEvaluator, **settings: Any) -> dict[str, Any]:
    """The limit on some batches, and what samples at it diverge by."""
    from nearzip import calibrate

    n = sum(w.size for w in pair.new.values())
    module = evaluate.loaded(pair.network, pair.new)
    limit, seconds = record.timed(
        lambda: calibrate.rate_limit(module, batches, pair.old, n_batches=len(batches), **settings)
    )
    points = []
    for kl in _ESTIMATED:
        if kl < limit.divergence:
            measured = evaluator({**pair.new, **limit.sample(kl)})["kl"]
            points.append({"estimated_kl": kl, "kl": measured, "bits_per_parameter": limit.bits(kl) / n})
            print(pair.name, points[-1], file=sys.stderr)
    return {"seconds": round(seconds, 2), "base_estimated_kl": limit.divergence, "points": points}


def measured(name: str, where: Path, share: float) -> dict[str, Any]:
    """One pair: archives and limits."""
    from nearzip.calibrate import Damping

    data = where.parent / "data"
    pair = traces.load_pair(name, where)
    evaluator = running.CachedEvaluator(pair, data, share, fresh=True)
    held_out = evaluate.held_out(pair.network, data, share).inputs
    training = evaluate.batches_of(pair.network, data)
    limits = {
        "training batches": curve(pair, training, evaluator),
        "held-out data": curve(pair, held_out, evaluator),
    }
    if name in _SMALL:
        limits["held-out data, one variance"] = curve(pair, held_out, evaluator, variances="white")
        damping = Damping(_UNDAMPED, _UNDAMPED)
        limits["held-out data, undamped"] = curve(pair, held_out, evaluator, damping=damping)
    return {
        "commit": record.commit(),
        "parameters": sum(w.size for w in pair.new.values()),
        "held_out_share": share,
        "base_kl": evaluator(pair.old)["kl"],
        "limits": limits,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench limit", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--pairs", nargs="+", choices=traces.pair_names(), default=traces.pair_names())
    parser.add_argument("--share", type=float, default=0.2, help="how much of the held-out data to use")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench limit needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    for name in options.pairs:
        one = measured(name, where, options.share)
        known = record.load("limit").get("pairs", {})
        pairs = {pair: {**known, name: one}[pair] for pair in traces.pair_names() if pair in known or pair == name}
        record.save("limit", {"pairs": pairs}, ("nearzip", "numpy", "torch"))
