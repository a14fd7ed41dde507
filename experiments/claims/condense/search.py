"""The search for the smallest share within a budget, against a sweep of thirty shares."""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from experiments.claims.condense.subjects import Case, case_of
from experiments.lab import record
from nearzip import condense
from nearzip.errors import BudgetError

#: Budget, epochs of one recovery, images of an epoch (None: all), and the least share of the sweep.
SETTINGS: dict[str, tuple[float, int, int | None, float]] = {
    "digits": (0.01, 12, None, 2.0**-7),
    "lenet-300-100": (0.01, 8, 20_000, 2.0**-8),
}
_SWEEP = 30
#: Searches: trainings, and parameters of `condense.tune`.
SEARCHES: dict[str, tuple[int, dict[str, Any]]] = {
    "nearzip": (5, {}),
    "condensa, linear": (10, {"strategy": "condensa", "coordinate": "linear"}),
    "condensa, log2": (10, {"strategy": "condensa", "coordinate": "log2"}),
}


def sweep(case: Case, network: str, seed: int) -> list[dict[str, float]]:
    """Loss on the validation images at thirty shares, each trained from the reference."""
    _, epochs, _, least = SETTINGS[network]
    reference = case.validation(case.module)
    found = []
    for i in range(_SWEEP):
        keep = least ** ((i + 1) / _SWEEP)
        small = condense.compress(case.module, case.train_epoch, keep=keep, recover=condense.LC(epochs), seed=seed)
        found.append({"keep": keep, "loss": reference - case.validation(small.module)})
    return found


def searched(case: Case, network: str, seed: int, name: str) -> dict[str, Any]:
    """One search; the share that it found."""
    max_loss, epochs, _, _ = SETTINGS[network]
    samples, how = SEARCHES[name]
    try:
        small = condense.tune(
            case.module, case.train_epoch, evaluate=case.evaluator(), max_loss=max_loss, recover=condense.LC(epochs),
            samples=samples, seed=seed, evaluations=4, **how,
        )  # fmt: skip
    except BudgetError as error:
        return {"search": name, "keep": None, "trainings": samples, "why": str(error)}
    keeps = [trial.keep for trial in small.trials if trial.fits]
    return {
        "search": name, "keep": min(keeps), "trainings": len(small.trials), "bytes": small.archive.nbytes,
        "chosen": small.keep, "test": case.test(small.module),
    }  # fmt: skip


def rows(network: str, folder: str | None, seeds: int) -> list[dict[str, Any]]:
    found = []
    for seed in range(seeds):
        case = case_of(network, folder, seed, SETTINGS[network][2])
        points = sweep(case, network, seed)
        fitting = [point["keep"] for point in points if point["loss"] <= SETTINGS[network][0] + 1e-9]
        for name in SEARCHES:
            row = {"seed": seed, "smallest": min(fitting, default=1.0), **searched(case, network, seed, name)}
            print(row, flush=True)
            found.append(row)
    return found


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """By search: the share found over the smallest feasible one of the sweep; 1 for nothing found."""
    ratios = {name: [(r["keep"] or 1.0) / r["smallest"] for r in found if r["search"] == name] for name in SEARCHES}
    return {
        name: {
            "median": statistics.median(values), "worst": max(values),
            "within_ten_percent": sum(v <= 1.1 for v in values), "searches": len(values),
            "trainings": max(r["trainings"] for r in found if r["search"] == name),
        }
        for name, values in ratios.items()
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench condense_search", description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--networks", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    commit = record.commit()
    for network in options.networks:
        found = rows(network, options.data, options.seeds)
        settings = dict(zip(("max_loss", "epochs", "per_epoch", "least"), SETTINGS[network], strict=True))
        one = {"commit": commit, **settings, "summary": summary(found), "rows": found}
        # Read again: networks may be measured at once.
        known = {**record.load("condense_search").get("networks", {}), network: one}
        record.save("condense_search", {"commit": commit, "networks": known}, ("nearzip", "numpy", "torch"))
