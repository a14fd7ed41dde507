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

import nearzip._core as _core
from nearzip.api import open_input
from nearzip.attached import without_attached
from nearzip.bounds import Bound, Lossless, Statistics, Update
from nearzip.errors import UsageError
from nearzip.estimates import Estimate, estimate
from nearzip.fileio import size_on_disk
from nearzip.names import likely_prefix
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.similarity import as_float64, real_parts, ssim, ssim_within
from nearzip.stages.ranges import Levels
from nearzip.tensors import Array, Checkpoint, TensorSpec, bits_of, dtype_of, is_float

__all__ = ["Comparison", "Figures", "LinearFit", "compare", "ssim"]

Path = str | os.PathLike[str]

#: Values that are looked at together.
_PIECE = 1 << 18
#: Pairs of values kept for plots, about.
_SAMPLE = 50_000
#: Values of a large tensor that the histogram and SSIM look at, and rows at least.
_LOOKED_AT, _MIN_ROWS = 1 << 18, 7
#: Bounds whose outcome is estimated for an update.
_BOUNDS: tuple[Bound, ...] = (Lossless(), Update(0.01), Update(0.03), Update(0.1), Update(0.3))


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
    estimates : tuple of Estimate
        For an update from a to b: what bounds would come to, bytes and the share of the update that is kept. Empty
        unless asked for, and where nothing changed.
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
    estimates: tuple[Estimate, ...] = ()

    @property
    def anything_in_common(self) -> bool:
        """Whether there is a tensor of the same name, dtype and shape in both."""
        return bool(self.tensors)

    @property
    def reason(self) -> str | None:
        """Why tensors have no counterpart, as far as their names, dtypes and shapes tell, and what to do about it."""
        if not (self.only_in_a or self.only_in_b or self.mismatched):
            return None
        prefix = likely_prefix(self.only_in_a, self.only_in_b)
        if prefix is not None:
            return prefix
        if self.mismatched and not self.tensors:
            name, why = next(iter(self.mismatched.items()))
            return (
                f"dtypes or shapes differ, as in {name!r}: {why}; convert one of the files, or compare another version"
            )
        return None

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
    exact: bool = False,
    estimates: bool = False,
    threads: int | None = None,
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
    exact : bool
        Take the histogram and SSIM from every value. By default those of a tensor of more than 262 144 values are those
        of rows from its middle; all other figures are exact in any case.
    estimates : bool
        Estimate what an update from a to b would take under several bounds (`Comparison.estimates`).
    threads : int or None
        None: `NEARZIP_THREADS`, or all processors.
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
        sample: list[tuple[Array, Array]] = []
        total = _Sums()
        tensors = {}

        def measure(name: str) -> tuple[_Sums, tuple[Array, Array]]:
            one, two = _quantized(source.read(name), bits), _quantized(other.read(name), bits)
            return _tensor(one, two, exact), _every(one, two, max(1, n_total // _SAMPLE))

        results = ordered_map(measure, iter(specs), number_of_threads(threads))
        for name, (sums, pairs) in zip(specs, results, strict=True):
            tensors[name] = sums.figures()
            if name in parameters:
                sample.append(pairs)
                total.merge(sums)
            else:
                total.count(sums)
            if progress:
                progress(total.n_values, n_total)
        changed = total.n_unchanged < total.n_values and any(spec.is_float for spec in specs.values())
        wanted = _BOUNDS if estimates and changed else ()
        found = tuple(estimate(other, source, wanted, threads)) if wanted else ()
    return Comparison(
        specs=specs,
        tensors=tensors,
        total=total.figures(),
        only_in_a=tuple(name for name in source.specs if name not in other.specs),
        only_in_b=tuple(name for name in other.specs if name not in source.specs),
        mismatched=mismatched,
        n_bytes_a=n_bytes_a,
        n_bytes_b=n_bytes_b,
        sample=_joined(sample),
        estimates=found,
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


def _tensor(a: Array, b: Array, exact: bool) -> _Sums:
    """Of one tensor. Unless `exact`, histogram and SSIM of a large one are those of a part from its middle."""
    one, two = real_parts(a).reshape(-1), real_parts(b).reshape(-1)
    if is_float(one.dtype):
        sums = _native_sums(one, two)
    else:
        sums = _Sums()
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


def _native_sums(a: Array, b: Array) -> _Sums:
    if a.dtype.itemsize < 4:
        a, b = a.astype(np.float32), b.astype(np.float32)
    n, odd, found = _core.pair_sums(a, b)
    names = ("max_abs", "max_relative", "difference", "distance", "squares", "mean_a", "mean_b", "aa", "bb", "ab")
    sums = _Sums(n=n, n_mismatches=odd)
    for name, value in zip((*names, "low", "high"), found, strict=True):
        setattr(sums, name, value)
    return sums


def _piece(a: Array, b: Array) -> _Sums:
    """Of integers and booleans, some at a time."""
    x, y = as_float64(a), as_float64(b)
    sums = _Sums()
    if x.size:
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


def _add_moments(sums: _Sums, x: Array, y: Array) -> None:
    sums.n = x.size
    sums.low, sums.high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    sums.mean_a, sums.mean_b = float(x.mean()), float(y.mean())
    x, y = x - sums.mean_a, y - sums.mean_b
    sums.aa, sums.bb, sums.ab = float(x @ x), float(y @ y), float(x @ y)


def _every(a: Array, b: Array, n: int) -> tuple[Array, Array]:
    """Every n-th pair of values, if both are finite."""
    x, y = (as_float64(real_parts(array).reshape(-1)[::n]) for array in (a, b))
    finite = np.isfinite(x) & np.isfinite(y)
    return x[finite], y[finite]


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    if not pairs:
        return np.empty(0), np.empty(0)
    one, two = zip(*pairs, strict=True)
    return np.concatenate(one), np.concatenate(two)
