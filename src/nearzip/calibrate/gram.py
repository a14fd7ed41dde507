"""Second moments of rows of numbers: whole matrices, or their diagonals where those would be too large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gram"]

#: Wider matrices keep their diagonal only: 8 192 squared are 256 MB of float32.
_WIDEST = 8192
#: Rows of a moment that are multiplied at once.
_PANEL = 256


@dataclass
class Gram:
    """Sum of x x^T over vectors x, for each group.

    `values` has shape (groups, n, n), or (groups, n) where only the diagonal is kept; float32, on the CPU.
    """

    values: Tensor

    @staticmethod
    def zeros(groups: int, n: int, room: Callable[..., Tensor] = torch.zeros) -> Gram:
        """Of no vectors. `room`: from a shape to zeros."""
        return Gram(torch.zeros(groups, n) if n > _WIDEST else room(groups, n, n))

    @staticmethod
    def of(vectors: Tensor) -> Gram:
        """Of vectors with shape (groups, how many, n)."""
        found = Gram.zeros(vectors.shape[0], vectors.shape[-1])
        found.add(vectors)
        return found

    @staticmethod
    def of_indices(indices: Tensor, n: int) -> Gram:
        """Of unit vectors."""
        return Gram(torch.bincount(indices.cpu(), minlength=n).float()[None])

    def add(self, vectors: Tensor, weight: float = 1.0) -> None:
        """Vectors with shape (groups, how many, n), each counted `weight` times; in place."""
        vectors = vectors.float()
        if self.is_diagonal:
            self.values.add_(torch.linalg.vector_norm(vectors, dim=1).square().cpu(), alpha=weight)
        elif vectors.device.type != "cpu":
            self.values.add_((vectors.transpose(1, 2) @ vectors).cpu(), alpha=weight)
        elif vectors.shape[-1] <= _PANEL:
            self.values.baddbmm_(vectors.transpose(1, 2), vectors, alpha=weight)
        else:
            for values, each in zip(self.values, vectors, strict=True):
                _add_panels(values, each, weight)

    def merge(self, other: Gram, weight: float, other_weight: float) -> Gram:
        """The weighted sum, in the room of the one that is a whole matrix."""
        if self.is_diagonal and not other.is_diagonal:
            return other.merge(self, other_weight, weight)
        self.values.mul_(weight)
        same = self.is_diagonal == other.is_diagonal
        (self.values if same else self.diagonal).add_(other.values, alpha=other_weight)
        return self

    def scale(self, factor: float) -> None:
        """In place."""
        self.values.mul_(factor)

    @property
    def is_diagonal(self) -> bool:
        return self.values.dim() == 2

    @property
    def diagonal(self) -> Tensor:
        """Shape (groups, n)."""
        return self.values if self.is_diagonal else self.values.diagonal(dim1=1, dim2=2)

    @property
    def mean(self) -> float:
        """Of the diagonal."""
        return float(self.diagonal.mean())


def _add_panels(values: Tensor, vectors: Tensor, weight: float) -> None:
    """Products above the diagonal only, and their mirror image: nearly half of the work for wide matrices."""
    for start in range(0, len(values), _PANEL):
        stop = start + _PANEL
        values[start:stop, start:].addmm_(vectors[:, start:stop].T, vectors[:, start:], alpha=weight)
        values[stop:, start:stop] = values[start:stop, stop:].T
