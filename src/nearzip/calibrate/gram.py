"""Second moments of rows of numbers: whole matrices, or their diagonals where those would be too large."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gram"]

#: Wider matrices keep their diagonal only: 8 192 squared are 256 MB of float32.
_WIDEST = 8192


@dataclass
class Gram:
    """Sum of x x^T over vectors x, for each group.

    `values` has shape (groups, n, n), or (groups, n) where only the diagonal is kept; float32, on the CPU.
    """

    values: Tensor

    @staticmethod
    def of(vectors: Tensor) -> Gram:
        """Of vectors with shape (groups, how many, n)."""
        vectors = vectors.float()
        if vectors.shape[-1] > _WIDEST:
            return Gram(vectors.square().sum(1).cpu())
        return Gram((vectors.transpose(1, 2) @ vectors).cpu())

    @staticmethod
    def of_indices(indices: Tensor, n: int) -> Gram:
        """Of unit vectors."""
        return Gram(torch.bincount(indices.cpu(), minlength=n).float()[None])

    def __add__(self, other: Gram) -> Gram:
        if self.values.dim() == other.values.dim():
            return Gram(self.values + other.values)
        whole, diagonal = (self, other) if self.values.dim() == 3 else (other, self)
        return Gram(whole.values + torch.diag_embed(diagonal.values))

    def __mul__(self, factor: float) -> Gram:
        return Gram(self.values * factor)

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
