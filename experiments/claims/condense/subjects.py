"""Networks to condense: trained references, the training that recovers them, and their accuracy.

Sparsity is chosen on the validation images, the last of the training set; the test images are only reported.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.lab import data
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import augment, evaluate, loss_of
from experiments.lab.trace_sets import traces_folder
from experiments.lab.traces import cache_folder
from nearzip.torch import evaluator

BATCH = 128
_TEST_BATCH = 500
#: Images to train and test on, to see that the code runs.
_TINY = 256


@dataclass(frozen=True)
class Subject:
    """A network and how it is trained.

    `epochs`: of the reference; `lr`, `momentum`, `weight_decay`: of SGD, for the reference and for every recovery;
    `per_epoch`: images of an epoch, drawn anew from all; `start`: the cached trace that the reference begins with;
    `n_validation`: images held out from training.
    """

    network: str
    epochs: int
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    per_epoch: int | None = None
    start: str | None = None
    n_validation: int = 5000


SUBJECTS = {
    "digits": Subject("digits", 30, lr=0.1),
    "lenet-300-100": Subject("lenet-300-100", 15),
    "lenet-5": Subject("lenet-5", 2, lr=0.02, per_epoch=20_000, start="quick/lenet-5/002"),
    "vgg-small": Subject("vgg-small", 0, lr=0.01),
    "resnet-20": Subject(
        "resnet-20", 2, lr=0.05, weight_decay=1e-4, per_epoch=20_000, start="correctness/resnet-20/004"
    ),
    # The paper's, for a GPU.
    "vgg-19": Subject("vgg-19", 160, lr=0.1, weight_decay=5e-4),
    "resnet-56": Subject("resnet-56", 160, lr=0.1, weight_decay=1e-4),
}


@functools.cache
def dataset(name: str, folder: str | None, n_validation: int = 5000) -> data.Dataset:
    """The images of a subject; for digits, 1 000 of scikit-learn's to train on, 397 to choose and 400 to test on."""
    if name != "digits":
        return data.load(data_of(name), folder, n_validation)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    inputs = torch.from_numpy((pixels[order] / 16).astype(np.float32))
    whole = data.Split(inputs, torch.from_numpy(labels[order].astype(np.int64)))
    return data.Dataset("digits", whole[:1000], whole[1000:1397], whole[1397:])


def make(name: str) -> nn.Module:
    """An untrained network."""
    if name == "digits":
        return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    return NETWORKS[name]()


@dataclass(frozen=True)
class Trainer:
    """One epoch of a subject's training: an optimizer of its own, images in a new order, CIFAR-10's augmented."""

    subject: Subject
    split: data.Split
    augmented: bool

    @property
    def identity(self) -> str:
        """For trials that are filed."""
        return repr(self.subject)

    def __call__(self, module: nn.Module, factor: float = 1.0) -> None:
        s = self.subject
        optimizer = torch.optim.SGD(module.parameters(), s.lr * factor, s.momentum, weight_decay=s.weight_decay)
        size = 32 if s.network == "digits" else BATCH
        module.train()
        n = min(s.per_epoch or len(self.split), len(self.split))
        for rows in torch.randperm(len(self.split)).split(size)[: n // size]:
            inputs, targets = self.split.inputs[rows], self.split.targets[rows]
            if self.augmented:
                inputs = augment(inputs, torch.default_generator)
            optimizer.zero_grad()
            loss_of(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@dataclass(frozen=True)
class Case:
    """A trained reference with its data."""

    subject: Subject
    module: nn.Module
    images: data.Dataset
    train_epoch: Trainer

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def evaluator(self, confidence: float | None = None) -> Any:
        """Accuracy on the validation images; with a confidence, searches bound the loss by it."""
        split = self.images.validation
        batches = list(zip(split.inputs.split(_TEST_BATCH), split.targets.split(_TEST_BATCH), strict=True))
        return evaluator(self.module, batches, confidence=confidence)

    @property
    def inputs(self) -> Tensor:
        return self.images.train.inputs[:64]

    def test(self, module: nn.Module) -> float:
        """Accuracy on the test images."""
        return evaluate(module, self.images.test)["accuracy"]

    def validation(self, module: nn.Module) -> float:
        return evaluate(module, self.images.validation)["accuracy"]


def case_of(
    name: str, folder: str | None, seed: int = 0, per_epoch: int | None = None, n_validation: int = 5000,
    device: str = "cpu", tiny: bool = False,
) -> Case:  # fmt: skip
    """The reference, trained once for each seed and kept in the experiments' cache; vgg-small is the shared trace.

    Parameters
    ----------
    per_epoch : int or None
        Images of an epoch of the recoveries, if others than the subject's.
    n_validation : int
        Images held out from the training images.
    tiny : bool
        A few images, and a reference of one epoch.
    """
    subject = replace(SUBJECTS[name], n_validation=n_validation)
    images = dataset(name, folder, n_validation)
    if tiny:
        subject = replace(subject, epochs=1, start=None, per_epoch=_TINY)
        images = replace(images, train=images.train[:_TINY], test=images.test[:_TINY])
    images = images.to(torch.device(device))
    trainer = Trainer(subject, images.train, images.name == "cifar-10")
    module = make(name).to(device)
    module.load_state_dict(_reference(subject, trainer, folder, seed))
    if per_epoch:
        trainer = replace(trainer, subject=replace(subject, per_epoch=per_epoch))
    return Case(subject, module.eval(), images, trainer)


def _reference(subject: Subject, trainer: Trainer, folder: str | None, seed: int) -> Mapping[str, Tensor]:
    if not subject.epochs:
        from experiments.lab.traces import folder as shared_traces

        where = shared_traces(folder)
        if where is None:
            raise SystemExit(f"{subject.network}: needs the shared traces; give their folder with --data")
        return load_file(where / subject.network / "009.safetensors")
    key = hashlib.sha256(f"{subject} {seed}".encode()).hexdigest()[:16]
    path = cache_folder() / f"condense-{subject.network}-{key}.safetensors"
    if not path.is_file():
        torch.manual_seed(seed)
        module = make(subject.network).to(trainer.split.inputs.device)
        if subject.start:
            module.load_state_dict(load_file(_trace(subject.start)))
        for epoch in range(subject.epochs):
            trainer(module, 0.05 ** (epoch / max(subject.epochs - 1, 1)))
        save_file(module.state_dict(), path)
    return load_file(path)


def _trace(name: str) -> Path:
    """A version of a trace: SET/NETWORK/VERSION."""
    path = traces_folder() / f"{name}.safetensors"
    if not path.is_file():
        kind, network, _ = name.split("/")
        raise SystemExit(f"{path}: missing; train it with `scripts/bench traces --set {kind} --only {network}`")
    return path
