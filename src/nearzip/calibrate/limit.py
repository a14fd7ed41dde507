"""The least bits that an update can take at a given divergence, from the Gaussian rate-distortion function.

An error E of a matrix costs tr(G E A E^T) / 2 nats a prediction, A its inputs' and G its gradients' second moments
(`sensitivity`). In the eigenvectors of G (down) and A (across) that is a weighted sum of squares, one component for
each pair of them: w = g a / 2. With the update's variance v there, a component's energy is w v, and reverse
water-filling over those of all matrices gives the rate (`water`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nearzip.caching import cached_property
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.prepared import same_kind, tied
from nearzip.calibrate.rounder import floats_of
from nearzip.calibrate.sensitivity import Sensitivity, Weighed, gather
from nearzip.calibrate.settings import Calibration, Damping
from nearzip.calibrate.uses import Piece
from nearzip.calibrate.water import Water
from nearzip.errors import UsageError
from nearzip.matching import match_tensors, matched
from nearzip.tensors import Array, Checkpoint, round_to

__all__ = ["RateLimit", "Variances", "rate_limit"]

#: How the update's variances are taken: where the eigenvectors of both moments meet, or one for each matrix.
Variances = Literal["directions", "white"]
#: Fewer values than this say little about the variance of a direction; all get their mean.
_FEW = 16
#: Neighbouring eigenvectors of either side whose pairs share a variance: 64 squares have a mean to 18 %.
_SHARED = 8


@dataclass(frozen=True)
class _Components:
    """An update in coordinates whose errors add up: `weights` times their squares, in nats.

    `rows` and `columns` are orthogonal, the eigenvectors of the two moments; None where those are diagonal.
    All of shape (n, m) but these, float64.
    """

    coefficients: Tensor
    weights: Tensor
    variances: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None

    @property
    def energies(self) -> Tensor:
        return self.weights * self.variances

    def after(self, level: float, generator: torch.Generator) -> Tensor:
        """What the Gaussian test channel at a water level makes of the update, in its own coordinates."""
        energies = self.energies
        kept = torch.where(energies > level, 1 - level / energies.clamp(min=level), 0.0)
        noise = torch.randn(energies.shape, generator=generator, dtype=torch.float64)
        found = kept * self.coefficients + (kept * (1 - kept) * self.variances).sqrt() * noise
        found = found if self.rows is None else self.rows @ found
        return found if self.columns is None else found @ self.columns.T


@dataclass(frozen=True)
class RateLimit:
    """The limit of one update, as `rate_limit` returns it.

    Parameters
    ----------
    n_values : int
        Of all floating-point tensors.
    plain : dict of str to str
        Tensors that are not in the limit, and the reason: they count as free.
    """

    n_values: int
    plain: dict[str, str]
    _parts: list[tuple[str, Piece | None, list[_Components]]]
    _tensors: dict[str, Array]
    _differences: dict[str, Array]

    @cached_property
    def water(self) -> Water:
        energies = [each.energies.reshape(-1) for _, _, parts in self._parts for each in parts]
        return Water.of(torch.cat(energies).numpy() if energies else [])

    @property
    def divergence(self) -> float:
        """Estimated of the base alone, nats per prediction: no bits are needed there or beyond."""
        return self.water.total

    def bits(self, kl: float) -> float:
        """The least bits, in all, at a divergence in nats per prediction. Raises UsageError unless it is positive."""
        return self.water.bits(_positive(kl))

    def bits_per_value(self, kl: float) -> float:
        """The same over all values of the network's floating-point tensors."""
        return self.bits(kl) / self.n_values

    def sample(self, kl: float, seed: int = 0) -> dict[str, Array]:
        """Tensors with the errors that a code at the limit leaves: one draw from the test channel that reaches it.

        Their divergence, measured, says how far the estimate can be trusted. Names, dtypes and shapes are those of the
        network; tensors in `plain` keep their values.
        """
        level = self.water.level(_positive(kl))
        generator = torch.Generator().manual_seed(seed)
        moved = {name: torch.from_numpy(each.copy()) for name, each in self._differences.items()}
        for name, piece, parts in self._parts:
            values = torch.stack([each.after(level, generator) for each in parts])
            if piece is None:
                moved[name].copy_(values.reshape(moved[name].shape))
            else:
                piece.put(values, moved[name])
        found = dict(self._tensors)
        for name in {name for name, _, _ in self._parts}:
            start = self._tensors[name] - self._differences[name]
            found[name] = round_to(self._tensors[name].dtype, start + moved[name].numpy())
        return found


def _positive(kl: float) -> float:
    if not (isinstance(kl, (int, float)) and 0 < kl < float("inf")):
        raise UsageError(f"kl is positive and finite, in nats per prediction, not {kl!r}")
    return kl


def rate_limit(
    module: nn.Module,
    batches: Iterable[Any],
    base: Mapping[str, Any] | None = None,
    *,
    variances: Variances = "directions",
    calibration: Calibration | None = None,
    **separate: Any,
) -> RateLimit:
    """The least bits that a network's update takes at a given divergence of its outputs.

    What is assumed:

    * The divergence is quadratic in the errors, with the Fisher information for its curvature, and that is the product
      of the moments of inputs and gradients for a matrix, diagonal for everything else; errors of different tensors do
      not interact. `RateLimit.sample` and an evaluation check this.
    * The moments are damped as calibration damps them: of few batches they say nothing of most directions, and errors
      there cost more than that. Without damping the estimate is several times too low (docs/calibration.md).
    * The update is Gaussian and independent in the moments' eigenvectors, with the variances measured there. Of all
      updates with these variances such a one takes most bits: a code that knows more (heavy tails, which values moved)
      may take fewer.
    * The reader has the moments and the variances for free. A code without the batches has neither.

    Parameters
    ----------
    module : torch module
    batches : iterable
        Data to take the moments on: all that are used count, none are held back.
    base : mapping of str to array
        What the reader holds already.
    variances : "directions" or "white"
        "directions": of each row and column of eigenvectors, corrected by the mean over blocks of eight times eight
        components. "white": one for each matrix, as if the update pointed nowhere.
    calibration, **separate
        As in `calibrate.compress`; `forward`, `output`, `n_batches` and `damping` are used.

    Raises
    ------
    UsageError
        No batches, predictions that are not finite, or unknown `variances`.

    Examples
    --------
    >>> import torch
    >>> from nearzip import calibrate
    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Linear(8, 4)
    >>> limit = calibrate.rate_limit(network, [torch.randn(64, 8) for _ in range(4)])
    >>> limit.bits(1e-3) > limit.bits(1e-2) > limit.bits(limit.divergence)
    True
    """
    if variances not in ("directions", "white"):
        raise UsageError(f"variances is 'directions' or 'white', not {variances!r}")
    settings = Calibration.of(calibration, separate, "rate_limit")
    source = Checkpoint.of(dict(module.state_dict()))
    ties = tied(module)
    tensors = floats_of({name: source.read(name) for name in source.specs if name not in ties})
    differences = _differences(source, tensors, base)
    predictor = Predictor(module, batches, settings.forward, settings.output, settings.n_batches)
    sensitivity = gather(predictor, per_dimension=None, with_norms=False)
    plain = _plain(differences, sensitivity)
    usable = {name: each for name, each in differences.items() if name not in plain}
    parts = list(_parts(usable, sensitivity, variances, settings.damping))
    return RateLimit(sum(each.size for each in tensors.values()), plain, parts, tensors, differences)


def _differences(source: Checkpoint, tensors: dict[str, Array], base: Mapping[str, Any] | None) -> dict[str, Array]:
    if base is None:
        return {name: each.astype(np.float64) for name, each in tensors.items()}
    held = base if isinstance(base, Checkpoint) else Checkpoint.of(base)
    known = same_kind(matched(held, source.specs, match_tensors(source, held)), tensors)
    starts = {name: known.get(name, np.zeros((), each.dtype)).astype(np.float64) for name, each in tensors.items()}
    with np.errstate(invalid="ignore", over="ignore"):
        return {name: each.astype(np.float64) - starts[name] for name, each in tensors.items()}


def _plain(differences: dict[str, Array], sensitivity: Sensitivity) -> dict[str, str]:
    seen = {piece.name for piece in sensitivity.pieces}
    found = {}
    for name, difference in differences.items():
        if not np.isfinite(difference).all():
            found[name] = "not finite"
        elif name not in seen and not sensitivity.curvature.get(name, 0.0) > 0:
            found[name] = "not used by the batches"
    return found


def _parts(
    differences: dict[str, Array], sensitivity: Sensitivity, variances: Variances, damping: Damping
) -> Iterator[tuple[str, Piece | None, list[_Components]]]:
    for piece, weighed in sensitivity.pieces.items():
        if piece.name in differences:
            matrices = piece.matrices(torch.from_numpy(differences[piece.name]))
            yield piece.name, piece, [_matrix(m, weighed, i, variances, damping) for i, m in enumerate(matrices)]
    seen = {piece.name for piece in sensitivity.pieces}
    for name, difference in differences.items():
        if name not in seen:
            flat = torch.from_numpy(difference).reshape(1, -1)
            weight = torch.full_like(flat, sensitivity.curvature[name] / 2)
            yield name, None, [_Components(flat, weight, flat.square().mean().expand_as(flat))]


def _matrix(difference: Tensor, weighed: Weighed, group: int, variances: Variances, damping: Damping) -> _Components:
    row_damping, column_damping = damping.gradients, damping.inputs
    if weighed.rows.is_diagonal:  # rows that are looked up are inputs
        row_damping, column_damping = column_damping, row_damping
    down, rows = _eigen(weighed.rows.values[group], row_damping)
    across, columns = _eigen(weighed.columns.values[group], column_damping)
    coefficients = difference if rows is None else rows.T @ difference
    coefficients = coefficients if columns is None else coefficients @ columns
    weights = down[:, None] * across[None, :] / 2
    return _Components(coefficients, weights, _variances(coefficients, variances), rows, columns)


def _eigen(values: Tensor, damping: float) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues, damped, and eigenvectors as columns."""
    values = values.double()
    energy = values if values.dim() == 1 else values.diagonal()
    floor = damping * float(energy.mean())
    if values.dim() == 1:
        return values + floor, None
    found, vectors = torch.linalg.eigh(values)
    return found.clamp(min=0) + floor, vectors


def _variances(coefficients: Tensor, variances: Variances) -> Tensor:
    squares = coefficients.square()
    mean = squares.mean()
    if variances == "white" or not float(mean):
        return mean.expand_as(squares)
    down = squares.mean(1) if squares.shape[1] >= _FEW else mean.expand(len(squares))
    across = squares.mean(0) if squares.shape[0] >= _FEW else mean.expand(squares.shape[1])
    product = down[:, None] * across[None, :] / mean
    # Updates lie mostly where both moments are large, more so than a product of two variances says.
    return product * _smoothed(torch.where(product > 0, squares / product, 1.0))


def _smoothed(values: Tensor) -> Tensor:
    """Each value's mean with its neighbours, in blocks."""
    rows, columns = (_averaging(n) for n in values.shape)
    return rows @ values @ columns.T


def _averaging(n: int) -> Tensor:
    """Averages runs of at least `_SHARED` of n values, or all of them; shape (n, n)."""
    count = max(1, n // _SHARED)
    run = torch.div(torch.arange(n) * count, n, rounding_mode="floor")
    same = (run[:, None] == run[None, :]).double()
    return same / same.sum(1, keepdim=True)
