"""Table II: networks that learn from transform coefficients in place of pixels, the same network, images and epochs.

In place: `strided-small` on 3 x 32 x 32 values. Every channel (of coefficients: every frequency) is standardised with
the training images' statistics. No augmentation, since crops break blocks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiments.claims.datasets.networks import test_images, training_images
from experiments.lab import record
from experiments.lab.networks import NETWORKS
from nearzip import datasets

_EPOCHS, _BATCH = 4, 64


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_coefficients", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, test = training_images(options.data, options.images), test_images(options.data, 3000)
    rows = []
    for name, kind, precision, seeds in inputs(options.seeds):
        x, xt = (standardised(kind, precision, train[0], images) for images in (train[0], test[0]))
        found = [accuracy(x, train[1], xt, test[1], seed) for seed in range(seeds)]
        rows.append({"input": name, "precision": precision, "accuracy": found})
        print(rows[-1], flush=True)
    result = {"n": options.images, "n_test": len(test[0]), "epochs": _EPOCHS, "rows": rows}
    record.save("dataset_coefficients", result, ("nearzip", "numpy", "torch"))


def inputs(seeds: int) -> list[tuple[str, str, int, int]]:
    """Name, kind, precision, seeds."""
    several = (4, 8, 12)
    found = [("pixels", "pixels", 0, seeds), ("DCT, in place", "dct", 0, seeds)]
    return [*found, *(("ZFP, in place", "zfp", p, seeds if p in several else 1) for p in (2, 3, *range(4, 13, 2)))]


def standardised(kind: str, precision: int, train: np.ndarray, images: np.ndarray) -> Tensor:
    own = values(kind, precision, train[:2000])
    side = {"pixels": 1, "zfp": 4, "dct": 8}[kind]
    mean, std = statistics(own, side)
    x = values(kind, precision, images)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // side, side, w // side, side)
    return torch.from_numpy(((blocks - mean) / std).reshape(x.shape).astype(np.float32))


def statistics(x: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // side, side, w // side, side)
    axes = (0, 2, 4)
    return blocks.mean(axes, keepdims=True), blocks.std(axes, keepdims=True) + 1e-3


def values(kind: str, precision: int, images: np.ndarray) -> np.ndarray:
    if kind == "pixels":
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255
    if kind == "dct":
        return datasets.coefficients(images, "dct")
    return datasets.coefficients(images, "zfp", precision=precision)


def accuracy(x: Tensor, y: np.ndarray, xt: Tensor, yt: np.ndarray, seed: int) -> float:
    torch.manual_seed(seed)
    network = NETWORKS["strided-small"]()
    labels = torch.from_numpy(y)
    steps = _EPOCHS * (len(x) // _BATCH)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(x)).split(_BATCH)[: len(x) // _BATCH]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        outputs = torch.cat([network(part).argmax(1) for part in xt.split(500)])
    return float((outputs.numpy() == yt).mean())
