"""From pixels in [0, 1] to the input of a network, in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Normalised", "evaluating"]


@contextlib.contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Evaluation mode with gradients, also inside `torch.no_grad()`; afterwards each layer is in the mode it was in."""
    modes = {layer: layer.training for network in networks for layer in network.modules()}
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


class Normalised:
    """Minus means, over standard deviations of channels, where they are given."""

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None):
        self._mean, self._std = mean, std

    def __call__(self, values: Tensor) -> Tensor:
        if self._mean is not None:
            values = values - torch.tensor(self._mean).view(1, -1, 1, 1)
        return values if self._std is None else values / torch.tensor(self._std).view(1, -1, 1, 1)
