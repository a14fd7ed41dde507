"""What all images of a data set share when they are coded: weights of contexts, tables, steps. Fitted, written, read.

docs/dataset-format.md says what each part is for; the native core applies it.
"""

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

__all__ = ["Fit", "Parts", "fit", "read", "shifts_of", "with_tables", "write"]

_MEAN, _SCALE, _DC, _BORDERS = 18, 16, 8, 4
_ONE = 1024  # weights are in units of 2^-10
#: Weights are rounded to these: finer ones take more bytes than they save.
_GRAIN = 8
#: Expected levels beyond the seventh diagonal are 0.
_LAST_DIAGONAL = 6


@dataclass(frozen=True)
class Parts:
    """The arrays of a model, as the native core takes them.

    Parameters
    ----------
    channels, color
        1 to 4; whether the first three are luma and chroma.
    mean, scale : (channels, features, 64) int16
        Weights of expected levels and magnitudes.
    dc_mean, dc_scale : (channels, 4, 8) int16
        The same for the first coefficient of a block, for each kind of border.
    start : (channels, 64) uint8
        Magnitudes of the blocks that an image's first block lacks.
    map : (contexts,) uint8
        The table of each context.
    freqs : (tables, tokens) uint16
    steps : (channels, 64) uint16
        In 1/16 of a grey level.
    shifts : (channels, 3, 64) uint16
        How far levels 1, 2 and above are restored below their multiple of the step.
    """

    channels: int
    color: bool
    mean: Array
    scale: Array
    dc_mean: Array
    dc_scale: Array
    start: Array
    map: Array
    freqs: Array
    steps: Array
    shifts: Array

    def model(self) -> Any:
        """The native coder. Raises CorruptError for parts that contradict each other."""
        try:
            return _core.DctModel(self.channels, self.color, *(getattr(self, n).reshape(-1) for n, _ in _FIELDS))
        except ValueError as error:
            raise CorruptError(f"the model of the images is invalid: {error}") from None


#: Arrays in the order of the file, with their dtypes.
_FIELDS = (
    ("mean", "<i2"), ("scale", "<i2"), ("dc_mean", "<i2"), ("dc_scale", "<i2"), ("start", "u1"), ("map", "u1"),
    ("freqs", "<u2"), ("steps", "<u2"), ("shifts", "<u2"),
)  # fmt: skip


def _shapes(channels: int, n_tables: int) -> tuple[tuple[int, ...], ...]:
    c = channels
    return (
        (c, _MEAN, 64), (c, _SCALE, 64), (c, _BORDERS, _DC), (c, _BORDERS, _DC), (c, 64), (_core.DCT_CONTEXTS,),
        (n_tables, _core.STATIC_TOKENS), (c, 64), (c, 3, 64),
    )  # fmt: skip


def write(parts: Parts) -> bytes:
    """The bytes of a model."""
    arrays = [np.ascontiguousarray(getattr(parts, name), dtype) for name, dtype in _FIELDS]
    return write_model(parts.channels, parts.color, len(parts.freqs), arrays, planes=True)


def read(data: bytes) -> Parts:
    """The inverse of `write`. Raises CorruptError."""
    channels, color, found = read_model(data, _FIELDS, _shapes, planes=True)
    return Parts(channels, color, **found)


# ---- fitting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Levels of some images, and what they were rounded from.

    levels : (n, rows, columns, channels, 8, 8) int16
    coefficients : the same shape, float32
    """

    levels: Array
    coefficients: Array


def fit(samples: Iterable[Fit], steps: Array, color: bool) -> Parts:
    """Weights, steps and reconstruction points from a sample of the images; tables are still to be counted."""
    samples = list(samples)
    channels = len(steps)
    mean, dc_mean = (np.zeros(s, np.int16) for s in ((channels, _MEAN, 64), (channels, _BORDERS, _DC)))
    scale = np.zeros((channels, _SCALE, 64), np.int16)
    dc_scale = np.zeros((channels, _BORDERS, _DC), np.int16)
    start = _start(samples)
    whole = _sixteenths(steps)
    blank = np.zeros((1, _core.STATIC_TOKENS), np.uint16)
    blank[0, 0] = 1 << 14
    none = np.zeros(_core.DCT_CONTEXTS, np.uint8)
    first = Parts(channels, color, mean, scale, dc_mean, dc_scale, start, none, blank, whole, shifts_of(samples, steps))
    moments = _moments(first, samples)
    mean, dc_mean = solved(moments[0]), solved(moments[2])
    mean = mean.reshape(channels, 64, _MEAN).transpose(0, 2, 1).copy()
    u, v = np.divmod(np.arange(64), 8)
    mean[:, :, u + v > _LAST_DIAGONAL] = 0
    second = _with(first, mean=_whole(mean, 1 << 14), dc_mean=_whole(dc_mean, 1 << 14))
    moments = _moments(second, samples)
    scale = solved(moments[1]).reshape(channels, 64, _SCALE).transpose(0, 2, 1)
    return _with(second, scale=_whole(scale, 1 << 12), dc_scale=_whole(solved(moments[3]), 1 << 12))


def with_tables(parts: Parts, counts: Array) -> Parts:
    """The model with tables for tokens that were counted by context."""
    groups = group_contexts(counts)
    tables = np.stack([frequencies_of(counts[groups == i].sum(0)) for i in range(int(groups.max()) + 1)])
    return _with(parts, map=groups.astype(np.uint8), freqs=tables)


def _with(parts: Parts, **changed: Array) -> Parts:
    return Parts(**{**vars(parts), **changed})


def _start(samples: list[Fit]) -> Array:
    total = sum(np.abs(s.levels).sum((0, 1, 2), dtype=np.int64) for s in samples)
    n = sum(int(np.prod(s.levels.shape[:3])) for s in samples)
    return np.minimum(np.rint(np.asarray(total) / max(1, n)), 255).astype(np.uint8).reshape(-1, 64)


def _sixteenths(steps: Array) -> Array:
    """Steps in grey levels as the file has them: (channels, 64) uint16."""
    return np.asarray(np.rint(np.clip(steps.reshape(len(steps), 64) * 16, 1, 65535)).astype(np.uint16))


def shifts_of(samples: list[Fit], steps: Array) -> Array:
    """Where the mean of what was rounded to 1, 2 and above lies below the multiple of the step, in 1/16 of a level."""
    channels = len(steps)
    steps = _sixteenths(steps)
    sums, numbers = np.zeros((2, channels, 3, 64))
    for sample in samples:
        levels = np.abs(sample.levels.reshape(-1, channels, 64)).astype(np.int32)
        lost = levels * steps.astype(np.float32) - 16 * np.abs(sample.coefficients.reshape(-1, channels, 64))
        for i, chosen in enumerate((levels == 1, levels == 2, levels > 2)):
            sums[:, i] += np.where(chosen, lost, 0).sum(0)
            numbers[:, i] += chosen.sum(0)
    # Few values say little: their mean is drawn towards none.
    found = sums / (numbers + 8)
    return np.clip(np.rint(found), 0, 0.49 * steps[:, None]).astype(np.uint16)


def _moments(parts: Parts, samples: list[Fit]) -> list[Array]:
    c = parts.channels
    sizes = ((c * 64, _MEAN), (c * 64, _SCALE), (c * _BORDERS, _DC), (c * _BORDERS, _DC))
    found = [np.zeros((n, f, f + 1)) for n, f in sizes]
    model = parts.model()
    for sample in samples:
        rows, columns = sample.levels.shape[1:3]
        model.fit(rows, columns, np.ascontiguousarray(sample.levels).reshape(-1), *(m.reshape(-1) for m in found))
    return found


def _whole(weights: Array, most: int) -> Array:
    grains = np.rint(weights * (_ONE / _GRAIN)) * _GRAIN
    return np.asarray(np.clip(grains, -most, most).astype(np.int16))
