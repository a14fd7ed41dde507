"""Sparse values as buckets in small hashed tables: the grouped min-max sketch of SketchML and SKCompress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, SparseValues, get_varint, put_varint
from nearzip.stages.bloom import key_cells
from nearzip.stages.pipeline import Chain
from nearzip.stages.quantiles import QuantileBuckets
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.stages.sparse import scatter
from nearzip.stages.split import Split, Stream
from nearzip.tensors import Array, round_to

__all__ = ["MinMaxSketch"]

#: Rows of every table.
_ROWS = 2
_MAX_BUCKETS, _MAX_GROUPS = 256, 64


@dataclass(frozen=True)
class _Group:
    """Buckets of one sign next to each other: the numbers of their middles, from the one nearest to zero."""

    buckets: Array


def _groups(middles: Array, groups: int) -> list[_Group]:
    """Half of the groups for each sign, in runs of equal length by distance from zero; a sign without values has none.

    A number of groups that is odd counts as the next even one.
    """
    found: list[_Group] = []
    for own in (np.flatnonzero(middles < 0)[::-1], np.flatnonzero(middles > 0)):
        found += [_Group(part) for part in np.array_split(own, -(-groups // 2)) if part.size]
    return found


@dataclass(frozen=True)
class MinMaxSketch(Split):
    """Nonzero values as quantile buckets in grouped min-max sketches (SKCompress: Jiang et al., VLDB Journal 2020).

    Buckets, as of `QuantileBuckets`, are divided into groups by sign and distance from zero. The keys of a group, the
    indices of its values, are distances as in `Sparse`. Their buckets are in a table of two rows: each row has a cell
    for every key, by a hash, which keeps the bucket nearest to zero of all that meet there. A decoder takes of a key's
    two cells the bucket farther from zero. Collisions therefore move values towards zero, within their group, and never
    change a sign. Values that are not finite, or whose middle is zero, become zero. Nothing is promised.

    Side data: number of middles as a varint, the middles, increasing, float32 (float64 for float64); the number of keys
    of each group as varints.

    Parameters
    ----------
    keys, tables : Chain
        Stages of the distances, group after group, and of the cells, row after row of one table after the other.
    buckets : int
        2 to 256.
    groups : int
        1 to 64.
    columns : float
        Cells of a row for each key of the group, rounded up: above 0, up to 0.5.

    Examples
    --------
    >>> from nearzip.stages import Huffman, Rans
    >>> x = np.zeros(10_000, np.float32)
    >>> x[::100] = np.linspace(-2, 3, 100)
    >>> stage = MinMaxSketch(Chain((Rans(),)), Chain((Huffman(),)), buckets=16)
    >>> back = stage.decode(stage.encode(x, Context.of(x)), Context.of(x))
    >>> bool((np.sign(back) == np.sign(x)).all())
    True
    """

    id = "min-max-sketch"
    takes = FLOATS
    streams = {"keys": Stream(SYMBOLS, np.dtype(np.uint32)), "tables": Stream(SYMBOLS, np.dtype(np.uint8))}  # noqa: RUF012

    keys: Chain
    tables: Chain
    buckets: int = 256
    groups: int = 8
    columns: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.buckets <= _MAX_BUCKETS:
            raise UsageError(f"values go into 2 to {_MAX_BUCKETS} buckets, not {self.buckets}")
        if not 1 <= self.groups <= _MAX_GROUPS:
            raise UsageError(f"buckets are in 1 to {_MAX_GROUPS} groups, not {self.groups}")
        if not 0 < self.columns <= 0.5:
            raise UsageError(f"a key has above 0 and up to 0.5 cells in a row, not {self.columns}")

    def _width(self, n_keys: int) -> int:
        return math.ceil(self.columns * n_keys)

    def split(self, value: Any, context: Context) -> tuple[Sequence[Any], bytes]:
        refuse_exact(value.dtype)
        typed = round_to(context.dtype, value)
        with np.errstate(invalid="ignore"):  # bfloat16 NaN
            indices = np.flatnonzero((typed != 0) & np.isfinite(typed.astype(np.float64)))
        values = typed[indices]
        coded = QuantileBuckets(self.buckets).encode(values, Context.of(values))
        middles = np.frombuffer(coded.side, _middle_type(context))
        gaps, cells, counts = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint8)], b""
        for group in _groups(middles, self.groups):
            number = np.full(middles.size, -1)
            number[group.buckets] = np.arange(group.buckets.size)
            own = number[coded.symbols]
            keys, own = indices[own >= 0], own[own >= 0]
            counts += put_varint(keys.size)
            gaps.append((np.diff(keys, prepend=-1) - 1).astype(np.uint32))
            cells.append(self._table(keys, own, group))
        return [np.concatenate(gaps), np.concatenate(cells)], put_varint(middles.size) + coded.side + counts

    def _table(self, keys: Array, numbers: Array, group: _Group) -> Array:
        """The cells of both rows; one that no key meets holds zero, the commonest of all."""
        width = self._width(keys.size)
        table = np.full((_ROWS, max(1, width)), group.buckets.size, np.int64)
        for row, cells in zip(table, key_cells(keys, _ROWS, max(1, width)), strict=True):
            np.minimum.at(row, cells, numbers)
        table[table == group.buckets.size] = 0
        return table[:, :width].astype(np.uint8).reshape(-1)

    def join(self, streams: Sequence[Any], side: bytes, context: Context) -> Array:
        return scatter(self.pick(streams, side, context), context.n)

    def pick(self, streams: Sequence[Any], side: bytes, context: Context) -> SparseValues:
        """Indices and values of what `join` scatters. Raises CorruptError."""
        require_rounded(context)
        gaps, cells = streams
        if gaps.dtype != np.uint32 or cells.dtype != np.uint8:
            raise CorruptError("min-max-sketch: keys and cells are of other types")
        middles, counts = self._read_side(side, context)
        groups = _groups(middles, self.groups)
        if sum(counts) != gaps.size or sum(_ROWS * self._width(n) for n in counts) != cells.size:
            raise CorruptError("min-max-sketch: as many keys and cells as groups say are needed")
        found, values = [np.zeros(0, np.int64)], [np.zeros(0, middles.dtype)]
        at = cell = 0
        for group, n in zip(groups, counts, strict=True):
            keys = _keys(gaps[at : at + n], context.n)
            table = cells[cell : cell + _ROWS * self._width(n)].reshape(_ROWS, -1)
            at, cell = at + n, cell + table.size
            if not n:
                continue
            if int(table.max()) >= group.buckets.size:
                raise CorruptError("min-max-sketch: a cell has no bucket")
            rows = key_cells(keys, _ROWS, table.shape[1])
            farthest = np.maximum(table[0][rows[0]], table[1][rows[1]])
            found.append(keys)
            values.append(middles[group.buckets[farthest]])
        indices = np.concatenate(found)
        order = np.argsort(indices, kind="stable")
        indices = indices[order]
        if (np.diff(indices) <= 0).any():
            raise CorruptError("min-max-sketch: a key is in two groups")
        return SparseValues(indices, np.concatenate(values)[order])

    def _read_side(self, side: bytes, context: Context) -> tuple[Array, list[int]]:
        """Middles, and keys of each group."""
        kind = _middle_type(context)
        n, at = get_varint(side, 0)
        if n > _MAX_BUCKETS or len(side) - at < n * kind.itemsize:
            raise CorruptError("min-max-sketch: malformed side data")
        middles = np.frombuffer(side, kind, n, at).astype(kind.newbyteorder("="))
        if not np.isfinite(middles).all() or (middles[1:] < middles[:-1]).any():
            raise CorruptError("min-max-sketch: middles are not finite, or not in order")
        at += n * kind.itemsize
        counts = []
        for _ in _groups(middles, self.groups):
            n_keys, at = get_varint(side, at)
            if n_keys > context.n:
                raise CorruptError("min-max-sketch: a group has more keys than there are values")
            counts.append(n_keys)
        if at != len(side):
            raise CorruptError("min-max-sketch: malformed side data")
        return middles, counts

    def decode_sparse(self, coded: Coded, context: Context) -> SparseValues:
        """As `decode`, without the dense array."""
        return self.pick(self.read_streams(coded, context), coded.side, context)


def _keys(gaps: Array, n: int) -> Array:
    steps = gaps.astype(np.int64) + 1
    # In floating point first: a sum of hostile distances must not wrap around.
    if steps.size and steps.sum(dtype=np.float64) > n:
        raise CorruptError("min-max-sketch: keys lead beyond the block")
    keys: Array = np.cumsum(steps) - 1
    return keys


def _middle_type(context: Context) -> np.dtype[Any]:
    return np.dtype("<f8" if context.dtype.itemsize == 8 else "<f4")
