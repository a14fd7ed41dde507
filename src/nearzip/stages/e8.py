"""Eight differences at once to the nearest point of the lattice E8."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError
from nearzip.stages.base import FLOATS, SYMBOLS, Context, Grid
from nearzip.stages.entropy import Rans
from nearzip.stages.pipeline import Chain
from nearzip.stages.quantize import MAX_STEPS, Widened, check_step, refuse_exact, require_rounded
from nearzip.stages.split import Split, Stream
from nearzip.tensors import Array

__all__ = ["E8Step", "UnbiasedE8Step", "e8_gain", "nearest_points"]

#: The lattice's dimension.
_M = 8
#: Groups looked at together: what is computed of them stays in the processor's cache.
_TOGETHER = 2048
#: Groups from which a gain is estimated.
_SAMPLE = 1 << 16
#: Where fewer groups than that are small, all are coordinates; where fewer are large, small ones are numbers.
_FEW_SMALL, _FEW_LARGE = 0.12, 0.45
_NO_GRID = Grid(0, 0, 0, 0)


def _nearest(x: Array) -> Array:
    """Twice the nearest point to each column of `x`, shape (8, m), magnitudes below 2^30; float64.

    In either coset every coordinate is rounded, and where the sum is odd, the one that was rounded farthest goes to its
    other side (Conway and Sloane, 1982).
    """
    whole, half = np.rint(x), np.floor(x)
    off_whole, off_half = x - whole, x - half
    off_half -= 0.5
    odd_whole, odd_half = _is_odd(whole), _is_odd(half)
    second = _distance(off_whole, odd_whole) > _distance(off_half, odd_half)
    point: Array = np.where(second, half, whole)
    odd = np.flatnonzero(np.where(second, odd_half, odd_whole))
    off = np.where(second[odd], off_half[:, odd], off_whole[:, odd])
    worst = np.abs(off).argmax(axis=0)
    point[worst, odd] += np.where(off[worst, np.arange(odd.size)] < 0, -1.0, 1.0)
    point *= 2
    point += second
    return point


def _is_odd(points: Array) -> Array:
    total = points.sum(axis=0)
    odd: Array = total - 2 * np.floor(total / 2)
    return odd


def _distance(off: Array, odd: Array) -> Array:
    """Squares, summed, once the farthest coordinate of odd ones went the other way: (1 - |e|)^2 in place of e^2."""
    squares: Array = (off * off).sum(axis=0)
    squares += odd * (1 - 2 * np.abs(off).max(axis=0))
    return squares


def nearest_points(values: Array, step: float) -> Array:
    """Twice the points of E8 nearest to each eight of values / step: int32, shape (ceil(n / 8), 8).

    E8 is all groups of eight integers with an even sum, and all of these with a half added to each coordinate. The last
    group is filled up with zeros. Values that are not finite or lie beyond 2^29 steps count as 0.

    Examples
    --------
    >>> nearest_points(np.array([0.9, 0.1, 0, 0, 0, 0, 0, 0.7, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4]), 1.0)
    array([[2, 0, 0, 0, 0, 0, 0, 2],
           [1, 1, 1, 1, 1, 1, 1, 1]], dtype=int32)
    """
    m = -(-values.size // _M)
    points = np.empty((m, _M), np.int32)
    for at in range(0, m, _TOGETHER):
        with np.errstate(over="ignore", invalid="ignore"):
            some = values[_M * at : _M * (at + _TOGETHER)].astype(np.float64) / step
        some[~(np.abs(some) < MAX_STEPS)] = 0
        some = np.append(some, np.zeros(-some.size % _M)) if some.size % _M else some
        points[at : at + _TOGETHER] = _nearest(np.ascontiguousarray(some.reshape(-1, _M).T)).T
    return points


@functools.cache
def _roots() -> Array:
    """Twice the 240 points nearest to the origin, shape (240, 8): two coordinates of size 1, then all of size 1/2."""
    points = np.zeros((240, _M), np.int32)
    signs = itertools.product((2, -2), repeat=2)
    for number, ((i, j), (a, b)) in enumerate(itertools.product(itertools.combinations(range(_M), 2), tuple(signs))):
        points[number, [i, j]] = a, b
    for number in range(128):
        negative = [number >> i & 1 for i in range(_M - 1)]
        points[112 + number] = 1 - 2 * np.array([*negative, sum(negative) & 1])
    return points


_POWERS = 5 ** np.arange(_M)


@functools.cache
def _root_numbers() -> Array:
    """Numbers of roots, by their coordinates as digits."""
    numbers = np.zeros(5**_M, np.uint8)
    numbers[(_roots() + 2) @ _POWERS] = np.arange(240)
    return numbers


def _halves_of_norms(points: Array) -> Array:
    """Half the squared length of each point, an integer; of long ones some large number."""
    small = np.minimum(np.abs(points), 64)
    halves: Array = (small * small).sum(axis=1) >> 3
    return halves


def _zeros_first(flags: Array) -> Array:
    """Indices of zeros, then indices of ones."""
    return np.concatenate([np.flatnonzero(flags == 0), np.flatnonzero(flags)])


def _require(good: Any, message: str) -> None:
    if not good:
        raise CorruptError(message)


@dataclass(frozen=True)
class E8Step(Split):
    """Each eight neighbouring values to the nearest point of the lattice E8 times `step`.

    The cell around a point has the volume step^8, as eight values rounded to multiples of `step` have. Its mean square
    error is 14 % less where steps are fine; a single value may be off by up to a whole step. What is not finite or lies
    beyond 2^29 steps becomes 0 and is left to the codec's patch. The last group is filled up with zeros.

    Groups are told apart by their *shell*, half the squared length of their point in steps, at most `limit` (0, 1 or 2,
    in the side data): those at the limit are coordinates; of the others those in shell 1 are one of its 240 points,
    those in shell 0 are zeros. A point's coset is 1 where its coordinates are halves; coordinates are rounded down; the
    parity of seven gives that of the last, so the last is halved.

    Parameters
    ----------
    step : float
        > 0.
    shells, roots, cosets, coordinates, lasts : Chain
        Of the streams: shells of all groups, unless `limit` is 0; numbers of points in shell 1, if it is 2; cosets of
        the groups at the limit; seven coordinates of each of these, first of all in coset 0; their last coordinates,
        halved, in that order, but first where seven have an even sum. If `limit` is 0, `coordinates` holds all eight,
        the last halved, in the order of the values, and `lasts` nothing.

    Examples
    --------
    >>> stage, x = E8Step(0.5), np.array([0.5, 0, 0, -0.4, 0.1, 0, 0, 0], np.float32)
    >>> stage.decode(stage.encode(x), Context.of(x))
    array([ 0.5,  0. ,  0. , -0.5,  0. ,  0. ,  0. ,  0. ])
    """

    id = "e8-step"
    takes = FLOATS
    streams = {  # noqa: RUF012
        "shells": Stream(SYMBOLS, np.dtype(np.uint8)),
        "roots": Stream(SYMBOLS, np.dtype(np.uint8)),
        "cosets": Stream(SYMBOLS, np.dtype(np.uint8)),
        "coordinates": Stream(SYMBOLS, np.dtype(np.int32)),
        "lasts": Stream(SYMBOLS, np.dtype(np.int32)),
    }

    step: float
    shells: Chain = Chain((Rans(),))
    roots: Chain = Chain((Rans("planes"),))
    cosets: Chain = Chain((Rans(),))
    coordinates: Chain = Chain((Rans(),))
    lasts: Chain = Chain((Rans(),))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step(self.step)

    @property
    def spacing(self) -> float:
        """Values are brought to points times this, restored as points times `step`."""
        return self.step

    @property
    def grid(self) -> float:
        """Values are multiples of this."""
        return self.step / 2

    def split(self, value: Any, context: Context) -> tuple[Sequence[Any], bytes]:
        refuse_exact(value.dtype)
        points = nearest_points(value, self.spacing)
        norms = _halves_of_norms(points)
        limit = _best_limit(norms)
        shells = np.minimum(norms, limit).astype(np.uint8)
        roots = _root_numbers()[(points[shells == 1] + 2) @ _POWERS] if limit == 2 else np.empty(0, np.uint8)
        own = points[shells == limit] if limit else points
        cosets = (own[:, 0] & 1).astype(np.uint8)
        streams = _lie_in_place(own) if limit == 0 else _by_coset(own, cosets)
        return [shells if limit else shells[:0], roots, cosets, *streams], bytes([limit])

    def join(self, streams: Sequence[Any], side: bytes, context: Context) -> Array:
        require_rounded(context)
        _require(len(side) == 1 and side[0] <= 2, "a limit of shells is out of range")
        for name, stream in zip(self.streams, streams, strict=True):
            _require(stream.dtype == self.streams[name].dtype, f"{name} have another type")
        limit, m = side[0], -(-context.n // _M)
        shells, roots, cosets, coordinates, lasts = streams
        _require(shells.size == (m if limit else 0), "as many shells as groups are needed")
        _require(not shells.size or int(shells.max()) <= limit, "a shell is out of range")
        own = np.flatnonzero(shells == limit) if limit else np.arange(m)
        _check_cosets(cosets, own.size)
        roots_at = np.flatnonzero(shells == 1) if limit == 2 else own[:0]
        _require(roots.size == roots_at.size and not (roots >= len(_roots())).any(), "points that do not exist")
        if limit == 0:
            _require(not lasts.size and coordinates.size == _M * m, "eight coordinates for each group are needed")
            points = _from_place(coordinates.reshape(-1, _M), cosets)
        else:
            _require(lasts.size == own.size and coordinates.size == 7 * own.size, "coordinates are missing")
            points, order = np.zeros((m, _M)), _zeros_first(cosets)
            points[roots_at] = _roots()[roots]
            points[own[order]] = _from_cosets(coordinates.reshape(-1, _M - 1), lasts, cosets[order])
        points *= 0.5
        with np.errstate(over="ignore", under="ignore"):
            points *= self.step
        return points.reshape(-1)[: context.n]

    def _context(self, name: str, n: int, context: Context) -> Context:
        """Shells of whole rows, and coordinates in the order of the values, lie in the grids of their tensors."""
        dtype, m = np.dtype(self.streams[name].dtype), -(-context.n // _M)
        if name == "coordinates" and n == _M * m and context.grids:
            return Context(dtype, (*context.parts, n - context.n), None, (*context.grids, _NO_GRID))
        if name == "shells" and n == m and all(map(_has_whole_groups, context.parts, context.grids)) and context.grids:
            grids = tuple(Grid(*(g.row // _M, 1, 1, g.start // _M) if g.row else _NO_GRID) for g in context.grids)
            return Context(dtype, tuple(part // _M for part in context.parts), None, grids)
        return super()._context(name, n, context)


def _has_whole_groups(part: int, grid: Grid) -> bool:
    return not (part % _M or grid.row % _M or grid.start % _M)


def _best_limit(norms: Array) -> int:
    """By how many groups are small: in shells 0 and 1."""
    n_small = np.count_nonzero(norms <= 1)
    if n_small < _FEW_SMALL * norms.size:
        return 0
    return 2 if norms.size - n_small < _FEW_LARGE * norms.size else 1


def _parities(seven: Array) -> Array:
    parities: Array = np.bitwise_xor.reduce(seven, axis=1) & 1
    return parities


def _lie_in_place(points: Array) -> list[Array]:
    coordinates = points >> 1
    coordinates[:, -1] -= _parities(coordinates[:, :-1])
    coordinates[:, -1] >>= 1
    return [coordinates.reshape(-1), np.empty(0, np.int32)]


def _by_coset(points: Array, cosets: Array) -> list[Array]:
    coordinates = points[_zeros_first(cosets)] >> 1
    seven = np.ascontiguousarray(coordinates[:, :-1])
    parities = _parities(seven)
    lasts = (coordinates[:, -1] - parities) >> 1
    return [seven.reshape(-1), lasts[_zeros_first(parities)]]


def _check_cosets(cosets: Array, n: int) -> None:
    _require(cosets.size == n and not (cosets > 1).any(), "one of two cosets for each group is needed")


def _from_place(coordinates: Array, cosets: Array) -> Array:
    """Twice the points, float64: numbers in a file may be any, sums of integers could wrap around."""
    points = coordinates.astype(np.float64)
    points[:, -1] *= 2
    points[:, -1] += _parities(coordinates[:, :-1])
    points *= 2
    points += cosets[:, None]
    return points


def _from_cosets(seven: Array, lasts: Array, cosets: Array) -> Array:
    """Twice the points, float64, in the order of the coordinates; `cosets` in that order, too."""
    points = np.empty((len(seven), _M))
    points[:, :-1] = seven
    parities = _parities(seven)
    order = _zeros_first(parities)
    points[order, -1] = lasts
    points[:, -1] *= 2
    points[:, -1] += parities
    points *= 2
    points += cosets[:, None]
    return points


@dataclass(frozen=True)
class UnbiasedE8Step(Widened, E8Step):
    """`E8Step` with a gain: see `e8_gain`."""

    reads = E8Step
    gain: float = 1.0


def e8_gain(values: Array, base: Array | None, step: float) -> float:
    """As `quantize.unbiased_gain`, for points of E8: |d|^2 / <d, q>, of some of the groups; 1 where all become zero.

    Parameters
    ----------
    values, base : array, floating point
        Of one shape; `base` may be None: zeros.
    step : float
    """
    with np.errstate(invalid="ignore", over="ignore"):
        d = _sample(values.reshape(-1))
        if base is not None:
            d = d - _sample(base.reshape(-1))
        d = d / step
    d = np.where(np.abs(d) < MAX_STEPS, d, 0.0)
    itself, moved = float((d * d).sum()), float((d * nearest_points(d, 1.0).reshape(-1)[: d.size]).sum())
    return 2 * itself / moved if moved > 0 else 1.0


def _sample(flat: Array) -> Array:
    """Groups from all over a tensor, float64."""
    every = max(1, flat.size // _M // _SAMPLE)
    if every > 1:
        flat = flat[: flat.size // (_M * every) * (_M * every)].reshape(-1, every, _M)[:, 0].reshape(-1)
    return flat.astype(np.float64)
