"""Where the nonzero values are, in a Bloom filter, and the values in an order that both sides know: DeepReduce."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, Context, SparseValues, get_varint, put_varint
from nearzip.stages.pipeline import Chain
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.stages.sparse import scatter
from nearzip.stages.split import Split, Stream
from nearzip.tensors import Array, round_to

__all__ = ["BloomIndex", "Policy", "filter_bits", "key_cells"]

Policy = Literal["p0", "p1", "p2"]

_MAX_HASHES = 64
#: Indices that are looked up at once.
_CHUNK = 1 << 18
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def filter_bits(n_keys: int, eps: float) -> tuple[int, int]:
    """Hash functions and bits of a filter for so many keys, of whose other indices a share of about `eps` passes.

    h = ceil(log2 1/eps), and h n / ln 2 bits, rounded up.

    Examples
    --------
    >>> filter_bits(1000, 0.001)
    (10, 14427)
    """
    n_hashes = max(1, math.ceil(-math.log2(eps)))
    return n_hashes, max(1, math.ceil(n_hashes * n_keys / math.log(2)))


def _mixed(values: Array) -> Array:
    """The finalizer of splitmix64, modulo 2^64."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ values >> np.uint64(31)
    return mixed


def _hashes(indices: Array) -> tuple[Array, Array]:
    """Two hashes of each index; hash function i gives first + i * second, modulo 2^64 and then the filter's bits."""
    first = _mixed((indices + np.uint64(1)) * _GOLDEN)
    return first, _mixed(first + _GOLDEN) | np.uint64(1)


def key_cells(indices: Array, n_hashes: int, n_bits: int) -> Array:
    """The cell of each index by each hash function, among `n_bits` of them, int64, shape (n_hashes, n)."""
    first, second = _hashes(indices.astype(np.uint64))
    steps = np.arange(n_hashes, dtype=np.uint64)[:, None]
    bits: Array = ((first + steps * second) % np.uint64(n_bits)).astype(np.int64)
    return bits


def _positives(bits: Array, n_hashes: int, n: int) -> Array:
    """Indices below n that pass the filter, increasing."""
    found = []
    for start in range(0, n, _CHUNK):
        left = np.arange(start, min(n, start + _CHUNK), dtype=np.uint64)
        first, second = _hashes(left)
        for i in range(n_hashes):
            passes = bits[((first + np.uint64(i) * second) % np.uint64(bits.size)).astype(np.int64)]
            left, first, second = left[passes], first[passes], second[passes]
        found.append(left.astype(np.int64))
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _most_certain(positives: Array, n_hashes: int, n_bits: int, n: int) -> Array:
    """Those in the smallest conflict sets: a set is what shares a bit, and holds at least one true key."""
    bits = key_cells(positives, n_hashes, n_bits)
    sizes = np.zeros(n_bits, np.int64)
    for row, own in enumerate(bits):
        # Two functions may give an index the same bit; it counts once.
        fresh = np.ones(own.size, bool)
        for earlier in bits[:row]:
            fresh &= earlier != own
        sizes += np.bincount(own[fresh], minlength=n_bits)
    smallest = sizes[bits].min(0) if bits.size else np.zeros(positives.size, np.int64)
    chosen: Array = positives[np.lexsort((_hashes(positives.astype(np.uint64))[1], smallest))[:n]]
    return chosen


@dataclass(frozen=True)
class BloomIndex(Split):
    """Indices of nonzero values in a Bloom filter (DeepReduce: Xu et al., NeurIPS 2021); some others pass it as well.

    A decoder asks the filter for every index. What it does with the indices that pass, `policy` says:

    "p0": values are sent for all of them, zeros included; nothing is lost. "p1": as many as there were nonzero values
    are drawn by their hashes, and their values sent; the others become zero. "p2": likewise, but those that share a bit
    with the fewest others come first, because at least one of all that share a bit is a true one.

    Side data: hash functions and bits as varints, then the filter, least significant bit first.

    Parameters
    ----------
    values : Chain
        Stages of the values sent, from floats to bytes.
    eps : float
        Share of the zeros that pass, above 0 and below 1: DeepReduce's false positive rate.
    policy : "p0", "p1" or "p2"

    Examples
    --------
    >>> from nearzip.stages import RawBytes
    >>> x = np.zeros(1000, np.float32)
    >>> x[[3, 500]] = 0.25, -1.5
    >>> stage = BloomIndex(Chain((RawBytes(),)))
    >>> len(stage.encode(x, Context.of(x)).side)
    6
    """

    id = "bloom-index"
    takes = FLOATS
    streams = {"values": Stream(FLOATS)}  # noqa: RUF012

    values: Chain
    eps: float = 0.001
    policy: Policy = "p0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2.0**-_MAX_HASHES <= self.eps < 1:
            raise UsageError(f"the share of zeros that pass a filter lies between 0 and 1, not {self.eps}")

    def split(self, value: Any, context: Context) -> tuple[Sequence[Any], bytes]:
        refuse_exact(value.dtype)
        typed = round_to(context.dtype, value)
        with np.errstate(invalid="ignore"):  # bfloat16 NaN
            keys = np.flatnonzero(typed != 0)
        n_hashes, n_bits = filter_bits(keys.size, self.eps)
        bits = np.zeros(n_bits, bool)
        bits[key_cells(keys, n_hashes, n_bits).reshape(-1)] = True
        chosen = self._chosen(bits, n_hashes, keys.size, context.n)
        filtered = np.packbits(bits, bitorder="little").tobytes()
        return [typed[chosen]], put_varint(n_hashes) + put_varint(n_bits) + filtered

    def join(self, streams: Sequence[Any], side: bytes, context: Context) -> Array:
        return scatter(self.pick(streams, side, context), context.n)

    def pick(self, streams: Sequence[Any], side: bytes, context: Context) -> SparseValues:
        """Places and values of what `join` scatters. Raises CorruptError."""
        require_rounded(context)
        n_hashes, at = get_varint(side, 0)
        n_bits, at = get_varint(side, at)
        if not 1 <= n_hashes <= _MAX_HASHES or n_bits < 1 or len(side) - at != -(-n_bits // 8):
            raise CorruptError("bloom-index: malformed side data")
        unpacked = np.unpackbits(np.frombuffer(side, np.uint8, offset=at), bitorder="little")
        if unpacked[n_bits:].any():
            raise CorruptError("bloom-index: bits behind the filter")
        [values] = streams
        chosen = self._chosen(unpacked[:n_bits].astype(bool), n_hashes, values.size, context.n)
        if chosen.size != values.size:
            raise CorruptError("bloom-index: as many values as indices are needed")
        return SparseValues(chosen, values)

    def decode_sparse(self, coded: Any, context: Context) -> SparseValues:
        """As `decode`, without the dense array."""
        return self.pick(self.read_streams(coded, context), coded.side, context)

    def _chosen(self, bits: Array, n_hashes: int, n_keys: int, n: int) -> Array:
        """The indices whose values are sent, increasing."""
        positives = _positives(bits, n_hashes, n)
        if self.policy == "p0":
            return positives
        if self.policy == "p1":
            order = np.argsort(_hashes(positives.astype(np.uint64))[1], kind="stable")
            return np.sort(positives[order[:n_keys]])
        return np.sort(_most_certain(positives, n_hashes, bits.size, n_keys))
