"""The largest values of an update, all as one magnitude: binary (SBC) and ternary (STC) compression."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["TopMean"]


@dataclass(frozen=True)
class TopMean(Stage):
    """Keep the ceil(keep n) largest values of each tensor, as their mean; the rest becomes zero.

    "both" (sparse ternary compression, Sattler et al., TNNLS 2020, algorithm 1): the largest magnitudes, as plus or
    minus their mean magnitude. "one" (sparse binary compression, Sattler et al., IJCNN 2019, algorithm 2): the largest
    positive values or the largest negative ones, whichever have the larger mean magnitude, as their mean.

    Symbols are uint8: 0 for zero, 1 for plus, 2 for minus. The means are side data, float32 (float64 for float64).
    Values that are not finite count as zero.

    Parameters
    ----------
    keep : float
        Share of each tensor's values, 0 to 1.
    sides : "both" or "one"

    Examples
    --------
    >>> x = np.array([0.1, -3.0, 2.0, 1.0], np.float32)
    >>> TopMean(0.5).encode(x, Context.of(x)).symbols
    array([0, 2, 1, 0], dtype=uint8)
    >>> TopMean(0.5, "one").encode(x, Context.of(x)).symbols
    array([0, 0, 1, 1], dtype=uint8)
    """

    id = "top-mean"
    takes, gives = FLOATS, SYMBOLS

    keep: float
    sides: Literal["both", "one"] = "both"

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1:
            raise UsageError(f"the share of values kept lies between 0 and 1, not {self.keep}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        context = context or Context.of(value)
        symbols = np.zeros(value.size, np.uint8)
        means = np.zeros(len(context.parts), _mean_type(context))
        for i, part in enumerate(_parts(context)):
            with np.errstate(invalid="ignore"):
                values = np.nan_to_num(value[part].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
            if values.size and self.keep:
                with np.errstate(over="ignore"):  # means beyond the largest number become it
                    symbols[part], mean = self._chosen(values)
                means[i] = min(mean, float(np.finfo(means.dtype).max))
        return Coded(symbols, means.tobytes())

    def _chosen(self, values: Array) -> tuple[Array, float]:
        """Symbols of one tensor, and the magnitude that they represent."""
        k = math.ceil(self.keep * values.size)
        if self.sides == "both":
            top = _largest(np.abs(values), k)
            mean = _mean(np.abs(values[top]), int(top.sum()))
            return np.where(top, np.where(values > 0, 1, 2), 0).astype(np.uint8), mean
        positive, negative = _largest(values, k), _largest(-values, k)
        # Both means are over k values, as printed, even where fewer have that sign.
        means = _mean(values[positive], k), _mean(-values[negative], k)
        symbol, top = (1, positive) if means[0] >= means[1] else (2, negative)
        n = int(top.sum())
        return (top * np.uint8(symbol)).astype(np.uint8), _mean(np.abs(values[top]), n)

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        symbols = coded.symbols
        if symbols.dtype != np.uint8 or symbols.size != context.n or (symbols.size and int(symbols.max()) > 2):
            raise CorruptError("stream holds other symbols than zero, plus and minus")
        kind = _mean_type(context)
        if len(coded.side) != len(context.parts) * kind.itemsize:
            raise CorruptError("each tensor has one mean")
        means = np.frombuffer(coded.side, kind).astype(np.float64)
        if not np.isfinite(means).all():
            raise CorruptError("the mean of a tensor is not finite")
        out = np.empty(context.n, np.float64)
        for mean, part in zip(means, _parts(context), strict=True):
            out[part] = np.array([0.0, mean, -mean])[symbols[part]]
        return out


def _mean(values: Array, n: int) -> float:
    """Sum over n, divided first: the sum of large doubles is not finite."""
    return float((values / n).sum()) if n else 0.0


def _largest(values: Array, k: int) -> Array:
    """Which are the k largest, the first of equal ones; never what is zero or below."""
    threshold = np.partition(values, values.size - k)[values.size - k]
    top: Array = values > threshold
    equal = np.flatnonzero(values == threshold)
    top[equal[: k - int(top.sum())]] = True
    return top & (values > 0)


def _mean_type(context: Context) -> np.dtype[Any]:
    return np.dtype("<f8" if context.dtype.itemsize == 8 else "<f4")


def _parts(context: Context) -> Iterator[slice]:
    at = 0
    for n in context.parts:
        yield slice(at, at + n)
        at += n
