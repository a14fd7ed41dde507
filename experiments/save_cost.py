"""Cost of saving: time on the training's thread, beside a copy of the state, and how much longer a run takes."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import optim

import nearzip as nz
from experiments import data, record
from experiments.networks import NETWORKS, data_of
from experiments.sampling import loss_of, training_batches
from nearzip.torch import Saver, capture

#: Steps of an epoch and images or windows of a step.
EPOCHS = {"lenet-300-100": (430, 128), "transformer": (40, 8)}


def copy_seconds(state: Any, rounds: int = 5) -> float:
    """Median time of one copy of all tensors into memory that is there already."""
    live = [t for t in state.tensors.values() if isinstance(t, torch.Tensor)]
    buffers = [torch.empty_like(t) for t in live]
    found = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        for buffer, tensor in zip(buffers, live, strict=True):
            buffer.copy_(tensor)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


def epoch(network: torch.nn.Module, optimizer: optim.Optimizer, batches: Any, steps: int) -> float:
    """Seconds for some steps."""
    begin = time.perf_counter()
    for _ in range(steps):
        inputs, targets = next(batches)
        loss = loss_of(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.perf_counter() - begin


def measure(name: str, dataset: data.Dataset, steps: int, rounds: int, batch: int) -> dict[str, Any]:
    """Epochs with and without a save at their end, in turns, so that a busy machine hurts both alike."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    optimizer = optim.AdamW(network.parameters(), 1e-3)
    batches = training_batches(dataset, batch, torch.Generator().manual_seed(0))
    epoch(network, optimizer, batches, 2)
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder) / "run", bound=nz.Rms(0.05)) as saver:
        saver.save(network, optimizer, step=0)
        saver.wait()
        before = saver.report
        with_save, without, blocked = [], [], []
        for number in range(rounds):
            without.append(epoch(network, optimizer, batches, steps))
            begin = time.perf_counter()
            saver.save(network, optimizer, step=number + 1)
            blocked.append(time.perf_counter() - begin)
            with_save.append(blocked[-1] + epoch(network, optimizer, batches, steps))
            saver.wait()
        report = saver.report
        copying = copy_seconds(capture(network, optimizer))
    return {
        "steps": steps,
        "epoch": statistics.median(without),
        "epoch and save": statistics.median(with_save),
        "longer": statistics.median(with_save) / statistics.median(without) - 1,
        "blocked": statistics.median(blocked),
        "copy of the state": copying,
        "behind": (report.seconds_behind - before.seconds_behind) / rounds,
        "snapshot_bytes": report.snapshot_bytes,
        "bytes_of_a_save": (report.n_bytes - before.n_bytes) / rounds,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench save_cost", description=__doc__)
    parser.add_argument("--data", help="folder with the data sets (or NEARZIP_DATA)")
    parser.add_argument("--networks", default=",".join(EPOCHS), help="those that are not named keep their figures")
    parser.add_argument("--steps", type=int, help="in place of the network's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="in place of the network's own")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = dict(record.load("save_cost").get("networks", {}))
    for name in chosen.networks.split(","):
        steps, batch = EPOCHS.get(name, (100, 64))
        dataset = data.load(data_of(name), chosen.data)
        rows[name] = measure(name, dataset, chosen.steps or steps, chosen.rounds, chosen.batch or batch)
        print(name, rows[name], file=sys.stderr)
    record.save("save_cost", {"networks": rows}, ("nearzip", "numpy", "torch"))
