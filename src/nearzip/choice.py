"""Which other pipelines are worth trying for a block: estimated on samples, so that the usual case stays fast.

A method's own coding is not always the smallest that keeps its promise: a base may not help, a bound may be finer than
the dtype, values may repeat. Every candidate here is encoded on a sample of the block first; only those that come near
the method's own size are encoded in full, and `codec` keeps the smallest.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import numpy as np
import zstandard

from nearzip.stages import Chain, Context, ContextDelta, OrderedBits, Pipeline, Rans, RawBytes, Sparse, Zstd
from nearzip.tensors import Array

__all__ = ["REPEATS", "STORED", "exact_pipeline", "exact_pipelines", "may_repeat", "promising"]

#: Values as they are.
STORED = Pipeline((RawBytes(),))
#: For values that repeat: rows, heads, filters, tables, masks.
REPEATS = Pipeline((RawBytes(), Zstd(19)))
#: For values of which many are zero, exactly.
_ZEROS = Pipeline((Sparse(Chain((OrderedBits(), Rans("planes"))), Chain((Rans(),)), gap_bits=32, fill=False),))

#: Values sampled from a block, in so many runs from all over it. Twice as many take part as they are.
_SAMPLE, _RUNS = 4096, 8
#: A candidate that takes no more than this times the bytes of the method's own coding, on the sample, is encoded in
#: full. A sample's tables weigh more than a block's.
_NEAR = 1.2
#: Share of zeros from which on their places are coded apart.
_MANY_ZEROS = 0.25

#: Bytes in which repeats are looked for: all of a block up to `_WHOLE`, else runs from all over it.
_WHOLE, _RUN_BYTES, _N_RUNS = 128 << 10, 16 << 10, 4
#: zstd's fastest level on noise comes within 1 % of an entropy coder at best.
_REPEATED = 0.99
#: Every so many words of eight bytes are compared with each other, and those of one in `_ONE_IN` values.
_STRIDE, _ONE_IN = 8, 64


@functools.cache
def exact_pipeline(with_base: bool) -> Pipeline:
    """Bit-exact coding of any dtype: differences of order-preserving integers, or exponents and mantissas apart."""
    if with_base:
        return Pipeline((ContextDelta(),))
    return Pipeline((OrderedBits(), Rans("planes")))


@functools.cache
def exact_pipelines(with_base: bool, floats: bool) -> tuple[Pipeline, ...]:
    """Exact pipelines that a block may be coded by, besides `STORED` and `REPEATS`."""
    with_zeros = (_ZEROS,) if floats else ()
    return (exact_pipeline(False), *with_zeros, *([exact_pipeline(True)] if with_base else []))


def promising(values: Array, context: Context, pipeline: Pipeline, others: Iterable[Pipeline]) -> Iterator[Pipeline]:
    """Those of `others` that may be smaller than `pipeline`.

    Parameters
    ----------
    values : array, shape (n,)
    context : Context
    pipeline, others : Pipeline
    """
    if context.n <= 2 * _SAMPLE:
        yield from (other for other in others if other is not _ZEROS or _zeros(values) >= _MANY_ZEROS)
        return
    few = _sampled(values)
    here = Context.alone(few, None if context.base is None else _sampled(context.base))
    limit = None
    for other in others:
        if other is _ZEROS and _zeros(few) < _MANY_ZEROS:
            continue
        if limit is None:
            limit = _NEAR * len(pipeline.encode(few, here))
        if len(other.encode(few, here)) <= limit:
            yield other


def _zeros(values: Array) -> float:
    return 1 - np.count_nonzero(values) / values.size if values.size else 0.0


def _sampled(values: Array) -> Array:
    """Runs of neighbouring values from all over a block, each as long as the others."""
    length = _SAMPLE // _RUNS
    starts = [i * (values.size - length) // (_RUNS - 1) for i in range(_RUNS)]
    return np.concatenate([values[start : start + length] for start in starts])


def may_repeat(values: Array, n_bytes: int) -> bool:
    """Whether `REPEATS` may code values, shape (n,), in fewer than `n_bytes`: zstd at its fastest on some of them."""
    raw = np.ascontiguousarray(values).view(np.uint8)
    if raw.size <= _WHOLE:
        return _fast(raw) <= _REPEATED * n_bytes
    starts = [i * (raw.size - _RUN_BYTES) // (_N_RUNS - 1) for i in range(_N_RUNS)]
    near = sum(_fast(raw[start : start + _RUN_BYTES]) for start in starts) * raw.size / (_N_RUNS * _RUN_BYTES)
    if near <= _REPEATED * n_bytes:
        return True
    return _distinct(raw) * raw.size <= n_bytes and _fast(raw) <= _REPEATED * n_bytes


def _fast(raw: Array) -> int:
    return len(zstandard.ZstdCompressor(level=1).compress(raw.data))


def _distinct(raw: Array) -> float:
    """Share of words that occur once among words all over a block, or are the first of their kind; zeros left out.

    Which words are compared is decided by their bits, so that equal ones are all in or all out, however far apart.
    """
    words = raw[: raw.size // 8 * 8].view(np.uint64)[::_STRIDE]
    chosen = words[(words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58) == 0]
    chosen = chosen[chosen != 0]
    return np.unique(chosen).size / chosen.size if chosen.size >= 64 else 1.0
