"""Samples of one shape together: what native coders take and give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nearzip.datasets.codecs.base import Pieces, Shape
from nearzip.errors import CorruptError
from nearzip.tensors import Array

__all__ = ["by_shape", "decoded_stacks", "encoded_stacks", "spread"]


def by_shape(samples: Sequence[Array]) -> Iterable[tuple[list[int], Array]]:
    """Indices and stacked samples of each shape that occurs."""
    groups: dict[Shape, list[int]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(sample.shape, []).append(i)
    for indices in groups.values():
        yield indices, np.stack([samples[i] for i in indices])


def spread(chunks: Iterable[Sequence[Array]], most_values: int) -> list[Array]:
    """Samples from everywhere, of at most about `most_values` together."""
    chosen: list[Array] = []
    values, stride, number = 0, 1, 0
    for chunk in chunks:
        for sample in chunk:
            if number % stride == 0:
                chosen.append(sample)
                values += sample.size
            number += 1
            if values > most_values and len(chosen) > 1:
                stride *= 2
                chosen = chosen[::2]
                values = sum(each.size for each in chosen)
    return chosen


#: Encodes samples of one shape, a stack, one after the other; their lengths go into the array that it gets.
Encode = Callable[[Array, Array], bytes]
#: Decodes several samples of one shape: (shape, data, starts, stops) -> stack.
Decode = Callable[[Shape, Array, Array, Array], Array]


def encoded_stacks(encode: Encode, samples: Sequence[Array]) -> list[bytes]:
    """The bytes of each sample, in their order. Samples of one shape are encoded together."""
    found = [b""] * len(samples)
    for indices, images in by_shape(samples):
        lengths = np.zeros(len(indices), np.uint32)
        data = encode(images, lengths)
        at = 0
        for i, length in zip(indices, lengths.tolist(), strict=True):
            found[i] = data[at : at + length]
            at += length
    return found


def decoded_stacks(decode: Decode, pieces: Pieces) -> list[Array]:
    """Samples in their order. Raises CorruptError where `decode` raises ValueError."""
    whole, shapes = np.frombuffer(pieces.data, np.uint8), pieces.shapes
    if len(set(shapes)) == 1:
        return list(_decoded(decode, shapes[0], whole, pieces.starts, pieces.stops))
    groups: dict[Shape, list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(i)
    found: list[Any] = [None] * len(shapes)
    for shape, indices in groups.items():
        begin, end = [pieces.starts[i] for i in indices], [pieces.stops[i] for i in indices]
        for i, sample in zip(indices, _decoded(decode, shape, whole, begin, end), strict=True):
            found[i] = sample
    return found


def _decoded(decode: Decode, shape: Shape, whole: Array, starts: Sequence[int], stops: Sequence[int]) -> Array:
    try:
        return decode(shape, whole, np.array(starts, np.uint64), np.array(stops, np.uint64))
    except ValueError as error:
        raise CorruptError(f"image: {error}") from None
