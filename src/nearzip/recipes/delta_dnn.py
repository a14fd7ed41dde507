"""Delta-DNN: Hu et al., ICPP 2020. docs/methods/delta-dnn.md says where we depart from the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nearzip.bounds import Absolute, Bound, PointwiseRelative
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.stages import LogStep, Lzma, PackIntegers, Pipeline, RunLengths, Stage, SubtractBase, UniformStep, Zstd

__all__ = ["BACKENDS", "DeltaDnn"]

Mode = Literal["absolute", "relative"]
Backend = Literal["rle+lzma", "rle+zstd", "lzma", "zstd"]

#: The four ways of Figure 5 to pack the quantized difference.
BACKENDS: dict[str, tuple[Stage, ...]] = {
    "rle+lzma": (RunLengths(), Lzma()),
    "rle+zstd": (RunLengths(), Zstd()),
    "lzma": (PackIntegers(), Lzma()),
    "zstd": (PackIntegers(), Zstd()),
}


@dataclass(frozen=True)
class DeltaDnn(Recipe):
    """Delta-DNN (ICPP 2020): quantized difference to the base, run lengths, LZMA.

    Section 3, equations 1 and 2. `mode="absolute"` takes the equations as printed: step 2 log(1 + eps), |A - A'| <=
    eps. `mode="relative"` applies the same step to log|A|: |A - A'| <= eps |A|. The default eps is section 5.1's.
    """

    name = "delta-dnn"
    # The paper packs a whole network into one stream.
    group_bytes = 16 << 20

    eps: float | None = None
    mode: Mode | None = None
    backend: Backend = "rle+lzma"

    def resolve_bound(self, bound: Bound | None) -> Bound:
        if bound is None:
            eps = 1e-3 if self.eps is None else self.eps
            return PointwiseRelative(eps) if self.mode == "relative" else Absolute(eps)
        kind = PointwiseRelative if self.mode == "relative" else Absolute
        if self.eps is not None:
            raise UsageError("delta-dnn: give a bound or eps, not both")
        if isinstance(bound, kind) or (self.mode is None and isinstance(bound, PointwiseRelative)):
            return bound
        raise UsageError(
            f"delta-dnn cannot promise {bound}; it keeps abs:EPS (mode absolute) or pwrel:EPS (mode relative)"
        )

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        tolerance = bound.tolerance(tensor.own)
        if isinstance(bound, PointwiseRelative):
            first: tuple[Stage, ...] = (LogStep(tolerance.value, delta=tensor.with_base),)
        else:
            step = UniformStep(2 * math.log1p(tolerance.value))
            first = (SubtractBase(), step) if tensor.with_base else (step,)
        return TensorPlan(Pipeline(first + BACKENDS[self.backend]), tolerance)
