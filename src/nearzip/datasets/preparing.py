"""From pixels in [0, 1] to the input of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Normalised"]


class Normalised:
    """Minus means, over standard deviations of channels, where they are given."""

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None):
        self._mean, self._std = mean, std

    def __call__(self, values: Tensor) -> Tensor:
        if self._mean is not None:
            values = values - torch.tensor(self._mean).view(1, -1, 1, 1)
        return values if self._std is None else values / torch.tensor(self._std).view(1, -1, 1, 1)
