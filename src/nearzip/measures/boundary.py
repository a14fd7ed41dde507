"""Distances to the decision boundary, along random directions and along the worst one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nearzip.budget.intervals import Statistic
from nearzip.errors import UsageError
from nearzip.measures.inputs import first_rows, one_prediction_a_row, real_inputs_of, rows_of, with_inputs
from nearzip.measures.measure import Measure, Predictions, Units, check_counts, check_original
from nearzip.tensors import Array

__all__ = ["Boundary"]

#: Distances that are tried, by factors of the square root of 2, and halvings of the last interval.
_FIRST, _LAST, _HALVINGS = 1 / 64, 64.0, 8
_GRID = tuple(_FIRST * 2 ** (i / 2) for i in range(int(2 * math.log2(_LAST / _FIRST)) + 1))
#: In training: how finely the original's boundary is searched, and the shares of its distance that are trained on.
_COARSE, _FEW_HALVINGS, _SHARES = _GRID[::2], 3, (0.5, 0.9, 1.1)
Network = Callable[[Any], Tensor]


class Boundary(Measure):
    """How close inputs are to another class: "boundary/random" and "boundary/worst", 1 where they are no closer.

    For an input x and a direction u of length 1, a network's distance is the first t > 0 at which its class of x + t u
    is not that of x. The metric is the mean of min(1, r), r the restored network's distance over the original's.
    Nothing is clipped: x + t u may leave the range of images.

    Parameters
    ----------
    direction : "random" or "worst"
        "random": the same direction for both networks. "worst": against the gradient of each network's own margin.
    n : int
        The first so many samples.
    seed : int
        Of random directions.

    Notes
    -----
    Distances are searched from 1/64 to 64, in units of the network's inputs. A network without another class on that
    way is censored: its distance is at least 64. Yardsticks count these, and give quantiles of log2 r and the share
    below 1/2, of samples where both are known.
    """

    needs_original = needs_classes = needs_gradients = trainable = True

    def __init__(self, direction: str = "random", *, n: int = 500, seed: int = 0):
        if direction not in ("random", "worst"):
            raise UsageError(f"a direction is 'random' or 'worst', not {direction!r}")
        check_counts("a boundary", n=n)
        self.direction, self.n, self.seed = direction, n, seed
        self.reset()

    def reset(self) -> None:
        self._units = Units()
        self._pairs: list[tuple[Array, Array]] = []
        self._n_seen = 0

    def __repr__(self) -> str:
        return f"boundary/{self.direction}"

    @property
    def identity(self) -> str:
        return f"{self} {self.n} {self.seed}"

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        assert batch.network is not None
        assert batch.reference is not None
        rows = min(self.n - self._n_seen, one_prediction_a_row(batch, str(self)))
        if rows <= 0:
            return
        check_original(batch, self)
        first, self._n_seen = self._n_seen, self._n_seen + rows
        cut = first_rows(batch, rows)
        theirs = batch.once(self.identity, lambda: self.distances(batch.reference, cut, first))  # type: ignore[arg-type]
        own = theirs if batch.network is batch.reference else self.distances(batch.network, cut, first)
        self._units.add(batch.units[:rows], _kept(own, theirs))
        self._pairs.append((theirs.cpu().numpy(), own.cpu().numpy()))

    def result(self) -> dict[str, Statistic | float]:
        return {str(self): self._units.mean(largest=1.0)}

    def details(self) -> dict[str, tuple[Array, Array]]:
        return {str(self): self._both()}

    def yardsticks(self) -> dict[str, float]:
        theirs, own = self._both()
        known = np.isfinite(theirs) & np.isfinite(own) & (own > 0) & (theirs > 0)
        found = {
            "censored/both": float((np.isinf(theirs) & np.isinf(own)).sum()),
            "censored/original": float((np.isinf(theirs) & np.isfinite(own)).sum()),
            "censored/restored": float((np.isfinite(theirs) & np.isinf(own)).sum()),
            "known": float(known.sum()),
        }
        if known.any():
            ratios = np.log2(own[known] / theirs[known])
            quantiles = dict(zip(("p10", "median", "p90"), np.quantile(ratios, [0.1, 0.5, 0.9]), strict=True))
            found |= {f"log2-ratio/{name}": float(value) for name, value in quantiles.items()}
            found["abs-log2-ratio/median"] = float(np.median(np.abs(ratios)))
            found["below-half"] = float(np.mean(ratios < -1))
            found["distance/original"] = float(np.median(theirs[known]))
            found["distance/restored"] = float(np.median(own[known]))
        return {f"{self}/{name}": value for name, value in found.items()}

    def _both(self) -> tuple[Array, Array]:
        if not self._pairs:
            return np.zeros(0), np.zeros(0)
        theirs, own = (np.concatenate(part) for part in zip(*self._pairs, strict=True))
        return theirs, own

    def distances(self, network: Network, batch: Any, first: int = 0) -> Tensor:
        """Distance of each sample to another class, (rows,): infinity where none was found, 0 where the output is NaN.

        `first`: the number of the first row, which random directions are drawn by.
        """
        inputs = real_inputs_of(batch, str(self))
        towards = self._random(inputs, first) if self.direction == "random" else _worst(network, batch, inputs)
        return _search(network, batch, inputs, towards)

    def _random(self, inputs: Tensor, first: int) -> Tensor:
        """A direction for each sample, by its number: the same in batches of any size."""
        found = []
        for i in range(len(inputs)):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first + i)
            found.append(torch.randn(inputs.shape[1:], generator=generator))
        return _of_length_1(torch.stack(found).to(inputs.device, inputs.dtype))

    def loss(self, batch: Predictions) -> Tensor:
        """How far the network is from the original on both sides of the original's boundary, and on the way to it.

        Half KL(original || trained), half the cross entropy with the original's class: probabilities alone say little
        where two classes are nearly alike, classes alone say nothing of how far the boundary is.
        """
        assert batch.network is not None
        assert batch.reference is not None
        rows = min(self.n, one_prediction_a_row(batch, str(self)))
        cut = first_rows(batch, rows)
        inputs = real_inputs_of(cut, str(self))
        towards = self._random(inputs, 0) if self.direction == "random" else _worst(batch.reference, cut, inputs)
        with torch.no_grad():
            t = _search(batch.reference, cut, inputs, towards, _COARSE, _FEW_HALVINGS)
            near = torch.isfinite(t) & (t > 0)
            if not bool(near.any()):
                return batch.logits.sum() * 0
            some, reach = rows_of(cut, near), _along(t[near], inputs)
            points = [inputs[near] + share * reach * towards[near] for share in _SHARES]
            there = with_inputs(some, torch.stack(points, 1).flatten(0, 1))
            theirs = functional.log_softmax(batch.reference(there), -1)
        own = functional.log_softmax(batch.network(there), -1)
        divergence = functional.kl_div(own, theirs, reduction="batchmean", log_target=True)
        return (divergence + functional.nll_loss(own, theirs.argmax(-1))) / 2


def _kept(own: Tensor, theirs: Tensor) -> Tensor:
    """min(1, r) of distances; a censored one counts as the end of the search, two of them as equal."""
    own, theirs = own.double().clamp(max=_LAST), theirs.double().clamp(max=_LAST)
    ratio = own / theirs.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(own >= theirs, torch.ones_like(ratio), ratio.clamp(max=1.0))


def _search(
    network: Network, batch: Any, inputs: Tensor, towards: Tensor, grid: Sequence[float] = _GRID,
    halvings: int = _HALVINGS,
) -> Tensor:  # fmt: skip
    """The first distance at which the class changes: on a grid, then by bisection of the grid's interval."""
    with torch.no_grad():
        own = _classes(network(batch))
        low = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
        high = torch.full_like(low, math.inf)
        high[own < 0] = 0.0

        def changed(rows: Tensor, t: Tensor) -> Tensor:
            moved = inputs[rows] + _along(t, inputs) * towards[rows]
            return _classes(network(with_inputs(rows_of(batch, rows), moved))) != own[rows]

        for t in grid:
            rows = torch.isinf(high).nonzero().flatten()
            if not len(rows):
                break
            crossed = changed(rows, torch.full((len(rows),), t, dtype=torch.float64, device=inputs.device))
            high[rows[crossed]] = t
            low[rows[~crossed]] = t
        rows = (torch.isfinite(high) & (high > 0)).nonzero().flatten()
        for _ in range(halvings if len(rows) else 0):
            middle = (low[rows] + high[rows]) / 2
            crossed = changed(rows, middle)
            high[rows] = torch.where(crossed, middle, high[rows])
            low[rows] = torch.where(crossed, low[rows], middle)
    return high


def _classes(logits: Tensor) -> Tensor:
    values, found = logits.max(-1)
    return torch.where(values.isnan(), -1, found)


def _along(t: Tensor, inputs: Tensor) -> Tensor:
    return t.to(inputs.dtype).view(-1, *[1] * (inputs.dim() - 1))


def _of_length_1(directions: Tensor) -> Tensor:
    lengths = directions.flatten(1).norm(dim=1).clamp(min=torch.finfo(directions.dtype).tiny)
    return directions / _along(lengths, directions)


def _worst(network: Network, batch: Any, inputs: Tensor) -> Tensor:
    """Down the gradient of the margin between the network's own class and its next one."""
    moved = inputs.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        best = network(with_inputs(batch, moved)).topk(2, dim=-1).values
        (gradient,) = torch.autograd.grad((best[:, 0] - best[:, 1]).sum(), moved)
    return _of_length_1(-gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
