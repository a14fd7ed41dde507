"""DeepSZ: Jin et al., HPDC 2019, and its recipe with our coder. docs/methods/deepsz.md."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from nearzip.bounds import Absolute, Bound, Lossless
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView
from nearzip.recipes.pruning import PruningRecipe, as_it_is
from nearzip.recipes.rounding import half_spacing, headroom
from nearzip.stages import Chain, Pipeline, Prune, Rans, SmallestOf, Sparse, SymbolBytes, Sz3, UniformStep

__all__ = ["DeepSz", "DeepSzNearzip"]

#: Where the assessment begins (section 5.1): the error bound that hurt none of the paper's networks.
DEFAULT_BOUND = 1e-3

IndexCoder = Literal["best", "gzip", "zstd", "blosc", "lzma"]


@dataclass(frozen=True)
class DeepSz(PruningRecipe):
    """DeepSZ (HPDC 2019): pruned weights through SZ3 under an error bound, gaps through the best of gzip, zstd, blosc.

    The bound counts from the pruned weights. `keep`: share of the weights kept, for all layers or by name or pattern.
    """

    name = "deepsz"
    needs = ("pysz",)

    index: IndexCoder = "best"

    def resolve_bound(self, bound: Bound | None) -> Bound:
        if bound is None:
            return Absolute(DEFAULT_BOUND)
        if isinstance(bound, Absolute):
            return bound
        raise UsageError(f"deepsz cannot promise {bound}; it keeps abs:EPS, counted from the pruned weights")

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        keep = self.share(tensor.name, tensor.shape)
        if keep is None:
            return as_it_is()
        tolerance = bound.tolerance(tensor.own)
        of = "gzip zstd blosc" if self.index == "best" else self.index
        values = Sz3(headroom(tolerance.value, half_spacing(tensor.dtype, tensor.own.largest)))
        sparse = Sparse(Chain((values,)), Chain((SymbolBytes(), SmallestOf(of))))
        return TensorPlan(Pipeline((Prune(keep), sparse)), tolerance, own_block=True)


@dataclass(frozen=True)
class DeepSzNearzip(PruningRecipe):
    """DeepSZ's recipe with nearzip's coder in place of SZ and the byte compressors, for values and gaps.

    The bound, abs:EPS or lossless, counts from the pruned weights. `keep` as in deepsz.
    """

    name = "deepsz-nearzip"

    def resolve_bound(self, bound: Bound | None) -> Bound:
        if bound is None:
            return Absolute(DEFAULT_BOUND)
        if isinstance(bound, (Absolute, Lossless)):
            return bound
        raise UsageError(
            f"deepsz-nearzip cannot promise {bound}; it keeps abs:EPS or lossless, counted from the pruned weights"
        )

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        keep = self.share(tensor.name, tensor.shape)
        if keep is None:
            return as_it_is()
        tolerance = bound.tolerance(tensor.own)
        if tolerance.kind == "exact":
            values = Chain(exact_pipeline(with_base=False).stages)
        else:
            error = headroom(tolerance.value, half_spacing(tensor.dtype, tensor.own.largest))
            values = Chain((UniformStep(min(2 * error, sys.float_info.max)), Rans()))
        sparse = Sparse(values, Chain((Rans(),)), gap_bits=32, fill=False)
        return TensorPlan(Pipeline((Prune(keep), sparse)), tolerance, own_block=True)
