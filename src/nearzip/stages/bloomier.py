"""A Bloomier filter replaces the list of positions: every weight is looked up, and some zeros come back wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip._core as _core
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, FLOATS, Coded, Context, SparseValues, Stage, get_varint, put_varint
from nearzip.stages.codebook import cluster, nearest, read_centroids
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array, round_to

__all__ = ["Bloomier"]

#: Peeling fails for every seed below some 1.222 slots a key; the additional slots serve small tables.
_SLACK, _MORE_SLOTS = 1.23, 12
#: After so many seeds in vain the table grows by a twentieth.
_SEEDS = 8
_MAX_SLOTS = (1 << 32) - 4


@dataclass(frozen=True)
class Bloomier(Stage):
    """Which weights are not zero, and their shared values, as one Bloomier filter (Weightless: Reagen et al. 2018).

    Nonzero values are clustered; the filter maps their positions to cluster numbers. A query takes four hash functions,
    three slots and a mask. About clusters / 2^bits of the zeros come back as a cluster: false positives, which
    retraining of the later layers has to make up for. Nothing is promised.

    Side data: seed, slots, bytes of the shared values, shared values. Payload: the slots, `bits` each.

    Parameters
    ----------
    clusters : int
        Most shared values, at least 1 and below 2^bits.
    bits : int
        Of a slot, 1 to 16.

    Examples
    --------
    >>> x = np.zeros(1000, np.float32)
    >>> x[[3, 500]] = 0.25, -1.5
    >>> coded = Bloomier(2, 16).encode(x, Context.of(x))
    >>> Bloomier(2, 16).decode(coded, Context.of(x))[[3, 500]]
    array([ 0.25, -1.5 ], dtype=float32)
    """

    id = "bloomier"
    takes, gives = FLOATS, BYTES
    errs_on_zeros = True

    clusters: int = 16
    bits: int = 9

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16 or not 1 <= self.clusters < 1 << self.bits:
            raise UsageError(
                f"a filter has slots of 1 to 16 bits and fewer clusters than these tell apart, not {self.clusters} "
                f"clusters in {self.bits} bits"
            )

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        values = round_to(context.dtype, value) if context else value
        keys = np.flatnonzero((values != 0) & np.isfinite(values))
        centroids = cluster(values[keys], self.clusters)
        numbers = nearest(values[keys], centroids).astype(np.uint16)
        seed, table = _build(keys.astype(np.uint64), numbers, self.bits)
        side = put_varint(seed) + put_varint(table.size) + centroids.tobytes()
        return Coded(_packed(table, self.bits), side)

    def decode(self, coded: Coded, context: Context) -> Array:
        numbers, centroids = self._query(coded, context)
        with_zero: Array = np.concatenate([np.zeros(1, centroids.dtype), centroids])
        decoded: Array = with_zero[numbers]
        return decoded

    def decode_sparse(self, coded: Coded, context: Context) -> SparseValues:
        numbers, centroids = self._query(coded, context)
        indices = np.flatnonzero(numbers)
        return SparseValues(indices, centroids[numbers[indices] - 1])

    def _query(self, coded: Coded, context: Context) -> tuple[Array, Array]:
        """For every value 0, or one more than the index of its shared value, uint16; and the shared values."""
        require_rounded(context)
        seed, at = get_varint(coded.side, 0)
        slots, at = get_varint(coded.side, at)
        centroids = read_centroids(coded.side[at:], context.dtype)
        if not 0 < slots <= _MAX_SLOTS or slots % 3 or centroids.size >= 1 << self.bits:
            raise CorruptError("no encoder makes a filter of this shape")
        if len(coded.data) != -(-slots * self.bits // 8):
            raise CorruptError("filter has another length")
        numbers = np.empty(context.n, np.uint16)
        _core.query_bloomier(_unpacked(coded.data, slots, self.bits), seed, self.bits, centroids.size, numbers)
        return numbers, centroids


def _build(keys: Array, numbers: Array, bits: int) -> tuple[int, Array]:
    """The first seed that works out, and its table."""
    slots = 3 * math.ceil((_SLACK * keys.size + _MORE_SLOTS) / 3)
    seed = 0
    while slots <= _MAX_SLOTS:
        table = np.empty(slots, np.uint16)
        for _ in range(_SEEDS):
            if _core.build_bloomier(keys, numbers, seed, bits, table):
                return seed, table
            seed += 1
        slots = 3 * math.ceil(slots * 1.05 / 3)
    raise UsageError(f"{keys.size} weights are too many for one Bloomier filter")


def _packed(table: Array, bits: int) -> bytes:
    """`bits` of each slot, least significant first."""
    spread = np.unpackbits(table.astype("<u2").view(np.uint8), bitorder="little").reshape(-1, 16)[:, :bits]
    return np.packbits(spread.reshape(-1), bitorder="little").tobytes()


def _unpacked(data: bytes | memoryview, slots: int, bits: int) -> Array:
    spread = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if spread[slots * bits :].any():
        raise CorruptError("padding is not zero")
    table = np.zeros((slots, 16), np.uint8)
    table[:, :bits] = spread[: slots * bits].reshape(slots, bits)
    return np.packbits(table.reshape(-1), bitorder="little").view("<u2").astype(np.uint16)
