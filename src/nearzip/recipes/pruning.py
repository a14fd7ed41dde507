"""What the pruning methods share: which tensors are layers, how much of each is kept, and retraining."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nearzip.bounds import EXACT
from nearzip.codec import exact_pipeline
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe, TensorPlan
from nearzip.recipes.by_name import ByName
from nearzip.recipes.retrain import Hold, Retrain, retrained
from nearzip.stages.prune import largest
from nearzip.tensors import Array, is_float

__all__ = ["KEEP_CONVOLUTIONAL", "KEEP_LINEAR", "KEPT", "PruningRecipe", "as_it_is", "is_convolutional", "pruned"]

#: Shares of weights kept where `keep` is not given. Fully connected: DeepSZ, Table 2, 8 to 10 % in all of LeNet and of
#: AlexNet. Convolutional: Han et al. 2015, AlexNet's conv2 to conv5, 35 to 38 %.
KEEP_LINEAR, KEEP_CONVOLUTIONAL = 0.09, 0.35

#: Shares to try, from all weights down.
KEPT = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.23, 0.17, 0.13, 0.1, 0.07, 0.05, 0.035, 0.025)


def is_convolutional(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2


def pruned(values: Array, keep: float) -> Array:
    """`values` with all but the largest made zero, shape and dtype as they are."""
    flat = np.where(largest(values.reshape(-1), keep), values.reshape(-1), np.zeros((), values.dtype))
    return flat.reshape(values.shape)


def as_it_is() -> TensorPlan:
    """For tensors that are not pruned: every bit is kept, and small ones share a block."""
    return TensorPlan(exact_pipeline(with_base=False), EXACT)


@dataclass(frozen=True)
class PruningRecipe(Recipe):
    """A method that prunes the layers of a network: its floating-point tensors of two dimensions or more.

    Whatever `keep` leaves out, and all that is no layer, is stored bit for bit.
    """

    uses_base = False
    fallback = "restored"
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {"keep": KEPT}

    keep: ByName | None = None

    def __post_init__(self) -> None:
        for _, share in self.keep.pairs if self.keep else ():
            if not 0 <= share <= 1:
                raise UsageError(f"{self.name}: keep is a share of the weights, between 0 and 1, not {share:g}")

    def share(self, name: str, shape: tuple[int, ...]) -> float | None:
        """The share of a tensor's weights that is kept; None: it is not pruned at all."""
        if len(shape) < 2:
            return None
        if self.keep is None:
            return KEEP_CONVOLUTIONAL if is_convolutional(shape) else KEEP_LINEAR
        return self.keep[name]

    def by_name(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
        return self.share(name, shapes[name])

    def check_names(self, names: Iterable[str]) -> None:
        if self.keep is not None:
            self.keep.check_names(f"{self.name}: keep", names)

    def shares(self, tensors: Mapping[str, Array]) -> dict[str, float]:
        """The tensors that are pruned, and the share of each that is kept."""
        shares = {name: self.share(name, a.shape) for name, a in tensors.items() if is_float(a.dtype)}
        return {name: share for name, share in shares.items() if share is not None}

    def prepare(self, tensors: Mapping[str, Array], retrain: Retrain) -> dict[str, Array]:
        """Prune, and retrain with the zeros kept."""
        shares = self.shares(tensors)
        cut = {name: pruned(a, shares[name]) if name in shares else a for name, a in tensors.items()}
        return retrained(retrain, cut, Hold(zeros=tuple(shares)))
