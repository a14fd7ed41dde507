"""Figure 8: attributions of one network on original and on decoded images, by codec, at about equal size.

Occlusion maps, as in the paper: how much the probability of the class that the network gives the original image falls
when a window of 8 x 8 pixels is grey. Alike: the Jaccard formula of the paper on positive and negative parts apart,
which is in [0, 1]; as printed it is not, for maps with both signs. Beside it, maps of different images: chance.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from experiments.claims.datasets.networks import network, test_images
from experiments.lab import record
from experiments.lab.data import CIFAR_MEAN, CIFAR_STD
from nearzip import datasets
from nearzip.datasets.codecs.ladders import ladder

_WINDOW, _STRIDE, _GREY = 8, 4, 0.5
#: Codec, its setting that is searched, what stays fixed.
_CODECS = {
    "nearzip": ("nearzip", None, "rounding=0.5"), "WebP": ("webp", None, ""),
    "JPEG 4:4:4": ("jpeg", None, "chroma=4:4:4"), "ZFP precision, int32": ("zfp", "precision", "values=int32"),
    "ZFP precision, float32": ("zfp", "precision", ""), "ZFP rate, float32": ("zfp", "rate", ""),
}  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_attributions", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--bytes", type=float, default=600.0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    whole, _ = test_images(options.data, 1000)
    images = whole[: options.images]
    judge = network("vgg-small", options.data)
    with torch.no_grad():
        classes = judge(prepared(images)).argmax(1)
    original = [occlusion(judge, image, int(c)) for image, c in zip(images, classes, strict=True)]
    chance = [jaccard(a, b) for a, b in zip(original, original[1:] + original[:1], strict=True)]
    rows = []
    for name, (codec, knob, fixed) in _CODECS.items():
        n_bytes, setting, restored = nearest(ladder(codec, knob, fixed), whole, options.bytes, options.images)
        maps = [occlusion(judge, image, int(c)) for image, c in zip(restored, classes, strict=True)]
        found = [jaccard(a, b) for a, b in zip(original, maps, strict=True)]
        with torch.no_grad():
            same = float((judge(prepared(np.stack(restored))).argmax(1) == classes).float().mean())
        rows.append({"codec": name, "setting": setting, "bytes": round(n_bytes, 1), "jaccard": float(np.mean(found)),
                     "tenth": float(np.quantile(found, 0.1)), "agreement": same})  # fmt: skip
        print(rows[-1], flush=True)
    result = {"n": options.images, "bytes": options.bytes, "chance": float(np.mean(chance)), "rows": rows}
    record.save("dataset_attributions", result, ("nearzip", "numpy", "torch", "pillow", "zfpy"))


def nearest(settings: list, images: np.ndarray, wanted: float, n: int) -> tuple[float, str, list[np.ndarray]]:
    """The setting whose file is nearest to so many bytes an image, found by bisection; its first images."""
    low, high = 0, len(settings) - 1
    tried: dict[int, tuple[float, bytes]] = {}
    while low <= high:
        middle = (low + high) // 2
        out = io.BytesIO()
        tried[middle] = (datasets.write(out, images, codec=settings[middle]).bytes_per_sample, out.getvalue())
        low, high = (low, middle - 1) if tried[middle][0] > wanted else (middle + 1, high)
    best = min(tried, key=lambda i: abs(tried[i][0] - wanted))
    with datasets.open(tried[best][1]) as reader:
        return tried[best][0], str(settings[best]), reader.some(0, n)


def prepared(images: np.ndarray) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return normalised(values)


def normalised(values: Tensor) -> Tensor:
    mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (CIFAR_MEAN, CIFAR_STD))
    return (values - mean) / std


def occlusion(judge: nn.Module, image: np.ndarray, target: int) -> np.ndarray:
    """Falls of the probability, (places, places)."""
    values = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    starts = range(0, values.shape[1] - _WINDOW + 1, _STRIDE)
    covered = [values]
    for y in starts:
        for x in starts:
            other = values.clone()
            other[:, y : y + _WINDOW, x : x + _WINDOW] = _GREY
            covered.append(other)
    with torch.no_grad():
        p = torch.softmax(judge(normalised(torch.stack(covered))), 1)[:, target]
    return (p[0] - p[1:]).numpy().reshape(len(starts), -1)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    parts = [(np.maximum(s * a, 0), np.maximum(s * b, 0)) for s in (1, -1)]
    both = sum(float(np.minimum(x, y).sum()) for x, y in parts)
    either = sum(float(np.maximum(x, y).sum()) for x, y in parts)
    return both / either if either else 1.0
