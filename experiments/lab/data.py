"""MNIST, CIFAR-10 and tinyshakespeare as tensors: from a folder, or downloaded once.

The folder is `--data DIR` or `NEARZIP_DATA`; any of these layouts is found in it:

    MNIST/raw/train-images-idx3-ubyte.gz ...      the original IDX files, also directly in the folder
    cifar-10-batches-bin/data_batch_1.bin ...     the official binary layout
    cifar-10.xz and unpack_cifar10.py             a repacked archive and the script that restores the official layout
    tinyshakespeare/input.txt                     also directly in the folder

Without a folder the official files are fetched by pooch (an extra of the experiments) and checked.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_CIFAR_FOLDER = "cifar-10-batches-bin"

#: Official files by their place in the folder: MD5.
CHECKSUMS = {
    "MNIST/raw/t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    "MNIST/raw/train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "MNIST/raw/train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "tinyshakespeare/input.txt": "6fb458f1232090904fb40fe944165e91",
    f"{_CIFAR_FOLDER}/data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    f"{_CIFAR_FOLDER}/data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    f"{_CIFAR_FOLDER}/data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    f"{_CIFAR_FOLDER}/data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    f"{_CIFAR_FOLDER}/data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    f"{_CIFAR_FOLDER}/test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
_CIFAR_ARCHIVE = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/"
    "data/tinyshakespeare/input.txt"
)

MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class DataError(Exception):
    """Data are missing or differ from the official files."""


@dataclass(frozen=True)
class Split:
    """Samples and what should be answered.

    Images: inputs (n, channels, height, width) float32, targets (n,) int64. Text: inputs (n,) int64, targets the same
    shifted by one character; readers cut windows out of them.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, which: slice) -> Split:
        return Split(self.inputs[which], self.targets[which])

    def to(self, device: torch.device) -> Split:
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Dataset:
    """Training samples; validation for choosing settings; test for the report."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def is_text(self) -> bool:
        return self.train.inputs.dim() == 1

    def limited(self, n: int | None) -> Dataset:
        """With the first `n` training samples only."""
        return self if n is None else replace(self, train=self.train[:n])

    def to(self, device: torch.device) -> Dataset:
        return Dataset(self.name, self.train.to(device), self.validation.to(device), self.test.to(device))


def cache_folder() -> Path:
    """Folder of downloaded and unpacked data: `NEARZIP_CACHE`, or ~/.cache/nearzip."""
    return Path(os.environ.get("NEARZIP_CACHE") or Path.home() / ".cache" / "nearzip")


def load(name: str, folder: str | Path | None = None, n_validation: int = 5000) -> Dataset:
    """One of `mnist`, `cifar-10`, `tinyshakespeare`.

    Parameters
    ----------
    folder : path, optional
        Where the files are; NEARZIP_DATA if not given. With neither, pooch fetches them.
    n_validation : int
        The last training images that are held out for validation. Text is cut by characters: the first 90 % for
        training, 5 % each for validation and test.

    Raises
    ------
    DataError
        The folder lacks the files, or something fetched is not the official file.
    """
    if name not in _LOADERS:
        raise DataError(f"no data set {name!r}; one of: {', '.join(_LOADERS)}")
    given = folder or os.environ.get("NEARZIP_DATA")
    place = Path(given) if given else _fetch(name)
    return _LOADERS[name](place, n_validation)


def _find(folder: Path, name: str, *candidates: str) -> Path:
    """The first of the files that exists."""
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(f"{folder}: no {name} ({' or '.join(candidates)}); give the folder with --data or NEARZIP_DATA")


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of bytes: uint8 array of the shape in its header."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: not an IDX file of bytes")
    n_dimensions = content[3]
    shape = np.frombuffer(content, ">u4", n_dimensions, 4).astype(int)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions)
    if values.size != shape.prod():
        raise DataError(f"{path}: {values.size} values where the header says {shape.prod()}")
    return values.reshape(shape)


def _images(pixels: np.ndarray, labels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Split:
    """(n, channels, height, width) uint8 -> normalised float32."""
    inputs = torch.from_numpy(pixels.copy()).to(torch.float32).div_(255)
    by_channel = (1, len(mean), 1, 1)
    inputs.sub_(torch.tensor(mean).view(by_channel)).div_(torch.tensor(std).view(by_channel))
    return Split(inputs, torch.from_numpy(labels.astype(np.int64)))


def _held_out(name: str, train: Split, test: Split, n_validation: int) -> Dataset:
    if not 0 <= n_validation < len(train):
        raise DataError(f"{name}: cannot hold out {n_validation} of {len(train)} training samples")
    cut = len(train) - n_validation
    return Dataset(name, train[:cut], train[cut:], test)


def _mnist_split(folder: Path, part: str) -> Split:
    def path(what: str) -> Path:
        file = f"{part}-{what}-ubyte.gz"
        return _find(folder, "MNIST", f"MNIST/raw/{file}", f"raw/{file}", file)

    pixels, labels = read_idx(path("images-idx3")), read_idx(path("labels-idx1"))
    return _images(pixels[:, None], labels, MNIST_MEAN, MNIST_STD)


def _mnist(folder: Path, n_validation: int) -> Dataset:
    return _held_out("mnist", _mnist_split(folder, "train"), _mnist_split(folder, "t10k"), n_validation)


def _cifar_split(folder: Path, *names: str) -> Split:
    batches = _cifar_batches(folder)
    records = np.concatenate([np.fromfile(batches / name, np.uint8).reshape(-1, 3073) for name in names])
    return _images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0], CIFAR_MEAN, CIFAR_STD)


def _cifar(folder: Path, n_validation: int) -> Dataset:
    train = _cifar_split(folder, *(f"data_batch_{i}.bin" for i in range(1, 6)))
    return _held_out("cifar-10", train, _cifar_split(folder, "test_batch.bin"), n_validation)


def held_out_images(name: str, folder: Path) -> Split:
    """The official test images of `mnist` or `cifar-10`, without reading the training images."""
    return _mnist_split(folder, "t10k") if name == "mnist" else _cifar_split(folder, "test_batch.bin")


def _cifar_batches(folder: Path) -> Path:
    """The folder of the official binary files, unpacked into the cache if need be."""
    for place in (folder / _CIFAR_FOLDER, folder):
        if (place / "test_batch.bin").is_file():
            return place
    archive, script = folder / "cifar-10.xz", folder / "unpack_cifar10.py"
    if not archive.is_file():
        raise DataError(f"{folder}: no CIFAR-10 ({_CIFAR_FOLDER}/); give the folder with --data or NEARZIP_DATA")
    if not script.is_file():
        raise DataError(f"{archive}: unpack it to {_CIFAR_FOLDER}/ first; its script unpack_cifar10.py is not there")
    return _unpack_cifar(script, cache_folder() / "data")


def _unpack_cifar(script: Path, cache: Path) -> Path:
    """Run the archive's own script, once; its output is checked before it counts."""
    final = cache / _CIFAR_FOLDER
    if not final.is_dir():
        print(f"unpacking CIFAR-10 into {final}", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            subprocess.run([sys.executable, str(script), folder], check=True, stdout=sys.stderr)
            check(Path(folder), _CIFAR_FOLDER)
            (Path(folder) / _CIFAR_FOLDER).rename(final)
    return final


def check(folder: Path, under: str) -> None:
    """Compare the official files below `under` with their checksums."""
    for name, expected in CHECKSUMS.items():
        if name.startswith(under):
            found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
            if found != expected:
                raise DataError(f"{folder / name}: MD5 {found}, not the official file's {expected}")


def _shakespeare(folder: Path, n_validation: int) -> Dataset:
    text = _find(folder, "tinyshakespeare", "tinyshakespeare/input.txt", "input.txt").read_text("ascii")
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([number[character] for character in text])

    def split(begin: float, end: float) -> Split:
        part = tokens[int(begin * len(tokens)) : int(end * len(tokens))]
        return Split(part[:-1], part[1:])

    return Dataset("tinyshakespeare", split(0, 0.9), split(0.9, 0.95), split(0.95, 1))


_LOADERS: Mapping[str, Callable[[Path, int], Dataset]] = {
    "mnist": _mnist,
    "cifar-10": _cifar,
    "tinyshakespeare": _shakespeare,
}


def _fetch(name: str) -> Path:
    """Fetch the official files of a data set into the cache; a second call finds them there."""
    try:
        pooch = importlib.import_module("pooch")
    except ImportError:
        raise DataError(f"{name}: give its folder with --data or NEARZIP_DATA, or install pooch to fetch it") from None
    folder = cache_folder() / "data"
    if name == "cifar-10":
        url, md5 = _CIFAR_ARCHIVE
        if not (folder / _CIFAR_FOLDER / "test_batch.bin").is_file():
            pooch.retrieve(url, f"md5:{md5}", path=folder, processor=pooch.Untar(extract_dir="."), progressbar=False)
        check(folder, _CIFAR_FOLDER)
        return folder
    for place, md5 in CHECKSUMS.items():
        file = Path(place)
        if file.parts[0].lower() == name:
            url = _MNIST_URL + file.name if name == "mnist" else _SHAKESPEARE_URL
            pooch.retrieve(url, f"md5:{md5}", fname=file.name, path=folder / file.parent)
    return folder
