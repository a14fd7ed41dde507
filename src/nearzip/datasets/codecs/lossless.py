"""Images without loss: pixels expected from their neighbours and other channels, contexts over the whole data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import nearzip._core as _core
from nearzip.datasets import pixel_model
from nearzip.datasets.codecs.base import Coder, Pieces, SampleCodec, Shape
from nearzip.datasets.codecs.stacks import by_shape, decoded_stacks, encoded_stacks, spread
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array

__all__ = ["Lossless"]

#: Values that weights are fitted to.
_FITTED_VALUES = 1_500_000


@dataclass(frozen=True)
class Lossless(SampleCodec):
    """Exact images of 8 bits: linear prediction with weights and contexts that are fitted to the data set."""

    name: ClassVar[str] = "lossless"
    says: ClassVar[str] = "exact images: prediction with contexts over the whole data set, rANS"

    def check(self, spec: Spec) -> None:
        if spec.channels is None:
            raise UsageError(f"lossless codes images of 8 bits, not {spec}; take 'bounded' for other arrays")

    def learn(self, chunks: Iterable[Sequence[Array]], spec: Spec) -> bytes:
        assert spec.channels is not None
        fitted = (images for _, images in by_shape(spread(chunks, _FITTED_VALUES)))
        parts = pixel_model.fit(fitted, spec.channels, spec.channels >= 3)
        counts = np.zeros(_core.PIXEL_CONTEXTS * _core.STATIC_TOKENS, np.uint32)
        model = parts.model()
        for chunk in chunks:
            for _, images in by_shape(chunk):
                model.count(*images.shape[1:3], images.reshape(-1), counts)
        found = counts.reshape(_core.PIXEL_CONTEXTS, _core.STATIC_TOKENS).astype(np.int64)
        return pixel_model.write(pixel_model.with_tables(parts, found))

    def coder(self, shared: bytes, spec: Spec) -> Coder:
        parts = pixel_model.read(shared)
        if parts.channels != spec.channels or parts.color != (parts.channels >= 3):
            raise CorruptError("the model of the images is of another number of channels")
        return _PixelCoder(parts)


class _PixelCoder(Coder):
    def __init__(self, parts: pixel_model.PixelParts):
        self._model = parts.model()

    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        return encoded_stacks(self._encode, samples)

    def _encode(self, images: Array, lengths: Array) -> bytes:
        data: bytes = self._model.encode(*images.shape[1:3], images.reshape(-1), lengths)
        return data

    def decode(self, pieces: Pieces) -> list[Array]:
        return decoded_stacks(self._decode, pieces)

    def _decode(self, shape: Shape, whole: Array, begin: Array, end: Array) -> Array:
        out = np.empty((len(begin), *shape), np.uint8)
        self._model.decode(shape[0], shape[1], whole, begin, end, out.reshape(-1))
        return out
