"""Magnitude pruning: all but the largest weights become zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import UsageError
from nearzip.stages.base import FLOATS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["Prune", "largest"]


def largest(values: Array, keep: float) -> Array:
    """Which values magnitude pruning keeps.

    Parameters
    ----------
    values : array, shape (n,), a floating-point dtype
    keep : float
        Share of the values that is kept, 0 to 1; the number is rounded to the nearest, halves to even.

    Returns
    -------
    array of bool, shape (n,)
        True for the round(keep n) largest magnitudes. Zeros are never among them; of equal magnitudes the first are;
        NaN counts as infinite.
    """
    working = values if values.dtype.itemsize >= 4 else values.astype(np.float32)
    magnitudes = np.abs(working)
    magnitudes[np.isnan(magnitudes)] = np.inf
    n_kept = round(keep * values.size)
    if n_kept == 0:
        return np.zeros(values.size, bool)
    threshold = np.partition(magnitudes, values.size - n_kept)[values.size - n_kept]
    kept: Array = magnitudes > threshold
    equal = np.flatnonzero(magnitudes == threshold)
    kept[equal[: n_kept - int(kept.sum())]] = True
    kept &= magnitudes > 0
    return kept


@dataclass(frozen=True)
class Prune(Stage):
    """Keep the largest magnitudes and make the rest zero (Han et al. 2015; DeepSZ, section 3.2).

    It promises nothing for its input: the bounds of later stages are measured against its output.

    Parameters
    ----------
    keep : float
        Share of the values that is kept, 0 to 1: what DeepSZ calls the pruning ratio.

    Examples
    --------
    >>> Prune(0.5).encode(np.array([0.1, -3.0, 2.0, 0.0], np.float32)).floats
    array([ 0., -3.,  2.,  0.], dtype=float32)
    """

    id = "prune"
    takes, gives = FLOATS, FLOATS
    changes_target = True

    keep: float

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise UsageError(f"the share of weights kept lies between 0 and 1, not {self.keep}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        if self.keep == 1:
            return Coded(value)
        return Coded(np.where(largest(value, self.keep), value, np.zeros((), value.dtype)))

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        return coded.floats
