"""Values in buckets of equal counts, each represented by its middle: SKCompress and SketchML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["QuantileBuckets"]

_MAX_BUCKETS = 1 << 16


@dataclass(frozen=True)
class QuantileBuckets(Stage):
    """Numbers of quantile buckets (SKCompress: Jiang et al., VLDB Journal 2020); a value becomes its bucket's middle.

    Negative and positive values have buckets of their own, as many as their shares come to, so that no sign changes;
    zeros have one where there are any. The splits are order statistics; a middle is half the sum of two splits. Values
    that are not finite count as zero. Symbols are uint8, or uint16 for more than 256 buckets. Nothing is promised.

    Side data: the middles, increasing, float32 (float64 for float64).

    Parameters
    ----------
    buckets : int
        2 to 65536, without the one for zeros.

    Examples
    --------
    >>> x = np.array([-4, 1, 2, 3, 4], np.float32)
    >>> stage = QuantileBuckets(3)
    >>> coded = stage.encode(x, Context.of(x))
    >>> coded.symbols
    array([0, 1, 1, 2, 2], dtype=uint8)
    >>> stage.decode(coded, Context.of(x))
    array([-4. ,  1.5,  1.5,  3. ,  3. ], dtype=float32)
    """

    id = "quantile-buckets"
    takes, gives = FLOATS, SYMBOLS

    buckets: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.buckets <= _MAX_BUCKETS:
            raise UsageError(f"values go into 2 to {_MAX_BUCKETS} buckets, not {self.buckets}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        context = context or Context.of(value)
        with np.errstate(invalid="ignore"):
            wide = np.nan_to_num(value.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        negative, positive = wide < 0, wide > 0
        n_negative, n_all = int(negative.sum()), int(negative.sum() + positive.sum())
        share = round(self.buckets * n_negative / n_all) if n_all else 0
        share = min(max(share, 1), self.buckets - 1) if 0 < n_negative < n_all else share
        low, low_numbers = _side(wide[negative], share)
        high, high_numbers = _side(wide[positive], self.buckets - share)
        has_zeros = n_all < wide.size
        middles = np.concatenate([low, np.zeros(int(has_zeros)), high])
        symbols = np.full(wide.size, low.size, np.uint16)
        symbols[negative] = low_numbers
        symbols[positive] = high_numbers + low.size + has_zeros
        small = middles.size <= 256
        kind = _middle_type(context)
        bounded = np.clip(middles, np.finfo(kind).min, np.finfo(kind).max)
        return Coded(symbols.astype(np.uint8) if small else symbols, bounded.astype(kind).tobytes())

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        kind, symbols = _middle_type(context), coded.symbols
        if len(coded.side) % kind.itemsize or len(coded.side) > (_MAX_BUCKETS + 1) * kind.itemsize:
            raise CorruptError("quantile-buckets: malformed side data")
        middles = np.frombuffer(coded.side, kind).astype(kind.newbyteorder("="))
        if not np.isfinite(middles).all() or symbols.dtype not in (np.uint8, np.uint16) or symbols.size != context.n:
            raise CorruptError("quantile-buckets: a middle is not finite, or symbols are no buckets")
        if symbols.size and int(symbols.max()) >= middles.size:
            raise CorruptError("quantile-buckets: a symbol has no bucket")
        values: Array = middles[symbols] if symbols.size else np.zeros(0, kind.newbyteorder("="))
        return values


def _side(values: Array, buckets: int) -> tuple[Array, Array]:
    """Middles of the buckets of one sign, and the bucket of each value."""
    if not values.size:
        return np.zeros(0), np.zeros(0, np.int64)
    ordered = np.sort(values)
    splits = ordered[np.arange(buckets + 1) * (values.size - 1) // buckets]
    return splits[:-1] / 2 + splits[1:] / 2, np.searchsorted(splits[1:-1], values, side="left")


def _middle_type(context: Context) -> np.dtype[Any]:
    return np.dtype("<f8" if context.dtype.itemsize == 8 else "<f4")
