"""What a method would restore, as torch tensors on their own device: fast enough for every step of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import nearzip.api as api
from nearzip.bounds import Absolute, Bound
from nearzip.errors import UsageError
from nearzip.torch.arrays import to_torch

__all__ = ["Quantizer", "grid", "quantizer", "range_quantizer", "recipe_quantizer"]

#: Names and values to the values that would be restored; results may share no memory with the arguments.
Quantizer = Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]

#: Bins of the histogram, section 4.2 of QD-Compressor's paper.
_BINS = 256


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
    """Equation 2: B in proportion to where a tensor's entropy stands between the smallest and the largest."""
    entropies = {name: _entropy(value) for name, value in values.items()}
    low, high = min(entropies.values(), default=0.0), max(entropies.values(), default=0.0)
    if high <= low:
        return dict.fromkeys(values, b_max)
    span = (b_max - b_min) / (high - low)
    return {name: b_min + round((entropy - low) * span) for name, entropy in entropies.items()}


def _entropy(value: torch.Tensor) -> float:
    """Equation 1: entropy of a histogram of 256 bins, each weighted by the mean square of its values."""
    flat = value.detach().reshape(-1).to(torch.float64).cpu()
    flat = flat[torch.isfinite(flat)]
    if not flat.numel() or flat.max() <= flat.min():
        return 0.0
    bins = ((flat - flat.min()) / (flat.max() - flat.min()) * _BINS).long().clamp_(0, _BINS - 1)
    counts = torch.bincount(bins, minlength=_BINS).to(torch.float64)
    squares = torch.bincount(bins, weights=flat * flat, minlength=_BINS)
    share = counts / counts.sum()
    weight = squares / counts.clamp_min(1)
    terms = torch.where(share > 0, -weight * share * torch.log2(share.clamp_min(1e-300)), 0.0)
    return float(terms.sum())


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
        restored = api.compress(values, known or None, method, bound, options=options).restored
        return {name: to_torch(restored[name]).to(value.device) for name, value in values.items()}

    return quantize


def quantizer(
    method: str,
    bound: Bound | str | None = None,
    options: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Quantizer:
    """The fastest way to what `method` would restore. Raises UsageError, UnknownMethodError."""
    settings = dict(options or {})
    if method == "qd-compressor" and bound is None and set(settings) <= {"b_min", "b_max"}:
        b_min, b_max = int(settings.get("b_min", 4)), int(settings.get("b_max", 8))
        return range_quantizer(b_min, b_max)
    if method == "nearzip" and isinstance(bound, Absolute) and not settings:
        known = (
            None
            if base is None
            else {n: to_torch(v) if not isinstance(v, torch.Tensor) else v for n, v in base.items()}
        )
        return grid(bound, known)
    return recipe_quantizer(method, bound, options, base)
