"""ZFP's coefficients against the library, cosines against a plain product, and augmentation of both."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nearzip import datasets
from nearzip.datasets.transforms import coefficients, mirrored, shifted, zfp_field
from nearzip.errors import UsageError
from tests.nzd.pictures import pictures


def decoded(found: np.ndarray, dimensions: int) -> np.ndarray:
    """Plain twin of the library's inverse transform, block by block, in 32-bit integers."""
    out = np.empty_like(found)
    for corner in itertools.product(*(range(0, n, 4) for n in found.shape)):
        place = tuple(slice(at, at + 4) for at in corner)
        values = found[place].astype(np.int64)
        for axis in range(dimensions):
            x, y, z, w = (np.take(values, i, axis).astype(np.int64) for i in range(4))
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
        out[place] = values.astype(np.int32)
    return out


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("precision", [1, 2, 5, 9, 16, 24, 32])
def test_inverse_of_zfp_coefficients_is_what_the_library_decodes(dimensions, precision):
    zfpy = pytest.importorskip("zfpy")
    rng = np.random.default_rng(precision)
    for sizes in ((4,) * dimensions, (9, 6, 5)[:dimensions], (13, 4, 7)[:dimensions], (1, 2, 3)[:dimensions]):
        field = (rng.normal(0, 1 << 24, sizes)).astype(np.int32)
        field[..., :1] = 0
        whole = zfp_field(field, dimensions, precision)
        ours = decoded(whole, dimensions)[tuple(slice(n) for n in sizes)]
        packed = zfpy.compress_numpy(field, precision=precision)
        assert np.array_equal(ours, zfpy.decompress_numpy(packed))


@pytest.mark.parametrize("precision", [2, 6, 12, 20])
def test_floats_have_the_exponent_of_their_block(precision):
    zfpy = pytest.importorskip("zfpy")
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1.0, 1e4):
        field = (rng.normal(0, scale, (8, 12))).astype(np.float32)
        field[:4, :4] = 0
        theirs = zfpy.decompress_numpy(zfpy.compress_numpy(field, precision=precision))
        for y, x in itertools.product((0, 4), (0, 4, 8)):
            block, found = field[y : y + 4, x : x + 4], zfp_field(field, 2, precision)[y : y + 4, x : x + 4]
            exponent = np.frexp(np.abs(block).max())[1] if block.any() else 0
            whole = np.ldexp(found.astype(np.float64), 30 - exponent).astype(np.int32)
            back = np.ldexp(decoded(whole, 2).astype(np.float64), exponent - 30).astype(np.float32)
            assert np.array_equal(back, theirs[y : y + 4, x : x + 4])


def test_layouts_hold_the_same_values():
    images = pictures(3, 12, 8)
    for kind, side in (("zfp", 4), ("dct", 8)):
        if kind == "dct":
            images = pictures(3, 16, 8)
        placed, stacked = (coefficients(images, kind, layout=layout) for layout in ("in-place", "stacked"))
        n, c, h, w = placed.shape
        assert stacked.shape == (n, c * side * side, h // side, w // side)
        assert stacked[1, 2 * side * side + side + 3, 0, 0] == placed[1, 2, 1, 3]
    assert coefficients(pictures(2, 9, 5)).shape == (2, 3, 12, 8)


def test_constant_images_have_one_coefficient():
    grey = np.full((1, 8, 8, 1), 192, np.uint8)
    found = coefficients(grey, "dct")
    assert found[0, 0, 0, 0] == pytest.approx(64 * 8 / 255)
    assert np.abs(found).sum() == pytest.approx(64 * 8 / 255)
    found = coefficients(grey, "zfp", values="int32")
    assert np.count_nonzero(found) == 4


def test_mirrored_coefficients_are_those_of_the_mirrored_image():
    images = pictures(20, 16, 16)
    for layout in ("in-place", "stacked"):
        cosines = mirrored(coefficients(images, "dct", layout=layout), "dct", layout)
        assert np.allclose(cosines, coefficients(images[:, :, ::-1], "dct", layout=layout), atol=1e-5)
        lifted = mirrored(coefficients(images, "zfp", layout=layout, precision=12), "zfp", layout)
        other = coefficients(images[:, :, ::-1], "zfp", layout=layout, precision=12)
        assert (lifted == other).mean() > 0.75
        assert np.abs(lifted - other).max() < 2**-8


@pytest.mark.parametrize(("kind", "side"), [("zfp", 4), ("dct", 8)])
def test_shifts_by_whole_blocks(kind, side):
    images = pictures(2, 16, 24)
    moved = np.full_like(images, 128)
    moved[:, side:, :-side] = images[:, :-side, side:]
    for layout in ("in-place", "stacked"):
        found = shifted(coefficients(images, kind, layout=layout), 1, -1, kind, layout)
        other = coefficients(moved, kind, layout=layout)
        inner = (slice(None), slice(None), slice(side if layout == "in-place" else 1, None),
                 slice(0, -side if layout == "in-place" else -1))  # fmt: skip
        assert np.array_equal(found[inner], other[inner])
        assert not found[:, :, 0].any()


def test_what_has_no_coefficients_is_refused():
    with pytest.raises(UsageError, match="NaN"):
        coefficients(np.full((1, 4, 4, 1), np.nan, np.float32))
    with pytest.raises(UsageError, match="precision"):
        coefficients(pictures(1), precision=0)
    with pytest.raises(UsageError, match="layout"):
        coefficients(pictures(1), layout="spiral")
    with pytest.raises(UsageError, match="'zfp' or 'dct'"):
        datasets.coefficients(pictures(1), "wavelet")
