"""Cost of saving: time on the training's thread, beside a copy of the state, and how much longer a run takes.

Processor time, which a busy machine changes little, and wall time. An epoch with its save includes the background
thread: the time of the run on one core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim
from torch.nn import functional

import nearzip as nz
from experiments.lab import data, record
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import Batch, loss_of, steps_per_epoch, training_batches
from nearzip.torch import Saver, capture

LINEAR = "24 matrices of 1024 x 1024"
Loss = Callable[[nn.Module, Batch], torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """Steps of an epoch, and images, windows or rows of noise of a step."""

    steps: int
    batch: int


SETTINGS = {"lenet-300-100": Setting(430, 128), "transformer": Setting(20, 8), LINEAR: Setting(20, 64)}


class Run:
    """A network in training with AdamW; `per_epoch`: steps of an epoch, if its data end."""

    def __init__(self, network: nn.Module, batches: Iterator[Batch], loss: Loss, per_epoch: int | None = None):
        self.network, self.batches, self.loss, self.per_epoch = network, batches, loss, per_epoch
        self.optimizer = optim.AdamW(network.parameters(), 1e-3)

    def epoch(self, steps: int) -> None:
        """Train for some steps."""
        for _ in range(steps):
            loss = self.loss(self.network, next(self.batches))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


def run_of(name: str, batch: int, folder: str | None) -> Run:
    """One of the settings, from its first step."""
    torch.manual_seed(0)
    if name == LINEAR:
        return linear(24, batch)
    dataset = data.load(data_of(name), folder)
    batches = training_batches(dataset, batch, torch.Generator().manual_seed(0))
    loss: Loss = lambda network, pair: loss_of(network(pair[0]), pair[1])  # noqa: E731
    return Run(NETWORKS[name](), batches, loss, steps_per_epoch(dataset, batch))


def linear(layers: int, batch: int, width: int = 1024) -> Run:
    """Matrices in a row that learn to give noise back: a large state at little arithmetic."""

    def noise() -> Iterator[Batch]:
        while True:
            x = torch.randn(batch, width)
            yield x, x

    network = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    return Run(network, noise(), lambda network, pair: functional.mse_loss(network(pair[0]), pair[1]))


class Copy:
    """A copy of all tensors of a state into memory that is there already: the least that a save could do."""

    def __init__(self, run: Run):
        state = capture(run.network, run.optimizer, rng=False)
        # AdamW changes all of them in place: they stay those of the training.
        self.live = [value for value in state.tensors.values() if isinstance(value, torch.Tensor)]
        self.buffers = [torch.empty_like(tensor) for tensor in self.live]
        self()  # the memory's pages are there now

    def __call__(self) -> None:
        for buffer, tensor in zip(self.buffers, self.live, strict=True):
            buffer.copy_(tensor)


class Clocks:
    """Seconds of pieces of work: of this thread's processor time, of the whole process's, and of the clock."""

    def __init__(self) -> None:
        self.found: dict[str, list[tuple[float, ...]]] = {}

    def __call__(self, name: str, work: Callable[[], object]) -> None:
        begin = time.thread_time(), time.process_time(), time.perf_counter()
        work()
        end = time.thread_time(), time.process_time(), time.perf_counter()
        self.found.setdefault(name, []).append(tuple(b - a for a, b in zip(begin, end, strict=True)))

    def median(self, name: str, which: int) -> float:
        return statistics.median(row[which] for row in self.found[name])


THREAD, PROCESS, CLOCK = range(3)


def measure(run: Run, steps: int, rounds: int) -> dict[str, Any]:
    """Epochs with and without a save, in turns; a copy and a save come after one, with caches as training left them."""
    run.epoch(2)
    clocks = Clocks()
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder) / "run", bound=nz.Rms(0.05)) as saver:

        def save(step: int) -> None:
            saver.save(run.network, run.optimizer, step=step)

        save(0)
        saver.wait()
        copy, before = Copy(run), saver.report
        run.epoch(steps)
        for number in range(1, rounds + 1):
            clocks("copy", copy)
            clocks("epoch", lambda: run.epoch(steps))
            clocks("save", lambda at=number: save(at))  # type: ignore[misc]
            clocks("epoch beside", lambda: run.epoch(steps))
            clocks("rest", saver.wait)
        report = saver.report
    beside = sum(clocks.median(name, PROCESS) for name in ("save", "epoch beside", "rest"))
    return {
        "steps": steps,
        "steps of an epoch": run.per_epoch,
        "rounds": rounds,
        "parameters": sum(parameter.numel() for parameter in run.network.parameters()),
        "tensors": len(copy.buffers),
        "epoch": clocks.median("epoch", PROCESS),
        "epoch and save": beside,
        "blocked": clocks.median("save", THREAD),
        "blocked, clock": clocks.median("save", CLOCK),
        "copy of the state": clocks.median("copy", THREAD),
        "copy of the state, clock": clocks.median("copy", CLOCK),
        "behind, clock": (report.seconds_behind - before.seconds_behind) / rounds,
        "load": os.getloadavg()[0],
        "snapshot_bytes": report.snapshot_bytes,
        "bytes_of_a_save": (report.n_bytes - before.n_bytes) / rounds,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench save_cost", description=__doc__)
    parser.add_argument("--data", help="folder with the data sets (or NEARZIP_DATA)")
    parser.add_argument("--networks", default=",".join(SETTINGS), help="those that are not named keep their figures")
    parser.add_argument("--steps", type=int, help="in place of the network's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="in place of the network's own")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = record.load("save_cost").get("networks", {})
    rows = {name: before[name] for name in SETTINGS if name in before}
    for name in chosen.networks.split(","):
        setting = SETTINGS[name]
        run = run_of(name, chosen.batch or setting.batch, chosen.data)
        rows[name] = {**measure(run, chosen.steps or setting.steps, chosen.rounds), "commit": record.commit()}
        print(name, rows[name], file=sys.stderr)
    record.save("save_cost", {"networks": {n: rows[n] for n in SETTINGS if n in rows}}, ("nearzip", "numpy", "torch"))
