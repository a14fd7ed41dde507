"""What `tune` finds with the step as its knob, which asks the network how to round, beside a bound for every value."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from experiments.lab import record, traces
from experiments.lab.peers import running

#: The divergence allowed, nats per prediction, and trials of each search.
_MAX_KL, _EVALUATIONS = 3e-4, 14
_PAIRS = ("quick lenet-300-100", "quick lenet-5", "quick transformer", "transformer late")


def found(pair: traces.Pair, evaluator: running.CachedEvaluator, knob: str, evaluations: int) -> dict[str, Any]:
    """The smallest archive of one search, its options, and its divergence when it is decoded."""
    import nearzip as nz

    def evaluate(tensors: traces.Tensors) -> float:
        kl = evaluator(tensors)["kl"]
        return -1e9 if kl is None else -kl

    plan, seconds = record.timed(
        lambda: nz.tune(pair.new, pair.old, evaluate=evaluate, max_loss=_MAX_KL, knob=knob, evaluations=evaluations)
    )
    archive = nz.compress(pair.new, pair.old, plan=plan, threads=1)
    n = sum(w.size for w in pair.new.values())
    row = {
        "bits_per_parameter": 8 * archive.nbytes / n,
        "kl": evaluator(nz.decompress(archive.to_bytes(), base=pair.old))["kl"],
        "options": dict(plan.chosen.codings.default.options),
        "trials": len(plan.trials),
        "seconds": round(seconds, 2),
    }
    print(pair.name, knob, row, file=sys.stderr)
    return row


def measured(name: str, where: Path, share: float) -> dict[str, Any]:
    """One pair: with a bound, with a step, and with a step and trials left for other roundings."""
    pair = traces.load_pair(name, where)
    evaluator = running.CachedEvaluator(pair, where.parent / "data", share, fresh=True)
    return {
        "abs": found(pair, evaluator, "abs", _EVALUATIONS),
        "step, 5 trials": found(pair, evaluator, "step", 5),
        "step": found(pair, evaluator, "step", _EVALUATIONS),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench roundings", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--pairs", nargs="+", choices=traces.pair_names(), default=_PAIRS)
    parser.add_argument("--share", type=float, default=0.1, help="how much of the held-out data to use")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench roundings needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    pairs = {name: measured(name, where, options.share) for name in options.pairs}
    record.save("roundings", {"max_kl": _MAX_KL, "share": options.share, "pairs": pairs}, ("nearzip", "numpy", "torch"))
