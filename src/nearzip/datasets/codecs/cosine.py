"""Our image codec: cosines with contexts over the whole data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

import nearzip._core as _core
from nearzip.datasets import cosine_model
from nearzip.datasets.codecs.base import Coder, Pieces, SampleCodec, Shape, check_range
from nearzip.datasets.codecs.stacks import by_shape, decoded_stacks, encoded_stacks, spread
from nearzip.datasets.cosines import SIDE, coefficients, levels_of
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array

__all__ = ["Cosine", "CosineCoder"]

#: Images that weights of contexts are fitted to: more change nothing that counts.
_FITTED_VALUES = 4_600_000
#: Finest step, in 1/16 of a grey level: with less, the brightest blocks have levels beyond the largest.
_FINEST = 8


@dataclass(frozen=True)
class Cosine(SampleCodec):
    """8x8 cosine transform, quantized, with contexts from neighbouring blocks, channels and frequencies.

    Parameters
    ----------
    step : float
        Distance between the levels of a coefficient, in grey levels; the geometric mean of all coefficients' steps.
    rounding : float
        What is added to magnitudes before they are cut: 0.5 rounds to the nearest level, less makes smaller files.
    steps : tuple of float
        Relative steps, channels times 64 numbers of geometric mean 1, from `datasets.calibrate`. Empty: all are equal.
    """

    name: ClassVar[str] = "nearzip"
    says: ClassVar[str] = "8x8 cosines with contexts over the whole data set, rANS"
    knob: ClassVar[str | None] = "step"

    step: float = 20.0
    rounding: float = 0.4
    steps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_range(self, "step", 0.5, 1000)
        check_range(self, "rounding", 0.1, 0.5)
        object.__setattr__(self, "steps", tuple(float(s) for s in self.steps))
        if not all(1e-3 <= s <= 1e3 for s in self.steps) or len(self.steps) % 64:
            raise UsageError("nearzip: steps are 64 numbers for each channel, between 0.001 and 1000")

    def check(self, spec: Spec) -> None:
        if spec.channels is None:
            raise UsageError(f"nearzip codes images of 8 bits, not {spec}; take 'bounded' for other arrays")
        if self.steps and len(self.steps) != 64 * spec.channels:
            raise UsageError(f"nearzip: {len(self.steps)} steps are given for {spec.channels} channels of 64")

    def learn(self, chunks: Iterable[Sequence[Array]], spec: Spec) -> bytes:
        assert spec.channels is not None
        steps, color = self.absolute_steps(spec.channels), spec.channels >= 3
        parts = self._model(chunks, steps, color)
        counts = np.zeros(_core.DCT_CONTEXTS * _core.STATIC_TOKENS, np.uint32)
        model = parts.model()
        for chunk in chunks:
            for _, images in by_shape(chunk):
                levels = self.levels(images, coefficients(images, color), steps)
                model.count(*levels.shape[1:3], levels.reshape(-1), counts)
        found = counts.reshape(_core.DCT_CONTEXTS, _core.STATIC_TOKENS).astype(np.int64)
        return cosine_model.write(cosine_model.with_tables(parts, found))

    def _model(self, chunks: Iterable[Sequence[Array]], steps: Array, color: bool) -> cosine_model.Parts:
        """What all images share but the tables."""
        return cosine_model.fit(self._fitted(chunks, steps, color), steps, color)

    def levels(self, images: Array, raw: Array, steps: Array) -> Array:
        """The levels of images' coefficients `raw`: (n, rows, columns, channels, 8, 8) int16."""
        return levels_of(raw, steps, self.rounding)

    def absolute_steps(self, channels: int) -> Array:
        """Steps in grey levels: (channels, 8, 8)."""
        relative = np.ones(channels * 64) if not self.steps else np.array(self.steps)
        # As the file has them, so that the encoder rounds to what the decoder restores.
        whole = np.clip(np.rint(16 * self.step * relative), _FINEST, 65535)
        return (whole / 16).reshape(channels, SIDE, SIDE)

    def _fitted(self, chunks: Iterable[Sequence[Array]], steps: Array, color: bool) -> list[cosine_model.Fit]:
        found = []
        for _, images in by_shape(spread(chunks, _FITTED_VALUES)):
            raw = coefficients(images, color)
            found.append(cosine_model.Fit(self.levels(images, raw, steps), raw))
        return found

    def coder(self, shared: bytes, spec: Spec) -> CosineCoder:
        parts = cosine_model.read(shared)
        if parts.channels != spec.channels or parts.color != (parts.channels >= 3):
            raise CorruptError("the model of the images is of another number of channels")
        return CosineCoder(parts, self.levels)


class CosineCoder(Coder):
    """The native coder with one model."""

    def __init__(self, parts: cosine_model.Parts, levels: Callable[[Array, Array, Array], Array]):
        self.parts, self._levels = parts, levels
        self._model = parts.model()
        self._steps = (parts.steps / 16).reshape(-1, SIDE, SIDE)

    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        return encoded_stacks(self._encode, samples)

    def _encode(self, images: Array, lengths: Array) -> bytes:
        levels = self._levels(images, coefficients(images, self.parts.color), self._steps)
        data: bytes = self._model.encode(*levels.shape[1:3], levels.reshape(-1), lengths)
        return data

    def decode(self, pieces: Pieces) -> list[Array]:
        return decoded_stacks(self._pixels, pieces)

    def coefficients(self, pieces: Pieces) -> list[Array]:
        """Dequantized coefficients in place of pixels: (rows, columns, channels, 8, 8) float32 of each image."""
        return decoded_stacks(self._coefficients, pieces)

    def _pixels(self, shape: Shape, whole: Array, begin: Array, end: Array) -> Array:
        out = np.empty((len(begin), *shape), np.uint8)
        self._model.decode(shape[0], shape[1], whole, begin, end, out.reshape(-1))
        return out

    def _coefficients(self, shape: Shape, whole: Array, begin: Array, end: Array) -> Array:
        rows, columns = math.ceil(shape[0] / SIDE), math.ceil(shape[1] / SIDE)
        levels = np.empty((len(begin), rows, columns, self.parts.channels, 64), np.int16)
        self._model.decode_levels(rows, columns, whole, begin, end, levels.reshape(-1))
        return self._dequantized(levels).reshape(*levels.shape[:-1], SIDE, SIDE)

    def _dequantized(self, levels: Array) -> Array:
        """As the native decoder does it, in 1/16 of a grey level."""
        magnitudes = np.abs(levels).astype(np.int32)
        values = magnitudes * self.parts.steps.astype(np.int32)
        for i, chosen in enumerate((magnitudes == 1, magnitudes == 2, magnitudes > 2)):
            values -= chosen * self.parts.shifts[:, i].astype(np.int32)
        return (np.sign(levels) * np.clip(values, -32767, 32767) / 16).astype(np.float32)
