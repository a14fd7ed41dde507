"""Folders with noise in the shape of MNIST, for tests of its readers."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def _write(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()))


def write_mnist(folder: Path, rng: np.random.Generator, n_train: int, n_test: int) -> Path:
    """Images of noise and labels in turn under `folder`/MNIST/raw; returns `folder`."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, n in (("train", n_train), ("t10k", n_test)):
        _write(raw / f"{name}-images-idx3-ubyte.gz", rng.integers(0, 256, (n, 28, 28)))
        _write(raw / f"{name}-labels-idx1-ubyte.gz", np.arange(n) % 10)
    return folder
