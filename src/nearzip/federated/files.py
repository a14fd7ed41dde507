"""Updates as ordinary archives: compressed with a residual that is kept between rounds, and averaged."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.api import compress
from nearzip.archive import Archive
from nearzip.bounds import Statistics, Update
from nearzip.coding import BoundLike
from nearzip.errors import CorruptError, Error, UsageError
from nearzip.federated.coding import EXACT_NAMES, UpdateCoding, carrying, check_same
from nearzip.federated.residual import Residual
from nearzip.tensors import Array, Checkpoint

__all__ = ["Averaged", "average_updates", "compress_update"]

#: Of one update: a sum of weights must stay a number.
_MAX_WEIGHT = 1e12


def compress_update(
    new: Mapping[str, Any] | Checkpoint,
    base: Mapping[str, Any] | Checkpoint,
    residual: Mapping[str, Any] | None = None,
    method: str = "nearzip",
    *,
    bound: BoundLike | Mapping[str, BoundLike] = None,
    options: Mapping[str, Any] | None = None,
    residual_method: str = "nearzip",
) -> tuple[Archive, Archive]:
    """Compress the update from `base` to `new` plus the residual of earlier ones; returns it and the new residual.

    Parameters
    ----------
    new, base : mapping of str to array
        The trained model, and the one that the server sent.
    residual : mapping of str to array, optional
        The residual of the last call, float32. Default: none.
    method, bound, options
        As for `nearzip.compress`. "nearzip" without a bound: `upd:2`, twice the root mean square of the update, or
        less where that would carry less than 2 % of its square sum, with batch norm's running statistics exact.
    residual_method : str
        How the residual is stored: "exact", "nearzip" (rounded at random), "qd-compressor", "lc-checkpoint".

    Returns
    -------
    update, residual : Archive
        An archive against `base`, and one that needs no base.

    Examples
    --------
    >>> base = {"w": np.zeros(10_000, np.float32)}
    >>> update, left = compress_update({"w": base["w"] + np.float32(0.5)}, base, method="topk", options={"keep": 0.01})
    >>> round(float(left.restored["w"].sum()), -2)
    5000.0
    """
    source, held = _checkpoint(new), _checkpoint(base)
    check_same(source, held)
    wanted = _wanted(source, {} if residual is None else residual)
    shifted = {
        name: wanted[name].astype(source.read(name).dtype) if name in wanted else source.read(name)
        for name in source.specs
    }
    if method == "nearzip" and bound is None:
        bound = {"*": Update(_value(wanted, held)), **{name: "lossless" for name in EXACT_NAMES if _any(source, name)}}
    arrays = {name: held.read(name) for name in held.specs}
    archive = compress(shifted, base=arrays, method=method, bound=bound, options=options)
    left = {name: wanted[name] - archive.restored[name].astype(np.float32) for name in wanted}
    return archive, Residual(residual_method).archive(left)


def _checkpoint(tensors: Mapping[str, Any] | Checkpoint) -> Checkpoint:
    return tensors if isinstance(tensors, Checkpoint) else Checkpoint.of(tensors)


def _wanted(source: Checkpoint, residual: Mapping[str, Any]) -> dict[str, Array]:
    """Trained floats plus the residual, float32. Raises UsageError."""
    for name in residual:
        if name not in source.specs or source.spec(name).shape != np.shape(residual[name]):
            raise UsageError(f"the residual's tensor {name!r} is not one of the network's; is it another network's?")
    found = {}
    for name, spec in source.specs.items():
        if spec.is_float:
            found[name] = source.read(name).astype(np.float32) + np.asarray(residual.get(name, 0.0), np.float32)
            if not np.isfinite(found[name]).all():
                raise UsageError(f"tensor {name!r} is not finite; the training diverged, or the residual is damaged")
    return found


def _value(wanted: Mapping[str, Array], held: Checkpoint) -> float:
    """Root mean squares of the update that a value may be off by."""
    coding = UpdateCoding()
    changes = [
        wanted[name] - held.read(name).astype(np.float32) for name in wanted if not coding.is_exact(held.spec(name))
    ]
    rms = sum((Statistics.of(change) for change in changes), Statistics()).rms
    return carrying(2 * rms, changes) / rms if changes and 0 < rms < math.inf else 2.0


def _any(source: Checkpoint, pattern: str) -> bool:
    return any(name.endswith(pattern.removeprefix("*")) for name in source.specs)


@dataclass(frozen=True)
class Averaged:
    """The mean of updates.

    Attributes
    ----------
    model : dict of arrays
        The next model, in the base's dtypes.
    norms : list of float
        Of each update; NaN where it could not be read.
    rejected : dict of int to str
        Which updates were left out, counted from 0, and why.
    """

    model: dict[str, Array]
    norms: list[float]
    rejected: dict[int, str] = field(default_factory=dict)


def average_updates(
    updates: Sequence[Any],
    base: Mapping[str, Any] | Checkpoint,
    weights: Sequence[float] | None = None,
    *,
    max_norm: float = 10.0,
) -> Averaged:
    """Average updates into the next model: the weighted mean of the models they restore, summed in float64 in order.

    Updates that are damaged, made against another base, of other names, shapes or dtypes, not finite, or whose norm is
    more than `max_norm` times the median of three or more are left out and named. One tensor of one update is in memory
    at a time, besides the base and the result.

    Parameters
    ----------
    updates : sequence of archives
        As `nearzip.open` takes them: paths, bytes, Archive.
    base : mapping of str to array
        The model that the updates were made against.
    weights : sequence of float
        Finite, above 0 and up to 1e12; equal by default.
    max_norm : float
        At least 1; infinite: no limit.

    Raises
    ------
    UsageError
        Invalid weights or `max_norm`.
    Error
        If no update is left.
    """
    shares = [1.0] * len(updates) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(updates):
        raise UsageError(f"{len(updates)} updates need as many weights, not {len(shares)}")
    for weight in shares:
        if not 0 < weight <= _MAX_WEIGHT:
            raise UsageError(f"a weight is {weight!r}; weights are finite, above 0 and up to {_MAX_WEIGHT:g}")
    if not max_norm >= 1:
        raise UsageError(f"max_norm is a factor of at least 1, not {max_norm!r}")
    held = _checkpoint(base)
    norms, rejected = [], {}
    for i, update in enumerate(updates):
        norm = _norm(update, held)
        norms.append(norm if isinstance(norm, float) else math.nan)
        if isinstance(norm, Error):
            rejected[i] = str(norm)
    left = [i for i in range(len(updates)) if i not in rejected]
    median = statistics.median(norms[i] for i in left) if left else 0.0
    for i in left:
        if len(left) > 2 and norms[i] > max_norm * median:
            rejected[i] = f"its norm is {norms[i]:.3g}, more than {max_norm:g} times the median {median:.3g}"
    left = [i for i in left if i not in rejected]
    if not left:
        raise Error("no update is left to average; " + "; ".join(f"{i}: {why}" for i, why in rejected.items()))
    total = math.fsum(shares[i] for i in left)
    return Averaged(_mean([(updates[i], shares[i] / total) for i in left], held), norms, rejected)


def _opened(update: Any, held: Checkpoint) -> Any:
    from nearzip.api import open as open_archive

    return open_archive(update, held)


def _norm(update: Any, held: Checkpoint) -> float | Error:
    """The norm of the update over all floats, or the error that it has."""
    try:
        with _opened(update, held) as reader:
            check_same(Checkpoint({spec.name: spec for spec in reader.index.tensors}, reader.__getitem__), held)
            squares = [_square(name, array, held) for name, array in reader.stream()]
    except Error as error:
        return error
    return math.sqrt(math.fsum(squares))


def _square(name: str, array: Array, held: Checkpoint) -> float:
    if not held.spec(name).is_float:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        change = array.astype(np.float64) - held.read(name).astype(np.float64)
        square = float(np.vdot(change, change))
    if not math.isfinite(square):
        raise CorruptError(f"tensor {name!r} holds NaN, infinities, or values beyond any model")
    return square


def _mean(updates: Sequence[tuple[Any, float]], held: Checkpoint) -> dict[str, Array]:
    sums = {name: np.zeros(spec.shape) for name, spec in held.specs.items()}
    for update, share in updates:
        with _opened(update, held) as reader:
            for name, array in reader.stream():
                sums[name] += share * array.astype(np.float64)
    found = {}
    for name in held.specs:
        dtype = held.read(name).dtype
        mean = sums.pop(name)
        found[name] = (np.rint(mean) if dtype.kind in "biu" else mean).astype(dtype)
    return found
