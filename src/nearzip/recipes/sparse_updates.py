"""Sparse updates of federated learning: top-k, SBC and STC. docs/methods has a page for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView, Unpromised
from nearzip.stages import Chain, OrderedBits, Pipeline, Prune, Rans, Sparse, SubtractBase
from nearzip.stages.golomb import Golomb, golomb_bits
from nearzip.stages.top_mean import TopMean

__all__ = ["Sbc", "SparseUpdate", "Stc", "TopK"]

_KEEPS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


@dataclass(frozen=True)
class SparseUpdate(Unpromised):
    """The share of each tensor's values that is kept, of the difference where there is a base."""

    whole_tensors = True
    fallback = "restored"
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {"keep": _KEEPS}

    keep: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise UsageError(f"{self.name}: keep is a share from 0 to 1, not {self.keep}")

    def planned(self, tensor: TensorView, bound: Bound, *stages: Any) -> TensorPlan:
        """A plan of these stages, of the difference where there is a base."""
        first = (SubtractBase(),) if tensor.with_base else ()
        return TensorPlan(Pipeline((*first, *stages)), bound.tolerance(tensor.own))


@dataclass(frozen=True)
class TopK(SparseUpdate):
    """Top-k: the largest changes of each tensor in float32, with their positions; the rest is dropped.

    `keep`: share of each tensor's values.
    """

    name = "topk"
    stability = "experimental"

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        sparse = Sparse(Chain((OrderedBits(), Rans("planes"))), Chain((Rans(),)), gap_bits=32, fill=False)
        return self.planned(tensor, bound, Prune(self.keep), sparse)


@dataclass(frozen=True)
class Stc(SparseUpdate):
    """Sparse ternary compression (TNNLS 2020): the largest changes of each tensor as plus or minus their mean.

    `keep`: share of each tensor's values, the paper's p. `coder`: "golomb", as published, or "rans", which is smaller
    where the values cluster.
    """

    name = "stc"
    stability = "experimental"

    coder: Literal["golomb", "rans"] = "golomb"

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return self.planned(tensor, bound, TopMean(self.keep), _coder(self.coder, self.keep))


@dataclass(frozen=True)
class Sbc(SparseUpdate):
    """Sparse binary compression (IJCNN 2019): the largest changes of one sign of each tensor, all as their mean.

    `keep`: share of each tensor's values, the paper's p. `coder`: "golomb", as published, or "rans".
    """

    name = "sbc"
    stability = "experimental"

    coder: Literal["golomb", "rans"] = "golomb"

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return self.planned(tensor, bound, TopMean(self.keep, "one"), _coder(self.coder, self.keep))


def _coder(coder: str, keep: float) -> Golomb | Rans:
    return Rans() if coder == "rans" else Golomb(golomb_bits(keep))
