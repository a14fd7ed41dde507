"""MNIST's IDX files, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from nearzip.datasets.samples import ArraySamples
from nearzip.errors import CorruptError, LimitError, MissingFileError
from nearzip.tensors import Array

_PREFIX = {"train": "train", "test": "t10k"}
_MAX_BYTES = 4 << 30


def recognizes(path: Path) -> bool:
    """A file of images, or a folder with some, also in a folder `raw` below it, as torchvision has them."""
    if path.is_dir():
        return any(_is_folder(each) for each in (path, path / "raw"))
    return path.is_file() and "idx3-ubyte" in path.name


def _is_folder(path: Path) -> bool:
    return any(path.glob("*-images-idx3-ubyte*")) or any(path.glob("*-images.idx3-ubyte*"))


def read(path: Path, *, split: str, **_: Any) -> ArraySamples:
    """Images and the labels beside them. Raises CorruptError, MissingFileError."""
    if path.is_dir() and not _is_folder(path):
        path = path / "raw"
    images = _in_folder(path, _PREFIX[split]) if path.is_dir() else path
    labels = images.with_name(images.name.replace("images", "labels").replace("idx3", "idx1"))
    pixels = _array(images)
    if not labels.exists():
        if path.is_dir():
            raise MissingFileError(f"{labels}: no such file; the images have no labels")
        return ArraySamples(pixels)
    found = _array(labels)
    if len(found) != len(pixels):
        raise CorruptError(f"{labels}: has {len(found)} labels for {len(pixels)} images")
    return ArraySamples(pixels, {"label": found})


def _in_folder(folder: Path, prefix: str) -> Path:
    found = sorted(p for p in folder.iterdir() if p.name.startswith(prefix) and "images" in p.name and "idx3" in p.name)
    if not found:
        raise MissingFileError(f"{folder}: no {prefix}-images-idx3-ubyte[.gz]")
    return found[0]


def _array(path: Path) -> Array:
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = _unzipped(path)
    if data[:3] != b"\0\0\x08" or len(data) < 4 or len(data) < 4 + 4 * data[3]:
        raise CorruptError(f"{path}: is no IDX file of bytes")
    shape = [int(x) for x in np.frombuffer(data, ">u4", data[3], 4)]
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != np.prod([float(x) for x in shape]):
        raise CorruptError(f"{path}: holds {values.size} values where its header says {' x '.join(map(str, shape))}")
    return values.reshape(shape)


def _unzipped(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            data = stream.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptError(f"{path}: is damaged: {error}") from None
    if len(data) > _MAX_BYTES:
        raise LimitError(f"{path}: takes more than {_MAX_BYTES} bytes")
    return data
