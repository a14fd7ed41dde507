"""Delta-DNN's Algorithm 1 on one version: compress with every bound, restore, score, choose."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import nearzip as nz
from experiments.lab.algorithm_1 import LAMBDA, Point, choose

Tensors = dict[str, np.ndarray]

#: Section 5.1: 1 % to 10 %.
CANDIDATES = tuple(k / 100 for k in range(1, 11))


def compressed(
    new: Tensors, base: Tensors | None, method: str, bound: str | None, options: dict[str, Any]
) -> nz.Archive:
    """On one thread, without the warning that a coarse bound leaves little of an update: the tables show that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", nz.errors.UpdateLostWarning)
        return nz.compress(new, base, method, bound, options=options, threads=1)


def algorithm_1(
    new: Tensors, base: Tensors | None, how: str, score: Callable[[Tensors], float]
) -> tuple[Point, Tensors]:
    """The point chosen, and what is restored of it.

    `how`: "relative" or "absolute", the readings of Delta-DNN's bound, against `base`; or "sz", SZ on the values.
    """
    before = score(new)
    coded = {eps: _coded(new, base, how, eps) for eps in (LAMBDA, *CANDIDATES)}
    points = {eps: _point(eps, n_bytes, new, score(restored), before) for eps, (n_bytes, restored) in coded.items()}
    chosen = choose([points[eps] for eps in CANDIDATES], points[LAMBDA])
    return chosen, coded[chosen["eps"]][1]


def _point(eps: float, n_bytes: int, new: Tensors, accuracy: float, before: float) -> Point:
    return {
        "eps": eps, "bytes": n_bytes, "ratio": sum(w.nbytes for w in new.values()) / n_bytes,
        "accuracy": accuracy, "accuracy_change": accuracy - before,
    }  # fmt: skip


def _coded(new: Tensors, base: Tensors | None, how: str, eps: float) -> tuple[int, Any]:
    if how == "sz":
        from experiments.lab.sz_floats import sz_pointwise

        return sz_pointwise(new, eps)
    archive = compressed(new, base, "delta-dnn", None, {"eps": eps, "mode": how})
    return archive.nbytes, nz.decompress(archive.to_bytes(), base, threads=1)
