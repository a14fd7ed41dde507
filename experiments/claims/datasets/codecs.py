"""Codecs of images on networks that were trained on clean ones: bytes, divergence, accuracy. Figure 7 and Table I.

Whole files count: container, index, checksums, tables, labels.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.claims.datasets.networks import NAMES, judges, network, test_images, training_images
from experiments.lab import record
from experiments.lab.data import CIFAR_MEAN, CIFAR_STD
from nearzip import datasets
from nearzip.datasets.codecs.base import SampleCodec
from nearzip.datasets.codecs.cosine import Cosine

#: Name of a codec: how it is written, and the settings.
GRID: dict[str, tuple[str, tuple[float, ...]]] = {
    "nearzip": ("nearzip:{},rounding=0.42", (10, 14, 20, 26, 36, 56, 80)),
    "WebP": ("webp:{}", (20, 40, 60, 75, 85, 91, 95, 98, 100)),
    "JPEG 4:4:4": ("jpeg:{},chroma=4:4:4", (30, 50, 75, 85, 92)),
    "ZFP precision, int32": ("zfp:{},values=int32", (4, 5, 6, 7, 8)),
    "JPEG 4:2:0": ("jpeg:{}", (20, 50, 75, 90, 96)),
    "ZFP precision, float32": ("zfp:{}", (5, 6, 7, 8)),
    "ZFP rate, float32": ("zfp:rate={}", (1, 2, 2.5, 3, 4)),
}
#: Settings of ours with steps that were calibrated on networks.
CALIBRATED = (16, 24, 34, 48)


def codecs(data: Path) -> Iterator[tuple[str, float, SampleCodec, tuple[str, ...]]]:
    """Name, setting, codec, and the networks that it is judged by."""
    for name, (form, settings) in GRID.items():
        for setting in settings:
            yield name, setting, datasets.codec_of(form.format(setting)), NAMES
    images, _ = training_images(data, 400)
    found = {judge: network(judge, data) for judge in NAMES}
    for judge in NAMES:
        others = [found[name] for name in NAMES if name != judge]
        for said, networks in (("calibrated on it", [found[judge]]), ("calibrated on the others", others)):
            steps = datasets.calibrate(networks, images, mean=CIFAR_MEAN, std=CIFAR_STD)
            for setting in CALIBRATED:
                yield f"nearzip, {said}", setting, Cosine(setting, 0.42, steps), (judge,)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_codecs", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, labels = test_images(options.data, options.images)
    found = judges({name: network(name, options.data) for name in NAMES}, labels)
    clean = {name: dict(judge.original(list(images)).metrics) for name, judge in found.items()}
    rows = []
    for codec_name, setting, codec, by in codecs(options.data):
        rows.append(row(codec_name, setting, codec, images, labels, {name: found[name] for name in by}))
        print(rows[-1], flush=True)
    result: dict[str, Any] = {"n": len(images), "raw_bytes": images[0].size, "original": clean, "rows": rows}
    record.save("dataset_codecs", result, ("nearzip", "numpy", "torch", "pillow", "zfpy"))


def row(
    name: str, setting: float, codec: SampleCodec, images: np.ndarray, labels: np.ndarray, judges: dict[str, Any]
) -> dict[str, Any]:
    """Bytes and what each network makes of the restored images."""
    out = io.BytesIO()
    written = datasets.write(out, images, labels, codec=codec)
    with datasets.open(out.getvalue()) as reader:
        restored = list(reader)
    networks = {judge: dict(each.restored(restored, list).metrics) for judge, each in judges.items()}
    return {
        "codec": name, "setting": setting, "bytes": round(written.bytes_per_sample, 2),
        "index": round(written.index_bytes / len(images), 2), "networks": networks,
    }  # fmt: skip
