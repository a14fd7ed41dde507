"""Attributions: whether two networks look at the same parts of an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nearzip.budget.intervals import Statistic
from nearzip.errors import UsageError, missing_extra
from nearzip.measures.inputs import first_rows, inputs_of, real_inputs_of, rows_of, with_inputs
from nearzip.measures.measure import Measure, Predictions, Units, check_counts, check_original

__all__ = ["Attribution", "jaccard"]

METHODS = ("saliency", "integrated-gradients", "occlusion")
#: Rows that a network gets at once.
_ROWS = 256
Network = Callable[[Any], Tensor]


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Weighted Jaccard similarity of two attribution maps, split by sign, (n, ..) and (n, ..) to (n,).

    sum(min(a+, b+) + min(a-, b-)) / sum(max(a+, b+) + max(a-, b-)), a+ and a- the positive and the negative part. In
    [0, 1], 1 for equal maps. For maps without negative values it is the formula of "Correctness-preserving
    Compression", section II C, which leaves that range for signed ones.
    """
    a, b = a.double().flatten(1), b.double().flatten(1)
    parts = [(a.clamp(min=0), b.clamp(min=0)), ((-a).clamp(min=0), (-b).clamp(min=0))]
    least = sum(torch.minimum(x, y).sum(1) for x, y in parts)
    most = sum(torch.maximum(x, y).sum(1) for x, y in parts)
    assert isinstance(least, Tensor)
    assert isinstance(most, Tensor)
    # 0/0: two networks that look at nothing agree.
    return torch.where(most > 0, least / most.clamp(min=torch.finfo(most.dtype).tiny), torch.ones_like(most))


class Attribution(Measure):
    """How much of what both networks look at is the same: "attribution/saliency", "attribution/occlusion", ..

    For each sample an attribution map of either network, channels summed, for the class that the original predicts; the
    metric is their mean weighted Jaccard similarity, split by sign (`jaccard`).

    Parameters
    ----------
    method : "saliency", "integrated-gradients" or "occlusion"
        Computed by captum. Occlusion also takes tokens, which the others do not.
    n : int
        The first so many samples of the data.
    steps : int
        Of integrated gradients.
    window, stride : int
        Of occlusion: the side of the square that is covered, or its length for inputs of one dimension, and its step.
    baseline : float
        The value, or the token, that means nothing, in the units of the network's inputs.
    normalize : bool
        Scale every map to a sum of absolute values of 1 before they are compared.

    Notes
    -----
    Yardsticks beside it: "/absolute" is the printed formula on absolute values, for which it is defined; "/chance" is
    the similarity to the original's map of another sample. `loss` is one minus the similarity of saliency maps.
    """

    needs_original = needs_gradients = trainable = True

    def __init__(
        self, method: str = "saliency", *, n: int = 500, steps: int = 32, window: int = 8, stride: int = 4,
        baseline: float = 0.0, normalize: bool = False,
    ):  # fmt: skip
        if method not in METHODS:
            raise UsageError(f"an attribution is by {', '.join(METHODS)}, not {method!r}")
        check_counts("an attribution", n=n, steps=steps, window=window, stride=stride)
        self.method, self.n, self.steps, self.window, self.stride = method, n, steps, window, stride
        self.baseline, self.normalize = baseline, normalize
        self.reset()

    def reset(self) -> None:
        self._units, self._absolute, self._chance = Units(), Units(), Units()
        self._n_seen = 0

    def __repr__(self) -> str:
        return f"attribution/{self.method}"

    @property
    def identity(self) -> str:
        return f"{self} {self.n} {self.steps} {self.window} {self.stride} {self.baseline} {self.normalize}"

    def update(self, batch: Predictions) -> None:
        self.check(batch)
        assert batch.network is not None
        assert batch.reference is not None
        per_row = _predictions_per_row(batch)
        rows = min(self.n - self._n_seen, len(batch.logits) // per_row)
        if rows <= 0:
            return
        check_original(batch, self)
        self._n_seen += rows
        cut = first_rows(batch, rows)
        classes = batch.original_classes[: rows * per_row].clamp(min=0).view(rows, per_row)
        theirs = batch.once(self.identity, lambda: self.maps(batch.reference, cut, classes))  # type: ignore[arg-type]
        own = theirs if batch.network is batch.reference else self.maps(batch.network, cut, classes)
        units = batch.units[: rows * per_row : per_row]
        self._units.add(units, jaccard(own, theirs))
        self._absolute.add(units, jaccard(own.abs(), theirs.abs()))
        if rows > 1:
            self._chance.add(units, jaccard(own, theirs.roll(1, 0)))

    def result(self) -> dict[str, Statistic | float]:
        return {str(self): self._units.mean(largest=1.0)}

    def yardsticks(self) -> dict[str, float]:
        return {f"{self}/absolute": self._absolute.mean().value, f"{self}/chance": self._chance.mean().value}

    def maps(self, network: Network, batch: Any, classes: Tensor) -> Tensor:
        """Attribution maps of a batch, (rows, ..) without the dimension of channels.

        `classes` : (rows, predictions for each row); the score that is attributed is the sum of their outputs.
        """
        pieces = []
        step = max(1, _ROWS // (self.steps if self.method == "integrated-gradients" else 1))
        for first in range(0, len(classes), step):
            some = slice(first, first + step)
            found = self._some_maps(network, rows_of(batch, some), classes[some]).detach()
            pieces.append(found.sum(1) if found.dim() > 2 else found)
        found = torch.cat(pieces)
        # A network that gives NaN looks at nothing in particular.
        found = found.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        if self.normalize:
            scale = found.abs().flatten(1).sum(1).clamp(min=torch.finfo(found.dtype).tiny)
            found = found / scale.view(-1, *[1] * (found.dim() - 1))
        return found

    def _some_maps(self, network: Network, batch: Any, classes: Tensor) -> Tensor:
        try:
            from captum.attr import IntegratedGradients, Occlusion, Saliency
        except ImportError:
            raise missing_extra("captum", "correctness", "attributions") from None
        inputs = inputs_of(batch)

        def score(given: Tensor) -> Tensor:
            wanted = classes.repeat_interleave(len(given) // len(classes), 0)
            return _score(network, with_inputs(batch, given), wanted)

        if self.method == "occlusion":
            return self._occluded(Occlusion(score), inputs)
        inputs = real_inputs_of(batch, str(self)).detach().clone().requires_grad_(True)
        if self.method == "saliency":
            return Saliency(score).attribute(inputs, abs=False)  # type: ignore[no-any-return]
        return IntegratedGradients(_stacked(network, batch, classes)).attribute(  # type: ignore[no-any-return]
            inputs, baselines=self.baseline, n_steps=self.steps
        )

    def _occluded(self, occlusion: Any, inputs: Tensor) -> Tensor:
        space = inputs.shape[2:] if inputs.dim() > 2 else inputs.shape[1:]
        window = tuple(min(self.window, size) for size in space)
        strides = tuple(min(self.stride, size) for size in window)
        if inputs.dim() > 2:
            window, strides = (inputs.shape[1], *window), (inputs.shape[1], *strides)
        baseline: Any = self.baseline if inputs.is_floating_point() else int(self.baseline)
        with torch.no_grad():
            found: Tensor = occlusion.attribute(
                inputs, sliding_window_shapes=window, strides=strides, baselines=baseline
            )
        return found

    def loss(self, batch: Predictions) -> Tensor:
        """One minus the similarity of saliency maps.

        Saliency maps are input gradients, so the gradient of this loss takes second derivatives.
        """
        assert batch.network is not None
        assert batch.reference is not None
        rows = min(self.n, len(inputs_of(batch.batch)))
        cut = first_rows(batch, rows)
        per_row = _predictions_per_row(batch)
        classes = batch.original_classes[: rows * per_row].clamp(min=0).view(rows, per_row)
        theirs = _saliency(batch.reference, cut, classes, False)
        return 1 - jaccard(_saliency(batch.network, cut, classes, True), theirs).mean()


def _saliency(network: Network, batch: Any, classes: Tensor, trained: bool) -> Tensor:
    inputs = real_inputs_of(batch, "training on attributions").detach().clone().requires_grad_(True)
    with torch.enable_grad():
        total = _score(network, with_inputs(batch, inputs), classes).sum()
        (found,) = torch.autograd.grad(total, inputs, create_graph=trained)
    return found.sum(1) if found.dim() > 2 else found


def _score(network: Network, batch: Any, classes: Tensor) -> Tensor:
    """For each row the sum of the outputs of its classes."""
    logits = network(batch).view(*classes.shape, -1)
    return logits.gather(-1, classes.unsqueeze(-1)).flatten(1).sum(1)


def _stacked(network: Network, batch: Any, classes: Tensor) -> Callable[[Tensor], Tensor]:
    """For integrated gradients, whose inputs come step by step: all rows, then all rows again."""

    def score(given: Tensor) -> Tensor:
        times, n = len(given) // len(classes), len(classes)
        parts = [_score(network, with_inputs(batch, part), classes) for part in given.view(times, n, *given.shape[1:])]
        return torch.cat(parts)

    return score


def _predictions_per_row(batch: Predictions) -> int:
    rows = len(inputs_of(batch.batch))
    if len(batch.logits) % rows:
        raise UsageError("attributions need the same number of predictions for each row, all of which count")
    return len(batch.logits) // rows
