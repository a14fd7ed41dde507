"""Bytes and error of parts of a network at several bounds: compressed and restored but not evaluated, so cheap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearzip.api import compress_quietly
from nearzip.budget.spaces import Bounds
from nearzip.budget.subject import Network
from nearzip.coding import Codings
from nearzip.tensors import Array, is_float

__all__ = ["GRID", "Curves", "Group", "groups_of"]

Group = tuple[str, ...]

#: Maximum number of groups with bounds of their own; distance of the positions that are measured.
_GROUPS = 32
_SURVEY = 0.5
#: How far below a search's start curves are measured, in steps that double the bound; smaller ones are extrapolated.
_BELOW = 4.0
#: Positions of groups are multiples of this.
GRID = 1 / 8
#: Values sampled from a larger tensor.
_SAMPLE = 1 << 18
#: Smallest squared error whose logarithm is taken.
_TINY = 1e-300
#: Range of the price of a byte, in powers of e.
_PRICES = 28
#: Smallest share of a layer's squares that counts as left.
_LEAST_LEFT = 1e-3


def groups_of(tensors: Mapping[str, Array]) -> list[Group]:
    """The largest matrices one by one, all others together, and the vectors together."""
    floats = [name for name, a in tensors.items() if is_float(a.dtype) and a.size]
    matrices = sorted((n for n in floats if tensors[n].ndim > 1), key=lambda n: -tensors[n].nbytes)
    vectors = tuple(n for n in floats if tensors[n].ndim <= 1)
    rest = tuple(matrices[_GROUPS:])
    return [*((name,) for name in matrices[:_GROUPS]), *([rest] if rest else []), *([vectors] if vectors else [])]


@dataclass(frozen=True)
class Curves:
    """Logarithms of bytes and squared error of each group at each position, (groups, positions).

    Both are monotone: bytes fall and errors grow with the bound.
    """

    groups: Sequence[Group]
    positions: Array
    log_bytes: Array
    log_errors: Array

    @staticmethod
    def of(subject: Network, space: Bounds) -> Curves:
        """Measure each group by itself, at a dozen bounds."""
        groups = groups_of(subject.tensors)
        lowest = max(space.low, space.start - _BELOW)
        coarse = np.arange(lowest, space.high + _SURVEY, _SURVEY).clip(None, space.high)
        fine = np.arange(round(space.low / GRID), round(space.high / GRID) + 1) * GRID
        rows = [_measured(subject, space, group, coarse) for group in groups]
        at_fine = [[_extended(fine, coarse, values) for values in row] for row in rows]
        sizes, errors = (np.array(part).reshape(len(groups), len(fine)) for part in zip(*at_fine, strict=True))
        return Curves(groups, fine, np.minimum.accumulate(sizes, 1), np.maximum.accumulate(errors, 1))

    def n_bytes(self, settings: Array) -> Array:
        """Bytes of all groups together, (n,), at indices into `positions`, (n, groups)."""
        return np.asarray(np.exp(np.take_along_axis(self.log_bytes, settings.T, 1)).sum(0))

    def errors(self, settings: Array) -> Array:
        """Logarithms of the squared errors, (n, groups), at indices into `positions`, (n, groups)."""
        return np.asarray(np.take_along_axis(self.log_errors, settings.T, 1).T)

    def cheapest(self, log_weights: Array, n_bytes: Array) -> Array:
        """The settings of least weighted error that take about `n_bytes`, (sizes, groups).

        Rate-distortion optimization by a Lagrange multiplier: for a price of a byte, each group takes what makes its
        weighted error plus the price of its bytes least.
        """
        weighted, sizes = self.log_errors + log_weights[:, None], self.log_bytes
        dearest = float((weighted - sizes).max())
        log_prices = np.linspace(dearest - _PRICES, dearest + 1, 4 * _PRICES)
        at_prices = self.n_bytes(self._least(weighted, log_prices))
        # More bytes for a lower price; interpolation wants them rising.
        wanted = np.interp(np.log(n_bytes), np.log(at_prices)[::-1], log_prices[::-1])
        return self._least(weighted, wanted)

    def _least(self, log_weighted: Array, log_prices: Array) -> Array:
        errors, sizes = np.exp(log_weighted), np.exp(self.log_bytes)
        return np.stack([(errors + price * sizes).argmin(1) for price in np.exp(log_prices)])


def _measured(subject: Network, space: Bounds, group: Group, positions: Array) -> tuple[Array, Array]:
    """Logarithms of bytes and squared error of a group by position."""
    tensors, scale = _sampled(subject.tensors, group)
    base = None if subject.seen is None else _sampled(subject.seen, [n for n in group if n in subject.seen])[0]
    sizes, errors = [], []
    for position in positions:
        archive = compress_quietly(tensors, base, plan=Codings(space.coding_at(position)))
        restored = archive.restored
        sizes.append(math.log(scale * archive.nbytes))
        errors.append(math.log(scale * sum(_error(tensors[n], restored[n], n in space.updates) for n in group) + _TINY))
    return np.array(sizes), np.array(errors)


def _sampled(tensors: Mapping[str, Array], group: Sequence[str]) -> tuple[dict[str, Array], float]:
    """Evenly spaced rows of large tensors, and the factor from sums over them to sums over all."""
    steps = {name: max(1, tensors[name].size // _SAMPLE) for name in group}
    taken = {name: tensors[name][:: steps[name]] if tensors[name].ndim else tensors[name] for name in group}
    n, m = (sum(source[name].size for name in group) for source in (tensors, taken))
    return taken, n / m if m else 1.0


def _error(original: Array, restored: Array, updates: bool) -> float:
    """Squared error; of a matrix without a base, over the share of its squares that is left.

    A layer of which nothing is left passes nothing on. On a convolutional network, a layer's divergence over this
    figure was the same within a factor of three up to bounds where it became zero; over the squared error, of thirty.
    """
    error = _squares(original, restored)
    if updates or original.ndim < 2:
        return error
    left = 1 - error / max(_squares(original, np.zeros_like(original)), _TINY)
    return error / max(left, _LEAST_LEFT)


def _squares(original: Array, restored: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        off = original.astype(np.float64) - restored.astype(np.float64)
        return min(float(np.sum(off**2, where=np.isfinite(off))), 1e300)


def _extended(positions: Array, measured: Array, values: Array) -> Array:
    """Interpolate between measured positions; extrapolate below them."""
    slope = (values[1] - values[0]) / (measured[1] - measured[0]) if len(measured) > 1 else 0.0
    below = np.minimum(positions - measured[0], 0.0)
    return np.asarray(np.interp(positions, measured, values) + slope * below)
