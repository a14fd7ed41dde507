"""CIFAR-10 and CIFAR-100: the binary version, and the Python version, whose pickles are read as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nearzip.checkpoints.builders import PickleError
from nearzip.checkpoints.pickles import read_pickle
from nearzip.datasets.samples import ArraySamples
from nearzip.errors import CorruptError, MissingFileError
from nearzip.tensors import Array

_PIXELS = 3 * 32 * 32
_FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py", "cifar-100-binary", "cifar-100-python")
_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
#: Files of a split; of CIFAR-100 there is one.
_SPLITS = {"train": (_BATCHES, ["train"]), "test": (["test_batch"], ["test"])}


def recognizes(path: Path) -> bool:
    """A batch, or a folder of batches."""
    if path.is_dir():
        names = [f"{name}{end}" for name in ("test_batch", "data_batch_1", "train") for end in ("", ".bin")]
        return any((path / name).is_file() for name in names) or any((path / name).is_dir() for name in _FOLDERS)
    return path.is_file() and (path.stem in (*_BATCHES, "test_batch") or path.name in ("train.bin", "test.bin"))


def read(path: Path, *, split: str, **_: Any) -> ArraySamples:
    """Images of a split, or of one batch. Raises CorruptError, MissingFileError."""
    if path.is_file():
        return _joined([path], path.parent)
    folder = next((path / name for name in _FOLDERS if (path / name).is_dir()), path)
    for names in _SPLITS[split]:
        for end in ("", ".bin"):
            files = [folder / f"{name}{end}" for name in names]
            present = [file for file in files if file.is_file()]
            if present:
                return _joined(present, folder)
    raise MissingFileError(f"{folder}: no files of the {split} split")


def _joined(files: list[Path], folder: Path) -> ArraySamples:
    read_one = _binary if files[0].suffix == ".bin" else _python
    parts = [read_one(file) for file in files]
    columns = {name: np.concatenate([columns[name] for _, columns in parts]) for name in parts[0][1]}
    pixels = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySamples(np.ascontiguousarray(pixels), columns, _classes(folder))


def _binary(path: Path) -> tuple[Array, dict[str, Array]]:
    raw = np.fromfile(path, np.uint8)
    n_labels = 2 if path.stem in ("train", "test") else 1
    if not raw.size or raw.size % (_PIXELS + n_labels):
        raise CorruptError(f"{path}: is no whole number of records of {_PIXELS + n_labels} bytes")
    records = raw.reshape(-1, _PIXELS + n_labels)
    if n_labels == 2:
        return records[:, 2:], {"coarse": records[:, 0], "label": records[:, 1]}
    return records[:, 1:], {"label": records[:, 0]}


def _python(path: Path) -> tuple[Array, dict[str, Array]]:
    try:
        with path.open("rb") as stream:
            found = read_pickle(stream)
        named = {_text(key): value for key, value in found.items()}
        pixels = np.asarray(named["data"])
        labels = {"label": named.get("labels", named.get("fine_labels")), "coarse": named.get("coarse_labels")}
        columns = {name: np.asarray(values, np.uint8) for name, values in labels.items() if values is not None}
    except (PickleError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: is no batch of CIFAR's Python version: {str(error)[:120]}") from None
    if pixels.dtype != np.uint8 or pixels.shape != (len(pixels), _PIXELS) or "label" not in columns:
        raise CorruptError(f"{path}: is no batch of CIFAR's Python version")
    if any(len(values) != len(pixels) for values in columns.values()):
        raise CorruptError(f"{path}: has another number of labels than of images")
    return pixels, columns


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)


def _classes(folder: Path) -> tuple[str, ...]:
    for name in ("batches.meta.txt", "fine_label_names.txt"):
        if (folder / name).is_file():
            return tuple((folder / name).read_text().split())
    return ()
