"""Transform coefficients to learn from: ZFP's, as the library codes them, and JPEG's cosines; and augmentation there.

Section III B and Table II of the paper; Gueguen et al. 2018 for cosines.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

import nearzip._core as _core
from nearzip.datasets.cosines import SIDE
from nearzip.datasets.cosines import coefficients as cosine_coefficients
from nearzip.errors import UsageError
from nearzip.tensors import Array

__all__ = ["coefficients", "mirrored", "shifted", "zfp_field"]

_ZFP_SIDE = 4
Kind = Literal["zfp", "dct"]
Layout = Literal["in-place", "stacked"]


def coefficients(
    images: Any,
    kind: Kind = "zfp",
    *,
    precision: int = 32,
    layout: Layout = "in-place",
    values: Literal["float32", "int32"] = "float32",
) -> Array:
    """Coefficients of images.

    Parameters
    ----------
    images : (n, height, width[, channels]) array
        uint8, scaled to values from 0 to 1; or float32, used as they are.
    kind : str
        "zfp": of 4x4 blocks of each channel. "dct": of 8x8 blocks of luma and chroma, orthonormal, in units of 1.
    precision : int
        Of "zfp": bit planes of each coefficient that are kept, 1 to 32, as the library's mode of that name keeps them.
    layout : str
        "in-place": each coefficient replaces one pixel of its block; "stacked": one channel for each frequency.
    values : str
        Of "zfp": "float32", as in the paper, with an exponent for every block; "int32" without one, for uint8 images:
        coefficients are in units of the same.

    Returns
    -------
    float32 array
        In place (n, channels, height, width); stacked (n, channels * 16 or 64, rows, columns). Heights and widths are
        those of whole blocks.

    Raises
    ------
    UsageError
        NaN or infinity, or an argument out of range.

    Notes
    -----
    Lindstrom 2014, sections 4 to 6; equal to the library's coefficients bit for bit up to precision 24, beyond which
    float32 rounds them. Blocks of subnormal numbers, which the library damages, are excepted.
    """
    array = _checked(images)
    if kind == "dct":
        found = cosine_coefficients(_bytes(array), array.shape[3] >= 3) / np.float32(255)
        return _cosine_layout(found, layout)
    if kind != "zfp":
        raise UsageError(f"coefficients are of the kind 'zfp' or 'dct', not {kind!r}")
    if type(precision) is not int or not 1 <= precision <= 32:
        raise UsageError(f"precision is a number of bit planes from 1 to 32, not {precision!r}")
    planes = np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if values == "int32":
        if planes.dtype != np.uint8:
            raise UsageError("values='int32' is for uint8 images")
        whole = zfp_field((planes.astype(np.int32) - 128) << 23, 2, precision)
        found = whole.astype(np.float32) / np.float32(1 << 31)
    else:
        scaled = planes.astype(np.float32) / np.float32(255) if planes.dtype == np.uint8 else planes
        found = zfp_field(scaled, 2, precision)
    return _zfp_layout(found, layout)


def zfp_field(fields: Array, dimensions: int, precision: int) -> Array:
    """ZFP's coefficients of fields that are the last `dimensions` dimensions, float32 or int32, in place.

    Raises UsageError for NaN and infinity.
    """
    if fields.dtype == np.float32 and not np.isfinite(fields).all():
        raise UsageError("ZFP has no coefficients for NaN and infinity")
    sizes = fields.shape[-dimensions:]
    padded = [size + -size % _ZFP_SIDE for size in sizes]
    out = np.empty((*fields.shape[:-dimensions], *padded), fields.dtype)
    _core.zfp_coefficients(np.ascontiguousarray(fields).reshape(-1), list(sizes), precision, out.reshape(-1))
    return out


def _checked(images: Any) -> Array:
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or not array.size:
        raise UsageError("images are an array (n, height, width[, channels])")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
    return array


def _bytes(array: Array) -> Array:
    """Pixels for the cosine transform, in grey levels."""
    return array if array.dtype == np.uint8 else array * np.float32(255)


def _zfp_layout(found: Array, layout: str) -> Array:
    if layout == "in-place":
        return found
    _check_layout(layout)
    n, channels, height, width = found.shape
    s = _ZFP_SIDE
    blocks = found.reshape(n, channels, height // s, s, width // s, s).transpose(0, 1, 3, 5, 2, 4)
    return np.ascontiguousarray(blocks).reshape(n, channels * s * s, height // s, width // s)


def _cosine_layout(found: Array, layout: str) -> Array:
    n, rows, columns, channels = found.shape[:4]
    if layout == "in-place":
        placed = found.transpose(0, 3, 1, 4, 2, 5)
        return np.ascontiguousarray(placed).reshape(n, channels, rows * SIDE, columns * SIDE)
    _check_layout(layout)
    stacked = found.transpose(0, 3, 4, 5, 1, 2)
    return np.ascontiguousarray(stacked).reshape(n, channels * SIDE * SIDE, rows, columns)


def _check_layout(layout: str) -> None:
    if layout != "stacked":
        raise UsageError(f"layout is 'in-place' or 'stacked', not {layout!r}")


# ---- augmentation ----------------------------------------------------------------------------------------------


def mirrored(found: Array, kind: Kind = "zfp", layout: Layout = "in-place") -> Array:
    """Coefficients of the images mirrored left to right: coefficients of odd horizontal frequency change sign.

    Exact for cosines. Of ZFP's, whose lifting and planes round in one direction, most coefficients are equal to those
    of the mirrored image, and the others differ by units of their lowest plane.
    """
    side = _side(kind)
    if layout == "in-place":
        n, channels, height, width = found.shape
        blocks = found.reshape(n, channels, height, width // side, side)[:, :, :, ::-1]
        signs = np.where(np.arange(side) % 2, -1, 1).astype(found.dtype)
        return np.ascontiguousarray(blocks * signs).reshape(found.shape)
    _check_layout(layout)
    channels = found.shape[1]
    signs = np.where(np.arange(channels) % side % 2, -1, 1).astype(found.dtype)
    return np.ascontiguousarray(found[..., ::-1] * signs[:, None, None])


def shifted(found: Array, down: int, right: int, kind: Kind = "zfp", layout: Layout = "in-place") -> Array:
    """Coefficients of images shifted by whole blocks. Blocks that enter are 0, which is mid-grey for cosines."""
    unit = _side(kind) if layout == "in-place" else 1
    if layout != "in-place":
        _check_layout(layout)
    out = np.zeros_like(found)
    height, width = found.shape[-2:]
    dy, dx = down * unit, right * unit
    if abs(dy) >= height or abs(dx) >= width:
        return out
    to_y, from_y = slice(max(dy, 0), height + min(dy, 0)), slice(max(-dy, 0), height + min(-dy, 0))
    to_x, from_x = slice(max(dx, 0), width + min(dx, 0)), slice(max(-dx, 0), width + min(-dx, 0))
    out[..., to_y, to_x] = found[..., from_y, from_x]
    return out


def _side(kind: str) -> int:
    if kind not in ("zfp", "dct"):
        raise UsageError(f"coefficients are of the kind 'zfp' or 'dct', not {kind!r}")
    return _ZFP_SIDE if kind == "zfp" else SIDE
