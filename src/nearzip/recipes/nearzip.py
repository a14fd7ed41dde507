"""nearzip's own method. docs/methods/nearzip.md says what was measured."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.bounds import Bound, Lossless, NoPromise, Statistics, Tolerance
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.recipes.rounding import half_spacing, room
from nearzip.stages import LogStep, Pipeline, Rans, SubtractBase, UniformStep

__all__ = ["Nearzip"]

#: Fewer values than this and a tensor's own step is rounded down.
_SMALL = 1 << 14


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
            eps = room(tolerance.value, half_spacing(tensor.dtype, 1.0))
            return TensorPlan(Pipeline((LogStep(eps, delta=tensor.with_base), Rans())), tolerance)
        half = _shared_room(tolerance.value, bound.tolerance(tensor.whole), tensor.dtype, tensor.own)
        return TensorPlan(_stepped(min(2 * half, sys.float_info.max), tensor.with_base), tolerance)


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
        return room(shared.value, rounding)
    half = room(own_value, rounding)
    if own.finite < _SMALL:
        # On a common grid, so that small tensors share a stream.
        half = math.pow(2, math.floor(2 * math.log2(half)) / 2)
    return half
