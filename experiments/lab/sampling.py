"""Batches for training, and the loss and accuracy of a network on a split."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from experiments.lab.data import Dataset, Split

#: Characters that a text network sees at once.
CONTEXT = 128
_SHIFT = 4
_TEST_BATCH = 500
_TEXT_TESTS = (20, 32)

Batch = tuple[Tensor, Tensor]


def steps_per_epoch(dataset: Dataset, size: int) -> int:
    """Batches of `size` images, or of `size` windows of text, in the training split; the rest is left out."""
    per_batch = size * CONTEXT if dataset.is_text else size
    return max(1, len(dataset.train) // per_batch)


def training_batches(dataset: Dataset, size: int, generator: Generator) -> Iterator[Batch]:
    """Without end: images in a new order every epoch, CIFAR-10's shifted and flipped; windows of text anywhere."""
    if dataset.is_text:
        return (_windows(dataset.train, size, generator) for _ in itertools.count())
    batches = _shuffled(dataset.train, size, generator)
    if dataset.name != "cifar-10":
        return batches
    return ((augment(inputs, generator), targets) for inputs, targets in batches)


def _shuffled(split: Split, size: int, generator: Generator) -> Iterator[Batch]:
    size = min(size, len(split))
    while True:
        order = torch.randperm(len(split), generator=generator).to(split.inputs.device)
        for begin in range(0, len(split) - size + 1, size):
            which = order[begin : begin + size]
            yield split.inputs[which], split.targets[which]


def _windows(split: Split, size: int, generator: Generator) -> Batch:
    width = min(CONTEXT, len(split))
    starts = torch.randint(len(split) - width + 1, (size, 1), generator=generator)
    places = (starts + torch.arange(width)).to(split.inputs.device)
    return split.inputs[places], split.targets[places]


def augment(images: Tensor, generator: Generator) -> Tensor:
    """Every image shifted by up to four pixels either way, zeros coming in, and half of them mirrored."""
    n, _, height, width = images.shape
    padded = functional.pad(images, [_SHIFT] * 4)
    down, right = (torch.randint(2 * _SHIFT + 1, (n,), generator=generator).to(images.device) for _ in range(2))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    shifted = windows[torch.arange(n, device=images.device), :, down, right]
    mirrored = (torch.rand(n, generator=generator) < 0.5).to(images.device)
    return torch.where(mirrored.view(n, 1, 1, 1), shifted.flip(3), shifted)


def evaluation_batches(split: Split) -> Iterator[Batch]:
    """All images in order; of text always the same 20 batches of 32 windows."""
    if split.inputs.dim() == 1:
        n, size = _TEXT_TESTS
        generator = Generator().manual_seed(1)
        yield from (_windows(split, size, generator) for _ in range(n))
        return
    yield from zip(torch.split(split.inputs, _TEST_BATCH), torch.split(split.targets, _TEST_BATCH), strict=True)


def loss_of(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross entropy in nats of logits (..., classes) and targets (...)."""
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction=reduction)


@torch.no_grad()
def evaluate(network: nn.Module, split: Split) -> dict[str, float]:
    """Mean loss and accuracy per prediction, the network in evaluation mode (and afterwards in the mode it was in)."""
    was_training = network.training
    network.eval()
    loss = right = n = 0.0
    for inputs, targets in evaluation_batches(split):
        logits = network(inputs)
        loss += loss_of(logits, targets, "sum").item()
        right += (logits.argmax(-1) == targets).sum().item()
        n += targets.numel()
    network.train(was_training)
    return {"loss": loss / n, "accuracy": right / n} if n else {}
