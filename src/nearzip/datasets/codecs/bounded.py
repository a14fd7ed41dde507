"""Arrays of any dtype within an error bound: each group of samples is an archive of `nearzip.compress`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nearzip.api import compress, decompress
from nearzip.bounds import parse_bound
from nearzip.datasets.codecs.base import Coder, Pieces, SampleCodec
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError, UsageError
from nearzip.limits import Limits
from nearzip.tensors import Array

__all__ = ["Bounded"]


@dataclass(frozen=True)
class Bounded(SampleCodec):
    """`nearzip.compress` over groups of samples: scientific images, spectrograms, 16-bit images.

    Parameters
    ----------
    bound : str
        "lossless", "abs:0.01", .. of floats; integers are always exact.
    """

    name: ClassVar[str] = "bounded"
    says: ClassVar[str] = "any arrays within an error bound, in groups"
    knob: ClassVar[str | None] = "bound"

    bound: str = "lossless"

    def __post_init__(self) -> None:
        if parse_bound(self.bound).to_json().get("kind") == "upd":
            raise UsageError("bounded: samples have no base to be relative to; take abs, rel, pwrel or rms")

    def check(self, spec: Spec) -> None:
        """Anything goes."""

    def coder(self, shared: bytes, spec: Spec) -> Coder:
        if shared:
            raise CorruptError("bounded shares nothing between groups")
        return _BoundedCoder(self, spec)


class _BoundedCoder(Coder):
    in_groups = True

    def __init__(self, codec: Bounded, spec: Spec):
        self._bound, self._dtype = codec.bound, np.dtype(spec.dtype)

    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        if len({sample.shape for sample in samples}) == 1:
            tensors = {"s": np.stack(samples)}
        else:
            tensors = {f"s{i}": np.ascontiguousarray(sample) for i, sample in enumerate(samples)}
        data = compress(tensors, bound=parse_bound(self._bound), threads=1).to_bytes()
        return [data] + [b""] * (len(samples) - 1)

    def decode(self, pieces: Pieces) -> list[Array]:
        shapes = pieces.shapes
        most = sum(math.prod(shape) for shape in shapes) * self._dtype.itemsize
        found = decompress(
            bytes(pieces.data[pieces.starts[0] : pieces.stops[0]]), limits=Limits(output_bytes=most), threads=1
        )
        arrays = list(found["s"]) if set(found) == {"s"} and found["s"].ndim else list(found.values())
        if [(a.shape, a.dtype) for a in arrays] != [(tuple(shape), self._dtype) for shape in shapes]:
            raise CorruptError("a group holds other samples than the index says")
        return [np.asarray(array) for array in arrays]
