"""nearzip's own method. docs/methods/nearzip.md says what was measured."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from nearzip.bounds import Bound, Lossless, NoPromise, Statistics, Tolerance
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.stages import LogStep, Pipeline, Rans, SubtractBase, UniformStep

__all__ = ["Nearzip", "half_spacing"]

#: Fewer values than this and a tensor's own step is rounded down.
_SMALL = 1 << 14


def half_spacing(dtype: np.dtype[Any], largest: float) -> float:
    """Half the distance between neighbouring values of `dtype` at magnitude `largest`: the rounding of a result."""
    if largest == 0:
        return 0.0
    half, lowest = _spacing(dtype)
    return math.ldexp(half, max(math.frexp(largest)[1] - 1, lowest))


@functools.cache
def _spacing(dtype: np.dtype[Any]) -> tuple[float, int]:
    """Half the distance between neighbours from 1 on, and the exponent below which distances stay the same."""
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.eps) / 2, int(info.minexp)


@dataclass(frozen=True)
class Nearzip(Recipe):
    """nearzip: one quantization step for the whole network, closed loop against the base, rANS; or lossless.

    step : float or None
        Distance between levels, in place of the one that follows from the bound. Without a bound nothing is promised.
    """

    name = "nearzip"

    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step <= sys.float_info.max:
            raise UsageError(f"nearzip: step is positive and finite, not {self.step!r}")

    def resolve_bound(self, bound: Bound | None) -> Bound:
        return bound or (Lossless() if self.step is None else NoPromise())

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        tolerance = bound.tolerance(tensor.own)
        if self.step is not None and tolerance.kind != "exact":
            return TensorPlan(_stepped(self.step, tensor.with_base), tolerance)
        if tolerance.kind == "exact":
            return TensorPlan(exact_pipeline(tensor.with_base), tolerance)
        if tolerance.kind == "pointwise":
            eps = _room(tolerance.value, half_spacing(tensor.dtype, 1.0))
            return TensorPlan(Pipeline((LogStep(eps, delta=tensor.with_base), Rans())), tolerance)
        room = _shared_room(tolerance.value, bound.tolerance(tensor.whole), tensor.dtype, tensor.own)
        return TensorPlan(_stepped(min(2 * room, sys.float_info.max), tensor.with_base), tolerance)


@functools.lru_cache(maxsize=64)
def _stepped(step: float, with_base: bool) -> Pipeline:
    """One object for all tensors that share a step: making and hashing them shows in the profile."""
    first = (SubtractBase(),) if with_base else ()
    return Pipeline((*first, UniformStep(step), Rans()))


def _shared_room(own_value: float, shared: Tolerance, dtype: np.dtype[Any], own: Statistics) -> float:
    """Half the step: the network's, because the error that matters adds up over all tensors, or the tensor's own
    where its promise is tighter."""
    rounding = half_spacing(dtype, own.largest)
    if shared.kind != "exact" and shared.value <= own_value:
        return _room(shared.value, rounding)
    room = _room(own_value, rounding)
    if own.finite < _SMALL:
        # On a common grid, so that small tensors share a stream.
        room = math.pow(2, math.floor(2 * math.log2(room)) / 2)
    return room


def _room(tolerance: float, rounding: float) -> float:
    """What quantization may use of the tolerance, when the result is rounded to the tensor's dtype as well.

    A thousandth is always left, so that tensors whose rounding is below that get the same step.
    """
    return tolerance - min(max(rounding, tolerance / 1024), tolerance / 2)
