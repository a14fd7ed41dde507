"""How fast images are decoded, and ZFP's coefficients computed; and whether these are the library's.

Images per second of processor time in one process, shuffled. Every side's images are checked before it is timed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.claims.datasets.networks import test_images
from experiments.lab import record
from nearzip import datasets
from nearzip.datasets.transforms import coefficients, zfp_field

CODECS = ("nearzip:24,rounding=0.5", "lossless", "jpeg:75,chroma=4:4:4", "webp:75", "png")
_FIELDS = 3200


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_speed", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args(arguments)
    images, _ = test_images(options.data, options.images)
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    sides: dict[str, Any] = {"Pillow, JPEG 4:4:4 from memory": pillow_side(images, order)}
    for codec in CODECS:
        sides |= reader_sides(codec, images, order)
    seconds = record.interleaved(sides, rounds=5, clock=time.process_time)
    rates = {name: len(images) / each for name, each in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} images/s")
    result = {"n": len(images), "images_per_second": rates, "zfp": zfp_times(images), "planes": planes_that_differ()}
    record.save("dataset_speed", result, ("nearzip", "numpy", "pillow", "zfpy"))


def pillow_side(images: np.ndarray, order: list[int]) -> Any:
    files = []
    for image in images:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=75, subsampling=0, optimize=True)
        files.append(out.getvalue())

    def decode() -> None:
        for i in order:
            np.asarray(Image.open(io.BytesIO(files[i])))

    return decode


def reader_sides(codec: str, images: np.ndarray, order: list[int]) -> dict[str, Any]:
    """One sample after the other, and in batches of 128."""
    out = io.BytesIO()
    datasets.write(out, images, codec=codec)
    reader = datasets.open(out.getvalue())
    whole = list(reader)
    assert all(np.array_equal(reader[i], whole[i]) for i in order[:200])

    def one_by_one() -> None:
        for i in order:
            reader[i]

    def in_batches() -> None:
        for at in range(0, len(order), 128):
            reader.many(order[at : at + 128])

    return {f"{codec}, one by one": one_by_one, f"{codec}, batches of 128": in_batches}


def zfp_times(images: np.ndarray) -> dict[str, float]:
    """Processor seconds for 50,000 images."""
    many = np.concatenate([images] * -(-50_000 // len(images)))[:50_000]
    found = {}
    for precision in (8, 32):
        begin = time.process_time()
        for at in range(0, len(many), 2000):
            coefficients(many[at : at + 2000], "zfp", precision=precision)
        found[str(precision)] = time.process_time() - begin
        print(f"50,000 images, precision {precision}: {found[str(precision)]:.2f} s")
    return found


# ---- against the library ---------------------------------------------------------------------------------------


def undone(block: np.ndarray, dimensions: int) -> np.ndarray:
    """The library's inverse transform of one block of 32-bit integers."""
    values = block.astype(np.int64)
    for axis in range(dimensions):
        x, y, z, w = (np.take(values, i, axis) for i in range(4))
        y = y + (w >> 1)
        w = w - (y >> 1)
        y = y + w
        w = (w << 1) - y
        z = z + x
        x = (x << 1) - z
        y = y + z
        z = (z << 1) - y
        w = w + x
        x = (x << 1) - w
        values = np.stack([x, y, z, w], axis)
    return values.astype(np.int32)


def planes_that_differ() -> dict[str, int]:
    """Fields whose coefficients, transformed back, are not what zfpy decodes: 2-D and 3-D, odd sizes, zero blocks."""
    import zfpy

    rng = np.random.default_rng(0)
    tried = different = 0
    kinds = itertools.cycle(itertools.product((2, 3), ("float32", "int32"), range(1, 25)))
    for _ in range(_FIELDS):
        dimensions, dtype, precision = next(kinds)
        field = some_field(rng, dimensions, dtype)
        theirs = zfpy.decompress_numpy(zfpy.compress_numpy(field, precision=precision))
        found = zfp_field(field, dimensions, precision)
        tried += 1
        different += not np.array_equal(decoded(found, field, dimensions), theirs)
    return {"fields": tried, "different": different}


def some_field(rng: np.random.Generator, dimensions: int, dtype: str) -> np.ndarray:
    sizes = rng.integers(1, 14, dimensions)
    values = rng.normal(0, 10.0 ** rng.integers(-3, 4), sizes)
    if rng.random() < 0.3:
        values = np.cumsum(values, -1)
    if rng.random() < 0.5:
        values[..., : rng.integers(1, 6)] = 0
    return values.astype(np.float32) if dtype == "float32" else (values * 1000).astype(np.int32)


def decoded(found: np.ndarray, field: np.ndarray, dimensions: int) -> np.ndarray:
    out = np.empty(found.shape, field.dtype)
    padded = np.pad(field, [(0, p - n) for p, n in zip(found.shape, field.shape, strict=True)])
    for corner in itertools.product(*(range(0, n, 4) for n in found.shape)):
        place = tuple(slice(at, at + 4) for at in corner)
        if field.dtype == np.int32:
            out[place] = undone(found[place], dimensions)
            continue
        largest = np.abs(padded[place]).max()
        exponent = int(np.frexp(largest)[1]) if largest else 0
        fixed = np.ldexp(found[place].astype(np.float64), 30 - exponent).astype(np.int32)
        out[place] = np.ldexp(undone(fixed, dimensions).astype(np.float64), exponent - 30).astype(np.float32)
    return out[tuple(slice(n) for n in field.shape)]
