"""The networks that evaluate images, and CIFAR-10's images as they are stored.

vgg-small is the shared trace, resnet-20 that of the set `correctness`; the others are the set `datasets` of the traces:
with batch norm and without, as a matched pair, and one of depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from experiments.lab.data import CIFAR_MEAN, CIFAR_STD, Split, held_out_images, load
from experiments.lab.networks import NETWORKS
from experiments.lab.trace_sets import traces_folder, version_files
from experiments.lab.traces import folder
from nearzip import datasets

NAMES = ("vgg-small", "mobilenet-small", "resnet-20", "strided-small", "strided-plain")
_SETS = {"resnet-20": "correctness"}
WITHOUT_NORMS = ("strided-plain",)


def network(name: str, data: Path) -> nn.Module:
    """A trained network; the shared traces lie in `data` or beside it."""
    if name == "vgg-small":
        shared = folder(str(data))
        if shared is None:
            raise SystemExit(f"{data}: the shared traces are neither there nor beside it")
        path = shared / name / "008.safetensors"
    else:
        of = _SETS.get(name, "datasets")
        files = version_files(traces_folder() / of / name)
        if not files:
            raise SystemExit(f"{name} is not trained: scripts/bench traces --set {of} --only {name}")
        path = files[-1]
    module = NETWORKS[name]()
    module.load_state_dict(load_file(path))
    return module.eval()


def judges(networks: Mapping[str, nn.Module], labels: np.ndarray) -> dict[str, Any]:
    """An evaluator of lists of images for each network."""
    metrics = ["top1", "agreement", "kl"]
    return {
        name: datasets.image_evaluator(each, labels, metrics, mean=CIFAR_MEAN, std=CIFAR_STD)
        for name, each in networks.items()
    }


def pixels(split: Split) -> np.ndarray:
    """(n, height, width, channels) uint8, as they were before they were normalised."""
    std, mean = (torch.tensor(x).view(1, -1, 1, 1) for x in (CIFAR_STD, CIFAR_MEAN))
    levels = (split.inputs * std + mean).mul_(255).round_().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())


def test_images(data: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images of CIFAR-10 and their labels."""
    split = held_out_images("cifar-10", data)[:n]
    return pixels(split), split.targets.numpy()


def training_images(data: Path, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first training images of CIFAR-10 and their labels."""
    split = load("cifar-10", data).train[:n]
    return pixels(split), split.targets.numpy()
