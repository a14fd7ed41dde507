"""The 8x8 cosine transform of images, and its coefficients as levels: the encoder's half of our image codec.

The decoder's half is integer arithmetic in the native core (`_native/dct_kernels.hpp`), so that pixels are the same
everywhere.
"""

from __future__ import annotations

import numpy as np

from nearzip.tensors import Array

__all__ = [
    "BASIS",
    "COLORS",
    "MAX_LEVEL",
    "SIDE",
    "blocks_of",
    "chroma_gradients",
    "coefficients",
    "levels_of",
    "pixels_of",
    "to_luma_chroma",
]

#: Pixels on a side of a block.
SIDE = 8
#: Largest magnitude of a level that the coder takes.
MAX_LEVEL = 2047
#: Rows: frequencies; columns: pixels.
BASIS = np.array(
    [
        [np.sqrt((1 if u == 0 else 2) / SIDE) * np.cos((2 * i + 1) * u * np.pi / (2 * SIDE)) for i in range(SIDE)]
        for u in range(SIDE)
    ],
    np.float32,
)
#: ITU-R BT.601 with the full range of values, as in JPEG files: luma and two chromas of red, green and blue.
COLORS = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]],
    np.float32,
)


def to_luma_chroma(values: Array) -> Array:
    """Red, green and blue (.., 3) as luma and chroma; further channels stay as they are. float32."""
    out = np.array(values, np.float32)
    out[..., :3] = values[..., :3].astype(np.float32) @ COLORS.T
    return out


def chroma_gradients(gradients: Array) -> Array:
    """Gradients by red, green and blue (.., 3) as gradients by luma and chroma; others stay as they are. float32."""
    out = np.array(gradients, np.float32)
    if out.shape[-1] >= 3:
        out[..., :3] = out[..., :3] @ np.linalg.inv(COLORS)
    return out


def blocks_of(values: Array) -> Array:
    """(n, height, width, channels) -> (n, rows, columns, channels, 8, 8); the last pixels fill incomplete blocks."""
    n, height, width, channels = values.shape
    low, right = -height % SIDE, -width % SIDE
    if low or right:
        values = np.pad(values, ((0, 0), (0, low), (0, right), (0, 0)), mode="edge")
    rows, columns = values.shape[1] // SIDE, values.shape[2] // SIDE
    return np.asarray(values.reshape(n, rows, SIDE, columns, SIDE, channels).transpose(0, 1, 3, 5, 2, 4))


def coefficients(pixels: Array, color: bool) -> Array:
    """Coefficients of uint8 images, orthonormal, in grey levels.

    Parameters
    ----------
    pixels : (n, height, width, channels) uint8, or float32 in grey levels
    color : bool
        Channels 0 to 2 are red, green and blue, and become luma and chroma.

    Returns
    -------
    (n, rows, columns, channels, 8, 8) float32
        Of values around 0: a middle grey has no coefficient. Frequencies: vertical, then horizontal.
    """
    values = pixels.astype(np.float32) - 128
    if color:
        values = to_luma_chroma(values)
    return np.asarray(BASIS @ blocks_of(values) @ BASIS.T)


def pixels_of(found: Array, height: int, width: int, color: bool) -> Array:
    """The inverse of `coefficients` in floating point, without rounding: (n, height, width, channels) float32."""
    values = BASIS.T @ found @ BASIS
    n, rows, columns, channels = found.shape[:4]
    image = values.transpose(0, 1, 4, 2, 5, 3).reshape(n, rows * SIDE, columns * SIDE, channels)[:, :height, :width]
    if color:
        image = image.copy()
        image[..., :3] = image[..., :3] @ np.linalg.inv(COLORS).T
    return np.asarray(image + 128)


def levels_of(found: Array, steps: Array, rounding: float) -> Array:
    """Coefficients as multiples of their steps, int16.

    Parameters
    ----------
    found : (.., channels, 8, 8)
    steps : (channels, 8, 8) float
    rounding : float
        What is added before magnitudes are cut: 0.5 rounds to the nearest; less makes more zeros, which pays, because
        small levels are far more frequent than large ones.
    """
    scaled = found / steps.astype(np.float32)
    magnitudes = np.minimum(np.floor(np.abs(scaled) + np.float32(rounding)), MAX_LEVEL)
    return np.asarray(np.copysign(magnitudes, scaled).astype(np.int16))
