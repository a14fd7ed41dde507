"""The L-C optimizer against a gradual schedule and one-shot pruning at the same epochs, LeNet-300-100."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
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


def rows(network: str, folder: str | None, seed: int, names: list[str], commit: str) -> Iterator[dict[str, Any]]:
    """Test accuracy of recoveries at every share."""
    case = case_of(network, folder, seed, PER_EPOCH)
    reference = case.test(case.module)
    for keep in KEEPS:
        for name in names:
            begin = time.process_time()
            small = condense.compress(case.module, case.train_epoch, keep=keep, recover=RECOVERIES[name], seed=seed)
            row = {
                "seed": seed, "keep": keep, "recovery": name, "reference": reference,
                "test": case.test(small.module), "seconds": round(time.process_time() - begin, 1), "commit": commit,
            }  # fmt: skip
            print(row, flush=True)
            yield row


def means(found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean test accuracy by share and recovery."""
    by: dict[str, dict[str, list[float]]] = {f"{keep:g}": {name: [] for name in RECOVERIES} for keep in KEEPS}
    for row in found:
        by[f"{row['keep']:g}"][row["recovery"]].append(row["test"])
    return {keep: {name: statistics.mean(tests) for name, tests in one.items() if tests} for keep, one in by.items()}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_recovery", description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--network", default="lenet-300-100")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recoveries", nargs="+", default=list(RECOVERIES), choices=RECOVERIES)
    options = parser.parse_args(arguments)
    commit = record.commit()
    for seed in options.seeds:
        for row in rows(options.network, options.data, seed, options.recoveries, commit):
            # Read again: seeds and recoveries may be measured in several calls; each row has its commit.
            before = record.load("condense_recovery")
            known = {_key(r): {"commit": before["commit"], **r} for r in before.get("rows", [])}
            found = sorted((known | {_key(row): row}).values(), key=_key)
            result = {
                "commit": commit, "network": options.network, "epochs": EPOCHS, "per_epoch": PER_EPOCH,
                "seeds": len({r["seed"] for r in found}), "reference": statistics.mean(r["reference"] for r in found),
                "means": means(found), "rows": found,
            }  # fmt: skip
            record.save("condense_recovery", result, ("nearzip", "numpy", "torch"))


def _key(row: dict[str, Any]) -> tuple[int, float, int]:
    return row["seed"], -row["keep"], list(RECOVERIES).index(row["recovery"])
