"""SKCompress: Jiang et al., VLDB Journal 2020. docs/methods/skcompress.md says what we read into it."""

from __future__ import annotations

from dataclasses import dataclass

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView
from nearzip.recipes.sparse_updates import SparseUpdate
from nearzip.stages import Chain, Huffman, Prune, Sparse
from nearzip.stages.bits import AdaptivePrefix
from nearzip.stages.min_max import MinMaxSketch
from nearzip.stages.quantiles import QuantileBuckets

__all__ = ["SkCompress"]


@dataclass(frozen=True)
class SkCompress(SparseUpdate):
    """SKCompress (VLDBJ 2020): the largest changes in quantile buckets, Huffman-coded; distances in an adaptive prefix.

    `keep`: share of each tensor's values. `buckets`: of equal counts, negative and positive ones apart. `sketch`: keep
    buckets in the paper's grouped min-max sketch, in 8 groups and tables of 2 rows by 0.3 columns a value; takes up to
    256 buckets.
    """

    name = "skcompress"
    stability = "experimental"

    buckets: int = 256
    sketch: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.buckets <= 1 << 12:
            raise UsageError(f"{self.name}: buckets are 2 to 4096, not {self.buckets}")
        if self.sketch and self.buckets > 256:
            raise UsageError(f"{self.name}: a sketch takes up to 256 buckets, not {self.buckets}")

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        if self.sketch:
            sketch = MinMaxSketch(Chain((AdaptivePrefix(),)), Chain((Huffman(),)), self.buckets)
            return self.planned(tensor, bound, Prune(self.keep), sketch)
        values = Chain((QuantileBuckets(self.buckets), Huffman()))
        sparse = Sparse(values, Chain((AdaptivePrefix(),)), gap_bits=32, fill=False)
        return self.planned(tensor, bound, Prune(self.keep), sparse)
