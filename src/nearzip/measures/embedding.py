"""Measures of a network's features, the inputs of its last linear layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nearzip.budget.intervals import Statistic
from nearzip.measures.measure import Measure, Predictions, Units, check_counts
from nearzip.tensors import Array

__all__ = ["Embedding"]

#: Samples among which neighbours are looked for: their distances take 4 million numbers for each network.
_MAX_NEIGHBOURS_OF = 2000


class Embedding(Measure):
    """How far the features are from the original's, in four ways.

    =======================  ========================================================================
    metric                   what it is
    =======================  ========================================================================
    "embedding/cosine"       mean cosine between a sample's features and the original's
    "embedding/distance"     minus their distance, relative to the original's length
    "embedding/neighbours"   share of each sample's k nearest neighbours that are kept (first 2000 samples)
    "embedding/structure"    correlation of the distances between class means; needs three classes
    =======================  ========================================================================

    Parameters
    ----------
    k : int
        Neighbours.
    """

    needs_original = needs_features = trainable = True

    def __init__(self, k: int = 10):
        check_counts("neighbours", k=k)
        self.k = k
        self.reset()

    def reset(self) -> None:
        self._cosines, self._distances = Units(), Units()
        self._kept: list[tuple[Array, Array, Array]] = []
        self._n_kept = 0
        #: Of each class: how many samples, and the sums of their features under both networks.
        self._sums: dict[int, list[Any]] = {}

    def __repr__(self) -> str:
        return "embedding"

    @property
    def identity(self) -> str:
        return f"embedding {self.k}"

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        own, other = _features(batch)
        self._cosines.add(batch.units, _cosine(own, other))
        lengths = other.norm(dim=-1).clamp(min=torch.finfo(other.dtype).tiny)
        self._distances.add(batch.units, -(own - other).norm(dim=-1) / lengths)
        n = min(len(own), _MAX_NEIGHBOURS_OF - self._n_kept)
        if n > 0:
            self._kept.append((own[:n].cpu().numpy(), other[:n].cpu().numpy(), batch.units[:n].cpu().numpy()))
            self._n_kept += n
        # Without targets, the classes are those that the original predicts.
        classes = batch.original_classes if batch.targets is None else batch.targets
        for label in sorted(set(classes.tolist())):
            members = classes == label
            sums = self._sums.setdefault(label, [0, 0.0, 0.0])
            sums[0] += int(members.sum())
            sums[1] = sums[1] + own[members].sum(0).cpu().numpy()
            sums[2] = sums[2] + other[members].sum(0).cpu().numpy()

    def result(self) -> dict[str, Statistic | float]:
        found: dict[str, Statistic | float] = {
            "embedding/cosine": self._cosines.mean(), "embedding/distance": self._distances.mean(),
        }  # fmt: skip
        if self._n_kept > self.k:
            found["embedding/neighbours"] = self._neighbours()
        if len(self._sums) >= 3:
            found["embedding/structure"] = self._structure()
        return found

    def loss(self, batch: Predictions) -> Tensor:
        own, other = _features(batch)
        return 1 - _cosine(own, other).mean()

    def _neighbours(self) -> Statistic:
        own, other, units = (np.concatenate(part) for part in zip(*self._kept, strict=True))
        same = [np.intersect1d(a, b).size for a, b in zip(_nearest(own, self.k), _nearest(other, self.k), strict=True)]
        found = Units()
        found.add(torch.from_numpy(units), torch.tensor(same) / self.k)
        return found.mean()

    def _structure(self) -> float:
        """Pearson's correlation; 1 where neither network tells classes apart, NaN where only one does."""
        apart = []
        for which in (1, 2):
            means = np.stack([sums[which] / sums[0] for _, sums in sorted(self._sums.items())])
            distances = np.linalg.norm(means[:, None] - means[None], axis=-1)
            apart.append(distances[np.triu_indices(len(means), 1)])
        if np.array_equal(*apart):
            return 1.0
        spreads = [part.std() for part in apart]
        if not min(spreads) > 0:
            return float("nan")
        return float(np.corrcoef(*apart)[0, 1])


def _features(batch: Predictions) -> tuple[Tensor, Tensor]:
    assert batch.features is not None
    assert batch.original_features is not None
    return batch.features.double(), batch.original_features.double()


def _cosine(own: Tensor, other: Tensor) -> Tensor:
    """1 where the features are equal, two vectors of length 0 included."""
    found = functional.cosine_similarity(own, other, dim=-1)
    return torch.where((own == other).all(-1), torch.ones_like(found), found)


def _nearest(features: Array, k: int) -> Array:
    """Indices of each sample's k nearest others, (n, k); of equal distances the first."""
    squares = (features**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(np.nan_to_num(distances, nan=np.inf), axis=1, kind="stable")[:, :k]
