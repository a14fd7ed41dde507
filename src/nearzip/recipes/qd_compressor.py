"""QD-Compressor: Jin et al., IEEE TPDS 2023. docs/methods/qd-compressor.md says where we depart from the paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from nearzip.bounds import Bound, Statistics
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView, Unpromised
from nearzip.stages import Gzip, Lzma, Pipeline, RangeQuantize, Stage, SubtractBase, SymbolBytes, Zstd
from nearzip.tensors import Array

__all__ = ["QdCompressor", "bit_widths", "weighted_entropy"]

#: k of equation 1.
_BINS = 256
#: The three of Figure 7.
_BACKENDS: dict[str, Stage] = {"lzma": Lzma(), "zstd": Zstd(), "gzip": Gzip()}


def weighted_entropy(values: Array) -> float:
    """Equation 1: entropy, in nats, of a layer's values in 256 bins over their range. Non-finite values are left out.

    Examples
    --------
    >>> round(weighted_entropy(np.arange(256, dtype=np.float32)), 6) == round(math.log(256), 6)
    True
    >>> weighted_entropy(np.ones(9, np.float32))
    0.0
    """
    with np.errstate(invalid="ignore"):
        flat = values.reshape(-1).astype(np.float64)
    finite = flat[np.isfinite(flat)]
    if not finite.size or finite.min() == finite.max():
        return 0.0
    # Scaled first: NumPy wants the range of the values to be finite.
    low, high = finite.min() / 2, finite.max() / 2
    places = np.minimum((finite / 2 - low) / (high - low) * _BINS, _BINS - 1).astype(np.int64)
    counts = np.bincount(places, minlength=_BINS)
    shares = counts[counts > 0] / finite.size
    return float(-(shares * np.log(shares)).sum())


def bit_widths(entropies: Sequence[float], b_min: int, b_max: int) -> list[int]:
    """Equation 2: bits for each layer by its entropy; `b_max` for all if the entropies are equal.

    Examples
    --------
    >>> bit_widths([1.0, 2.0, 3.0], 4, 8)
    [4, 6, 8]
    """
    low, high = min(entropies, default=0.0), max(entropies, default=0.0)
    if low == high:
        return [b_max] * len(entropies)
    return [b_min + math.floor((b_max - b_min) * ((e - low) / (high - low)) + 0.5) for e in entropies]


@dataclass(frozen=True)
class QdCompressor(Unpromised):
    """QD-Compressor (TPDS 2023): each layer's range in 4 to 8 bits by its entropy, difference modulo 2^B, LZMA.

    Sections 4.2 to 4.6, equations 1 to 5, 8 and 9. `bits` fixes one width for all layers; otherwise they are between
    `b_min` and `b_max`. `variant` is a row of Table 1: "local", or "delta-first" (the difference is quantized, not
    the versions), or "global" (one range for all layers).
    """

    name = "qd-compressor"
    cut_tensors = False
    # Quantized is what is restored, however it is stored: error feedback trains on it (section 4.4).
    fallback = "restored"
    # The paper packs a whole network into one stream.
    group_bytes = 16 << 20
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {"bits": (16, 12, 10, 8, 7, 6, 5, 4, 3, 2)}

    bits: int | None = None
    b_min: int = 4
    b_max: int = 8
    variant: Literal["local", "delta-first", "global"] = "local"
    backend: Literal["lzma", "zstd", "gzip"] = "lzma"

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise UsageError(f"{self.name}: bits are 1 to 16, not {self.bits}")
        if not 1 <= self.b_min <= self.b_max <= 16:
            raise UsageError(f"{self.name}: 1 <= b_min <= b_max <= 16, not {self.b_min} and {self.b_max}")

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return next(self.plan_all([tensor], bound))

    def plan_all(self, tensors: Iterable[TensorView], bound: Bound) -> Iterator[TensorPlan]:
        views = list(tensors)
        base_range = self._base_range(views)
        for view, bits in zip(views, self._widths(views), strict=True):
            stages = (*self._quantized(view, bits, base_range), SymbolBytes(), _BACKENDS[self.backend])
            yield TensorPlan(Pipeline(stages), bound.tolerance(view.own))

    def without_base(self, pipeline: Pipeline) -> Pipeline | None:
        # Levels are the same with a base and without, unless the difference is what is quantized.
        return None if self.variant == "delta-first" else pipeline.without_base()

    def _widths(self, views: list[TensorView]) -> list[int]:
        if self.bits is not None:
            return [self.bits] * len(views)
        if self.b_min == self.b_max:
            return [self.b_max] * len(views)
        return bit_widths([weighted_entropy(view.values()) for view in views], self.b_min, self.b_max)

    def _quantized(self, view: TensorView, bits: int, base_range: Statistics) -> tuple[Stage, ...]:
        if self.variant == "delta-first" and view.with_base:
            return SubtractBase(), RangeQuantize(bits, delta=False)
        if self.variant == "global" and view.whole.high > view.whole.low:
            low, high = view.whole.low, view.whole.high
            if not view.with_base:
                return (RangeQuantize(bits, False, low, high),)
            return (RangeQuantize(bits, True, low, high, base_range.low, base_range.high),)
        return (RangeQuantize(bits, delta=view.with_base),)

    def _base_range(self, views: list[TensorView]) -> Statistics:
        if self.variant != "global":
            return Statistics()
        return sum((Statistics.of(view.base_values()) for view in views if view.with_base), Statistics())
