"""Weightless: Reagen et al., ICML 2018, as DeepSZ's section 4.2 describes it. docs/methods/weightless.md."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from nearzip.bounds import Bound, NoPromise, Statistics
from nearzip.codec import encode_block
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView, Unpromised
from nearzip.recipes.pruning import PruningRecipe, as_it_is, pruned
from nearzip.recipes.retrain import Hold, Retrain, retrained
from nearzip.stages import Bloomier, Context, Pipeline, Prune
from nearzip.tensors import Array, is_float

__all__ = ["Weightless"]

LARGEST = "largest"


@dataclass(frozen=True)
class Weightless(Unpromised, PruningRecipe):
    """Weightless (ICML 2018): prune, cluster; positions and clusters in a Bloomier filter with four hash functions.

    `layers`: which go into filters, "largest" or patterns with spaces between; the other tensors are kept as they are.
    `clusters` and slot `bits`: about clusters / 2^bits of the zeros come back as weights. With retraining, the layers
    behind each filtered one learn to live with that.
    """

    name = "weightless"

    clusters: int = 16
    bits: int = 9
    layers: str = LARGEST

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pipeline(1.0)
        if not self.layers.split():
            raise UsageError(f"{self.name}: layers are {LARGEST!r} or names or patterns with spaces between")

    def check_names(self, names: Iterable[str]) -> None:
        names = list(names)
        super().check_names(names)
        for pattern in self.layers.split():
            if pattern != LARGEST and not fnmatch.filter(names, pattern):
                raise UsageError(f"{self.name}: layers has {pattern!r}, which is no tensor and matches none")

    def filtered(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
        """The tensors that go into filters, in order, and the share of each that is kept."""
        shares = {name: share for name, shape in shapes.items() if (share := self.share(name, shape)) is not None}
        patterns = self.layers.split()
        if patterns == [LARGEST]:
            largest = max(shares, key=lambda name: math.prod(shapes[name]), default=None)
            return {} if largest is None else {largest: shares[largest]}
        return {name: share for name, share in shares.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}

    def by_name(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
        return self.filtered(shapes).get(name)

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return next(self.plan_all([tensor], bound))

    def plan_all(self, tensors: Iterable[TensorView], bound: Bound) -> Iterator[TensorPlan]:
        views = list(tensors)
        chosen = self.filtered({view.name: view.shape for view in views})
        for view in views:
            if view.name in chosen:
                yield TensorPlan(self._pipeline(chosen[view.name]), bound.tolerance(view.own), own_block=True)
            else:
                yield as_it_is()

    def prepare(self, tensors: Mapping[str, Array], retrain: Retrain) -> dict[str, Array]:
        """Prune and retrain with the zeros kept; then, for each filter in turn, retrain the later tensors.

        While those train, the layer is what a reader will get of it, false positives included. Returned is what its
        filter is made from.
        """
        shapes = {name: array.shape for name, array in tensors.items() if is_float(array.dtype)}
        chosen = self.filtered(shapes)
        cut = {name: pruned(array, chosen[name]) if name in chosen else array for name, array in tensors.items()}
        now = retrained(retrain, cut, Hold(zeros=tuple(chosen)))
        order, stored = list(tensors), {}
        for i, name in enumerate(chosen):
            stored[name] = now[name]
            now = {**now, name: self._as_read(now[name], chosen[name])}
            front = order[: order.index(name) + 1]
            if len(front) < len(order):
                now = retrained(retrain, now, Hold(zeros=tuple(chosen)[i + 1 :], frozen=tuple(front)))
        return {**now, **stored}

    def _pipeline(self, keep: float) -> Pipeline:
        return Pipeline((Prune(keep), Bloomier(self.clusters, self.bits)))

    def _as_read(self, values: Array, keep: float) -> Array:
        """What a reader gets of a layer."""
        flat = values.reshape(-1)
        encoded = encode_block(flat, Context.of(flat), self._pipeline(keep), [NoPromise().tolerance(Statistics())])
        return encoded.restored.reshape(values.shape)
