"""Table II: networks that learn from transform coefficients in place of pixels, the same network, images and epochs.

In place: `strided-small` on 3 x 32 x 32 values, of which each is a pixel or a coefficient of its block. Stacked: 48
channels of 8 x 8, one for each frequency of a channel, or each place of a block of pixels; three convolutions as wide.
Every frequency is standardised with the training images' statistics. No augmentation, since crops break blocks.

And how many images a second come from a file on disk, decoded or as coefficients, into a step of training.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from experiments.claims.datasets.networks import test_images, training_images
from experiments.lab import record
from experiments.lab.networks import NETWORKS
from experiments.lab.networks.parts import conv_bn_relu
from nearzip import datasets

_EPOCHS, _BATCH = 4, 64
_PRECISIONS, _SEVERAL = range(2, 13), (4, 8, 12)
_SIDES = {"pixels": 1, "zfp": 4, "dct": 8}
_LAYOUTS = ("in-place", "stacked")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_coefficients", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3, help="of pixels, cosines and precisions 4, 8 and 12; else 1")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, test = training_images(options.data, options.images), test_images(options.data, 3000)
    result: dict[str, Any] = {"n": options.images, "n_test": len(test[0]), "epochs": _EPOCHS}
    result["rows"] = record.finished_rows("dataset_coefficients", **result)
    done = {(row["layout"], row["input"], row["precision"]) for row in result["rows"]}
    result["images_per_second"] = rates(test[0][:1024], test[1][:1024])
    for layout, kind, precision, seeds in inputs(options.seeds):
        if (layout, kind, precision) in done:
            continue
        x, xt = (standardised(kind, precision, layout, train[0], images) for images in (train[0], test[0]))
        found = [accuracy(layout, x, train[1], xt, test[1], seed) for seed in range(seeds)]
        row = {"input": kind, "layout": layout, "precision": precision, "accuracy": found}
        result["rows"].append(row)
        print(row, flush=True)
        # After every row: hours of a shared machine may end early.
        record.save("dataset_coefficients", result, ("nearzip", "numpy", "torch", "pillow"))


def inputs(seeds: int) -> Iterator[tuple[str, str, int, int]]:
    """Layout, kind, precision, seeds: what is compared with the same number of seeds first."""
    for layout in _LAYOUTS:
        yield layout, "pixels", 0, seeds
        yield from ((layout, "zfp", precision, seeds) for precision in _SEVERAL)
        if layout == "in-place":
            yield layout, "dct", 0, seeds
    yield from ((layout, "zfp", p, 1) for layout in _LAYOUTS for p in _PRECISIONS if p not in _SEVERAL)


# ---- what the networks learn from ------------------------------------------------------------------------------


def standardised(kind: str, precision: int, layout: str, train: np.ndarray, images: np.ndarray) -> Tensor:
    own = values(kind, precision, train[:2000])
    side = _SIDES[kind]
    mean, std = statistics(own, side)
    x = values(kind, precision, images)
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // side, side, w // side, side)
    found = ((blocks - mean) / std).reshape(x.shape).astype(np.float32)
    return torch.from_numpy(found if layout == "in-place" else stacked(found))


def stacked(x: np.ndarray) -> np.ndarray:
    """(n, channels, height, width) -> (n, channels * 16, height / 4, width / 4)."""
    n, c, h, w = x.shape
    return np.ascontiguousarray(x.reshape(n, c, h // 4, 4, w // 4, 4).transpose(0, 1, 3, 5, 2, 4)).reshape(
        n, c * 16, h // 4, w // 4
    )


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


# ---- training --------------------------------------------------------------------------------------------------


def network_of(layout: str) -> nn.Module:
    if layout == "in-place":
        return NETWORKS["strided-small"]()
    return nn.Sequential(
        conv_bn_relu(48, 64, 3, 1), conv_bn_relu(64, 64, 3, 2), conv_bn_relu(64, 128, 3, 1),
        nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def accuracy(layout: str, x: Tensor, y: np.ndarray, xt: Tensor, yt: np.ndarray, seed: int) -> float:
    torch.manual_seed(seed)
    network = network_of(layout)
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


# ---- from disk -------------------------------------------------------------------------------------------------


class _Files(torch.utils.data.Dataset[Any]):
    """JPEG files in a folder, as a loader without this package reads them."""

    def __init__(self, folder: Path, images: np.ndarray, labels: np.ndarray):
        self._labels = labels.tolist()
        self._paths = [folder / f"{i}.jpg" for i in range(len(images))]
        for path, image in zip(self._paths, images, strict=True):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "JPEG", quality=90, subsampling=0)
            path.write_bytes(out.getvalue())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        pixels = np.asarray(Image.open(self._paths[i])).transpose(2, 0, 1)
        return torch.from_numpy(pixels.astype(np.float32) / 255), self._labels[i]


def rates(images: np.ndarray, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """Images per second of processor time, shuffled, in batches of 64: loaded, and loaded and trained with."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.nzd"
        datasets.write(path, images, labels, codec="nearzip:24")
        loaders: dict[str, Any] = {
            "JPEG files, pixels": _Files(Path(folder), images, labels),
            "nearzip, pixels": datasets.Dataset(path, as_="float"),
            "nearzip, cosines without decoding": datasets.Dataset(path, as_="dct"),
            "nearzip, ZFP's coefficients of the pixels": datasets.Dataset(path, as_="zfp"),
        }
        sides: dict[str, Callable[[], None]] = {}
        for (name, data), train in itertools.product(loaders.items(), (False, True)):
            sides[f"{name}|{'trained' if train else 'loaded'}"] = side_of(data, train)
        seconds = record.interleaved(sides, rounds=3, clock=time.process_time)
    found: dict[str, dict[str, float]] = {}
    for side, each in seconds.items():
        name, what = side.split("|")
        found.setdefault(name, {})[what] = len(images) / each
    print(found, flush=True)
    return found


def side_of(data: Any, train: bool) -> Callable[[], None]:
    loader = torch.utils.data.DataLoader(data, _BATCH, shuffle=True)
    sample = data[0][0]
    # Cosines are 192 channels of 4 x 4: spread in place, so that one network takes all inputs.
    network = NETWORKS["strided-small"]()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)

    def run() -> None:
        for x, y in loader:
            if not train:
                continue
            inputs = x if sample.shape[0] == 3 else nn.functional.pixel_shuffle(x, 8)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), y).backward()
            optimizer.step()

    return run
