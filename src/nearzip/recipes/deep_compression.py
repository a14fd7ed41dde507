"""Deep Compression: Han, Mao, Dally, ICLR 2016. docs/methods/deep-compression.md."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nearzip.bounds import Bound
from nearzip.errors import UsageError
from nearzip.recipes.base import TensorPlan, TensorView, Unpromised
from nearzip.recipes.by_name import ByName
from nearzip.recipes.pruning import KEPT, PruningRecipe, as_it_is, is_convolutional
from nearzip.recipes.retrain import Hold, Retrain, retrained
from nearzip.stages import Chain, Codebook, Huffman, Pipeline, Prune, Sparse
from nearzip.stages.codebook import cluster, nearest
from nearzip.tensors import Array

__all__ = ["DeepCompression", "clustered"]

#: Bits of a cluster number: section 5 of the paper.
BITS_LINEAR, BITS_CONVOLUTIONAL = 5, 8
#: Bits of a gap likewise.
GAP_LINEAR, GAP_CONVOLUTIONAL = 5, 8


def clustered(values: Array, n_clusters: int) -> Array:
    """`values` with those that are neither zero nor without a number replaced by their cluster's mean."""
    out: Array = values.copy()
    places = (values != 0) & np.isfinite(values)
    if places.any():
        centroids = cluster(values[places], n_clusters)
        out[places] = centroids[nearest(values[places], centroids)]
    return out


@dataclass(frozen=True)
class DeepCompression(Unpromised, PruningRecipe):
    """Deep Compression (ICLR 2016): prune, k-means with linear initialisation, Huffman for cluster numbers and gaps.

    `keep`: share of the weights kept. `bits`: of a cluster number; both for all layers or by name or pattern. With
    retraining, first the pruned weights are trained and then the centroids.
    """

    name = "deep-compression"
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {"keep": KEPT, "bits": (12, 10, 8, 7, 6, 5, 4, 3, 2)}

    bits: ByName | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for _, bits in self.bits.pairs if self.bits else ():
            if not (1 <= bits <= 16 and bits == int(bits)):
                raise UsageError(f"{self.name}: bits are a whole number from 1 to 16, not {bits:g}")

    def check_names(self, names: Iterable[str]) -> None:
        names = list(names)
        super().check_names(names)
        if self.bits is not None:
            self.bits.check_names(f"{self.name}: bits", names)

    def clusters(self, name: str, shape: tuple[int, ...]) -> int:
        """Most shared values of a layer: 2^bits."""
        default = BITS_CONVOLUTIONAL if is_convolutional(shape) else BITS_LINEAR
        return 1 << int((self.bits[name] if self.bits else None) or default)

    def by_name(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
        return self.share(name, shapes[name]), self.clusters(name, shapes[name])

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        keep = self.share(tensor.name, tensor.shape)
        if keep is None:
            return as_it_is()
        values = Chain((Codebook(self.clusters(tensor.name, tensor.shape)), Huffman()))
        gap_bits = GAP_CONVOLUTIONAL if is_convolutional(tensor.shape) else GAP_LINEAR
        sparse = Sparse(values, Chain((Huffman(),)), gap_bits=gap_bits, fill=False)
        return TensorPlan(Pipeline((Prune(keep), sparse)), bound.tolerance(tensor.own), own_block=True)

    def prepare(self, tensors: Mapping[str, Array], retrain: Retrain) -> dict[str, Array]:
        """Prune and retrain with the zeros kept; cluster and retrain with the shared values kept too."""
        trained = super().prepare(tensors, retrain)
        layers = tuple(self.shares(trained))
        shared = {
            name: clustered(a, self.clusters(name, a.shape)) if name in layers else a for name, a in trained.items()
        }
        return retrained(retrain, shared, Hold(zeros=layers, shared=layers))
