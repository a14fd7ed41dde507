"""Which other pipelines are worth trying for a block: estimated on samples, so that the usual case stays fast.

A method's own coding is not always the smallest that keeps its promise: a base may not help, a bound may be finer than
the dtype, values may repeat. What a sample cannot rule out is encoded on the sample, what comes near the method's own
size there is encoded in full, and `codec` keeps the smallest.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard

import nearzip._core as _core
from nearzip.stages import Chain, Context, ContextDelta, OrderedBits, Pipeline, Rans, RawBytes, Sparse, Zstd
from nearzip.tensors import Array, bits_of, is_float

__all__ = [
    "LEAST_APART",
    "REPEATS",
    "STORED",
    "exact_pipeline",
    "exact_pipelines",
    "is_far",
    "may_repeat",
    "promising",
    "stands_out",
]

#: Values as they are.
STORED = Pipeline((RawBytes(),))
#: For values that repeat: rows, heads, filters, tables, masks.
REPEATS = Pipeline((RawBytes(), Zstd(19)))
#: For values of which many are zero, exactly.
_ZEROS = Pipeline((Sparse(Chain((OrderedBits(), Rans("planes"))), Chain((Rans(),)), gap_bits=32, fill=False),))

#: Values sampled from a block, in so many runs from all over it. Blocks of up to four times as many are tried whole.
_SAMPLE, _RUNS = 1024, 8
#: A candidate that takes no more than this times the bytes of the method's own coding, on the sample, is encoded in
#: full. A sample's tables weigh more than a block's.
_NEAR = 1.25
#: Exact values, or differences to a base, take at least this share of their entropy on the sample.
_OF_ENTROPY = 0.6
#: Where an entropy coder took fewer bits than this for a value of 32 or more, values were rounded, and exact ones have
#: no less entropy. Of narrow types, differences coded in context of the base's exponents may take less.
_FEW_BITS = 2.0
#: Values of which nearly all differ, and that are this much closer to the base than to zero, are coded against it.
_DISTINCT, _CLOSE = 0.9, 0.25
#: Share of zeros from which on their indices are coded separately.
_MANY_ZEROS = 1 / 32

#: Repeats are looked for in all of a block up to `_WHOLE` bytes, else in runs from all over it.
_WHOLE, _RUN_BYTES = 128 << 10, 16 << 10


@dataclass(frozen=True)
class _Search:
    """A level of zstd that looks for repeats in so many runs, and how small what it makes has to be to go on.

    At most `near` times the best other coding, or `loose` times where it leaves less than `_NOISE` of the bytes: level
    19 gains most where something repeats. Or at most `structured` of the bytes and `times` the best other coding.
    """

    level: int
    n_runs: int
    near: float
    loose: float
    structured: float
    times: float


#: Share of the bytes that noise of any dtype leaves at least.
_NOISE = 0.9
#: One after the other: on noise, the first takes a tenth of the second's time.
_SEARCHES = (_Search(-1, 2, 1.15, 1.6, 0.3, math.inf), _Search(3, 4, 0.99, 1.25, 0.15, 2.0))
#: A tensor of at least so many bytes, of which zstd's fastest leaves no more than this share on a run, gets a block of
#: its own: what makes it small would not suit its neighbours.
LEAST_APART, _APART_RUN, _APART = 64 << 10, 8 << 10, 0.95
#: A tensor of that size is coded without its base if, of so many values, no more than this share are within a tenth of
#: the base's: 3 % are if the two have nothing to do with each other.
_LOOKS, _FEW_NEAR, _NEAR_BASE = 256, 0.06, 0.1
#: Every so many words of eight bytes are compared with each other: what repeats far apart mostly does so after a
#: multiple of a KiB, and touching more of a block's memory would show in the time that lossless coding takes.
_STRIDE = 128
#: Repeats far apart are looked for in blocks that take at least this share of their values' bytes: smaller ones would
#: have to repeat so often that near ones show.
_LEAST_FAR = 1 / 16


@functools.cache
def exact_pipeline(with_base: bool) -> Pipeline:
    """Bit-exact coding of any dtype: differences of order-preserving integers, or exponents and mantissas apart."""
    if with_base:
        return Pipeline((ContextDelta(),))
    return Pipeline((OrderedBits(), Rans("planes")))


#: Exact pipelines that take about the entropy of the values, or of their differences to the base.
_EXACT = (exact_pipeline(False), exact_pipeline(True), _ZEROS)


@functools.cache
def exact_pipelines(with_base: bool, floats: bool) -> Sequence[Pipeline]:
    """Exact pipelines that a block may be coded by, besides `STORED` and `REPEATS`."""
    with_zeros = (_ZEROS,) if floats else ()
    return (exact_pipeline(False), *with_zeros, *([exact_pipeline(True)] if with_base else []))


def promising(
    values: Array, context: Context, pipeline: Pipeline, n_bytes: int, others: Iterable[Pipeline]
) -> Iterator[Pipeline]:
    """Those of `others` that may be smaller than the `n_bytes` that `pipeline` made.

    Parameters
    ----------
    values : array, shape (n,)
    context : Context
    pipeline : Pipeline
    n_bytes : int
    others : iterable of Pipeline
    """
    others = [other for other in others if other is not pipeline]
    if values.size <= 4 * _SAMPLE:
        yield from (other for other in others if other is not _ZEROS or _zeros(values) >= _MANY_ZEROS)
        return
    bits = 8 * n_bytes / values.size
    few = bits < _FEW_BITS and isinstance(pipeline.stages[-1], Rans) and values.itemsize >= 4
    if few:
        others = [other for other in others if other not in _EXACT]
    if not others:
        return
    sample = _Sample(values, context.base)
    limit = None
    for other in others:
        if sample.rules_out(other, bits):
            continue
        if limit is None:
            limit = _NEAR * len(pipeline.encode(sample.values, sample.context))
        if len(other.encode(sample.values, sample.context)) <= limit:
            yield other


class _Sample:
    """Some values of a block, and what they say of candidates without encoding anything."""

    def __init__(self, values: Array, base: Array | None) -> None:
        self.values = _sampled(values)
        self.base = None if base is None else _sampled(base)
        self.context = Context(values.dtype, (self.values.size,), self.base)
        self.bits = bits_of(self.values)
        self.entropy = _core.entropy(self.bits)

    def rules_out(self, other: Pipeline, bits: float) -> bool:
        """Whether a candidate surely takes more than so many bits a value."""
        if other is _ZEROS:
            return _zeros(self.values) < _MANY_ZEROS
        if other is exact_pipeline(False):
            return _NEAR * bits < _OF_ENTROPY * self.entropy or _NEAR * bits < _entropy_by_byte(self.values)
        assert self.base is not None  # neither of the rest is tried without one
        if other is exact_pipeline(True):
            return bits < _OF_ENTROPY * _core.entropy(self.bits - bits_of(self.base))
        # What is left does without the base.
        return self.entropy > _DISTINCT * math.log2(_SAMPLE) and _is_close(self.values, self.base)


def _is_close(values: Array, base: Array) -> bool:
    """Whether values are much closer to the base than to zero."""
    if not is_float(values.dtype):
        return False
    with np.errstate(invalid="ignore", over="ignore"):
        x = values.astype(np.float32, copy=False)
        off = x - base.astype(np.float32, copy=False)
        return bool(off @ off <= _CLOSE**2 * (x @ x))


def _zeros(values: Array) -> float:
    return 1 - np.count_nonzero(values) / values.size if values.size else 0.0


@functools.lru_cache(maxsize=16)
def _sampled_indices(size: int) -> Array:
    """Runs of neighbouring values from all over a block, each as long as the others."""
    length = _SAMPLE // _RUNS
    starts = [i * (size - length) // (_RUNS - 1) for i in range(_RUNS)]
    return np.concatenate([np.arange(start, start + length) for start in starts])


def _sampled(values: Array) -> Array:
    sample: Array = values.take(_sampled_indices(values.size))
    return sample


def _entropy_by_byte(values: Array) -> float:
    """Bits a value, if each of its bytes is coded by itself."""
    planes = OrderedBits().encode(values).value.view(np.uint8).reshape(values.size, -1).T
    return sum(_core.entropy(plane) for plane in np.ascontiguousarray(planes))


def may_repeat(values: Array, n_bytes: int) -> bool:
    """Whether `REPEATS` may code values, shape (n,), in fewer than `n_bytes`: faster levels of zstd on some of them."""
    raw = np.ascontiguousarray(values).view(np.uint8)
    share = n_bytes / raw.size
    if all(_goes_on(values, raw, share, search) for search in _SEARCHES):
        return True
    if raw.size <= _WHOLE or share < _LEAST_FAR or _distinct(raw) > share:
        return False
    careful = _SEARCHES[-1]
    return _packed([raw], careful.level) <= careful.near * share


def _goes_on(values: Array, raw: Array, share: float, search: _Search) -> bool:
    packed = _packed(_runs(raw, search.n_runs), search.level)
    if packed <= search.near * share or packed <= min(search.structured, search.times * share):
        return True
    # Zeros are short for zstd as well, and no repeats of anything else. To count them takes longer than all the rest.
    return packed <= search.loose * share and packed <= _NOISE and packed <= _NOISE * (1 - _zeros(values))


def stands_out(values: Array) -> bool:
    """Whether a tensor of `LEAST_APART` bytes or more, but less than a block, should not share one with others."""
    raw = values.ravel().view(np.uint8)
    starts = ((raw.size - _APART_RUN) // 2 // 8 * 8, (raw.size - _APART_RUN) // 5 // 8 * 8)
    compressor = _compressors.at(_SEARCHES[0].level)
    runs = (raw[start : start + _APART_RUN] for start in starts)
    return any(len(compressor.compress(run.data)) <= _APART * _APART_RUN and bool(run.any()) for run in runs)


def is_far(values: Array, base: Array) -> bool:
    """Whether a tensor of such a size is so far from its base that this is of no use, by some of its values."""
    stride = values.size // _LOOKS
    x, b = values.ravel(), base.ravel()
    if x.dtype.itemsize < 4:
        x, b, stride = *(each[: stride * _LOOKS : stride].astype(np.float32) for each in (x, b)), 1
    return not _core.is_near(x, b, stride, _LOOKS, _NEAR_BASE, int(_FEW_NEAR * _LOOKS))


def _runs(raw: Array, n: int) -> list[Array]:
    if raw.size <= _WHOLE:
        return [raw]
    return [raw[i * (raw.size - _RUN_BYTES) // (n - 1) :][:_RUN_BYTES] for i in range(n)]


class _Compressors(threading.local):
    """Some for each thread: making one takes longer than what it does here."""

    def __init__(self) -> None:
        self.at = functools.cache(lambda level: zstandard.ZstdCompressor(level=level))


_compressors = _Compressors()


def _packed(runs: list[Array], level: int) -> float:
    """Share of their bytes that runs take."""
    compress = _compressors.at(level).compress
    return sum(len(compress(run.data)) for run in runs) / sum(run.size for run in runs)


def _distinct(raw: Array) -> float:
    """Share of words at even distances all over a block that are the first of their kind; zeros are left out."""
    words = raw[: raw.size // 8 * 8].view(np.uint64)[::_STRIDE]
    words = np.sort(words[words != 0])
    return (np.count_nonzero(words[1:] != words[:-1]) + 1) / words.size if words.size else 1.0
