"""Which coefficients a network is sensitive to: relative steps for our image codec, from its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.datasets.cosines import BASIS, SIDE, blocks_of, chroma_gradients
from nearzip.datasets.preparing import Normalised, evaluating
from nearzip.errors import UsageError
from nearzip.tensors import Array

__all__ = ["calibrate"]

#: Steps are kept within this factor of their mean: estimates from few images are noisy.
_FACTOR = 8.0


def calibrate(
    modules: nn.Module | Sequence[nn.Module],
    images: Any,
    *,
    prepare: Callable[[Tensor], Tensor] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch: int = 200,
    seed: int = 0,
) -> tuple[float, ...]:
    """Relative steps of the 64 coefficients of every channel, as `nearzip.calibrate` finds steps of weights.

    A step is the inverse root of E[(d log p(y|x) / d coefficient)^2], with classes y drawn from the network's own
    distribution: the expected divergence is then shared equally by all coefficients. Steps of one network are that
    network's; of several, their information is added, each scaled to the same sum.

    Parameters
    ----------
    modules : torch.nn.Module or several
    images : (n, height, width, channels) uint8 array
        Some hundred training images.
    prepare : callable
        From float32 tensors (n, channels, height, width) in [0, 1] to the network's input. Default: minus `mean`, over
        `std`.

    Returns
    -------
    tuple of float
        For `Cosine(step=.., steps=..)`: channels times 64 numbers of geometric mean 1.

    Notes
    -----
    JPEG's tables are made for eyes. Networks tend to be more sensitive to high frequencies of the luma than to low
    ones.
    """
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or not array.size:
        raise UsageError("images are an array (n, height, width, channels) of uint8")
    networks = [modules] if isinstance(modules, nn.Module) else list(modules)
    if not networks:
        raise UsageError("no network is given")
    total = np.zeros((array.shape[3], SIDE, SIDE))
    for network in networks:
        found = _information(network, array, prepare or Normalised(mean, std), batch, seed)
        total += found / found.sum()
    steps = 1 / np.sqrt(np.maximum(total, total.max() * 1e-12))
    relative = steps / np.exp(np.log(steps).mean())
    relative = np.clip(relative, 1 / _FACTOR, _FACTOR)
    return tuple(float(s) for s in np.round(relative / np.exp(np.log(relative).mean()), 4).reshape(-1))


def _information(
    network: nn.Module, images: Array, prepare: Callable[[Tensor], Tensor], batch: int, seed: int
) -> Array:
    """Mean squared gradients by coefficient: (channels, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    total, n = np.zeros((images.shape[3], SIDE, SIDE)), 0
    with evaluating([network]):
        for at in range(0, len(images), batch):
            pixels = torch.from_numpy(images[at : at + batch]).permute(0, 3, 1, 2).to(torch.float32) / 255
            pixels.requires_grad_(True)
            logs = torch.log_softmax(network(prepare(pixels)), 1)
            drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
            (gradients,) = torch.autograd.grad(logs.gather(1, drawn).sum(), pixels)
            values = chroma_gradients(gradients.permute(0, 2, 3, 1).numpy())
            squares = np.square((BASIS @ blocks_of(values) @ BASIS.T).astype(np.float64))
            total += squares.sum((0, 1, 2))
            n += int(np.prod(squares.shape[:3]))
    return total / n
