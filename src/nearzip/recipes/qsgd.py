"""QSGD: Alistarh et al., NeurIPS 2017. docs/methods/qsgd.md says what we read into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView, Unpromised
from nearzip.stages import Pipeline, Rans, SubtractBase
from nearzip.stages.qsgd import StochasticLevels

__all__ = ["Qsgd"]


@dataclass(frozen=True)
class Qsgd(Unpromised):
    """QSGD (NeurIPS 2017): changes rounded at random to levels of their bucket's norm, right on average.

    `levels`: s, levels between zero and the norm. `bucket`: values that share a norm. `seed`: of the random numbers;
    give another in each round and to each client.
    """

    name = "qsgd"
    stability = "experimental"
    cut_tensors = False
    fallback = "restored"
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {"levels": (32767, 4095, 511, 127, 63, 31, 15, 7, 3, 1)}

    levels: int = 127
    bucket: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= 1 << 20 or self.bucket < 1 or not 0 <= self.seed < 1 << 53:
            raise UsageError(f"{self.name}: levels are 1 to 2^20, a bucket has at least one value, a seed is 0 or more")

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        first = (SubtractBase(),) if tensor.with_base else ()
        levels = StochasticLevels(self.levels, self.bucket, self.seed)
        return TensorPlan(Pipeline((*first, levels, Rans())), bound.tolerance(tensor.own))
