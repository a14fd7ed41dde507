"""What a method would restore, as torch tensors on their own device: fast enough for every step of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import nearzip.api as api
from nearzip.bounds import Absolute, Bound
from nearzip.errors import UsageError
from nearzip.network.arrays import to_torch
from nearzip.recipes.qd_compressor import QdCompressor, bit_widths, weighted_entropy
from nearzip.tensors import as_array

__all__ = ["Quantizer", "grid", "quantizer", "range_quantizer", "recipe_quantizer"]

#: Names and values to the values that would be restored; results may share no memory with the arguments.
Quantizer = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def range_quantizer(b_min: int = 8, b_max: int = 8) -> Quantizer:
    """QD-Compressor's, equations 3 to 5 and 9: each tensor over its own range, on 2^B levels.

    Parameters
    ----------
    b_min, b_max : int
        B of every tensor if they are equal, else chosen between them from the weighted entropy, equations 1 and 2.

    Notes
    -----
    Quantizing does not depend on the base: that comes in afterwards, as the difference of integers.
    """
    if not 1 <= b_min <= b_max <= 16:
        raise UsageError(f"bit widths are 1 <= b_min <= b_max <= 16, not {b_min} and {b_max}")

    def quantize(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        widths = dict.fromkeys(values, b_max) if b_min == b_max else _widths(values, b_min, b_max)
        return {name: _over_range(value, widths[name]) for name, value in values.items()}

    return quantize


def _over_range(value: torch.Tensor, n_bits: int) -> torch.Tensor:
    if not value.numel():
        return value.clone()
    working = value.to(_working(value))
    low, high = torch.aminmax(working)
    scale = (high - low) / (2**n_bits - 1)
    # A constant tensor has no range; it is what it is.
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    offset = -low / safe
    q = torch.round(working / safe + offset).clamp_(0, 2**n_bits - 1)
    restored = safe * (q - offset)
    return torch.where(scale > 0, restored, working).to(value.dtype)


def _working(value: torch.Tensor) -> torch.dtype:
    return torch.float32 if value.device.type == "mps" else torch.float64


def _widths(values: Mapping[str, torch.Tensor], b_min: int, b_max: int) -> dict[str, int]:
    """Equations 1 and 2, as the recipe has them."""
    entropies = [weighted_entropy(as_array(name, value)) for name, value in values.items()]
    return dict(zip(values, bit_widths(entropies, b_min, b_max), strict=True))


def grid(bound: Absolute, base: Mapping[str, torch.Tensor] | None = None) -> Quantizer:
    """nearzip's with an absolute bound: the difference to the base in whole steps of twice the bound."""
    step = 2 * bound.value

    def quantize(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        out = {}
        for name, value in values.items():
            start = None if base is None else base.get(name)
            start = torch.zeros((), dtype=value.dtype) if start is None or start.shape != value.shape else start
            start = start.to(value.device, _working(value))
            steps = torch.round((value.to(_working(value)) - start) / step)
            out[name] = (start + steps * step).to(value.dtype)
        return out

    return quantize


def recipe_quantizer(
    method: str, bound: Bound | str | None, options: Mapping[str, Any] | None, base: Mapping[str, Any] | None
) -> Quantizer:
    """Any method, by compressing and taking what would be restored: bit for bit, and as slow as the method."""

    def quantize(values: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        known = None if base is None else {name: base[name] for name in values if name in base}
        restored = api.compress_quietly(values, known or None, method, bound, options=options).restored
        return {name: to_torch(restored[name]).to(value.device) for name, value in values.items()}

    return quantize


def quantizer(
    method: str,
    bound: Bound | str | None = None,
    options: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Quantizer:
    """The fastest way to what `method` would restore. Raises UsageError, UnknownMethodError."""
    if method == "qd-compressor" and bound is None:
        recipe = QdCompressor.from_options(options)
        if isinstance(recipe, QdCompressor) and recipe.variant == "local":
            return range_quantizer(recipe.bits or recipe.b_min, recipe.bits or recipe.b_max)
    if method == "nearzip" and isinstance(bound, Absolute) and not options:
        known = (
            None
            if base is None
            else {n: to_torch(v) if not isinstance(v, torch.Tensor) else v for n, v in base.items()}
        )
        return grid(bound, known)
    return recipe_quantizer(method, bound, options, base)
