"""The cost of changed predictions, where some mistakes are worse than others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nearzip.budget.intervals import Statistic
from nearzip.digests import digest
from nearzip.errors import UsageError
from nearzip.measures.measure import Measure, Predictions, Units

__all__ = ["Cost"]

#: A cycle or a hierarchy deeper than this is no tree of classes.
_MAX_DEPTH = 1000


class Cost(Measure):
    """ "cost": minus the mean of mu(x) d(g(x), f(x)), g the restored network's class and f the original's.

    Parameters
    ----------
    d : (classes, classes) array or None
        d[i, j] is the cost of predicting i where the original predicts j: not negative, 0 on the diagonal, not assumed
        symmetric. None: 1 for every change, which makes it the churn.
    mu : callable or None
        mu(predictions) -> (n,) weights of a batch's samples, not negative. None: all count the same. The cost is
        relative to the sum of the weights.
    against : "original" or "targets"
        "targets": the cost of the predictions against the truth, in place of the original's ("cost-to-truth").
    name : str
        Of the metric, where several costs are measured: "cost/by-kind".

    Examples
    --------
    >>> Cost.from_tree({"cat": "animal", "dog": "animal", "car": "thing"}, ["cat", "dog", "car"]).d.tolist()
    [[0.0, 0.5, 1.0], [0.5, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """

    needs_classes = trainable = True

    def __init__(
        self,
        d: Any = None,
        mu: Callable[[Predictions], Tensor] | None = None,
        against: str = "original",
        name: str | None = None,
    ):
        if against not in ("original", "targets"):
            raise UsageError(f"a cost is against 'original' or 'targets', not {against!r}")
        if mu is not None and not callable(mu):
            raise UsageError("mu is a function: mu(predictions) returns a weight for each prediction of a batch")
        self.d, self.mu, self.against = None if d is None else _checked(d), mu, against
        self.name = name or ("cost" if against == "original" else "cost-to-truth")
        self.reset()

    @property
    def needs_original(self) -> bool:  # type: ignore[override]
        return self.against == "original"

    @property
    def needs_targets(self) -> bool:  # type: ignore[override]
        return self.against == "targets"

    @staticmethod
    def from_tree(
        parents: Mapping[Any, Any], classes: Sequence[Any], mu: Callable[[Predictions], Tensor] | None = None
    ) -> Cost:
        """Costs by a hierarchy of classes, as WordNet's: the path between two classes over the longest one.

        Parameters
        ----------
        parents : mapping
            Child to parent; roots are not in it, and several roots count as children of one.
        classes : sequence
            The network's classes in the order of its outputs.
        """
        if not isinstance(parents, Mapping):
            raise UsageError("a tree is a mapping from child to parent, such as {'cat': 'animal', 'dog': 'animal'}")
        if not all(isinstance(name, Hashable) for name in classes):
            raise UsageError("the classes of a tree are names or numbers")
        if len(set(classes)) != len(classes) or not classes:
            raise UsageError("the classes of a tree are distinct, and at least one")
        lines = [_line(name, parents) for name in classes]
        # Classes that are no part of the tree are roots, unless it has others in their place: a name is misspelt.
        inner = {*parents.values()}
        missing = [name for name in classes if name not in parents and name not in inner]
        others = [name for name in parents if name not in inner and name not in {*classes}]
        if missing and others:
            raise UsageError(
                f"class {missing[0]!r} is not in the tree, which has {others[0]!r}, no class of the network"
            )
        d = np.array([[_path(a, b) for b in lines] for a in lines], np.float64)
        return Cost(d / max(d.max(), 1.0), mu)

    def reset(self) -> None:
        self._units = Units()

    def __repr__(self) -> str:
        return self.name

    @property
    def identity(self) -> str:
        data = b"" if self.d is None else self.d.tobytes()
        named = getattr(self.mu, "__qualname__", type(self.mu).__qualname__)
        return f"{self.name} {digest(data).hex()} {named if self.mu else ''}"

    def check(self, batch: Predictions) -> None:
        super().check(batch)
        if self.d is not None and len(self.d) != batch.logits.shape[-1]:
            raise UsageError(
                f"the cost d is {list(self.d.shape)}, the network has {batch.logits.shape[-1]} classes: rows and "
                "columns are classes"
            )

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        weights = self._weights(batch)
        own, other = batch.classes, self._reference(batch)
        costs = self._matrix(batch)[own.clamp(min=0), other.clamp(min=0)]
        # An output that is no class costs as much as anything.
        costs = torch.where((own < 0) & (own != other), float(self._largest), costs)
        self._units.add(batch.units, 1 - costs * weights if self._is_churn else -costs * weights, weights)

    def result(self) -> dict[str, Statistic | float]:
        if self._is_churn:
            return {self.name: self._units.mean(offset=-1.0)}
        found = self._units.mean(largest=self._largest)
        if len(found.counts) and not found.counts.any():
            raise UsageError(f"measure {self}: mu gives every prediction the weight 0, so nothing is measured")
        return {self.name: found}

    def loss(self, batch: Predictions) -> Tensor:
        """The expected cost of the probability that the network gives to a class beyond the original's.

        As -log(1 - cost / largest), whose gradient does not vanish where the network is surely wrong: with equal costs
        it is the cross entropy. Against targets the original gives no class any probability but the target.
        """
        given = functional.softmax(batch.logits, dim=-1)
        if self.against == "original":
            assert batch.original is not None
            given = (given - functional.softmax(batch.original.to(given.dtype), dim=-1)).clamp(min=0)
        largest = max(self._largest, torch.finfo(torch.float32).tiny)
        columns = (self._matrix(batch) / largest).to(given.dtype)[:, self._reference(batch).clamp(min=0)]
        expected = -torch.log1p(-(1 - 1e-6) * (given * columns.T).sum(-1).clamp(max=1))
        weights = self._weights(batch).to(expected.dtype)
        return (expected * weights).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    @property
    def _is_churn(self) -> bool:
        return self.d is None and self.mu is None

    @property
    def _largest(self) -> float:
        return 1.0 if self.d is None else float(self.d.max())

    def _reference(self, batch: Predictions) -> Tensor:
        if self.against == "original":
            return batch.original_classes
        assert batch.targets is not None
        return batch.targets

    def _matrix(self, batch: Predictions) -> Tensor:
        n = batch.logits.shape[-1]
        d = torch.ones(n, n, dtype=torch.float64).fill_diagonal_(0) if self.d is None else torch.from_numpy(self.d)
        return d.to(batch.logits.device)

    def _weights(self, batch: Predictions) -> Tensor:
        n = len(batch.logits)
        if self.mu is None:
            return torch.ones(n, dtype=torch.float64, device=batch.logits.device)
        try:
            weights = torch.as_tensor(self.mu(batch)).to(batch.logits.device, torch.float64)
        except (TypeError, ValueError, RuntimeError):
            weights = torch.empty(0)
        if weights.shape != (n,) or not bool((weights >= 0).all()) or not bool(torch.isfinite(weights).all()):
            raise UsageError(f"mu returns a weight from 0 on for each of the {n} predictions of a batch")
        return weights


def _checked(d: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        found = np.array(d.cpu() if isinstance(d, Tensor) else d, np.float64)
    except (TypeError, ValueError):
        raise UsageError("the cost d is a square matrix of numbers, classes by classes") from None
    if found.ndim != 2 or found.shape[0] != found.shape[1] or not found.size:
        raise UsageError(f"the cost d is a square matrix, classes by classes, not {list(found.shape)}")
    if not np.isfinite(found).all() or (found < 0).any() or np.diagonal(found).any():
        raise UsageError("costs are finite and not negative, and 0 on the diagonal, where nothing changes")
    return found


def _line(name: Any, parents: Mapping[Any, Any]) -> list[Any]:
    """A class and its ancestors. Raises UsageError for a cycle."""
    line = [name]
    while line[-1] in parents:
        line.append(parents[line[-1]])
        if len(line) > _MAX_DEPTH:
            raise UsageError(f"class {name!r}: its ancestors form a cycle")
    return line


def _path(a: list[Any], b: list[Any]) -> int:
    """Edges between two classes; two roots are joined above."""
    where = {name: i for i, name in enumerate(b)}
    for i, name in enumerate(a):
        if name in where:
            return i + where[name]
    return len(a) + len(b)
