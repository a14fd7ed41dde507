"""Data sets of other formats, read sample by sample: arrays, folders of images, MNIST, CIFAR, WebDataset, Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nearzip.datasets.importers import arrays, cifar, folders, idx, parquet, tars
from nearzip.datasets.samples import Samples
from nearzip.datasets.shard_names import expanded
from nearzip.datasets.shards import open_dataset
from nearzip.errors import MissingFileError, UsageError
from nearzip.sources import is_url

__all__ = ["load"]

#: What recognizes a path, and what reads it.
_IMPORTERS: tuple[tuple[Callable[[Path], bool], Callable[..., Samples]], ...] = (
    (arrays.recognizes, arrays.read),
    (idx.recognizes, idx.read),
    (cifar.recognizes, cifar.read),
    (tars.recognizes, tars.read),
    (parquet.recognizes, parquet.read),
    (folders.recognizes, folders.read),
)


def load(
    place: Any,
    *,
    split: str | None = None,
    mode: str | None = None,
    images: str | None = None,
    labels: str | None = None,
) -> Samples:
    """A data set of any format that is known here, as samples for `write` and `tune`. Nothing in it is run.

    ==========================================  =====================================================================
    place                                       what is read
    ==========================================  =====================================================================
    `x.npy`, `x.npz`                            arrays; of `.npz` the arrays `images` and `labels` (or x, y, ..)
    a folder of images                          files in it; in folders below, which are the classes; names as column
    `train-images-idx3-ubyte[.gz]`, a folder    MNIST's IDX files, labels beside them
    `data_batch_1.bin`, a folder with them      CIFAR-10 and CIFAR-100 in the binary or the Python version
    `x.tar`                                     WebDataset: `key.jpg` with `key.cls` or `key.json`
    `x.parquet`                                 Hugging Face's columns of bytes, `{"bytes": .., "path": ..}`
    `x.nzd`, a URL of one, a list of its files  a data set of ours, in one file or in several
    ==========================================  =====================================================================

    Parameters
    ----------
    split : str
        "train" or "test", for MNIST and CIFAR folders. Default: "train".
    mode : str
        Convert images to "L", "LA", "RGB" or "RGBA".
    images, labels : str
        Names of the arrays or columns, where they are not found by their usual names.

    Raises
    ------
    UsageError
        A format that is not known, images of odd modes (see `mode`), labels missing.
    CorruptError
        A damaged file.
    """
    if split not in (None, "train", "test"):
        raise UsageError(f"split is 'train' or 'test', not {split!r}")
    if is_url(place) or expanded(place) is not None:
        return open_dataset(place)
    if not isinstance(place, (str, os.PathLike)):
        raise UsageError(f"a data set is a path or a URL here, not {type(place).__name__}")
    path = Path(place)
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or directory")
    if path.suffix.lower() == ".nzd":
        return open_dataset(path)
    for recognizes, read in _IMPORTERS:
        if recognizes(path):
            return read(path, split=split or "train", mode=mode, images=images, labels=labels)
    raise UsageError(
        f"{path}: is no data set that is known here: .npy, .npz, a folder of images, MNIST, CIFAR, a WebDataset .tar, "
        ".parquet or .nzd"
    )
