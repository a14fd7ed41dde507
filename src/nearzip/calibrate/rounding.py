"""Rounding a matrix to a grid so that the network notices least, second order.

The error E = W - Q of a matrix costs tr(G E A E^T), A its inputs' and G its gradients' second moments. With
A^-1 = U^T U and G^-1 = V^T V, upper triangular, E = V^T R U turns that into the sum of squares of R. Values are rounded
one after the other, each after subtracting what the remainders R before it have done to its place, so that it takes up
their error; with G = 1 that is GPTQ (Frantar et al., arXiv:2210.17323, section 3), applied to the difference to the
base. Carrying the error from row to row as well is what pays most here: docs/tried.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import nearzip._core as _core
from nearzip.calibrate.gram import Gram
from nearzip.tensors import Array

__all__ = ["Factor", "round_matrix", "triangular"]

#: Rows and columns that the native pass takes at once; between tiles the error is carried by matrix products.
_TILE = 64
#: Rows of a matrix whose rows are independent that are gone through at once.
_MAX_ROWS = 4096


@dataclass(frozen=True)
class Factor:
    """One side of a matrix: the order in which it is gone through, and how errors carry.

    `upper` has shape (n, n), upper triangular, in that order; or (n,) where nothing is carried.
    """

    order: Array
    upper: Array

    @property
    def is_diagonal(self) -> bool:
        return self.upper.ndim == 1

    @property
    def diagonal(self) -> Array:
        return self.upper if self.is_diagonal else np.diagonal(self.upper)

    @property
    def log_cost(self) -> float:
        """Logarithm of what a unit of error costs, mean over the columns, those before it already rounded."""
        return float(-2 * np.log(self.diagonal.astype(np.float64)).mean())

    def tile(self, start: int, stop: int) -> Array:
        part = self.upper[start:stop]
        return np.diag(part) if self.is_diagonal else np.ascontiguousarray(part[:, start:stop])


def triangular(gram: Gram, damping: float, device: torch.device | None = None) -> list[Factor]:
    """The factor of each group. Least energy comes first: it is the most that later columns can compensate.

    The moments' own memory becomes that of the factors. `device`: where they are computed; the CPU by default.
    """
    return [_factor(values, damping, device or torch.device("cpu")) for values in gram.values]


def _factor(values: Tensor, damping: float, device: torch.device) -> Factor:
    energy = values if values.dim() == 1 else values.diagonal()
    order = torch.argsort(energy, stable=True)
    floor = damping * float(energy.mean()) or 1.0
    if values.dim() == 1:
        return Factor(order.numpy(), (values[order] + floor).rsqrt().numpy())
    ordered = values.to(device)[order.to(device)][:, order.to(device)].double()
    ordered.diagonal().add_(floor)
    # H = R R^T with R upper triangular, so that H^-1 = U^T U with U = R^-1: one factorization, no inverse.
    ordered = ordered.flip(0, 1)
    torch.linalg.cholesky(ordered, out=ordered)
    ordered = ordered.flip(0, 1)
    one = torch.eye(len(ordered), dtype=ordered.dtype, device=device)
    torch.linalg.solve_triangular(ordered, one, upper=True, out=one)
    return Factor(order.numpy(), values.copy_(one).numpy())


def round_matrix(target: Array, rows: Factor, columns: Factor, step: float, reach: float = np.inf) -> Array:
    """Multiples of `step`, as integers.

    Parameters
    ----------
    target : array, shape (n, m), float
        Finite, below 2^24 steps.
    rows, columns : Factor
        For n rows and m columns.
    step : float
    reach : float
        No value goes farther from its target, where the grid has a level that near.

    Returns
    -------
    array of int32, shape (n, m)
    """
    if rows.is_diagonal and len(target) > _MAX_ROWS:
        return _by_rows(target, rows, columns, step, reach)
    ordered = np.ascontiguousarray(target.astype(np.float32)[rows.order][:, columns.order])
    if rows.is_diagonal and columns.is_diagonal:
        found = np.rint(ordered.astype(np.float64) / step).astype(np.int32)
    else:
        found = _round_ordered(ordered, rows, columns, step, reach)
    levels = np.empty_like(found)
    levels[np.ix_(rows.order, columns.order)] = found
    return levels


def _by_rows(target: Array, rows: Factor, columns: Factor, step: float, reach: float) -> Array:
    """Rows that carry nothing to each other, some at a time: vocabularies are long."""
    found = np.empty(target.shape, np.int32)
    for start in range(0, len(target), _MAX_ROWS):
        some = rows.order[start : start + _MAX_ROWS]
        part = Factor(np.arange(some.size), rows.upper[start : start + _MAX_ROWS])
        found[some] = round_matrix(target[some], part, columns, step, reach)
    return found


def _round_ordered(target: Array, rows: Factor, columns: Factor, step: float, reach: float) -> Array:
    n, m = target.shape
    levels = np.empty((n, m), np.int32)
    remainders = np.zeros((n, m), np.float32)
    for left in range(0, m, _TILE):
        across = slice(left, min(left + _TILE, m))
        width = across.stop - left
        from_columns = np.zeros((n, width), np.float32)
        if left and not columns.is_diagonal:
            from_columns = np.ascontiguousarray(remainders[:, :left] @ columns.upper[:left, across])
        carried = np.zeros((n, width), np.float32)
        for top in range(0, n, _TILE):
            down = slice(top, min(top + _TILE, n))
            from_rows = np.zeros((down.stop - top, width), np.float32)
            if top and not rows.is_diagonal:
                from_rows = np.ascontiguousarray(rows.upper[:top, down].T @ carried[:top])
            tile_levels, tile_remainders = np.empty(from_rows.shape, np.int32), np.empty_like(from_rows)
            tile_carried = np.empty_like(from_rows)
            _core.round_tile(
                np.ascontiguousarray(target[down, across]).reshape(-1), from_rows.reshape(-1),
                from_columns[down].reshape(-1), rows.tile(top, down.stop).reshape(-1),
                columns.tile(left, across.stop).reshape(-1), len(from_rows), step, reach,
                tile_levels.reshape(-1), tile_remainders.reshape(-1), tile_carried.reshape(-1),
            )  # fmt: skip
            levels[down, across], remainders[down, across] = tile_levels, tile_remainders
            carried[down] = tile_carried
    return levels
