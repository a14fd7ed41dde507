"""Fits biases and norms to the rounded matrices: few values, which take up what all errors have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nearzip.calibrate.network import Predictor

__all__ = ["fit_biases"]

#: Steps of L-BFGS and evaluations in all; more gains less than 2 % (transformer, vgg-small).
_STEPS, _EVALUATIONS = 10, 14


def fit_biases(
    predictor: Predictor,
    originals: list[Tensor],
    restored: Mapping[str, Tensor],
    names: list[str],
    limited: Callable[[str, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Values for the tensors of `names` that bring the predictions nearer to the original ones.

    Parameters
    ----------
    predictor : Predictor
        Its first batches are learned from: as many as `originals`.
    originals : list of tensor
        The predictions to come near to.
    restored : mapping of str to tensor
        All tensors as a reader will get them.
    names : list of str
    limited : callable
        Name and values to values within the caller's bound.
    """
    batches = predictor.batches[: len(originals)]
    fitted = {name: restored[name].detach().float().clone().requires_grad_(True) for name in names}
    n = sum(len(original) for original in originals)
    optimizer = torch.optim.LBFGS(
        list(fitted.values()), lr=1, max_iter=_STEPS, max_eval=_EVALUATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        total = 0.0
        for original, batch in zip(originals, batches, strict=True):
            tensors = {**restored, **{name: value.to(restored[name].dtype) for name, value in fitted.items()}}
            loss = predictor.loss(original, batch, tensors) * (len(original) / n)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = {name: limited(name, value.detach()) for name, value in fitted.items()}
    return {name: value for name, value in found.items() if bool(torch.isfinite(value).all())}
