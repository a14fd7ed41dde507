"""Finer steps for small tensors, from their sizes only.

In the networks that were measured every matrix adds about as much to the divergence as any other when all are rounded
by one step, whether it has a thousand values or three hundred thousand: a value of a small one matters more. Rounding
all of a tensor with n values by a step s costs about c s^2 then, and a finer step n bits an octave; the best steps go
with the square root of n.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

import nearzip._core as _core
from nearzip.recipes.base import TensorView
from nearzip.tensors import Array

__all__ = ["finer_parts", "geometric_bits"]

#: A tensor of one dimension counts as so many times its size: its values stand beside that many inputs' worth of a
#: matrix. Measured: 23 to 800 on a VGG, 10 to 80 on a transformer.
_VECTOR = 64
#: At most so many octaves finer.
_FINEST = 5
#: The step goes with this power of the size.
_EXPONENT = 0.5
#: Bits a value below which one step serves all: most becomes zero then, and what hurts is how far the network falls
#: short of the update, not the noise of rounding. Late transformer: finer steps save 1 to 2 % above, cost 3 below.
_LEAST = 0.5
#: Values sampled of a tensor to see what a step costs, in runs of so many.
_SAMPLE, _RUN = 2048, 512
#: Tensors with less than this share of all values do not count in what the file costs.
_COUNTED = 1 / 256
#: Levels of that size are left out of the estimate.
_MOST = 1e5
#: Bytes of another block's header and tables.
_BLOCK = 128


def finer_parts(tensors: Sequence[TensorView], step: float, share: float) -> dict[tuple[int, ...], float]:
    """Of the step that large tensors get, the parts for tensors of certain shapes: powers of two below 1.

    Parameters
    ----------
    tensors : sequence of TensorView
    step : float
        Of large tensors.
    share : float
        Of the file's bytes at that step, estimated: the most that finer steps may add. Where it does not suffice, they
        begin at a smaller size.
    """
    weights = {tensor.shape: _weight(tensor.shape) for tensor in tensors if 0 not in tensor.shape}
    if len(weights) < 2:
        return {}
    times = Counter(tensor.shape for tensor in tensors if tensor.shape in weights)
    bits, counted = _bits(tensors, step)
    if bits < _LEAST * counted:
        return {}
    budget = math.inf if share >= 1 else share * bits
    whole = float(max(weights.values()))
    while whole > 1:
        octaves = {shape: _octaves(weight, whole) for shape, weight in weights.items()}
        cost = sum(n * math.prod(shape) * octaves[shape] for shape, n in times.items())
        cost += 8 * _BLOCK * len(set(octaves.values()) - {0})
        if cost <= budget:
            return {shape: 2.0**-octave for shape, octave in octaves.items() if octave}
        whole /= math.sqrt(2)
    return {}


def _weight(shape: tuple[int, ...]) -> float:
    return math.prod(shape) * (1 if len(shape) > 1 else _VECTOR)


def _octaves(weight: float, whole: float) -> int:
    return max(0, min(_FINEST, round(_EXPONENT * math.log2(whole / weight))))


def _bits(tensors: Iterable[TensorView], step: float) -> tuple[float, int]:
    """About how many bits the large tensors take at a step, and how many values they have."""
    total = sum(tensor.own.finite for tensor in tensors)
    large = [tensor for tensor in tensors if tensor.own.finite > _COUNTED * total]
    bits = sum(tensor.own.finite * geometric_bits(_mean_level(tensor, step)) for tensor in large)
    return bits, sum(tensor.own.finite for tensor in large)


def _mean_level(tensor: TensorView, step: float) -> float:
    """How large levels are, on average over some values. A few values far out say nothing of the others."""
    x, base = _sample(tensor.values()), _sample(tensor.base_values()) if tensor.with_base else None
    total, n = _core.sampled_levels(x, base, step, _SAMPLE // _RUN, _RUN, _MOST)
    return total / n if n else 0.0


def _sample(values: Array) -> Array:
    """Of types below 32 bits runs from all over a tensor as float32, which the native core takes; of others all."""
    flat = values.ravel()
    if flat.itemsize >= 4:
        return flat
    if flat.size > _SAMPLE:
        n = _SAMPLE // _RUN
        starts = [i * (flat.size - _RUN) // (n - 1) for i in range(n)]
        flat = np.concatenate([flat[start : start + _RUN] for start in starts])
    return flat.astype(np.float32)


def geometric_bits(mean: float) -> float:
    """Entropy of integers whose probability falls by one factor from each size to the next, with that mean size.

    Examples
    --------
    >>> geometric_bits(0.0)
    0.0
    >>> round(geometric_bits(1.0), 2)
    2.54
    """
    if mean <= 0:
        return 0.0
    ratio = mean / (math.hypot(1, mean) + 1)
    return max(0.0, math.log2((1 + ratio) / (1 - ratio)) - mean * math.log2(ratio))
