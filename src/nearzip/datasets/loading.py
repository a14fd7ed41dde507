"""Data sets for PyTorch's data loaders: picklable, for workers and forks, as pixels or as coefficients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from nearzip.datasets.reading import Reader
from nearzip.datasets.shards import open_dataset
from nearzip.datasets.transforms import coefficients
from nearzip.errors import UsageError
from nearzip.limits import Limits

__all__ = ["Dataset"]


class Dataset(torch.utils.data.Dataset[Any]):
    """A data set of ours, in one file or in several, as a map-style dataset.

    An item is the sample itself, or (sample, columns..) with the columns asked for. Batches are fetched with
    `__getitems__`, which reads each group once.

    Parameters
    ----------
    place : path, URL, bytes, list of files or Reader
        As for `datasets.open`.
    as_ : str
        "pixels": uint8 (channels, height, width), or arrays as they were stored. "float": pixels as float32 in [0, 1].
        "dct": 8x8 cosine coefficients, float32 (channels * 64, rows, columns) in units of 255 grey levels, without a
        way through pixels where the file is of our codec. "zfp": ZFP's transform coefficients of the pixels in [0, 1],
        in place, float32 (channels, height, width).
    columns : sequence of str or None
        None: "label" if there is one.
    transform : callable
        Applied to each sample tensor.
    precision : int
        Of "zfp".
    limits : Limits

    Examples
    --------
    >>> import numpy as np
    >>> from nearzip import datasets
    >>> _ = datasets.write("some.nzd", np.zeros((6, 8, 8, 3), np.uint8), [0, 1, 2, 0, 1, 2], force=True)
    >>> image, label = datasets.Dataset("some.nzd")[4]
    >>> tuple(image.shape), label
    ((3, 8, 8), 1)
    """

    def __init__(
        self,
        place: Any,
        as_: Literal["pixels", "float", "dct", "zfp"] = "pixels",
        columns: Sequence[str] | None = None,
        transform: Callable[[torch.Tensor], Any] | None = None,
        precision: int = 32,
        limits: Limits | None = None,
    ):
        self.reader = place if isinstance(place, Reader) else open_dataset(place, limits)
        if as_ not in _FORMS:
            raise UsageError(f"as_ is one of {', '.join(_FORMS)}, not {as_!r}")
        if as_ != "pixels" and not self.reader.spec.is_image:
            raise UsageError(f"as_={as_!r} is for images; {self.reader.name} holds {self.reader.spec}")
        self.as_, self.transform, self.precision = as_, transform, precision
        known = self.reader.columns
        self.columns = tuple(columns) if columns is not None else (("label",) if "label" in known else ())
        self._values = [known[name] for name in self.columns]

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.reader.classes

    def __getitem__(self, i: int) -> Any:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Items in the order asked for; data loaders fetch batches with it."""
        samples = _FORMS[self.as_](self.reader, indices, self.precision)
        if self.transform is not None:
            samples = [self.transform(sample) for sample in samples]
        if not self._values:
            return list(samples)
        return [(sample, *(_scalar(v[i]) for v in self._values)) for i, sample in zip(indices, samples, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_values"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._values = [self.reader.columns[name] for name in self.columns]


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def _pixels(reader: Reader, indices: Sequence[int], precision: int) -> list[torch.Tensor]:
    samples = reader.many(indices)
    if reader.spec.is_image:
        samples = [sample.transpose(2, 0, 1) for sample in samples]
    # Copies: what a codec gives may be read-only, and tensors are the caller's to write to.
    return [torch.from_numpy(np.array(sample, order="C")) for sample in samples]


def _floats(reader: Reader, indices: Sequence[int], precision: int) -> list[torch.Tensor]:
    return [sample.to(torch.float32).div_(255) for sample in _pixels(reader, indices, precision)]


def _cosines(reader: Reader, indices: Sequence[int], precision: int) -> list[torch.Tensor]:
    found = reader.coefficients(indices)
    return [
        torch.from_numpy(
            np.ascontiguousarray(each.transpose(2, 3, 4, 0, 1)).reshape(-1, *each.shape[:2]) / np.float32(255)
        )
        for each in found
    ]


def _zfp(reader: Reader, indices: Sequence[int], precision: int) -> list[torch.Tensor]:
    return [
        torch.from_numpy(coefficients(image[None], "zfp", precision=precision)[0]) for image in reader.many(indices)
    ]


_FORMS: dict[str, Callable[[Reader, Sequence[int], int], list[torch.Tensor]]] = {
    "pixels": _pixels, "float": _floats, "dct": _cosines, "zfp": _zfp,
}  # fmt: skip
