"""LC-Checkpoint's buckets: one representative for all values of a sign and an exponent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["ExponentBuckets"]


@dataclass(frozen=True)
class ExponentBuckets(Stage):
    """Values of one sign and binary exponent become the mean of the smallest and largest of them; small ones zero.

    LC-Checkpoint (Chen et al., ICML 2020): exponent-based quantization, and priority promotion, which keeps the
    2^bits - 1 buckets of largest exponent (the positive one first) and drops the rest. Tensor by tensor. Symbols are
    uint8: 0 for what is dropped, zero or not finite, else a bucket's index in that order.

    Parameters
    ----------
    bits : int
        1 to 8.

    Examples
    --------
    >>> x = np.array([1.0, 1.5, -1.25, 0.3, 0.01], np.float32)
    >>> coded = ExponentBuckets(2).encode(x, Context.of(x))
    >>> coded.symbols
    array([1, 1, 2, 3, 0], dtype=uint8)
    >>> ExponentBuckets(2).decode(coded, Context.of(x))
    array([ 1.25      ,  1.25      , -1.25      ,  0.30000001,  0.        ])
    """

    id = "exponent-buckets"
    takes, gives = FLOATS, SYMBOLS

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise UsageError(f"buckets are numbered in 1 to 8 bits, not {self.bits}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        context = context or Context.of(value)
        symbols = np.zeros(value.size, np.uint8)
        side = []
        for part in _parts(context):
            with np.errstate(invalid="ignore"):
                values = value[part].astype(np.float64)
            symbols[part], means = self._buckets(values)
            side += [bytes([means.size]), _narrowed(means, context).tobytes()]
        return Coded(symbols, b"".join(side))

    def _buckets(self, values: Array) -> tuple[Array, Array]:
        """Symbols, and the values of those from 1 on."""
        with np.errstate(invalid="ignore"):  # signalling NaN
            _, exponents = np.frexp(values)
        # Orders by exponent, the positive sign in front.
        keys = 2 * exponents.astype(np.int64) + (values > 0)
        keys[~np.isfinite(values) | (values == 0)] = _NOTHING
        found = np.unique(keys)[::-1][: (1 << self.bits) - 1]
        found = found[found != _NOTHING]
        symbols = np.zeros(values.size, np.uint8)
        means = np.empty(found.size, np.float64)
        for i, key in enumerate(found):
            inside = keys == key
            members = values[inside]
            symbols[inside] = i + 1
            # Halved before they are added: the sum of two large doubles is not finite.
            means[i] = members.min() / 2 + members.max() / 2
        return symbols, means

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        symbols = coded.symbols
        if symbols.dtype != np.uint8 or symbols.size != context.n:
            raise CorruptError("stream holds other symbols than numbers of buckets")
        out = np.empty(context.n, np.float64)
        at = 0
        for part in _parts(context):
            means, at = _read_means(coded.side, at, context)
            numbers = symbols[part]
            if numbers.size and int(numbers.max()) >= means.size:
                raise CorruptError("a bucket has no mean")
            out[part] = means[numbers]
        if at != len(coded.side):
            raise CorruptError("extra bytes after the buckets' means")
        return out


#: Key of values that are in no bucket, below all others.
_NOTHING = np.iinfo(np.int64).min


def _mean_type(context: Context) -> np.dtype[Any]:
    return np.dtype("<f8" if context.dtype.itemsize == 8 else "<f4")


def _narrowed(means: Array, context: Context) -> Array:
    kind = _mean_type(context)
    return np.clip(means, np.finfo(kind).min, np.finfo(kind).max).astype(kind)


def _read_means(side: bytes, at: int, context: Context) -> tuple[Array, int]:
    """The values of one tensor's symbols, zero first, and the position after them."""
    kind = _mean_type(context)
    if at >= len(side):
        raise CorruptError("means of buckets are missing")
    stop = at + 1 + side[at] * kind.itemsize
    if stop > len(side):
        raise CorruptError("means of buckets are missing")
    means = np.frombuffer(side[at + 1 : stop], kind).astype(np.float64)
    if not np.isfinite(means).all():
        raise CorruptError("the mean of a bucket is not finite")
    return np.concatenate([[0.0], means]), stop


def _parts(context: Context) -> Iterator[slice]:
    at = 0
    for n in context.parts:
        yield slice(at, at + n)
        at += n
