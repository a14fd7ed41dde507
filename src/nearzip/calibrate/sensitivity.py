"""How much the network's outputs depend on each weight: Fisher information, factored by inputs and gradients.

For a matrix W with inputs x and gradients g at its outputs, the information about W is close to E[x x^T] times E[g g^T]
(Kronecker factors; Martens and Grosse, arXiv:1503.05671; convolutions: Grosse and Martens, arXiv:1602.01407, where
positions count as independent). The gradients are those of outputs drawn from the network's own distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearzip.calibrate.gram import Gram
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.uses import Piece, Use, watching

__all__ = ["Sensitivity", "Weighed", "gather"]


@dataclass(frozen=True)
class Weighed:
    """The information about a piece of a parameter, per prediction: `rows` (x) `columns`."""

    rows: Gram
    columns: Gram


@dataclass
class _Sums:
    """Sums over all uses of one kind of one piece."""

    inputs: Gram | None = None
    gradients: Gram | None = None
    n_gradients: int = 0

    def factors(self, n_predictions: int, looked_up: bool) -> Weighed | None:
        if self.inputs is None or self.gradients is None or not self.n_gradients:
            return None
        inputs, gradients = self.inputs * (1 / n_predictions), self.gradients * (1 / self.n_gradients)
        return Weighed(inputs, gradients) if looked_up else Weighed(gradients, inputs)


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a network, as `gather` returns it.

    Parameters
    ----------
    pieces : dict of Piece to Weighed
        Matrices; no two of them overlap.
    curvature : dict of str to float
        For every parameter with a gradient: its information per prediction, mean over its values.
    n_predictions : int
    """

    pieces: dict[Piece, Weighed]
    curvature: dict[str, float]
    n_predictions: int


@dataclass
class _Gatherer:
    sums: dict[tuple[Piece, bool], _Sums] = field(default_factory=dict)

    def see(self, use: Use) -> None:
        looked_up = not use.inputs.is_floating_point()
        rows = use.piece.stop - use.piece.start
        sums = self.sums.setdefault((use.piece, looked_up), _Sums())
        inputs = Gram.of_indices(use.inputs, rows) if looked_up else Gram.of(use.inputs.detach())
        sums.inputs = inputs if sums.inputs is None else sums.inputs + inputs
        if use.output.requires_grad:
            use.output.register_hook(self._taker(sums, use.split))  # type: ignore[no-untyped-call]

    @staticmethod
    def _taker(sums: _Sums, split: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
        def take(gradient: Tensor) -> None:
            rows = split(gradient.detach())
            found = Gram.of(rows)
            sums.gradients = found if sums.gradients is None else sums.gradients + found
            sums.n_gradients += rows.shape[1]

        return take

    def weighed(self, n_predictions: int) -> dict[Piece, Weighed]:
        found: dict[Piece, Weighed] = {}
        for (piece, looked_up), sums in self.sums.items():
            factors = sums.factors(n_predictions, looked_up)
            if factors is not None and factors.rows.mean > 0 and factors.columns.mean > 0:
                found[piece] = _joined(found[piece], factors) if piece in found else factors
        return _without_overlaps(found)


def _joined(one: Weighed, other: Weighed) -> Weighed:
    """A tied weight's information, of both uses, as one product: each factor weighed by the size of the other."""
    total = one.rows.mean * one.columns.mean + other.rows.mean * other.columns.mean
    rows = one.rows * one.columns.mean + other.rows * other.columns.mean
    columns = one.columns * one.rows.mean + other.columns * other.rows.mean
    return Weighed(rows, columns * (1 / total))


def _without_overlaps(found: dict[Piece, Weighed]) -> dict[Piece, Weighed]:
    """Drop pieces that share rows of a parameter with a larger one."""
    kept: dict[Piece, Weighed] = {}
    for piece in sorted(found, key=lambda p: p.start - p.stop):
        if all(o.name != piece.name or o.stop <= piece.start or piece.stop <= o.start for o in kept):
            kept[piece] = found[piece]
    return {piece: kept[piece] for piece in found if piece in kept}


def gather(predictor: Predictor, seed: int = 0, progress: Callable[[int, int], None] | None = None) -> Sensitivity:
    """One pass forward and one back over the batches. Raises UsageError as `Predictor.predictions` does."""
    parameters = {name: p for name, p in predictor.module.named_parameters() if p.is_floating_point()}
    gatherer = _Gatherer()
    squares = dict.fromkeys(parameters, 0.0)
    generator = torch.Generator().manual_seed(seed)
    n_predictions = 0
    with predictor.evaluating(), torch.enable_grad():
        for i, batch in enumerate(predictor.batches):
            with watching({id(p): name for name, p in parameters.items()}, gatherer.see):
                predictions = predictor.predictions(batch)
            n_predictions += len(predictions)
            if predictions.requires_grad:
                predictions.backward(predictor.score(predictions, generator))  # type: ignore[no-untyped-call]
            for name, parameter in parameters.items():
                if parameter.grad is not None:
                    # Outputs are drawn independently, so the expected square of the sum is that of the sum of squares.
                    squares[name] += float(parameter.grad.float().square().mean())
                parameter.grad = None
            if progress:
                progress(i + 1, len(predictor.batches))
    curvature = {name: square / n_predictions for name, square in squares.items()}
    return Sensitivity(gatherer.weighed(n_predictions), curvature, n_predictions)
