"""Trains, prunes and retrains the LeNets that DeepSZ's figures are about; every step is kept in the cache.

Pruning is gradual: each step keeps fewer weights and retrains with the zeros held. The steps of a network contain the
paper's shares, and go on beyond them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments import data
from experiments.cache import cache_folder
from experiments.networks import NETWORKS
from experiments.sampling import loss_of, steps_per_epoch, training_batches
from nearzip.recipes import Hold
from nearzip.torch import finetune, prune

Tensors = dict[str, np.ndarray]

#: Training images held out for every choice; the test images are for the report.
N_VALIDATION = 10_000
_BATCH = 128


@dataclass(frozen=True)
class Step:
    """One pruning: what is kept of each fully connected layer (and of convolutional ones, if named), and how long is
    retrained."""

    keep: tuple[tuple[str, float], ...]
    epochs: int
    name: str = ""


@dataclass(frozen=True)
class Subject:
    """A network, the paper's names of its fully connected layers, its training and pruning, its first linear module."""

    network: str
    layers: tuple[tuple[str, str], ...]
    epochs: int
    rate: float
    steps: tuple[Step, ...]
    tail: int
    paper_keep: tuple[float, ...]

    @property
    def tensors(self) -> dict[str, str]:
        """Paper's name to tensor."""
        return dict(self.layers)


def _step(layers: tuple[tuple[str, str], ...], shares: tuple[float, ...], epochs: int, name: str = "") -> Step:
    keep = tuple((tensor, share) for (_, tensor), share in zip(layers, shares, strict=True))
    return Step(keep, epochs, name)


_FC_300 = (("ip1", "1.weight"), ("ip2", "3.weight"), ("ip3", "5.weight"))
_FC_5 = (("ip1", "5.weight"), ("ip2", "7.weight"))

SUBJECTS = {
    "lenet-300-100": Subject(
        "lenet-300-100", _FC_300, 10, 0.1,
        (
            _step(_FC_300, (0.2, 0.2, 0.5), 2),
            _step(_FC_300, (0.08, 0.09, 0.26), 4, "paper"),
            _step(_FC_300, (0.05, 0.07, 0.26), 4, "6 %"),
            _step(_FC_300, (0.03, 0.05, 0.26), 6, "3 %"),
        ),
        1, (0.08, 0.09, 0.26),
    ),
    "lenet-5": Subject(
        "lenet-5", _FC_5, 6, 0.05,
        (
            _step(_FC_5, (0.25, 0.4), 1),
            _step(_FC_5, (0.08, 0.19), 2, "paper"),
            _step(_FC_5, (0.04, 0.15), 2, "4 %"),
            _step(_FC_5, (0.02, 0.1), 3, "2 %"),
        ),
        5, (0.08, 0.19),
    ),
}  # fmt: skip


def dataset(folder: str | None) -> data.Dataset:
    return data.load("mnist", folder, N_VALIDATION)


def arrays(module: nn.Module) -> Tensors:
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def load(subject: Subject, tensors: Tensors) -> nn.Module:
    module = NETWORKS[subject.network]()
    module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
    return module


def trainer(
    images: data.Dataset, rate: float, epochs: int, seed: int, decay: float = 1e-4
) -> Callable[[nn.Module], float]:
    """One epoch of SGD a call; the rate falls in a straight line to nothing over `epochs` calls."""
    batches = training_batches(images, _BATCH, torch.Generator().manual_seed(seed))
    per_epoch = steps_per_epoch(images, _BATCH)
    state: dict[str, Any] = {"step": 0}

    def train_epoch(module: nn.Module) -> float:
        if "optimizer" not in state:
            state["optimizer"] = torch.optim.SGD(module.parameters(), rate, 0.9, weight_decay=decay)
        optimizer, total = state["optimizer"], 0.0
        for _ in range(per_epoch):
            optimizer.param_groups[0]["lr"] = rate * max(0.01, 1 - state["step"] / (per_epoch * epochs))
            state["step"] += 1
            inputs, targets = next(batches)
            loss = loss_of(module(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total / per_epoch

    return train_epoch


@dataclass(frozen=True)
class Trained:
    """Tensors, and the seconds that training or retraining took."""

    tensors: Tensors
    seconds: float


def _cached(what: str, key: Any, make: Callable[[], Tensors]) -> Trained:
    """What `make` gives, from the cache if it was made before from the same settings."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "pruning" / f"{what}-{digest}.npz"
    if not path.is_file():
        print(f"{what}: training", file=sys.stderr, flush=True)
        begin = time.process_time()
        tensors = make()
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **tensors, **{"seconds ": np.array(time.process_time() - begin)})
        part.replace(path)
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    return Trained({n: a for n, a in found.items() if n != "seconds "}, float(found["seconds "]))


def original(subject: Subject, images: data.Dataset) -> Trained:
    def make() -> Tensors:
        torch.manual_seed(0)
        module = NETWORKS[subject.network]()
        train_epoch = trainer(images, subject.rate, subject.epochs, 0, 5e-4)
        for _ in range(subject.epochs):
            train_epoch(module)
        return arrays(module)

    key = [subject.network, subject.epochs, subject.rate, N_VALIDATION, torch.__version__]
    return _cached(subject.network, key, make)


def pruned(subject: Subject, images: data.Dataset) -> dict[str, Trained]:
    """The network after each named step."""
    now = original(subject, images)
    done, found, key = [], {}, [subject.network, subject.epochs, subject.rate, N_VALIDATION, torch.__version__]
    for number, step in enumerate(subject.steps):
        done.append(asdict(step))

        def make(now: Trained = now, step: Step = step, number: int = number) -> Tensors:
            module = load(subject, now.tensors)
            prune(module, dict(step.keep))
            train_epoch = trainer(images, subject.rate / 2, step.epochs, number + 1)
            finetune(module, train_epoch, Hold(zeros=tuple(dict(step.keep))), epochs=step.epochs)
            return arrays(module)

        now = _cached(f"{subject.network}-step-{number}", [*key, done], make)
        if step.name:
            found[step.name] = now
    return found


class Judge:
    """Top-1 accuracy on a split. What stands in front of the fully connected layers runs once."""

    def __init__(self, subject: Subject, tensors: Tensors, split: data.Split):
        self._subject, self._split = subject, split
        self._front = self._front_of(tensors)
        self._features = self._run_front(tensors)

    def _front_of(self, tensors: Tensors) -> bytes:
        front = [a for n, a in tensors.items() if int(n.split(".")[0]) < self._subject.tail]
        return b"".join(a.tobytes() for a in front)

    @torch.no_grad()
    def _run_front(self, tensors: Tensors) -> Tensor:
        module = load(self._subject, tensors)
        front = module[: self._subject.tail]
        return torch.cat([front(images) for images in self._split.inputs.split(1000)])

    @torch.no_grad()
    def __call__(self, tensors: Tensors) -> float:
        features = self._features if self._front_of(tensors) == self._front else self._run_front(tensors)
        tail = load(self._subject, tensors)[self._subject.tail :]
        return (tail(features).argmax(-1) == self._split.targets).double().mean().item()
