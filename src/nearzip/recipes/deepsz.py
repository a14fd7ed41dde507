"""DeepSZ: Jin et al., HPDC 2019, and its recipe with our coder. docs/methods/deepsz.md."""

from __future__ import annotations

from dataclasses import dataclass

from nearzip.bounds import Absolute, Bound, Lossless
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView
from nearzip.recipes.pruning import PruningRecipe, as_it_is
from nearzip.stages import Chain, Pipeline, Prune, Rans, Sparse, UniformStep

__all__ = ["DeepSzNearzip"]

#: Where the assessment begins (section 5.1): the error bound that hurt none of the paper's networks.
DEFAULT_BOUND = 1e-3

#: Left of a bound for the rounding of the result to float32.
_MARGIN = 2.0**-10


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
            values = Chain((UniformStep(2 * tolerance.value * (1 - _MARGIN)), Rans()))
        sparse = Sparse(values, Chain((Rans(),)), gap_bits=32, fill=False)
        return TensorPlan(Pipeline((Prune(keep), sparse)), tolerance, alone=True)
