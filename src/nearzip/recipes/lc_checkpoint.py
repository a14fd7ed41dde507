"""LC-Checkpoint: Chen et al., ICML 2020. docs/methods/lc-checkpoint.md says what we read into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView, Unpromised
from nearzip.stages import ExponentBuckets, Huffman, Pipeline, SubtractBase

__all__ = ["LcCheckpoint"]


@dataclass(frozen=True)
class LcCheckpoint(Unpromised):
    """LC-Checkpoint (ICML 2020): differences in buckets of one sign and exponent, the largest kept, Huffman.

    `bits`: 2 to 8; the 2^bits - 1 buckets of largest exponent of each tensor are kept.
    """

    name = "lc-checkpoint"
    cut_tensors = False
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {"bits": (8, 7, 6, 5, 4, 3, 2)}

    bits: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise UsageError(f"{self.name}: bits are 2 to 8, not {self.bits}")

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        first = (SubtractBase(),) if tensor.with_base else ()
        return TensorPlan(Pipeline((*first, ExponentBuckets(self.bits), Huffman())), bound.tolerance(tensor.own))
