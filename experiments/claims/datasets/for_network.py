"""Images whose coefficients are rounded for a network: bytes and divergence, on that network and on others.

The same test images, settings and whole files as in `dataset_codecs`.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

import torch

from experiments.claims.datasets.codecs import row
from experiments.claims.datasets.networks import NAMES, network, test_images
from experiments.lab import record
from experiments.lab.data import CIFAR_MEAN, CIFAR_STD
from nearzip import datasets
from nearzip.datasets.codecs.cosine import Cosine

#: Networks that images are rounded for, and steps.
TARGETS = (
    (("strided-small",), (26, 50, 70)), (("strided-plain",), (36, 70, 100)), (("mobilenet-small",), (20, 36, 60)),
    (("strided-small", "mobilenet-small"), (14, 24, 40)), (("vgg-small",), (26, 44)),
)  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_for_network", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, labels = test_images(options.data, options.images)
    networks = {name: network(name, options.data) for name in NAMES}
    judges = {
        name: datasets.image_evaluator(each, labels, ["top1", "agreement", "kl"], mean=CIFAR_MEAN, std=CIFAR_STD)
        for name, each in networks.items()
    }
    for judge in judges.values():
        judge.original(list(images))
    result: dict[str, Any] = {"n": len(images), "rows": []}
    for names, steps in TARGETS:
        for step in steps:
            codec = datasets.for_network(
                [networks[name] for name in names], Cosine(step, 0.42), mean=CIFAR_MEAN, std=CIFAR_STD
            )
            begin = time.process_time()
            datasets.write(io.BytesIO(), images, labels, codec=codec)
            seconds = time.process_time() - begin
            # A second time with the levels that it knows.
            found = row(" and ".join(names), step, codec, images, labels, judges)
            result["rows"].append({**found, "ms": round(1000 * seconds / len(images), 2)})
            print(result["rows"][-1], flush=True)
            record.save("dataset_for_network", result, ("nearzip", "numpy", "torch"))
