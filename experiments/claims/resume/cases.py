"""The trainings that `resume` interrupts: networks, optimizers, when they crash and how they continue."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

import nearzip as nz
from experiments.lab import data, record
from experiments.lab.networks import NETWORKS
from experiments.lab.sampling import Batch, evaluation_batches, loss_of, training_batches
from experiments.lab.traces import cache_folder
from nearzip.torch import TrainingState, capture


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, when it crashes (`crash`, in steps, a multiple of `every`) and how it goes on."""

    network: str
    optimizer: str
    lr: float
    crash: int
    total: int
    every: int
    steps: int
    batch: int = 128
    epochs: int = 1


#: The first six are the settings that are asked for; the others are cheap and complete LeNet's.
CASES = {
    "LeNet-300-100, SGD, early": Case("lenet-300-100", "sgd", 0.02, 150, 1500, 50, 60),
    "LeNet-300-100, AdamW, late": Case("lenet-300-100", "adamw", 1e-3, 1200, 1500, 50, 60),
    "CIFAR-10, AdamW, early": Case("strided-small", "adamw", 1e-3, 150, 1500, 50, 60, 64),
    "CIFAR-10, SGD, late": Case("strided-small", "sgd", 0.02, 1200, 1500, 50, 60, 64),
    "transformer, AdamW, early": Case("transformer-small", "adamw", 1e-3, 125, 600, 25, 30, 4),
    "transformer, AdamW, late": Case("transformer-small", "adamw", 1e-3, 500, 600, 25, 30, 4),
    "LeNet-300-100, AdamW, early": Case("lenet-300-100", "adamw", 1e-3, 150, 1500, 50, 60),
    "LeNet-300-100, SGD, late": Case("lenet-300-100", "sgd", 0.02, 1200, 1500, 50, 60),
}


def begin(case: Case) -> tuple[nn.Module, optim.Optimizer, Any]:
    """Network, optimizer and schedule as they are before the first step."""
    torch.manual_seed(0)
    network = NETWORKS[case.network]()
    if case.optimizer == "sgd":
        optimizer: optim.Optimizer = optim.SGD(network.parameters(), case.lr, 0.9, weight_decay=5e-4)
    else:
        optimizer = optim.AdamW(network.parameters(), case.lr, weight_decay=0.1)
    total = case.total

    def cosine(step: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(step, total) / total))

    return network, optimizer, optim.lr_scheduler.LambdaLR(optimizer, cosine)


def steps(network: nn.Module, optimizer: optim.Optimizer, schedule: Any, batches: Iterator[Batch], n: int) -> None:
    """Train for `n` batches."""
    network.train()
    for inputs, targets in islice(batches, n):
        loss = loss_of(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


@torch.no_grad()
def held_out_loss(network: nn.Module, split: data.Split, n_batches: int = 4) -> float:
    """Mean loss on the first batches: 2 000 images, or 128 windows of text. It is compared only with itself."""
    network.eval()
    losses = [loss_of(network(x), y).item() for x, y in islice(evaluation_batches(split), n_batches)]
    return sum(losses) / len(losses)


def to_crash(case: Case, dataset: data.Dataset, n_saves: int = 3) -> list[TrainingState]:
    """The last saves before the crash, the crash's own state last."""
    network, optimizer, schedule = begin(case)
    batches = training_batches(dataset, case.batch, torch.Generator().manual_seed(1))
    found = []
    for at in range(case.every, case.crash + 1, case.every):
        steps(network, optimizer, schedule, batches, case.every)
        if at > case.crash - n_saves * case.every:
            state = capture(network, optimizer, schedule, step=at, rng=False)
            found.append(TrainingState.from_arrays({n: a.copy() for n, a in state.to_arrays().items()}))
    return found


def kept_to_crash(case: Case, dataset: data.Dataset) -> list[TrainingState]:
    """`to_crash`, from the cache if this commit trained it before."""
    said = json.dumps([asdict(case), record.commit(), torch.__version__])
    folder = cache_folder() / "resume" / hashlib.sha256(said.encode()).hexdigest()[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write(to_crash(case, dataset), folder)
    return [TrainingState.from_arrays(nz.decompress(path)) for path in sorted(folder.iterdir())]


def _write(states: list[TrainingState], folder: Path) -> None:
    part = tempfile.mkdtemp(dir=folder.parent)
    for i, state in enumerate(states):
        nz.compress(state.to_arrays()).save(Path(part) / f"{i}.nz")
    os.rename(part, folder)
