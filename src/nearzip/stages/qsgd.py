"""QSGD: values rounded at random to a few levels of their bucket's norm, right on average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["StochasticLevels"]

_MAX_LEVELS = 1 << 20


@dataclass(frozen=True)
class StochasticLevels(Stage):
    """|x| over the Euclidean norm of its bucket, rounded up or down at random to a multiple of 1 / levels.

    Alistarh et al., NeurIPS 2017, section 3.1: the expected value of what is decoded is x. Symbols are int32 with the
    value's sign; the norms are side data, float32. Values that are not finite count as zero.

    Parameters
    ----------
    levels : int
        The paper's s, 1 to 2^20.
    bucket : int
        Consecutive values that share a norm; the last bucket may be shorter. The paper's d.
    seed : int
        Of the random numbers (PCG64), so that the same input gives the same bytes.

    Examples
    --------
    >>> x = np.array([3.0, -4.0, 0.0], np.float32)
    >>> stage = StochasticLevels(5, 512, 0)
    >>> coded = stage.encode(x, Context.of(x))
    >>> coded.symbols, stage.decode(coded, Context.of(x))
    (array([ 3, -4,  0], dtype=int32), array([ 3., -4.,  0.]))
    """

    id = "stochastic-levels"
    takes, gives = FLOATS, SYMBOLS

    levels: int
    bucket: int
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= _MAX_LEVELS or not 1 <= self.bucket < 1 << 31 or not 0 <= self.seed < 1 << 53:
            raise UsageError("qsgd takes 1 to 2^20 levels, buckets of at least one value, and a seed from 0")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.nan_to_num(value.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
            norms = np.sqrt(np.add.reduceat(values * values, self._starts(value.size)) if value.size else [])
            norms = np.minimum(norms, np.finfo(np.float32).max).astype("<f4")
        wide = self._spread(norms.astype(np.float64), value.size)
        scaled = np.divide(np.abs(values), wide, out=np.zeros(value.size), where=wide > 0) * self.levels
        # The norm was rounded to float32: the largest value may come out a little above its level.
        scaled = np.minimum(scaled, self.levels)
        levels = np.floor(scaled + np.random.Generator(np.random.PCG64(self.seed)).random(value.size))
        return Coded(np.copysign(levels, values).astype(np.int32), norms.tobytes())

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        symbols, n = coded.symbols, context.n
        if symbols.dtype != np.int32 or symbols.size != n:
            raise CorruptError("stream holds other symbols than levels")
        if len(coded.side) != 4 * len(self._starts(n)):
            raise CorruptError("each bucket has one norm")
        norms = np.frombuffer(coded.side, "<f4").astype(np.float64)
        # abs() of the smallest int32 overflows.
        if not np.isfinite(norms).all() or (n and np.abs(symbols.astype(np.int64)).max() > self.levels):
            raise CorruptError("a norm is not finite, or a level above the largest")
        out: Array = self._spread(norms, n) * symbols / self.levels
        return out

    def _starts(self, n: int) -> Array:
        return np.arange(0, n, self.bucket)

    def _spread(self, norms: Array, n: int) -> Array:
        return np.repeat(norms, self.bucket)[:n] if self.bucket < n else np.repeat(norms, n)
