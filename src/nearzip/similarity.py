"""Structural similarity of two arrays, taken for pictures: the SSIM of Delta-DNN's Figure 1."""

from __future__ import annotations

import math

import numpy as np

from nearzip.tensors import Array

__all__ = ["as_float64", "real_parts", "ssim", "ssim_within"]

#: Windows that are looked at together.
_PIECE = 1 << 18
#: Side of SSIM's window, and its constants (Wang et al. 2004, section III.B).
_WINDOW, _K1, _K2 = 7, 0.01, 0.03


def real_parts(array: Array) -> Array:
    """Complex numbers as pairs, everything else as it is."""
    if array.dtype.kind != "c":
        return array
    return array.reshape(array.shape or (1,)).view(np.float32 if array.itemsize == 8 else np.float64)


def as_float64(values: Array) -> Array:
    """In double precision, without warnings about NaN."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def ssim(a: Array, b: Array) -> float | None:
    """Mean structural similarity of two arrays of one shape, taken for pictures.

    Wang et al. 2004, equation 13, with K1 = 0.01 and K2 = 0.03. Delta-DNN (section 2.3) does not say how parameters
    become a picture; our reading:

    ==================  ===============================================
    shape               picture
    ==================  ===============================================
    (n, ...)            n rows, the other axes flattened into columns
    (n,) or ()          one row
    ==================  ===============================================

    Windows are uniform, 7 x 7 or as much of that as fits, at every place where they lie inside the picture; variances
    are those of the population. The dynamic range L is max - min over both arrays. Values are taken as they are, signs
    included. Windows with a non-finite value are left out; None if no window is left
    or the range overflows. Equal arrays give exactly 1.

    Examples
    --------
    >>> x = np.arange(64.0).reshape(8, 8)
    >>> ssim(x, x), round(ssim(x, x[::-1]), 3)
    (1.0, -0.925)
    """
    x, y = as_float64(real_parts(a)), as_float64(real_parts(b))
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return None
    both = np.concatenate([x[finite], y[finite]])
    return ssim_within(x, y, float(both.min()), float(both.max()))


def ssim_within(a: Array, b: Array, low: float, high: float) -> float | None:
    """As `ssim`, where the range of both arrays is known to be low .. high."""
    one, two = _picture(a), _picture(b)
    height, width = (min(_WINDOW, n) for n in one.shape)
    rows, columns = one.shape[0] - height + 1, one.shape[1] - width + 1
    step_columns = min(columns, _PIECE // 64)
    step_rows = max(1, _PIECE // step_columns)
    total, n = 0.0, 0
    spread = high - low
    for top in range(0, rows, step_rows):
        for left in range(0, columns, step_columns):
            bottom, right = min(rows, top + step_rows) + height - 1, min(columns, left + step_columns) + width - 1
            tile = np.s_[top:bottom, left:right]
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                values = _windows(as_float64(one[tile]), as_float64(two[tile]), height, width, low, spread)
            total += float(values.sum())
            n += values.size
    return total / n if n and math.isfinite(total) else None


def _picture(array: Array) -> Array:
    return array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)


def _windows(x: Array, y: Array, height: int, width: int, low: float, spread: float) -> Array:
    """SSIM of each window without non-finite values."""
    bad = ~(np.isfinite(x) & np.isfinite(y))
    # Variances about the lower end of the range: about 0 they would cancel where values are large and close.
    # In units of the range, which SSIM does not see, no square overflows.
    unit = spread or 1.0
    x, y = np.where(bad, 0.0, (x - low) / unit), np.where(bad, 0.0, (y - low) / unit)
    n = height * width

    def mean(values: Array) -> Array:
        means: Array = _slide(_slide(values, height).T, width).T / n
        return means

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x * mean_x, mean(y * y) - mean_y * mean_y
    covariance = mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + low / unit, mean_y + low / unit
    c1, c2 = (_K1 * spread / unit) ** 2, (_K2 * spread / unit) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    values: Array = np.divide(above, below, out=np.ones_like(above), where=below != 0)
    if not bad.any():
        return values
    clean: Array = values[mean(bad.astype(np.float64)) == 0]
    return clean


def _slide(values: Array, width: int) -> Array:
    """Sums of `width` neighbouring rows, by doubling."""
    n = values.shape[0] - width + 1
    total: Array | None = None
    at, size = 0, 1
    while width:
        if width & 1:
            piece = values[at : at + n]
            total = piece if total is None else total + piece
            at += size
        width >>= 1
        if width:
            values = values[:-size] + values[size:]
            size *= 2
    assert total is not None  # width is positive
    return total
