"""Images whose coefficients are rounded for a network: bytes and divergence, on that network and on others.

Steps are calibrated on the same networks. The same test images and whole files as in `dataset_codecs`.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path
from typing import Any

import torch

from experiments.claims.datasets.codecs import row
from experiments.claims.datasets.networks import NAMES, judges, network, test_images, training_images
from experiments.lab import record
from experiments.lab.data import CIFAR_MEAN, CIFAR_STD
from nearzip import datasets
from nearzip.datasets.codecs.cosine import Cosine

#: Networks that images are rounded for, and steps.
TARGETS = (
    (("strided-small",), (30, 120, 220)), (("mobilenet-small",), (26, 60, 120)), (("strided-plain",), (45, 120, 220)),
    (("strided-small", "mobilenet-small"), (20, 50, 100)), (("vgg-small",), (50, 100)),
)  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_for_network", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, labels = test_images(options.data, options.images)
    networks = {name: network(name, options.data) for name in NAMES}
    by = judges(networks, labels)
    for judge in by.values():
        judge.original(list(images))
    result: dict[str, Any] = {"n": len(images), "rows": record.finished_rows("dataset_for_network", n=len(images))}
    done = {(each["codec"], each["setting"]) for each in result["rows"]}
    some, _ = training_images(options.data, 400)
    for names, steps in TARGETS:
        own = [networks[name] for name in names]
        relative = datasets.calibrate(own, some, mean=CIFAR_MEAN, std=CIFAR_STD)
        for step in steps:
            if (" and ".join(names), step) in done:
                continue
            codec = datasets.for_network(own, Cosine(step, 0.42, relative), mean=CIFAR_MEAN, std=CIFAR_STD)
            begin = time.process_time()
            datasets.write(io.BytesIO(), images, labels, codec=codec)
            seconds = time.process_time() - begin
            # A second time with the levels that it knows.
            found = row(" and ".join(names), step, codec, images, labels, by)
            result["rows"].append({**found, "ms": round(1000 * seconds / len(images), 2)})
            print(result["rows"][-1], flush=True)
            record.save("dataset_for_network", result, ("nearzip", "numpy", "torch"))
