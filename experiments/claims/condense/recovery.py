"""The L-C optimizer against a gradual schedule and one-shot pruning at the same epochs, LeNet-300-100."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from experiments.claims.condense.subjects import case_of
from experiments.lab import record
from nearzip import condense

#: Of so many images each, drawn anew from all.
EPOCHS, PER_EPOCH = 10, 20_000
KEEPS = (0.05, 0.02, 0.01)
RECOVERIES = {
    "one-shot": condense.Direct(EPOCHS),
    "gradual": condense.Gradual(EPOCHS),
    "L-C": condense.LC(EPOCHS),
}


def rows(network: str, folder: str | None, seeds: list[int]) -> list[dict[str, Any]]:
    """Test accuracy of every recovery at every share, seed by seed."""
    found = []
    for seed in seeds:
        case = case_of(network, folder, seed, PER_EPOCH)
        reference = case.test(case.module)
        for keep in KEEPS:
            for name, recover in RECOVERIES.items():
                begin = time.process_time()
                small = condense.compress(case.module, case.train_epoch, keep=keep, recover=recover, seed=seed)
                row = {
                    "seed": seed, "keep": keep, "recovery": name, "reference": reference,
                    "test": case.test(small.module), "seconds": round(time.process_time() - begin, 1),
                }  # fmt: skip
                print(row, flush=True)
                found.append(row)
    return found


def means(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean test accuracy by share and recovery."""
    return {
        f"{keep:g}": {
            name: statistics.mean(r["test"] for r in found if r["keep"] == keep and r["recovery"] == name)
            for name in RECOVERIES
        }
        for keep in KEEPS
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_recovery", description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    commit = record.commit()
    for seed in options.seeds:
        fresh = rows(options.network, options.data, [seed])
        # Read again: seeds may be measured in several calls of one commit.
        before = record.load("condense_recovery")
        kept = before["rows"] if before.get("commit") == commit else []
        found = sorted([*(r for r in kept if r["seed"] != seed), *fresh], key=lambda r: int(r["seed"]))
        result = {
            "commit": commit, "network": options.network, "epochs": EPOCHS, "per_epoch": PER_EPOCH,
            "seeds": len({r["seed"] for r in found}), "reference": statistics.mean(r["reference"] for r in found),
            "means": means(found), "rows": found,
        }  # fmt: skip
        record.save("condense_recovery", result, ("nearzip", "numpy", "torch"))
