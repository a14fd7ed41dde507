"""How alike two networks are: differences, the linear fit and the SSIM of Delta-DNN's Figure 1, MDM and CorrCoef of
QD-Compressor's Figure 5.

Tensors are read one after the other and in pieces, so memory does not grow with the files.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.attached import without_attached
from nearzip.bounds import Bound, Lossless, Statistics, Update
from nearzip.errors import UsageError
from nearzip.estimates import Estimate, estimate
from nearzip.figures import Figures, LinearFit, PairSums, sums_of
from nearzip.fileio import size_on_disk
from nearzip.inputs import open_input
from nearzip.names import likely_prefix
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.similarity import as_float64, real_parts, ssim
from nearzip.stages.ranges import Levels
from nearzip.tensors import Array, Checkpoint, TensorSpec, is_float

__all__ = ["Comparison", "Figures", "LinearFit", "compare", "ssim"]

Path = str | os.PathLike[str]

#: Pairs of values kept for plots, about.
_SAMPLE = 50_000
#: Bounds whose outcome is estimated for an update.
_BOUNDS: tuple[Bound, ...] = (Lossless(), Update(0.01), Update(0.03), Update(0.1), Update(0.3))


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    tensors : dict
        Name to Figures, of every tensor that has the same dtype and shape in both.
    total : Figures
        Over all of them; errors, fit and similarity over only the floating-point tensors if there are any (a counter
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
        parameters = {name for name, spec in specs.items() if spec.is_float} or set(specs)
        n_total = sum(spec.n_elements for spec in specs.values())
        sample: list[tuple[Array, Array]] = []
        total = PairSums()
        tensors = {}

        def measure(name: str) -> tuple[PairSums, tuple[Array, Array]]:
            one, two = _quantized(source.read(name), bits), _quantized(other.read(name), bits)
            return sums_of(one, two, exact), _every(one, two, max(1, n_total // _SAMPLE))

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
