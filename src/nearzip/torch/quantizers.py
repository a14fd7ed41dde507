"""What a method would restore of a network, bit for bit, as torch tensors: for every step of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import nearzip.api as api
from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.network.arrays import to_torch
from nearzip.recipes.qd_compressor import QdCompressor, bit_widths, weighted_entropy
from nearzip.tensors import as_array
from nearzip.torch.plans import BoundOrBounds, StatePlan
from nearzip.torch.state import TrainingState

__all__ = ["Quantizer", "quantizer", "quantizer_of_saver", "range_quantizer", "recipe_quantizer", "saved_quantizer"]

#: All tensors of a snapshot by name, to the values that a reader would get; results may share no memory with the
#: arguments.
Quantizer = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def range_quantizer(b_min: int = 8, b_max: int = 8) -> Quantizer:
    """QD-Compressor's, equations 3 to 5 and 9: each tensor over its own range, on 2^B levels.

    Parameters
    ----------
    b_min, b_max : int
        B of every tensor if they are equal, else chosen between them from the weighted entropy, equations 1 and 2, of
        all floating-point tensors given: buffers count if the snapshot has them.

    Notes
    -----
    Quantizing does not depend on the base: that comes in afterwards, as the difference of integers. Values that are
    not finite go through the whole encoder.
    """
    if not 1 <= b_min <= b_max <= 16:
        raise UsageError(f"bit widths are 1 <= b_min <= b_max <= 16, not {b_min} and {b_max}")
    slow = recipe_quantizer("qd-compressor", None, {"b_min": b_min, "b_max": b_max}, None)

    def quantize(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        floats = {name: value for name, value in values.items() if value.is_floating_point()}
        widths = dict.fromkeys(floats, b_max) if b_min == b_max else _widths(floats, b_min, b_max)
        restored = {name: _over_range(value, widths[name]) for name, value in floats.items()}
        if not all(bool(torch.isfinite(value).all()) for value in restored.values()):
            return slow(values)
        return {name: restored[name] if name in restored else value.clone() for name, value in values.items()}

    return quantize


def _over_range(value: torch.Tensor, n_bits: int) -> torch.Tensor:
    """The arithmetic of `stages.Levels` and `tensors.round_to`, operation by operation."""
    if not value.numel():
        return value.clone()
    if value.device.type == "mps":  # has no float64
        return _over_range(value.cpu(), n_bits).to(value.device)
    low, high = (end.double() for end in torch.aminmax(value))
    top = float((1 << n_bits) - 1)
    scale = high / top - low / top
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = -low / scale
    levels = torch.round(value.double() / scale + zero).clamp_(0, top)
    restored = scale * (levels - zero)
    return restored if value.dtype == torch.float64 else restored.float().to(value.dtype)


def _widths(values: Mapping[str, torch.Tensor], b_min: int, b_max: int) -> dict[str, int]:
    """Equations 1 and 2, as the recipe has them."""
    entropies = [weighted_entropy(as_array(name, value)) for name, value in values.items()]
    return dict(zip(values, bit_widths(entropies, b_min, b_max), strict=True))


def recipe_quantizer(
    method: str, bound: Bound | str | None, options: Mapping[str, Any] | None, base: Mapping[str, Any] | None
) -> Quantizer:
    """Any method, by compressing the whole snapshot as `compress` does: as slow as the method."""

    def quantize(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        restored = api.compress_quietly(values, base, method, bound, options=options).restored
        return {name: to_torch(restored[name]).to(value.device) for name, value in values.items()}

    return quantize


def saved_quantizer(method: str, bound: BoundOrBounds | None, options: Mapping[str, Any] | None) -> Quantizer:
    """Any method, as a `Saver` compresses parameters: those of one axis within an eighth of the bound, no buffers."""

    def quantize(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        state = TrainingState({f"model/{name}": value for name, value in values.items()}, {"parameters": list(values)})
        plan = StatePlan.of(state, bound, method, options)
        restored = api.compress_quietly(state.tensors, None, plan=plan).restored
        return {name: to_torch(restored[f"model/{name}"]).to(value.device) for name, value in values.items()}

    return quantize


def quantizer(
    method: str,
    bound: Bound | str | None = None,
    options: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Quantizer:
    """The fastest way to what `method` would restore. Raises UsageError, UnknownMethodError."""
    return _fast(method, bound, options) or recipe_quantizer(method, bound, options, base)


def quantizer_of_saver(
    method: str, bound: BoundOrBounds | None = None, options: Mapping[str, Any] | None = None
) -> Quantizer:
    """The same for what a `Saver` of these settings saves."""
    return _fast(method, bound, options) or saved_quantizer(method, bound, options)


def _fast(method: str, bound: BoundOrBounds | str | None, options: Mapping[str, Any] | None) -> Quantizer | None:
    """QD-Compressor's, where each tensor has its own range; None for everything else."""
    if method != "qd-compressor" or bound is not None:
        return None
    recipe = QdCompressor.from_options(options)
    if not isinstance(recipe, QdCompressor) or recipe.variant != "local":
        return None
    return range_quantizer(recipe.bits or recipe.b_min, recipe.bits or recipe.b_max)
