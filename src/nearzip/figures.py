"""Figures of two arrays: differences, moments, histogram and SSIM, as sums that add up over pieces and tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

import nearzip._core as _core
from nearzip.similarity import as_float64, real_parts, ssim_within
from nearzip.tensors import Array, bits_of, is_float

__all__ = ["Figures", "LinearFit", "PairSums", "sums_of"]

#: Values that are looked at together.
_PIECE = 1 << 18
#: Values of a large tensor that the histogram and SSIM look at, and rows at least.
_LOOKED_AT, _MIN_ROWS = 1 << 18, 7


@dataclass(frozen=True)
class LinearFit:
    """The least-squares line b = slope a + intercept, and the correlation of a and b."""

    slope: float
    intercept: float
    r: float


@dataclass(frozen=True)
class Figures:
    """What is known about values of `b` beside those of `a`; in float64, complex numbers as pairs.

    Attributes
    ----------
    n_values, n_unchanged : int
        Values in all, and those with the same bits.
    n_nonfinite_mismatches : int
        Places where one is NaN or infinite and the other is not, or is another infinity. The figures below leave out
        every place where either is not finite.
    max_abs_error, rms_error, mean_difference : float
        Of b - a.
    mdm : float
        Mean of |b - a|: QD-Compressor's Manhattan distance mean, equation 6.
    max_relative_error : float
        Largest |b - a| / |a| where a is not zero.
    fit : LinearFit or None
        None where a or b does not vary.
    ssim : float or None
        See `ssim`; over several tensors the mean, weighted by number of values. None without finite values.
    histogram : dict
        k to the number of differences with 10^k <= |b - a| < 10^(k+1). Differences of zero are not counted.
    """

    n_values: int
    n_unchanged: int
    n_nonfinite_mismatches: int
    max_abs_error: float
    rms_error: float
    mean_difference: float
    mdm: float
    max_relative_error: float
    fit: LinearFit | None
    ssim: float | None
    histogram: Mapping[int, int]

    @property
    def unchanged(self) -> float:
        """The share of values with the same bits; 1 if there is no value."""
        return self.n_unchanged / self.n_values if self.n_values else 1.0

    @property
    def corrcoef(self) -> float | None:
        """QD-Compressor's CorrCoef, equation 7: that of the fit. None where a or b does not vary."""
        return self.fit.r if self.fit else None


@dataclass
class PairSums:
    """Sums that add up over pieces and tensors. Second moments are about the means (Chan et al. 1979)."""

    n_values: int = 0
    n_unchanged: int = 0
    n_mismatches: int = 0
    n: int = 0  # pairs of finite values
    max_abs: float = 0.0
    max_relative: float = 0.0
    difference: float = 0.0
    distance: float = 0.0
    squares: float = 0.0
    mean_a: float = 0.0
    mean_b: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    ssim: float = 0.0
    n_ssim: int = 0
    low: float = math.inf
    high: float = -math.inf
    histogram: Counter[int] = field(default_factory=Counter)

    def count(self, more: PairSums) -> None:
        """Take the numbers of values only."""
        self.n_values += more.n_values
        self.n_unchanged += more.n_unchanged
        self.n_mismatches += more.n_mismatches

    def merge(self, more: PairSums) -> None:
        self._merge_moments(more)
        for name in (
            "n_values",
            "n_unchanged",
            "n_mismatches",
            "n",
            "difference",
            "distance",
            "squares",
            "ssim",
            "n_ssim",
        ):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.max_abs = max(self.max_abs, more.max_abs)
        self.max_relative = max(self.max_relative, more.max_relative)
        self.low, self.high = min(self.low, more.low), max(self.high, more.high)
        self.histogram.update(more.histogram)

    def _merge_moments(self, more: PairSums) -> None:
        n = self.n + more.n
        if not more.n:
            return
        step_a, step_b = more.mean_a - self.mean_a, more.mean_b - self.mean_b
        weight = self.n * (more.n / n)
        self.aa += more.aa + step_a * step_a * weight
        self.bb += more.bb + step_b * step_b * weight
        self.ab += more.ab + step_a * step_b * weight
        self.mean_a += step_a * (more.n / n)
        self.mean_b += step_b * (more.n / n)

    def figures(self) -> Figures:
        n = max(1, self.n)
        return Figures(
            n_values=self.n_values,
            n_unchanged=self.n_unchanged,
            n_nonfinite_mismatches=self.n_mismatches,
            max_abs_error=self.max_abs,
            rms_error=math.sqrt(self.squares / n),
            mean_difference=self.difference / n,
            mdm=self.distance / n,
            max_relative_error=self.max_relative,
            fit=self._fit(),
            ssim=self.ssim / self.n_ssim if self.n_ssim else None,
            histogram=dict(sorted(self.histogram.items())),
        )

    def _fit(self) -> LinearFit | None:
        if not (0 < self.aa < math.inf and 0 < self.bb < math.inf):
            return None
        slope = self.ab / self.aa
        r = self.ab / math.sqrt(self.aa) / math.sqrt(self.bb)
        return LinearFit(slope, self.mean_b - slope * self.mean_a, max(-1.0, min(1.0, r)))


def sums_of(a: Array, b: Array, exact: bool) -> PairSums:
    """Of one tensor. Unless `exact`, histogram and SSIM of a large one are those of a part from its middle."""
    one, two = real_parts(a).reshape(-1), real_parts(b).reshape(-1)
    if is_float(one.dtype):
        sums = _native_sums(one, two)
    else:
        sums = PairSums()
        for at in range(0, one.size, _PIECE):
            sums.merge(_piece(one[at : at + _PIECE], two[at : at + _PIECE]))
    sums.n_values, sums.n_unchanged = a.size, _n_unchanged(a, b)
    if sums.n:
        if not exact:
            a, b = _middle(a), _middle(b)
        x, y = real_parts(a), real_parts(b)
        sums.histogram = _histogram(x, y, sums.n_values / max(1, a.size))
        found = ssim_within(x, y, sums.low, sums.high)
        if found is not None:
            sums.ssim, sums.n_ssim = found * sums.n_values, sums.n_values
    return sums


def _middle(array: Array) -> Array:
    """Whole rows from the middle of a large tensor, at least the seven that SSIM's window has; of one row, a part."""
    if array.size <= _LOOKED_AT:
        return array
    if array.ndim < 2 or array.shape[0] == 1:
        flat = array.reshape(-1)
        start = (flat.size - _LOOKED_AT) // 2
        return flat[start : start + _LOOKED_AT]
    rows = min(array.shape[0], max(_MIN_ROWS, _LOOKED_AT * array.shape[0] // array.size))
    start = (array.shape[0] - rows) // 2
    return array[start : start + rows]


def _n_unchanged(a: Array, b: Array) -> int:
    same = np.equal(bits_of(a.reshape(-1)), bits_of(b.reshape(-1)))
    return int(np.count_nonzero(same if a.dtype.kind != "c" else same.reshape(-1, 2).all(axis=1)))


def _native_sums(a: Array, b: Array) -> PairSums:
    if a.dtype.itemsize < 4:
        a, b = a.astype(np.float32), b.astype(np.float32)
    n, odd, found = _core.pair_sums(a, b)
    names = ("max_abs", "max_relative", "difference", "distance", "squares", "mean_a", "mean_b", "aa", "bb", "ab")
    sums = PairSums(n=n, n_mismatches=odd)
    for name, value in zip((*names, "low", "high"), found, strict=True):
        setattr(sums, name, value)
    return sums


def _piece(a: Array, b: Array) -> PairSums:
    """Of integers and booleans, some at a time."""
    x, y = as_float64(a), as_float64(b)
    sums = PairSums()
    if x.size:
        _add_differences(sums, x, y)
        _add_moments(sums, x, y)
    return sums


def _add_differences(sums: PairSums, x: Array, y: Array) -> None:
    difference = y - x
    size = np.abs(difference)
    sums.max_abs = float(size.max())
    sums.difference = float(difference.sum())
    sums.distance = float(size.sum())
    sums.squares = float(np.square(difference).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = size / np.abs(x)
    sums.max_relative = float(relative.max(where=x != 0, initial=0.0))


def _histogram(a: Array, b: Array, weight: float) -> Counter[int]:
    """Differences by power of ten, each counted `weight` times."""
    found: Counter[int] = Counter()
    one, two = a.reshape(-1), b.reshape(-1)
    for at in range(0, one.size, _PIECE):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            size = np.abs(as_float64(two[at : at + _PIECE]) - as_float64(one[at : at + _PIECE]))
        changed = size[(size > 0) & (size < math.inf)]
        decades, counts = np.unique(np.floor(np.log10(changed)).astype(np.int16), return_counts=True)
        found.update(dict(zip(decades.tolist(), counts.tolist(), strict=True)))
    return found if weight == 1 else Counter({decade: round(weight * n) for decade, n in found.items()})


def _add_moments(sums: PairSums, x: Array, y: Array) -> None:
    sums.n = x.size
    sums.low, sums.high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    sums.mean_a, sums.mean_b = float(x.mean()), float(y.mean())
    x, y = x - sums.mean_a, y - sums.mean_b
    sums.aa, sums.bb, sums.ab = float(x @ x), float(y @ y), float(x @ y)
