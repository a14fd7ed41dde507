"""What a measure is: one object that a report, a limit of a search and a training loop share."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nearzip.budget.intervals import Mean, Statistic
from nearzip.caching import cached_property
from nearzip.errors import UsageError
from nearzip.tensors import Array

__all__ = ["Measure", "PerPrediction", "Predictions", "Units", "check_counts", "check_original"]


@dataclass(frozen=True)
class Predictions:
    """A network's predictions for one batch, beside those of the original network.

    Parameters
    ----------
    logits : tensor, (n, classes)
        Of the network that is measured; for regressors its outputs.
    units : tensor of int, (n,)
        The independent unit of each prediction: its sample, or its document.
    targets : tensor of int, (n,), or None
    original : tensor, (n, classes), or None
        Of the original network; None if no measure asked for it.
    features, original_features : tensor, (n, width), or None
        Inputs of the last linear layer.
    batch : object
        The batch itself, on the network's device, where a measure needs gradients.
    network, reference : callable or None
        The network and the original, from a batch to logits (n, classes), where a measure needs gradients. The same
        object where the original itself is measured.
    memory : dict
        What measures keep about the original for this batch, from one evaluation to the next; see `once`.
    """

    logits: Tensor
    units: Tensor
    targets: Tensor | None = None
    original: Tensor | None = None
    features: Tensor | None = None
    original_features: Tensor | None = None
    batch: Any = None
    network: Callable[[Any], Tensor] | None = None
    reference: Callable[[Any], Tensor] | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The value of `make()`, which describes the original: computed once for this batch and evaluator."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    @property
    def of_original(self) -> Predictions:
        """The original's predictions as those that are measured."""
        assert self.original is not None
        return Predictions(
            self.original, self.units, self.targets, self.original, self.original_features, self.original_features,
            self.batch, self.reference, self.reference, self.memory,
        )  # fmt: skip

    @cached_property
    def classes(self) -> Tensor:
        """The most likely class of each prediction; -1 where an output is NaN, which is no class."""
        return _classes(self.logits)

    @cached_property
    def original_classes(self) -> Tensor:
        """The same of the original network."""
        assert self.original is not None
        return _classes(self.original)


def _are_classes(targets: Tensor) -> bool:
    return not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool


def check_counts(what: str, **values: Any) -> None:
    """Raises UsageError for options that are not whole numbers from 1 on."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise UsageError(f"{name} of {what} is a whole number from 1 on, not {value!r}")


def check_original(batch: Predictions, what: Any) -> None:
    """Raises UsageError where the original gives NaN: nothing can be like it."""
    assert batch.original is not None
    n = int(batch.original.isnan().any(-1).sum())
    if n:
        raise UsageError(
            f"{what}: the original gives NaN for {n} of {len(batch.original)} predictions of a batch; check its "
            "weights and the samples"
        )


def _classes(logits: Tensor) -> Tensor:
    # The maximum is NaN where any output is: one pass.
    values, indices = logits.max(-1)
    return torch.where(values.isnan(), -1, indices)


class Measure(ABC):
    """Compares a network with the original one, batch by batch.

    A measure is configured when it is made, gets every batch by `update` and returns metrics by `result`. For every
    evaluation, an evaluator takes a copy of it and calls `reset`. Attributes that start with an underscore hold what
    was measured so far, all others the configuration: the default `repr` is made of them.

    Attributes
    ----------
    needs_targets, needs_original, needs_features : bool
        Which fields of `Predictions` it reads, besides the logits.
    needs_classes : bool
        Whether it compares classes: it refuses networks with one output, and targets that are no class numbers.
    needs_gradients : bool
        Whether it calls the networks itself: `batch`, `network` and `reference` are then given, gradients enabled.
    trainable : bool
        Whether `loss` can be minimised.
    """

    needs_targets: ClassVar[bool] = False
    needs_original: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    needs_classes: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    trainable: ClassVar[bool] = False

    @abstractmethod
    def update(self, batch: Predictions) -> None:
        """Add one batch to what was measured."""

    @abstractmethod
    def result(self) -> dict[str, Statistic | float]:
        """Metrics by name, higher is better: a statistic where confidence bounds exist, else a number."""

    def yardsticks(self) -> dict[str, float]:
        """Figures that help to read the metrics: what chance would give, counts, quantiles."""
        return {}

    def details(self) -> dict[str, tuple[Array, Array]]:
        """For HTML pages: by metric, a value for each sample with the original network and with the measured one."""
        return {}

    def fresh(self) -> Measure:
        """A copy with the same configuration that has seen no batches."""
        found = copy.copy(self)
        found.reset()
        return found

    @abstractmethod
    def reset(self) -> None:
        """Forget all batches. Assign new containers here: `fresh` makes a shallow copy, which shares the old ones."""

    def loss(self, batch: Predictions) -> Tensor:
        """The loss that training minimises to improve the metric: a scalar, mean over the batch.

        Differentiable in `logits` and `features`.

        Raises UsageError if the measure cannot be trained on.
        """
        raise UsageError(f"{type(self).__name__} cannot be trained on; take one of those with trainable=True")

    def __repr__(self) -> str:
        # No address: two processes must agree on the identity, by which finished trials are found again.
        options = (f"{name}={value!r}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({', '.join(options)})"

    @property
    def identity(self) -> str:
        """Text that differs between configurations and is the same in every process. Default: `repr(self)`.

        It is part of an evaluator's identity, by which finished trials are found again.
        """
        return repr(self)

    def check(self, batch: Predictions) -> None:
        """Raises UsageError for a batch that the measure cannot use."""
        if self.needs_targets and batch.targets is None:
            raise UsageError(f"measure {self} needs targets; the loader's batches are (inputs, targets)")
        if not self.needs_classes:
            return
        if batch.logits.shape[-1] < 2:
            # Of one output the most likely class is always the same: everything would seem kept.
            raise UsageError(
                f"measure {self} compares classes, the network has one output; 'distance' is for regressors, and "
                "predict= can return logits of both classes"
            )
        if self.needs_targets and batch.targets is not None and not _are_classes(batch.targets):
            kind = str(batch.targets.dtype).removeprefix("torch.")
            raise UsageError(f"measure {self} needs class numbers as targets; these are {kind}")


class Units:
    """Sums over predictions, by independent unit."""

    def __init__(self) -> None:
        self._parts: list[tuple[Array, Array, Array]] = []

    def add(self, units: Tensor, values: Tensor, weights: Tensor | None = None) -> None:
        """Values of some predictions, (n,). `weights`: what each counts for."""
        numbers = units.cpu().numpy()
        weighed = values.detach().double().cpu().numpy()
        counts = np.ones(len(weighed)) if weights is None else weights.detach().double().cpu().numpy()
        if (numbers[1:] > numbers[:-1]).all():  # a unit for each prediction, as in classifiers
            self._parts.append((numbers, weighed, counts))
            return
        ids, inverse = np.unique(numbers, return_inverse=True)
        inverse = inverse.reshape(-1)
        self._parts.append((ids, np.bincount(inverse, weighed, len(ids)), np.bincount(inverse, counts, len(ids))))

    def mean(self, **how: Any) -> Mean:
        """All of them, one entry for every unit in the order of their numbers. `how`: as `Mean` takes it."""
        if not self._parts:
            return Mean(np.zeros(0), np.zeros(0), **how)
        ids, sums, counts = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        _, inverse = np.unique(ids, return_inverse=True)
        inverse = inverse.reshape(-1)
        return Mean(np.bincount(inverse, sums), np.bincount(inverse, counts), **how)


class PerPrediction(Measure):
    """A measure whose metric is the mean of one value for every prediction.

    Its `repr` is its name: a subclass with options puts them into the name, or overrides `identity`.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._units = Units()

    def __repr__(self) -> str:
        return self.name

    @abstractmethod
    def values(self, batch: Predictions) -> Tensor:
        """One value for every prediction, (n,), higher is better."""

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        self._units.add(batch.units, self.values(batch))

    def result(self) -> dict[str, Statistic | float]:
        return {self.name: self._units.mean()}
