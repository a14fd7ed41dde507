"""Small images with structure, made from a seed: smooth parts, edges and some noise."""

from __future__ import annotations

import numpy as np


def pictures(n: int, height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(n, height, width, channels) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    phase, slope = rng.uniform(0, 6, (2, n, 1, 1, channels))
    waves = np.sin(y[..., None] * slope + phase) * np.cos(x[..., None] * phase + slope)
    edges = (x[None, ..., None] > rng.uniform(0, 1, (n, 1, 1, 1))) * rng.uniform(-60, 60, (n, 1, 1, 1))
    noise = rng.normal(0, 4, (n, height, width, channels))
    return np.clip(120 + 70 * waves + edges + noise, 0, 255).astype(np.uint8)
