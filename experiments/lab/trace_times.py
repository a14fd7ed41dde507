"""How long the sets of traces take to train: measured for finished ones, estimated from a few steps for others."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from experiments.lab import record, trace_sets
from experiments.lab.data import Dataset, load
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import evaluate, steps_per_epoch, training_batches
from experiments.lab.training import Settings, make_optimizer, train_step

#: Sets that are made for a processor.
_SETS = ("quick", "chains", "full")
_SECONDS = 8.0


def step_seconds(settings: Settings, dataset: Dataset) -> float:
    """Median time of a step, from at least five after two that warm up."""
    torch.manual_seed(settings.seed)
    network = NETWORKS[settings.network]()
    optimizer = make_optimizer(network, settings)
    batches = training_batches(dataset, settings.batch, torch.Generator().manual_seed(settings.seed))
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < 7 or time.perf_counter() - begin < _SECONDS:
        started = time.perf_counter()
        train_step(network, optimizer, settings.lr, *next(batches))
        found.append(time.perf_counter() - started)
    return statistics.median(found[2:])


def estimate(settings: Settings, dataset: Dataset) -> dict[str, Any]:
    """Seconds that a trace would take: its steps, and judging its versions."""
    dataset = dataset.limited(settings.limit)
    per_epoch = steps_per_epoch(dataset, settings.batch)
    steps = settings.steps or settings.epochs * per_epoch
    versions = -(-steps // (settings.every or per_epoch))
    begin = time.perf_counter()
    evaluate(NETWORKS[settings.network](), dataset.test)
    evaluate(NETWORKS[settings.network](), dataset.validation)
    judging = time.perf_counter() - begin
    one = step_seconds(settings, dataset)
    return {"steps": steps, "seconds": round(steps * one + versions * judging, 1), "estimated": True}


def row(settings: Settings, folder: Path, data: str | None, estimated: bool) -> dict[str, Any]:
    """Training time of a finished trace on this machine, or an estimate."""
    if not estimated and trace_sets.is_complete(folder, settings):
        document = trace_sets.read(folder) or {}
        return {"steps": document["versions"][-1]["step"], "seconds": document["seconds"],
                "processor_seconds": document["processor_seconds"], "estimated": False}  # fmt: skip
    return estimate(settings, load(data_of(settings.network), data, settings.n_validation))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench trace_times", description=__doc__)
    parser.add_argument("--data", help="folder with the data sets (or NEARZIP_DATA); fetched if not given")
    parser.add_argument("--sets", nargs="+", choices=trace_sets.SETS, default=list(_SETS))
    parser.add_argument("--estimate", action="store_true", help="of finished traces as well")
    options = parser.parse_args(arguments)
    sets: dict[str, Any] = dict(record.load("trace_times").get("sets", {}))
    for name in options.sets:
        sets[name] = {}
        for settings in trace_sets.SETS[name]:
            folder = trace_sets.traces_folder() / name / settings.network
            sets[name][settings.network] = row(settings, folder, options.data, options.estimate)
            print(name, settings.network, sets[name][settings.network], file=sys.stderr)
    record.save("trace_times", {"threads": torch.get_num_threads(), "sets": sets}, ("torch", "numpy"))
