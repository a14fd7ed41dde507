"""Trains, prunes and retrains the LeNets that DeepSZ's figures are about; every step is kept in the cache.

Pruning is gradual: each step keeps fewer weights of the fully connected layers and retrains these with the zeros held;
the layers before them stay as trained. The steps include the paper's shares and go beyond them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab import data
from experiments.lab.networks import NETWORKS
from experiments.lab.sampling import loss_of, steps_per_epoch, training_batches
from experiments.lab.traces import cache_folder
from nearzip.recipes import Hold
from nearzip.torch import finetune, prune

Tensors = dict[str, np.ndarray]
Correct = np.ndarray

#: Training images held out for every choice; the test images are for the report.
N_VALIDATION = 10_000
#: Of hidden values while pruned layers are retrained, as Deep Compression's authors do. On seed 0's held-out images
#: LeNet-300-100 with the paper's shares lost 0.07 points without it, 0.05 with four times the epochs, and gained 0.08
#: with it; seed 1 lost 0.06 with it, so the epochs were tripled as well.
DROPOUT = 0.2
_BATCH = 128


@dataclass(frozen=True)
class Step:
    """One pruning: what is kept of each fully connected layer, and for how long these are retrained."""

    keep: tuple[tuple[str, float], ...]
    epochs: int
    name: str = ""


@dataclass(frozen=True)
class Subject:
    """A network, the paper's names of its fully connected layers, its training and pruning; `tail`: their place.

    `seed`: of its first weights and of the order of the images.
    """

    network: str
    layers: tuple[tuple[str, str], ...]
    epochs: int
    rate: float
    steps: tuple[Step, ...]
    tail: int
    retraining_rate: float
    seed: int = 0

    @property
    def tensors(self) -> dict[str, str]:
        """Paper's name to tensor."""
        return dict(self.layers)

    @property
    def key(self) -> list[Any]:
        return [self.network, self.epochs, self.rate, self.seed, N_VALIDATION, torch.__version__]

    def named(self, what: str = "") -> str:
        """For files and messages."""
        return f"{self.network}-seed-{self.seed}{what}"

    def seed_of(self, number: int) -> int:
        """The order of the images: 0 for the training, from 1 on for what follows."""
        return 1000 * self.seed + number


def _step(layers: tuple[tuple[str, str], ...], shares: tuple[float, ...], epochs: int, name: str = "") -> Step:
    keep = tuple((tensor, share) for (_, tensor), share in zip(layers, shares, strict=True))
    return Step(keep, epochs, name)


_FC_300 = (("ip1", "1.weight"), ("ip2", "3.weight"), ("ip3", "5.weight"))
_FC_5 = (("ip1", "5.weight"), ("ip2", "7.weight"))

SUBJECTS = {
    "lenet-300-100": Subject(
        "lenet-300-100", _FC_300, 10, 0.1,
        (
            _step(_FC_300, (0.3, 0.3, 0.5), 2),
            _step(_FC_300, (0.15, 0.15, 0.4), 3),
            _step(_FC_300, (0.08, 0.09, 0.26), 20, "paper"),
            _step(_FC_300, (0.05, 0.07, 0.26), 15, "5 %"),
            _step(_FC_300, (0.035, 0.06, 0.26), 20, "3.5 %"),
        ),
        1, 0.1,
    ),
    "lenet-5": Subject(
        "lenet-5", _FC_5, 6, 0.05,
        (
            _step(_FC_5, (0.25, 0.4), 2),
            _step(_FC_5, (0.08, 0.19), 5, "paper"),
            _step(_FC_5, (0.04, 0.15), 6, "4 %"),
            _step(_FC_5, (0.02, 0.12), 8, "2 %"),
        ),
        5, 0.05,
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
    images: data.Dataset, rate: float, epochs: int, seed: int, decay: float = 5e-4
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
    """The result of `make`, from the cache if it was made before with the same settings."""
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
        torch.manual_seed(subject.seed)
        module = NETWORKS[subject.network]()
        train_epoch = trainer(images, subject.rate, subject.epochs, subject.seed_of(0))
        for _ in range(subject.epochs):
            train_epoch(module)
        return arrays(module)

    return _cached(subject.named(), subject.key, make)


def retrained(
    subject: Subject,
    images: data.Dataset,
    tensors: Tensors,
    hold: Hold,
    epochs: int,
    rate: float,
    seed: int,
    dropout: float = 0.0,
) -> Tensors:
    """The network with its fully connected layers trained further, on features that are computed once.

    `dropout`: share of these layers' hidden values that are left out, another one for each image.
    """
    module = load(subject, tensors)
    tail = module[subject.tail :]
    seen = replace(images, train=data.Split(features(subject, tensors, images.train), images.train.targets))
    inside = {name for name, _ in tail.named_parameters()}
    held = Hold(*(tuple(name for name in names if name in inside) for names in (hold.zeros, hold.shared, hold.frozen)))
    torch.manual_seed(seed)
    with dropping(tail, dropout):
        finetune(tail, trainer(seen, rate, epochs, seed), held, epochs=epochs)
    return arrays(module)


@contextlib.contextmanager
def dropping(module: nn.Module, share: float) -> Iterator[None]:
    """Hidden values are dropped as they leave a ReLU."""
    hooks = [
        part.register_forward_hook(lambda _module, _inputs, output: functional.dropout(output, share))
        for part in module.modules()
        if isinstance(part, nn.ReLU)
    ]
    yield
    for hook in hooks:
        hook.remove()


_KEPT: dict[tuple[int, bytes], Tensor] = {}


@torch.no_grad()
def features(subject: Subject, tensors: Tensors, split: data.Split) -> Tensor:
    """Inputs of the fully connected layers for a split; the latest few are cached."""
    front = b"".join(a.tobytes() for n, a in tensors.items() if int(n.split(".")[0]) < subject.tail)
    key = (id(split), front)
    if key not in _KEPT:
        if len(_KEPT) > 3:
            _KEPT.clear()
        front_module = load(subject, tensors)[: subject.tail]
        _KEPT[key] = torch.cat([front_module(images) for images in split.inputs.split(1000)])
    return _KEPT[key]


def pruned(subject: Subject, images: data.Dataset) -> dict[str, Trained]:
    """The network after each named step."""
    now = original(subject, images)
    done, found = [], {}
    for number, step in enumerate(subject.steps):
        done.append([asdict(step), subject.retraining_rate, subject.tail, DROPOUT])

        def make(now: Trained = now, step: Step = step, number: int = number) -> Tensors:
            module = load(subject, now.tensors)
            prune(module, dict(step.keep))
            hold = Hold(zeros=tuple(dict(step.keep)))
            seed = subject.seed_of(number + 1)
            rate = subject.retraining_rate
            return retrained(subject, images, arrays(module), hold, step.epochs, rate, seed, DROPOUT)

        now = _cached(subject.named(f"-step-{number}"), [*subject.key, done], make)
        if step.name:
            found[step.name] = now
    return found


class Evaluator:
    """Top-1 accuracy on a split. The layers before the fully connected ones run once."""

    def __init__(self, subject: Subject, split: data.Split):
        self._subject, self._split = subject, split

    @torch.no_grad()
    def right(self, tensors: Tensors) -> Correct:
        """Images that are classified correctly, shape (n,), bool."""
        tail = load(self._subject, tensors)[self._subject.tail :]
        logits = tail(features(self._subject, tensors, self._split))
        answers: Correct = (logits.argmax(-1) == self._split.targets).numpy()
        return answers

    def __call__(self, tensors: Tensors) -> float:
        return float(self.right(tensors).mean())


@dataclass(frozen=True)
class Loss:
    """Loss of accuracy between two networks on the same images, and its standard error, as shares of 1."""

    loss: float
    error: float


def paired(before: Correct, after: Correct) -> Loss:
    """Loss and standard error from the predictions that changed, either way, shape (n,) each.

    Examples
    --------
    >>> before, after = np.array([1, 1, 1, 0, 1], bool), np.array([1, 0, 0, 1, 1], bool)
    >>> paired(before, after).loss
    0.2
    """
    change = before.astype(int) - after.astype(int)
    return Loss(float(change.mean()), float(change.std() / np.sqrt(change.size)))
