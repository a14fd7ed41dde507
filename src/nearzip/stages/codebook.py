"""A few shared values replace many: one-dimensional k-means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array, round_to

__all__ = ["MAX_CLUSTERS", "Codebook", "cluster", "read_centroids"]

MAX_CLUSTERS = 1 << 16
#: Lloyd's steps in one dimension settle long before.
_MAX_ROUNDS = 300


def cluster(values: Array, n_clusters: int) -> Array:
    """Centroids of one-dimensional k-means (Lloyd), initialised linearly: Deep Compression, section 3.2.

    Parameters
    ----------
    values : array, shape (n,), a floating-point dtype
        What is not finite takes no part.
    n_clusters : int

    Returns
    -------
    array, shape (k,), dtype of `values`
        Increasing, 1 <= k <= n_clusters. With no more distinct values than clusters: those values, exactly. Clusters
        that end up empty or equal after rounding are left out. [0] if there is no finite value.
    """
    with np.errstate(invalid="ignore"):
        working = values.astype(np.float64)
    distinct, counts = np.unique(working[np.isfinite(working)], return_counts=True)
    if not distinct.size:
        return np.zeros(1, values.dtype)
    if distinct.size <= n_clusters:
        return round_to(values.dtype, distinct + 0.0)
    # Scaled by a power of two: sums and distances of values near the end of the range must not overflow.
    exponent = math.frexp(float(np.abs(distinct).max()))[1]
    centroids = _lloyd(np.ldexp(distinct, -exponent), counts, n_clusters)
    return np.unique(round_to(values.dtype, np.ldexp(centroids, exponent) + 0.0))


def _lloyd(points: Array, counts: Array, n_clusters: int) -> Array:
    """k-means of increasing distinct points that occur `counts` times; float64."""
    weights = np.concatenate([[0], np.cumsum(counts)])
    sums = np.concatenate([[0.0], np.cumsum(points * counts)])
    centroids = np.linspace(points[0], points[-1], n_clusters)
    for _ in range(_MAX_ROUNDS):
        # Between neighbouring centroids the nearer one changes half way.
        ends = np.searchsorted(points, (centroids[:-1] + centroids[1:]) / 2, side="right")
        cuts = np.concatenate([[0], ends, [points.size]])
        sizes = np.diff(weights[cuts])
        used = sizes > 0
        moved = np.diff(sums[cuts])[used] / sizes[used]
        if moved.size == centroids.size and np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(values: Array, centroids: Array) -> Array:
    """Index of the nearest of increasing `centroids`, shape (n,), int32; of two as near the lower. NaN gives any."""
    with np.errstate(invalid="ignore"):
        working, centers = values.astype(np.float64), centroids.astype(np.float64)
    middles = centers[:-1] / 2 + centers[1:] / 2
    return np.searchsorted(middles, working, side="left").astype(np.int32)


def read_centroids(side: bytes, dtype: np.dtype[Any]) -> Array:
    """Centroids from side data (untrusted): finite, at least one. Raises CorruptError."""
    if not side or len(side) % dtype.itemsize or len(side) > MAX_CLUSTERS * dtype.itemsize:
        raise CorruptError("codebook has another length")
    centroids = np.frombuffer(side, dtype)
    if not np.isfinite(centroids).all():
        raise CorruptError("a shared value is not finite")
    return centroids


@dataclass(frozen=True)
class Codebook(Stage):
    """Replace every value by the nearest of a few shared ones (Han et al. 2016, section 3). Nothing is promised.

    Side data: the shared values in the tensor's dtype. Symbols are their numbers.

    Parameters
    ----------
    clusters : int
        Most shared values, 1 to 65536. With no more distinct values than that, all of them are kept exactly.

    Examples
    --------
    >>> x = np.array([0.1, 0.2, 0.9, 1.0], np.float32)
    >>> coded = Codebook(2).encode(x)
    >>> coded.symbols
    array([0, 0, 1, 1], dtype=int32)
    >>> Codebook(2).decode(coded, Context.of(x))
    array([0.15, 0.15, 0.95, 0.95], dtype=float32)
    """

    id = "codebook"
    takes, gives = FLOATS, SYMBOLS

    clusters: int

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= MAX_CLUSTERS:
            raise UsageError(f"a codebook has 1 to {MAX_CLUSTERS} shared values, not {self.clusters}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        typed = round_to(context.dtype, value) if context else value
        centroids = cluster(typed, self.clusters)
        return Coded(nearest(typed, centroids), centroids.tobytes())

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        centroids, symbols = read_centroids(coded.side, context.dtype), coded.symbols
        if symbols.size and not 0 <= int(symbols.min()) <= int(symbols.max()) < centroids.size:
            raise CorruptError("a symbol has no shared value")
        values: Array = centroids[symbols]
        return values
