"""What all images of a data set share when they are coded without loss: weights of contexts and tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip._core as _core
from nearzip.datasets.model_bytes import read_model, write_model
from nearzip.datasets.tables import frequencies_of, group_contexts, solved
from nearzip.errors import CorruptError
from nearzip.tensors import Array

__all__ = ["PixelParts", "fit", "read", "with_tables", "write"]

_MEAN, _SCALE = 15, 12
_ONE = 1024  # weights are in units of 2^-10
#: Expected differences are used in eighths of their classes' unit (`kScaleShift` of the native core).
_MOST = 1 << 14


@dataclass(frozen=True)
class PixelParts:
    """The arrays of a model, as the native core takes them: see docs/dataset-format.md.

    mean, scale: (channels, textures, features) int16; start: (channels,) int16; map: (contexts,) uint8; freqs: (tables,
    tokens) uint16.
    """

    channels: int
    color: bool
    mean: Array
    scale: Array
    start: Array
    map: Array
    freqs: Array

    def model(self) -> Any:
        """The native coder. Raises CorruptError for parts that contradict each other."""
        try:
            return _core.PixelModel(self.channels, self.color, *(getattr(self, n).reshape(-1) for n, _ in _FIELDS))
        except ValueError as error:
            raise CorruptError(f"the model of the images is invalid: {error}") from None


_FIELDS = (("mean", "<i2"), ("scale", "<i2"), ("start", "<i2"), ("map", "u1"), ("freqs", "<u2"))


def _shapes(channels: int, n_tables: int) -> tuple[tuple[int, ...], ...]:
    sets = (channels, _core.PIXEL_TEXTURES)
    return (*sets, _MEAN), (*sets, _SCALE), (channels,), (_core.PIXEL_CONTEXTS,), (n_tables, _core.STATIC_TOKENS)


def write(parts: PixelParts) -> bytes:
    """The bytes of a model."""
    arrays = [np.ascontiguousarray(getattr(parts, name), dtype) for name, dtype in _FIELDS]
    return write_model(parts.channels, parts.color, len(parts.freqs), arrays, planes=False)


def read(data: bytes) -> PixelParts:
    """The inverse of `write`. Raises CorruptError."""
    channels, color, found = read_model(data, _FIELDS, _shapes, planes=False)
    return PixelParts(channels, color, **found)


def fit(stacks: Iterable[Array], channels: int, color: bool) -> PixelParts:
    """Weights from a sample of the images, stacks (n, height, width, channels); tables are still to be counted."""
    stacks = [np.ascontiguousarray(stack) for stack in stacks]
    sets = channels * _core.PIXEL_TEXTURES
    mean, scale = np.zeros((sets, _MEAN), np.int16), np.zeros((sets, _SCALE), np.int16)
    mean[:, :3] = (_ONE, _ONE, -_ONE)  # left plus upper minus upper left
    start = np.zeros(channels, np.int16)
    start[0] = 128
    blank = np.zeros((1, _core.STATIC_TOKENS), np.uint16)
    blank[0, 0] = 1 << 14
    none = np.zeros(_core.PIXEL_CONTEXTS, np.uint8)
    parts = PixelParts(channels, color, mean, scale, start, none, blank)
    mean = _whole(solved(_moments(parts, stacks)[0]))
    parts = PixelParts(channels, color, mean, scale, start, none, blank)
    # Classes begin at an expected difference of 1/32 of a grey level.
    scale = _whole(solved(_moments(parts, stacks)[1]))
    return PixelParts(channels, color, mean, scale, start, none, blank)


def with_tables(parts: PixelParts, counts: Array) -> PixelParts:
    """The model with tables for tokens that were counted by context."""
    groups = group_contexts(counts)
    tables = np.stack([frequencies_of(counts[groups == i].sum(0)) for i in range(int(groups.max()) + 1)])
    return PixelParts(**{**vars(parts), "map": groups.astype(np.uint8), "freqs": tables})


def _moments(parts: PixelParts, stacks: list[Array]) -> tuple[Array, Array]:
    sets = parts.channels * _core.PIXEL_TEXTURES
    mean, scale = np.zeros((sets, _MEAN, _MEAN + 1)), np.zeros((sets, _SCALE, _SCALE + 1))
    model = parts.model()
    for stack in stacks:
        model.fit(*stack.shape[1:3], stack.reshape(-1), mean.reshape(-1), scale.reshape(-1))
    return mean, scale


def _whole(weights: Array) -> Array:
    return np.asarray(np.clip(np.rint(weights * _ONE), -_MOST, _MOST).astype(np.int16))
