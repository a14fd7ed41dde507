"""Fits biases and norms to the rounded matrices: few values, which take up what all errors have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearzip.calibrate.network import Predictor
from nearzip.calibrate.rounding import Factor

__all__ = ["fit_biases"]

#: Evaluations of L-BFGS until it is asked whether fitting helps, and from there on.
_EVALUATIONS = (7, 6)
#: Values go by units of this over the square root of their curvature. One alone could go by 1, but those of a layer
#: go together, where the curvature is hundreds of times that of each.
_UNIT = 0.05
#: Units are at most this: of a tensor that hardly matters they would be infinite in float32, and its zero moves NaN.
_LARGEST = 1e30


def fit_biases(
    predictor: Predictor,
    originals: list[Tensor],
    restored: Mapping[str, Tensor],
    curvature: Mapping[str, float],
    limited: Callable[[str, Tensor], Tensor],
    factors: Mapping[str, Factor] | None = None,
    batches: list[Any] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Values for some tensors that bring the predictions nearer to the original ones, better ones each time.

    Whoever sees on other batches that they do not help goes no further.

    Parameters
    ----------
    predictor : Predictor
    originals : list of tensor
        The predictions to come near to.
    restored : mapping of str to tensor
        All tensors as a reader will get them.
    curvature : mapping of str to float
        Of each tensor to fit: its information per prediction, mean over its values; positive.
    limited : callable
        Name and values to values within the caller's bound.
    factors : mapping of str to Factor
        Of biases, the factor of the gradients' moments at the outputs that they are added to: values go along its
        columns, where the curvature is about the same in all directions. Fewer evaluations lead as far.
    batches : list
        What is learned from, one for each of `originals`; the first batches of the predictor by default.
    """
    batches = predictor.batches[: len(originals)] if batches is None else batches
    start = {name: restored[name].detach().float() for name in curvature}
    ways = {name: _way(own, (factors or {}).get(name), start[name]) for name, own in curvature.items()}
    moved = {name: torch.zeros_like(value).requires_grad_(True) for name, value in start.items()}
    n = sum(len(original) for original in originals)
    optimizer = torch.optim.LBFGS(list(moved.values()), lr=1, max_iter=max(_EVALUATIONS), line_search_fn="strong_wolfe")

    def values() -> dict[str, Tensor]:
        return {name: start[name] + ways[name](by) for name, by in moved.items()}

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for original, batch in zip(originals, batches, strict=True):
            tensors = {**restored, **{name: value.to(restored[name].dtype) for name, value in values().items()}}
            loss = predictor.loss(original, batch, tensors) * (len(original) / n)
            if loss.requires_grad:  # a batch may use none of the tensors
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    for evaluations in _EVALUATIONS:
        optimizer.param_groups[0]["max_eval"] = evaluations
        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            found = {name: limited(name, value) for name, value in values().items()}
        yield {name: value for name, value in found.items() if bool(torch.isfinite(value).all())}


def _way(curvature: float, factor: Factor | None, like: Tensor) -> Callable[[Tensor], Tensor]:
    """From coordinates in which the curvature is about one to a tensor's values."""
    if factor is None or factor.is_diagonal or factor.order.shape != like.shape:
        unit = min(_UNIT / math.sqrt(curvature), _LARGEST)
        return lambda by: unit * by
    upper = torch.from_numpy(factor.upper).to(like.device)
    back = torch.from_numpy(np.argsort(factor.order)).to(like.device)
    # The moment is of one vector, the curvature of a prediction, which may be made of many.
    mean = float(torch.linalg.vector_norm(upper).square()) / len(upper)
    unit = 1 / math.sqrt(curvature * mean)
    return lambda by: (upper.T @ by)[back] * unit
