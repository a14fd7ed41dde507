"""Evaluators of images: what a network does with restored images, measured as `nearzip.torch.evaluator` does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.budget.evaluators import Evaluation
from nearzip.digests import digest
from nearzip.errors import UsageError
from nearzip.measures.measure import Measure
from nearzip.tensors import Array
from nearzip.torch.evaluator import Evaluator, evaluator

__all__ = ["ImageEvaluator", "image_evaluator"]

#: Takes a list of uint8 images (height, width, channels); returns the network's input.
Prepare = Callable[[Any], Tensor]
#: Restores images as a candidate does.
Restore = Callable[[Any], Sequence[Array]]


def image_evaluator(
    module: nn.Module,
    labels: Any = None,
    metric: str | Measure | Sequence[str | Measure] = "top1",
    *,
    prepare: Prepare | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 250,
    confidence: float | None = None,
    norms: Any = None,
) -> ImageEvaluator:
    """An evaluator for `datasets.tune`: measures a network's predictions on restored images.

    Parameters
    ----------
    module : torch.nn.Module
        Trained on clean images. It is copied, and runs as in `eval()`.
    labels : (n,) sequence of int
        Needed by metrics of right and wrong.
    metric : str, Measure, or a sequence of them
        Those of `nearzip.torch.evaluator`: "top1", "kl", "agreement", "class/*", ..
    prepare : callable
        A list of images to the network's input. Default: (n, channels, height, width) float32 in [0, 1], minus `mean`,
        over `std`.
    batch : int
        Images at once.
    confidence : float
        `tune` then bounds losses with this confidence.
    norms : images
        Before every evaluation, batch-norm statistics are estimated again on these training images, compressed by
        the candidate codec.
    """
    chosen = prepare or _Scaled(tuple(mean or ()), tuple(std or ()))
    return ImageEvaluator(module, labels, metric, chosen, batch, confidence, norms)


class _Scaled:
    """Grey levels to [0, 1], normalised by channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self._mean, self._std = mean, std

    @property
    def identity(self) -> str:
        return f"{self._mean} {self._std}"

    def __call__(self, images: Any) -> Tensor:
        values = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).to(torch.float32).div_(255)
        if self._mean:
            values.sub_(torch.tensor(self._mean).view(1, -1, 1, 1))
        if self._std:
            values.div_(torch.tensor(self._std).view(1, -1, 1, 1))
        return values


class _Batches:
    """Images in batches, prepared when they are read."""

    def __init__(self, images: Sequence[Array], labels: Tensor | None, prepare: Prepare, size: int):
        self._images, self._labels, self._prepare, self._size = images, labels, prepare, size

    def __iter__(self) -> Iterator[Any]:
        for at in range(0, len(self._images), self._size):
            inputs = self._prepare([self._images[i] for i in range(at, min(at + self._size, len(self._images)))])
            yield inputs if self._labels is None else (inputs, self._labels[at : at + self._size])


class ImageEvaluator:
    """An evaluator of images, as `image_evaluator` makes it. Its first call must be with the original images."""

    def __init__(
        self,
        module: nn.Module,
        labels: Any,
        metric: Any,
        prepare: Prepare,
        batch: int,
        confidence: float | None,
        norms: Any,
    ):
        self._module, self._metric, self._prepare, self._batch = module, metric, prepare, batch
        self._labels = None if labels is None else torch.as_tensor(np.asarray(labels).astype(np.int64))
        self.confidence, self._norms = confidence, norms
        self._evaluator: Evaluator | None = None
        names = (metric,) if isinstance(metric, (str, Measure)) else tuple(metric)
        self.name = f"nearzip.datasets.image_evaluator({', '.join(map(str, names))})"

    @property
    def identity(self) -> str:
        """Digest of the network, the labels and the preparation of images."""
        state = [digest(n.encode(), t.detach().cpu().numpy().tobytes()) for n, t in self._module.state_dict().items()]
        labels = b"" if self._labels is None else self._labels.numpy().tobytes()
        how = getattr(self._prepare, "identity", getattr(self._prepare, "__qualname__", ""))
        return digest(*state, labels, str(how).encode()).hex()

    def check(self, n_images: int) -> None:
        """Raises UsageError unless there are as many labels as images."""
        if self._labels is not None and len(self._labels) != n_images:
            raise UsageError(f"there are {len(self._labels)} labels for {n_images} images")

    def original(self, images: Sequence[Array]) -> Evaluation:
        """Metrics of the original images, with which restored ones are then compared."""
        self.check(len(images))
        self._evaluator = evaluator(self._module, self._batches(images), self._metric, confidence=self.confidence)
        return self._evaluator.evaluation({})

    def restored(self, images: Sequence[Array], restore: Restore) -> Evaluation:
        """Metrics of restored images. `restore` codes and restores other images with the same codec."""
        if self._evaluator is None:
            raise UsageError("the evaluator has not seen the original images yet")
        found = self._evaluator.on(self._batches(images))
        return found.evaluation({} if self._norms is None else self._statistics(restore(self._norms)))

    def _batches(self, images: Sequence[Array]) -> _Batches:
        return _Batches(images, self._labels, self._prepare, self._batch)

    def _statistics(self, images: Sequence[Array]) -> dict[str, Tensor]:
        """Statistics of the batch norms on images: plain averages over their batches."""
        import copy

        module = copy.deepcopy(self._module).eval()
        norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
            norm.train()
        with torch.no_grad():
            for at in range(0, len(images), self._batch):
                module(self._prepare([images[i] for i in range(at, min(at + self._batch, len(images)))]))
        return {name: t for name, t in module.state_dict().items() if "running_" in name}
