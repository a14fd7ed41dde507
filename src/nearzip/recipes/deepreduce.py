"""DeepReduce: Xu et al., NeurIPS 2021. docs/methods/deepreduce.md says what we read into it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView
from nearzip.recipes.sparse_updates import SparseUpdate
from nearzip.stages import Chain, Gzip, OrderedBits, Prune, Rans, RawBytes, Sparse, Stage
from nearzip.stages.bits import FixedBits, KeyHuffman
from nearzip.stages.bloom import BloomIndex, Policy
from nearzip.stages.curves import FitCurve
from nearzip.stages.qsgd import StochasticLevels

__all__ = ["DeepReduce"]

#: Tensors up to this size are sent as top-k sends them.
_SMALL = 1000
_BUCKET = 512
_POLICIES: dict[str, Policy] = {"bloom-p0": "p0", "bloom-p1": "p1", "bloom-p2": "p2"}
_VALUES = ("qsgd", "fit-poly", "fit-dexp", "deflate", "raw")


@dataclass(frozen=True)
class DeepReduce(SparseUpdate):
    """DeepReduce (NeurIPS 2021): the largest changes; indices and values each with a coder of their own.

    `keep`: share of each tensor's values. `index`: "bloom-p0" (with a false positive rate `eps`; the values of all that
    pass are sent), "bloom-p1" (those of as many as were kept, drawn among them), "bloom-p2" (the likeliest), "rle"
    (distances in equal bits), "huffman" (the indices' bytes), or "rans", ours. `values`: "qsgd" in `bits` bits and a
    sign, with a `seed`, "fit-poly", "fit-dexp", "deflate", or "raw".
    """

    name = "deepreduce"
    stability = "experimental"

    index: Literal["bloom-p0", "bloom-p1", "bloom-p2", "rle", "huffman", "rans"] = "bloom-p0"
    values: str = "qsgd"
    eps: float = 0.001
    bits: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 16 or not 0 <= self.seed < 1 << 53:
            raise UsageError(f"{self.name}: values have 2 to 16 bits, and a seed is 0 or more")
        if self.values not in _VALUES:
            raise UsageError(f"{self.name}: values is one of {', '.join(_VALUES)}, not {self.values!r}")
        BloomIndex(Chain(self._values()), self.eps)

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        if math.prod(tensor.shape) <= _SMALL:
            values, gaps = Chain((OrderedBits(), Rans("planes"))), Chain((Rans(),))
            return self.planned(tensor, bound, Prune(self.keep), Sparse(values, gaps, gap_bits=32, fill=False))
        return self.planned(tensor, bound, Prune(self.keep), self._sparse())

    def _sparse(self) -> Stage:
        values = Chain(self._values())
        if self.index in _POLICIES:
            return BloomIndex(values, self.eps, _POLICIES[self.index])
        index: dict[str, Stage] = {"rle": FixedBits(), "huffman": KeyHuffman(), "rans": Rans()}
        return Sparse(values, Chain((index[self.index],)), gap_bits=32, fill=False)

    def _values(self) -> tuple[Stage, ...]:
        if self.values == "qsgd":
            return StochasticLevels((1 << self.bits) - 1, _BUCKET, self.seed), FixedBits()
        if self.values.startswith("fit"):
            return (FitCurve("poly" if self.values == "fit-poly" else "dexp"),)
        return (RawBytes(), Gzip()) if self.values == "deflate" else (RawBytes(),)
