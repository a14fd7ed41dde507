"""How much the network's outputs depend on each weight: Fisher information, factored by inputs and gradients.

For a matrix W with inputs x and gradients g at its outputs, the information about W is close to E[x x^T] times E[g g^T]
(Kronecker factors; Martens and Grosse, arXiv:1503.05671; convolutions: Grosse and Martens, arXiv:1602.01407, where
positions count as independent). The gradients are those of outputs drawn from the network's own distribution.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from nearzip.calibrate.gram import Gram
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.scratch import Scratch
from nearzip.calibrate.uses import Piece, Scaling, Use, Vectors, watching

__all__ = ["Sensitivity", "Weighed", "gather"]

#: Vectors that a moment is taken of, for each of its dimensions: more of them gain little (docs/tried.md).
_PER_DIMENSION = 128
#: Of one batch at least so many.
_FEWEST = 256


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
        self.inputs.scale(1 / n_predictions)
        self.gradients.scale(1 / self.n_gradients)
        return Weighed(self.inputs, self.gradients) if looked_up else Weighed(self.gradients, self.inputs)


@dataclass(frozen=True)
class Sensitivity:
    """The sensitivity of a network, as `gather` returns it.

    Parameters
    ----------
    pieces : dict of Piece to Weighed
        Matrices; no two of them overlap.
    curvature : dict of str to float
        For every parameter: its information per prediction, mean over its values, from uses that `pieces` leaves out.
    n_predictions : int
    originals : dict of int to Tensor
        Predictions of some of the batches, by their number.
    biases : dict of str to Piece
        The piece to whose outputs a parameter is added.
    norms : dict of str to Gram
        Of weights and biases of layer norms: moments of what single vectors add to their gradients.
    """

    pieces: dict[Piece, Weighed]
    curvature: dict[str, float]
    n_predictions: int
    originals: dict[int, Tensor] = field(default_factory=dict)
    biases: dict[str, Piece] = field(default_factory=dict)
    norms: dict[str, Gram] = field(default_factory=dict)


@dataclass
class _Gatherer:
    n_batches: int
    scratch: Scratch
    generator: torch.Generator
    per_dimension: int | None
    with_norms: bool
    sums: dict[tuple[Piece, bool], _Sums] = field(default_factory=dict)
    biases: dict[str, Piece] = field(default_factory=dict)
    norms: dict[str, Gram] = field(default_factory=dict)

    def see(self, use: Use | Scaling) -> None:
        if isinstance(use, Scaling):
            if use.output.requires_grad and self.with_norms:
                use.output.register_hook(self._norm_taker(use))  # type: ignore[no-untyped-call]
            return
        if use.bias is not None:
            self.biases.setdefault(use.bias, use.piece)
        looked_up = use.indices is not None
        sums = self.sums.setdefault((use.piece, looked_up), _Sums())
        if use.indices is not None:
            found = Gram.of_indices(use.indices, use.piece.stop - use.piece.start)
            sums.inputs = found if sums.inputs is None else sums.inputs.merge(found, 1.0, 1.0)
        elif use.inputs is not None:
            sums.inputs = self._added(sums.inputs, use.inputs)
        if use.output.requires_grad:
            use.output.register_hook(self._taker(sums, use.split))  # type: ignore[no-untyped-call]

    def _added(self, gram: Gram | None, vectors: Vectors) -> Gram:
        """With some of the vectors, each in place of several."""
        gram = gram or Gram.zeros(vectors.groups, vectors.width, self.scratch.zeros)
        some = None if gram.is_diagonal else self._some(vectors)
        gram.add(vectors.take(some), 1.0 if some is None else vectors.n / len(some))
        return gram

    def _some(self, vectors: Vectors) -> Tensor | None:
        """Places of some vectors, spread over all of them; None: all."""
        if self.per_dimension is None:
            return None
        most = max(_FEWEST, -(-self.per_dimension * vectors.width // self.n_batches))
        if vectors.n <= most:
            return None
        at = torch.arange(most, dtype=torch.float64) + torch.rand(most, generator=self.generator)
        return (at * (vectors.n / most)).long().clamp_(max=vectors.n - 1)

    def _norm_taker(self, use: Scaling) -> Callable[[Tensor], None]:
        def take(gradient: Tensor) -> None:
            gradients = gradient.detach().reshape(-1, use.inputs.width)
            some = self._some(use.inputs)
            gradients = gradients if some is None else gradients[some.to(gradients.device)]
            scaled = functional.layer_norm(use.inputs.take(some)[0], gradients.shape[1:]) * gradients
            for name, vectors in ((use.weight, scaled), (use.bias, gradients)):
                if name is not None:
                    self.norms.setdefault(name, Gram.zeros(1, vectors.shape[1], self.scratch.zeros)).add(vectors[None])

        return take

    def _taker(self, sums: _Sums, split: Callable[[Tensor], Vectors]) -> Callable[[Tensor], None]:
        def take(gradient: Tensor) -> None:
            vectors = split(gradient.detach())
            sums.gradients = self._added(sums.gradients, vectors)
            sums.n_gradients += vectors.n

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
    by_rows, by_columns = (one.columns.mean, other.columns.mean), (one.rows.mean / total, other.rows.mean / total)
    return Weighed(one.rows.merge(other.rows, *by_rows), one.columns.merge(other.columns, *by_columns))


def _without_overlaps(found: dict[Piece, Weighed]) -> dict[Piece, Weighed]:
    """Drop pieces that share rows of a parameter with a larger one."""
    kept: dict[Piece, Weighed] = {}
    for piece in sorted(found, key=lambda p: p.start - p.stop):
        if all(o.name != piece.name or o.stop <= piece.start or piece.stop <= o.start for o in kept):
            kept[piece] = found[piece]
    return {piece: kept[piece] for piece in found if piece in kept}


@contextlib.contextmanager
def _squared(parameters: Mapping[str, Tensor], squares: dict[str, float]) -> Iterator[None]:
    """Adds the mean square of every gradient to `squares` and drops it, as soon as it is there."""

    def taker(name: str) -> Callable[[Tensor], None]:
        def take(parameter: Tensor) -> None:
            if parameter.grad is not None:
                # Outputs are drawn independently, so the expected square of the sum is that of the sum of squares.
                squares[name] += float(parameter.grad.float().square().mean())
            parameter.grad = None

        return take

    hooks = [
        parameter.register_post_accumulate_grad_hook(taker(name))  # type: ignore[no-untyped-call]
        for name, parameter in parameters.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gather(
    predictor: Predictor,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    scratch: Scratch | None = None,
    keep: Collection[int] = (),
    per_dimension: int | None = _PER_DIMENSION,
    with_norms: bool = True,
) -> Sensitivity:
    """One pass forward and one back over the batches. Raises UsageError as `Predictor.predictions` does.

    Parameters
    ----------
    scratch : Scratch
        Where the moments lie.
    keep : collection of int
        Batches whose predictions are returned.
    per_dimension : int or None
        How many vectors a moment is taken of, for each of its dimensions; None: all of them.
    with_norms : bool
        Whether moments are taken for layer norms too, which only the fit of biases needs.
    """
    parameters = {name: p for name, p in predictor.module.named_parameters() if p.is_floating_point()}
    n_batches = len(predictor.batches)
    gatherer = _Gatherer(
        n_batches, scratch or Scratch(), torch.Generator().manual_seed(seed), per_dimension, with_norms
    )
    squares = dict.fromkeys(parameters, 0.0)
    originals = {}
    generator = torch.Generator().manual_seed(seed)
    n_predictions = 0
    names = {id(p): name for name, p in parameters.items()}
    with predictor.evaluating(), torch.enable_grad(), _squared(parameters, squares):
        for i, batch in enumerate(predictor.batches):
            with watching(names, gatherer.see) as watcher:
                predictions = predictor.predictions(batch)
                n_predictions += len(predictions)
                if i in keep:
                    originals[i] = predictions.detach()
                watcher.report = None
                if predictions.requires_grad:
                    predictions.backward(predictor.score(predictions, generator))  # type: ignore[no-untyped-call]
            if progress:
                progress(i + 1, n_batches)
    curvature = {name: square / n_predictions for name, square in squares.items()}
    return Sensitivity(
        gatherer.weighed(n_predictions), curvature, n_predictions, originals, gatherer.biases, gatherer.norms
    )
