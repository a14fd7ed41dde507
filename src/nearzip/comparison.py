"""How alike two networks are: differences, the linear fit and the SSIM of Delta-DNN's Figure 1, MDM and CorrCoef of
QD-Compressor's Figure 5.

Tensors are read one after the other and in pieces, so memory does not grow with the files.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.api import open_input
from nearzip.attached import without_attached
from nearzip.bounds import Statistics
from nearzip.errors import UsageError
from nearzip.fileio import size_on_disk
from nearzip.stages.ranges import Levels
from nearzip.tensors import Array, Checkpoint, TensorSpec, bits_of, dtype_of, is_float

__all__ = ["Comparison", "Figures", "LinearFit", "compare", "ssim"]

Path = str | os.PathLike[str]

#: Values that are looked at together.
_PIECE = 1 << 18
#: Pairs of values kept for plots, about.
_SAMPLE = 50_000
#: Side of SSIM's window, and its constants (Wang et al. 2004, section III.B).
_WINDOW, _K1, _K2 = 7, 0.01, 0.03


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
        k to the number of differences with 10^k <= |b - a| < 10^(k+1). Differences of zero stand nowhere.
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


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    tensors : dict
        Name to Figures, of every tensor that has the same dtype and shape in both.
    total : Figures
        Over all of them; errors, fit and similarity over the floating-point tensors alone if there are any (a counter
        of batches is no parameter).
    only_in_a, only_in_b : tuple of str
    mismatched : dict
        Name to reason: tensors of another dtype or shape, which were not compared.
    n_bytes_a, n_bytes_b : int
        Of the files, or of the tensors where no file was given.
    sample : pair of arrays
        About 50 000 pairs of values of a and b, evenly spaced, finite, in float64; for plots.
    """

    specs: Mapping[str, TensorSpec]
    tensors: Mapping[str, Figures]
    total: Figures
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    mismatched: Mapping[str, str]
    n_bytes_a: int
    n_bytes_b: int
    sample: tuple[Array, Array]

    @property
    def ratio(self) -> float:
        """Bytes of a over bytes of b."""
        return self.n_bytes_a / self.n_bytes_b if self.n_bytes_b else math.inf

    @property
    def identical(self) -> bool:
        """Same names, dtypes, shapes and bits."""
        alone = self.only_in_a or self.only_in_b or self.mismatched
        return not alone and self.total.n_unchanged == self.total.n_values


def compare(
    a: Mapping[str, Any] | Checkpoint | Path,
    b: Mapping[str, Any] | Checkpoint | Path,
    *,
    bits: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compare two networks, tensor by tensor.

    Parameters
    ----------
    a, b : mapping of str to array, Checkpoint, or path
        A path is a .safetensors, .pt, .pth, .bin or .npz file, or an .nz archive that needs no base.
    bits : int or None
        Compare floating-point tensors as QD-Compressor quantizes them: the range of each, in a and in b, in 2^bits
        levels, 1 to 16 bits. What is not finite counts as level 0.
    progress : callable
        Called with values done and values in all.

    Raises
    ------
    UsageError, NotFoundError, CorruptError
        As `compress_file` for its inputs.

    Examples
    --------
    >>> import numpy as np
    >>> a = {"w": np.arange(100, dtype=np.float32).reshape(10, 10)}
    >>> found = compare(a, {"w": a["w"] * 2 + 1})
    >>> found.total.fit
    LinearFit(slope=2.0, intercept=1.0, r=1.0)
    >>> found.total.max_abs_error, found.identical
    (100.0, False)
    """
    if bits is not None and not 1 <= bits <= 16:
        raise UsageError(f"values are quantized to 1 to 16 bits, not {bits}")
    with _opened(a) as (source, n_bytes_a), _opened(b) as (other, n_bytes_b):
        both = [(spec, other.specs[name]) for name, spec in source.specs.items() if name in other.specs]
        mismatched = {
            spec.name: f"{spec.dtype} {list(spec.shape)} in a, {their.dtype} {list(their.shape)} in b"
            for spec, their in both
            if not spec.same_kind(their)
        }
        specs = {spec.name: spec for spec, _ in both if spec.name not in mismatched}
        parameters = {name for name, spec in specs.items() if is_float(dtype_of(spec.dtype))} or set(specs)
        n_total = sum(spec.n_elements for spec in specs.values())
        sample = _Sample(max(1, n_total // _SAMPLE))
        total = _Sums()
        tensors = {}
        for name in specs:
            one, two = _quantized(source.read(name), bits), _quantized(other.read(name), bits)
            sums = _tensor(one, two)
            tensors[name] = sums.figures()
            if name in parameters:
                sample.add(one, two)
                total.merge(sums)
            else:
                total.count(sums)
            if progress:
                progress(total.n_values, n_total)
    return Comparison(
        specs=specs,
        tensors=tensors,
        total=total.figures(),
        only_in_a=tuple(name for name in source.specs if name not in other.specs),
        only_in_b=tuple(name for name in other.specs if name not in source.specs),
        mismatched=mismatched,
        n_bytes_a=n_bytes_a,
        n_bytes_b=n_bytes_b,
        sample=sample.pair(),
    )


def _quantized(values: Array, bits: int | None) -> Array:
    """Levels of the array's own range, or the array itself."""
    if bits is None or not is_float(values.dtype):
        return values
    found = Statistics.of(values)
    return Levels(found.low, found.high, bits).quantize(values)


@contextlib.contextmanager
def _opened(place: Any) -> Iterator[tuple[Checkpoint, int]]:
    if isinstance(place, Checkpoint):
        yield place, place.n_bytes
    elif isinstance(place, Mapping):
        checkpoint = Checkpoint.of(place)
        yield checkpoint, checkpoint.n_bytes
    else:
        checkpoint = open_input(place)
        try:
            yield without_attached(checkpoint), size_on_disk(place) or checkpoint.n_bytes
        finally:
            checkpoint.close()


# ---- sums over pieces ------------------------------------------------------------------------------------------


@dataclass
class _Sums:
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

    def count(self, more: _Sums) -> None:
        """Take the numbers of values only."""
        self.n_values += more.n_values
        self.n_unchanged += more.n_unchanged
        self.n_mismatches += more.n_mismatches

    def merge(self, more: _Sums) -> None:
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

    def _merge_moments(self, more: _Sums) -> None:
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


def _parts(array: Array) -> Array:
    """Complex numbers as pairs, everything else as it is."""
    if array.dtype.kind != "c":
        return array
    return array.reshape(array.shape or (1,)).view(np.float32 if array.itemsize == 8 else np.float64)


def _float64(values: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)


def _tensor(a: Array, b: Array) -> _Sums:
    sums = _Sums()
    one, two = a.reshape(-1), b.reshape(-1)
    for at in range(0, one.size, _PIECE):
        sums.merge(_piece(one[at : at + _PIECE], two[at : at + _PIECE]))
    if sums.n:
        found = _ssim(_parts(a), _parts(b), sums.low, sums.high)
        if found is not None:
            sums.ssim, sums.n_ssim = found * sums.n_values, sums.n_values
    return sums


def _piece(a: Array, b: Array) -> _Sums:
    same = (bits_of(a) == bits_of(b)).reshape(a.size, -1).all(axis=1)
    x, y = _float64(_parts(a)), _float64(_parts(b))
    finite = np.isfinite(x) & np.isfinite(y)
    odd = ~finite & ~((x == y) | (np.isnan(x) & np.isnan(y)))
    sums = _Sums(n_values=a.size, n_unchanged=int(same.sum()), n_mismatches=int(odd.sum()))
    if not finite.all():
        x, y = x[finite], y[finite]
    if x.size:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            _add_differences(sums, x, y)
            _add_moments(sums, x, y)
    return sums


def _add_differences(sums: _Sums, x: Array, y: Array) -> None:
    difference = y - x
    size = np.abs(difference)
    sums.max_abs = float(size.max())
    sums.difference = float(difference.sum())
    sums.distance = float(size.sum())
    sums.squares = float(np.square(difference).sum())
    with np.errstate(divide="ignore"):
        relative = size / np.abs(x)
    sums.max_relative = float(relative.max(where=x != 0, initial=0.0))
    changed = size[(size > 0) & (size < math.inf)]
    decades, counts = np.unique(np.floor(np.log10(changed)).astype(np.int64), return_counts=True)
    sums.histogram = Counter(dict(zip(decades.tolist(), counts.tolist(), strict=True)))


def _add_moments(sums: _Sums, x: Array, y: Array) -> None:
    sums.n = x.size
    sums.low, sums.high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    sums.mean_a, sums.mean_b = float(x.mean()), float(y.mean())
    x, y = x - sums.mean_a, y - sums.mean_b
    sums.aa, sums.bb, sums.ab = float(x @ x), float(y @ y), float(x @ y)


class _Sample:
    """Every n-th pair of values."""

    def __init__(self, every: int):
        self._every = every
        self._pairs: list[tuple[Array, Array]] = []

    def add(self, a: Array, b: Array) -> None:
        x, y = (_float64(_parts(array).reshape(-1)[:: self._every]) for array in (a, b))
        finite = np.isfinite(x) & np.isfinite(y)
        self._pairs.append((x[finite], y[finite]))

    def pair(self) -> tuple[Array, Array]:
        if not self._pairs:
            return np.empty(0), np.empty(0)
        one, two = zip(*self._pairs, strict=True)
        return np.concatenate(one), np.concatenate(two)


# ---- structural similarity -------------------------------------------------------------------------------------


def ssim(a: Array, b: Array) -> float | None:
    """Mean structural similarity of two arrays of one shape, taken for pictures.

    Wang et al. 2004, equation 13, with K1 = 0.01 and K2 = 0.03. Delta-DNN (section 2.3) does not say how parameters
    become a picture; our reading:

    ==================  ===============================================
    shape               picture
    ==================  ===============================================
    (n, ...)            n rows, the other axes flattened into columns
    (n,) or ()          one row
    ==================  ===============================================

    Windows are uniform, 7 x 7 or as much of that as fits, at every place where they lie inside the picture; variances
    are those of the population. The dynamic range L is max - min over both arrays. Values are taken as they are, signs
    included. Windows with a non-finite value are left out; None if no window is left
    or the range overflows. Equal arrays give exactly 1.

    Examples
    --------
    >>> x = np.arange(64.0).reshape(8, 8)
    >>> ssim(x, x), round(ssim(x, x[::-1]), 3)
    (1.0, -0.925)
    """
    x, y = _float64(_parts(a)), _float64(_parts(b))
    finite = np.isfinite(x) & np.isfinite(y)
    if not finite.any():
        return None
    both = np.concatenate([x[finite], y[finite]])
    return _ssim(x, y, float(both.min()), float(both.max()))


def _ssim(a: Array, b: Array, low: float, high: float) -> float | None:
    one, two = _picture(a), _picture(b)
    height, width = (min(_WINDOW, n) for n in one.shape)
    rows, columns = one.shape[0] - height + 1, one.shape[1] - width + 1
    step_columns = min(columns, _PIECE // 64)
    step_rows = max(1, _PIECE // step_columns)
    total, n = 0.0, 0
    spread = high - low
    for top in range(0, rows, step_rows):
        for left in range(0, columns, step_columns):
            bottom, right = min(rows, top + step_rows) + height - 1, min(columns, left + step_columns) + width - 1
            tile = np.s_[top:bottom, left:right]
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                values = _windows(_float64(one[tile]), _float64(two[tile]), height, width, low, spread)
            total += float(values.sum())
            n += values.size
    return total / n if n and math.isfinite(total) else None


def _picture(array: Array) -> Array:
    return array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)


def _windows(x: Array, y: Array, height: int, width: int, low: float, spread: float) -> Array:
    """SSIM of each window without non-finite values."""
    bad = ~(np.isfinite(x) & np.isfinite(y))
    # Variances about the lower end of the range: about 0 they would cancel where values are large and close.
    # In units of the range, which SSIM does not see, no square overflows.
    unit = spread or 1.0
    x, y = np.where(bad, 0.0, (x - low) / unit), np.where(bad, 0.0, (y - low) / unit)
    n = height * width

    def mean(values: Array) -> Array:
        means: Array = _slide(_slide(values, height).T, width).T / n
        return means

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x * mean_x, mean(y * y) - mean_y * mean_y
    covariance = mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + low / unit, mean_y + low / unit
    c1, c2 = (_K1 * spread / unit) ** 2, (_K2 * spread / unit) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x * mean_x + mean_y * mean_y + c1) * (var_x + var_y + c2)
    values: Array = np.divide(above, below, out=np.ones_like(above), where=below != 0)
    if not bad.any():
        return values
    clean: Array = values[mean(bad.astype(np.float64)) == 0]
    return clean


def _slide(values: Array, width: int) -> Array:
    """Sums of `width` neighbouring rows, by doubling."""
    n = values.shape[0] - width + 1
    total: Array | None = None
    at, size = 0, 1
    while width:
        if width & 1:
            piece = values[at : at + n]
            total = piece if total is None else total + piece
            at += size
        width >>= 1
        if width:
            values = values[:-size] + values[size:]
            size *= 2
    assert total is not None  # width is positive
    return total
