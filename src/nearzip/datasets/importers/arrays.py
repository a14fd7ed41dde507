"""NumPy's files: `.npy` and `.npz`."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nearzip.datasets.samples import ArraySamples
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array

_IMAGES = ("images", "x", "x_train", "data", "arr_0")
_LABELS = ("labels", "y", "y_train", "targets", "label", "arr_1")


def recognizes(path: Path) -> bool:
    """Whether the file name has a known ending."""
    return path.is_file() and path.suffix.lower() in (".npy", ".npz")


def read(path: Path, *, images: str | None, labels: str | None, **_: Any) -> ArraySamples:
    """Arrays are mapped, not read, where they are in a `.npy`."""
    try:
        _check_kind(path)
        if path.suffix.lower() == ".npy":
            return _samples(path, np.load(path, mmap_mode="r", allow_pickle=False), None)
        with np.load(path, allow_pickle=False) as found:
            x = _named(path, found, images, _IMAGES)
            if x is None:
                raise UsageError(f"{path}: has no array named {' or '.join(_IMAGES)}; give images=NAME")
            return _samples(path, x, _named(path, found, labels, _LABELS))
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise CorruptError(f"{path}: cannot be read: {str(error)[:200]}") from None


def _check_kind(path: Path) -> None:
    """NumPy takes what it does not know for a pickle, and says how to load one. Raises CorruptError."""
    if path.suffix.lower() == ".npz":
        known = zipfile.is_zipfile(path)
    else:
        with path.open("rb") as file:
            known = file.read(6) == b"\x93NUMPY"
    if not known:
        raise CorruptError(f"{path}: is no {path.suffix.lower()} file of NumPy, or is cut short")


def _named(path: Path, found: Any, wanted: str | None, usual: tuple[str, ...]) -> Array | None:
    if wanted is not None and wanted not in found.files:
        raise UsageError(f"{path}: has no array {wanted!r}; it has {', '.join(found.files)}")
    name = wanted or next((name for name in usual if name in found.files), None)
    return None if name is None else np.asarray(found[name])


def _samples(path: Path, x: Array, y: Array | None) -> ArraySamples:
    if x.ndim < 2:
        raise UsageError(f"{path}: an array of samples has two dimensions at least, not {x.ndim}")
    if y is not None and len(y) != len(x):
        raise UsageError(f"{path}: has {len(x)} samples and {len(y)} labels")
    return ArraySamples(x, {} if y is None else {"label": y.reshape(len(y)) if y.size == len(y) else y})
