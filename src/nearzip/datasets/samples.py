"""Samples of a data set before they are coded: images or arrays, with columns such as labels beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.errors import UsageError
from nearzip.tensors import Array

__all__ = ["ArraySamples", "ListSamples", "PartSamples", "Samples", "Spec", "chunks", "columns_of", "samples_of"]

#: Dtypes of samples that a file can hold.
DTYPES = ("uint8", "uint16", "int16", "int32", "float16", "float32", "float64")
_MAX_RANK = 8
#: So many values are coded or looked at together.
_CHUNK_VALUES = 4 << 20


@dataclass(frozen=True)
class Spec:
    """What all samples of a file have in common.

    Parameters
    ----------
    dtype : str
    rank : int
        Number of dimensions of a sample; images are (height, width, channels).
    channels : int or None
        Of images, which are uint8; None: other arrays.
    """

    dtype: str
    rank: int
    channels: int | None

    @staticmethod
    def of(sample: Array) -> Spec:
        """The specification of a sample. Raises UsageError for dtypes and shapes that no file can hold."""
        dtype = sample.dtype.newbyteorder("=").name
        if dtype not in DTYPES:
            raise UsageError(f"samples are of dtype {', '.join(DTYPES)}, not {dtype}")
        if sample.ndim > _MAX_RANK:
            raise UsageError(f"samples have at most {_MAX_RANK} dimensions, not {sample.ndim}")
        if not sample.size:
            raise UsageError(f"a sample of the shape {sample.shape} holds no value; leave such samples out")
        is_image = dtype == "uint8" and sample.ndim == 3 and 1 <= sample.shape[2] <= 4
        return Spec(dtype, sample.ndim, sample.shape[2] if is_image else None)

    @property
    def is_image(self) -> bool:
        return self.channels is not None

    def check(self, sample: Array, number: int) -> None:
        """Check a sample. Raises UsageError if its dtype or dimensions differ from these."""
        own = Spec.of(sample)
        if own != self:
            raise UsageError(
                f"sample {number} is {own}, the first one {self}; a file holds one kind (images: give mode='RGB' or "
                "mode='L' to convert)"
            )

    def __str__(self) -> str:
        if self.channels is not None:
            return f"an image of {self.channels} channel{'s' if self.channels > 1 else ''}"
        return f"a {self.dtype} array of {self.rank} dimension{'s' if self.rank != 1 else ''}"


class Samples(ABC):
    """A sequence of arrays that are made when asked for.

    Attributes
    ----------
    columns : dict of str to array or list of str
        One value, or one row, for each sample: "label", "name", or anything else.
    classes : tuple of str
        Names of the labels 0, 1, ..; empty if there are none.
    metadata : dict of str to str
    """

    columns: Mapping[str, Any]
    classes: tuple[str, ...]
    metadata: Mapping[str, str]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> Array:
        """One sample. Raises a named error that says which, if it cannot be read."""

    def some(self, begin: int, end: int) -> list[Array]:
        return [self[i] for i in range(begin, end)]

    def part(self, begin: int, end: int) -> Samples:
        """Samples from `begin` to `end`, without columns: what is sent to a worker process."""
        return PartSamples(self, begin, end)


@dataclass(frozen=True)
class PartSamples(Samples):
    """Consecutive samples of others."""

    whole: Samples
    begin: int
    end: int
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.end - self.begin

    def __getitem__(self, i: int) -> Array:
        return self.whole[self.begin + i]


@dataclass(frozen=True)
class ArraySamples(Samples):
    """An array whose first dimension are the samples; grey images get a channel."""

    array: Array
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, i: int) -> Array:
        sample = np.asarray(self.array[i])
        return sample[..., None] if sample.dtype == np.uint8 and sample.ndim == 2 else sample

    def part(self, begin: int, end: int) -> Samples:
        return ArraySamples(np.ascontiguousarray(self.array[begin:end]))


@dataclass(frozen=True)
class ListSamples(Samples):
    """Arrays of any shapes."""

    arrays: Sequence[Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int) -> Array:
        sample = _as_array(self.arrays[i])
        return sample[..., None] if sample.dtype == np.uint8 and sample.ndim == 2 else sample


def _as_array(value: Any) -> Array:
    """Arrays of NumPy, PyTorch, Pillow and others."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    found = np.asarray(value)
    if found.dtype.hasobject:
        raise UsageError(f"a sample is an array or an image, not a {type(value).__name__}")
    return found


def samples_of(
    images: Any,
    labels: Any = None,
    columns: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Samples:
    """Samples from arrays in memory, or `Samples` with further columns.

    Parameters
    ----------
    images : Samples, array or sequence
        uint8 (n, height, width, channels) or (n, height, width); other dtypes in any shape (n, ..); or a list of
        arrays, tensors or Pillow images of different sizes.
    labels : sequence
        One for each sample: the column "label".

    Raises
    ------
    UsageError
        Columns of other lengths, or nothing to store.
    """
    if isinstance(images, Samples):
        base = images
    elif isinstance(images, np.ndarray) or hasattr(images, "detach"):
        array = _as_array(images)
        if array.ndim < 1:
            raise UsageError("images are an array whose first dimension are the samples, not a number")
        base = ArraySamples(array)
    elif isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        base = ListSamples(images)
    else:
        raise UsageError(
            f"images are an array, a list of arrays or what datasets.load gives, not {type(images).__name__}"
        )
    if not len(base):
        raise UsageError("there is no sample")
    found = {**base.columns, **(columns or {}), **({} if labels is None else {"label": labels})}
    return _Described(
        base, columns_of(found, len(base)), base.classes if classes is None else tuple(classes),
        {**base.metadata, **(metadata or {})},
    )  # fmt: skip


@dataclass(frozen=True)
class _Described(Samples):
    base: Samples
    columns: Mapping[str, Any]
    classes: tuple[str, ...]
    metadata: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, i: int) -> Array:
        return self.base[i]

    def part(self, begin: int, end: int) -> Samples:
        return self.base.part(begin, end)


def columns_of(given: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Columns as arrays of numbers or lists of texts. Raises UsageError."""
    found: dict[str, Any] = {}
    for name, values in given.items():
        if not isinstance(name, str) or not name:
            raise UsageError(f"the name of a column is a text, not {name!r}")
        column = values.detach().cpu().numpy() if hasattr(values, "detach") else values
        if len(column) != n:
            raise UsageError(f"column {name!r} has {len(column)} values for {n} samples; every sample needs one")
        if all(isinstance(value, str) for value in column):
            found[name] = [str(value) for value in column]
            continue
        missing = [i for i, value in enumerate(column) if value is None]
        if missing:
            raise UsageError(f"column {name!r} has no value for sample {missing[0]}; every sample needs one")
        array = np.asarray(column)
        if array.dtype == np.bool_:
            array = array.astype(np.uint8)
        if array.dtype.kind not in "iuf" or array.dtype.itemsize > 8:
            raise UsageError(f"column {name!r} holds neither numbers nor texts")
        found[name] = array
    return found


def chunks(samples: Samples) -> Iterator[tuple[int, int]]:
    """Ranges of samples that are coded together, by the size of the first one."""
    values = max(1, samples[0].size)
    step = max(1, min(4096, _CHUNK_VALUES // values))
    for begin in range(0, len(samples), step):
        yield begin, min(begin + step, len(samples))
