"""nearzip's own method. docs/methods/nearzip.md says what was measured."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nearzip.bounds import EXACT, Bound, Lossless, NoPromise, Statistics, Tolerance
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.recipes.fine_steps import finer_parts
from nearzip.recipes.rounding import half_spacing, headroom
from nearzip.stages import E8Step, LogStep, Pipeline, Rans, SubtractBase, UniformStep
from nearzip.stages.e8 import UnbiasedE8Step, e8_gain
from nearzip.stages.quantize import UnbiasedStep, unbiased_gain

__all__ = ["Nearzip"]

#: Fewer values than this and a tensor's own step is rounded down.
_SMALL = 1 << 14
#: Where nearly all values become zero, the few others would have to represent all.
_MAX_GAIN = 4.0
#: Tensors of fewer values are rounded one by one: five streams would cost them more than a lattice saves.
_LATTICE = 1 << 12


@dataclass(frozen=True)
class Nearzip(Recipe):
    """nearzip: one quantization step, finer for small tensors, closed loop against the base, rANS; or lossless.

    step : float or None
        Distance between levels, in place of the one that follows from the bound. Without a bound nothing is promised.
    unbiased : bool
        With a step and no bound: each large tensor's levels lie farther apart than what is rounded to them, so that the
        difference to the base keeps its length along its own direction (`stages.quantize.unbiased_gain`). For updates
        of which most becomes zero: at the same size they are several times nearer, where they point where the
        training goes (Adam late in training), or farther, where they are mostly noise. Measure.
    finer : float
        How much of the file finer steps for small tensors may cost, 0 to 1: by default they make it about 2 % larger at
        most than one step for all would, for fewer bytes at the same accuracy. 0: one step for all.
    lattice : bool
        With a step and no bound: each eight neighbouring values of a large tensor go to the nearest point of the
        lattice E8, whose cells are as large as those of rounding (`stages.E8Step`), in place of each value to a
        multiple of the step. For updates of transformers: fewer bytes at the same divergence.
    """

    name = "nearzip"
    experimental_options = frozenset({"lattice", "unbiased"})

    step: float | None = None
    unbiased: bool = False
    finer: float = 0.02
    lattice: bool = False

    def __post_init__(self) -> None:
        if self.step is not None and not 0 < self.step <= sys.float_info.max:
            raise UsageError(f"nearzip: step is positive and finite, not {self.step!r}")
        for option in self._unpromised:
            if self.step is None:
                raise UsageError(f"nearzip: {option} goes with a step")
        if not 0 <= self.finer <= 1:
            raise UsageError(f"nearzip: finer is a share, 0 to 1, not {self.finer!r}")

    @property
    def _unpromised(self) -> list[str]:
        """Options in use that go with no bound."""
        return [option for option in ("unbiased", "lattice") if getattr(self, option)]

    def resolve_bound(self, bound: Bound | None) -> Bound:
        if bound is not None and not isinstance(bound, NoPromise):
            for option in self._unpromised:
                raise UsageError(f"nearzip: {option} promises nothing for single values, so it cannot keep {bound}")
        return bound or (Lossless() if self.step is None else NoPromise())

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return next(self.plan_all([tensor], bound))

    def plan_all(self, tensors: Iterable[TensorView], bound: Bound) -> Iterator[TensorPlan]:
        views = list(tensors)
        parts = self._parts(views, bound)
        whole: Statistics | None = None
        shared = EXACT
        for tensor in views:
            if tensor.whole is not whole:  # one object for all tensors of a network
                whole, shared = tensor.whole, bound.tolerance(tensor.whole)
            yield self._planned(tensor, bound, shared, parts.get(tensor.shape, 1.0))

    def without_base(self, pipeline: Pipeline) -> Pipeline | None:
        # A gain belongs to the difference that it was found for.
        return None if self.unbiased else pipeline.without_base()

    def _parts(self, tensors: Sequence[TensorView], bound: Bound) -> dict[tuple[int, ...], float]:
        """By shape: which part of the network's step a small tensor gets, where that is not all of it."""
        if len(tensors) < 2 or not self.finer:
            return {}
        shared = bound.tolerance(tensors[0].whole)
        step = self.step or 2 * shared.value
        rounded = shared.kind == "absolute" or (self.step is not None and shared.kind == "finite")
        return finer_parts(tensors, step, self.finer) if rounded else {}

    def _planned(self, tensor: TensorView, bound: Bound, shared: Tolerance, part: float) -> TensorPlan:
        tolerance = bound.tolerance(tensor.own)
        if self.step is not None and tolerance.kind != "exact":
            step = max(part * self.step, min(self.step, _finest(tensor)))
            lattice = self.lattice and math.prod(tensor.shape) >= _LATTICE
            gain = _gain(tensor, step, lattice) if self.unbiased else 1.0
            return TensorPlan(_stepped(step, tensor.with_base, gain, lattice), tolerance)
        if tolerance.kind == "exact":
            return TensorPlan(exact_pipeline(tensor.with_base), tolerance)
        if tolerance.kind == "pointwise":
            eps = headroom(tolerance.value, half_spacing(tensor.dtype, 1.0))
            return TensorPlan(Pipeline((LogStep(eps, delta=tensor.with_base), Rans())), tolerance)
        rounding = half_spacing(tensor.dtype, tensor.own.largest)
        is_small = tensor.own.finite < _SMALL
        return _rounded(tolerance, shared, rounding, is_small, part, tensor.with_base)


#: Halves of the distance between neighbouring values of the dtype: a finer step would code its noise.
_FINEST = 16


def _finest(tensor: TensorView) -> float:
    return _FINEST * half_spacing(tensor.dtype, tensor.own.largest)


@functools.lru_cache(maxsize=256)
def _rounded(
    tolerance: Tolerance, shared: Tolerance, rounding: float, is_small: bool, part: float, with_base: bool
) -> TensorPlan:
    """The plan of a tensor with an absolute tolerance. Thousands of tensors share a few.

    Parameters
    ----------
    tolerance, shared : Tolerance
        Of the tensor, and of all tensors together.
    rounding : float
        Half the distance between neighbouring values of the dtype at the tensor's largest value.
    is_small : bool
    part : float
        Of the network's step.
    with_base : bool
    """
    half = _shared_half_step(tolerance.value, shared, rounding, is_small)
    if part < 1:
        half = min(half, max(part * headroom(shared.value, rounding), _FINEST * rounding / 2))
    return TensorPlan(_stepped(min(2 * half, sys.float_info.max), with_base), tolerance)


@functools.lru_cache(maxsize=64)
def _stepped(step: float, with_base: bool, gain: float = 1.0, lattice: bool = False) -> Pipeline:
    """One object for all tensors that share a step: making and hashing them shows in the profile."""
    first = (SubtractBase(),) if with_base else ()
    wide = min(step * gain, sys.float_info.max)
    if lattice:
        return Pipeline((*first, E8Step(step) if gain == 1 else UnbiasedE8Step(wide, gain=gain)))
    return Pipeline((*first, UniformStep(step) if gain == 1 else UnbiasedStep(wide, gain), Rans()))


def _gain(tensor: TensorView, step: float, lattice: bool) -> float:
    """What unbiases a large tensor, in eighths of an octave; small ones share a stream and cost little as they are."""
    if tensor.own.finite < _SMALL:
        return 1.0
    base = tensor.base_values() if tensor.with_base else None
    gain = e8_gain(tensor.values(), base, step) if lattice else unbiased_gain(tensor.values(), base, step)
    return math.pow(2, round(8 * math.log2(min(gain, _MAX_GAIN))) / 8)


def _shared_half_step(own_value: float, shared: Tolerance, rounding: float, is_small: bool) -> float:
    """Half the step: the network's, because the error that matters adds up over all tensors, or the tensor's own
    where its promise is tighter."""
    if shared.kind != "exact" and shared.value <= own_value:
        return headroom(shared.value, rounding)
    half = headroom(own_value, rounding)
    if is_small:
        # On a common grid, so that small tensors share a stream.
        half = math.pow(2, math.floor(2 * math.log2(half)) / 2)
    return half
