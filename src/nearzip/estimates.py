"""What a bound would come to, estimated on a sample of the values: bytes, and the share of the update that is kept."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearzip.bounds import Bound
from nearzip.changes import Change, UpdateKept
from nearzip.coding import Codings
from nearzip.tensors import Array, Checkpoint, TensorSpec, keeping_last
from nearzip.writing import write_archive

__all__ = ["Estimate", "estimate"]

#: Values that are looked at in all, and of one tensor at least.
_SAMPLE, _MIN_SAMPLE = 1 << 19, 1 << 10


@dataclass(frozen=True)
class Estimate:
    """What compressing with a bound is expected to come to.

    Parameters
    ----------
    bound : Bound
    n_bytes : int
        Of the archive.
    share : float or None
        The share of the change against the base that is kept, 0 to 1; None without a base.
    """

    bound: Bound
    n_bytes: int
    share: float | None


def estimate(
    source: Checkpoint, base: Checkpoint | None, bounds: Sequence[Bound], threads: int | None = None
) -> list[Estimate]:
    """Compress a sample of `source`, against the same sample of `base`, with the method "nearzip" under each bound.

    Reads a run of values from the middle of each large tensor. Raises UsageError as `compress`.
    """
    share = min(1.0, _SAMPLE / max(1, source.n_elements))
    sample = _sampled(source, share)
    of_base = None if base is None else _sampled(base, share)
    return [_estimated(source, sample, of_base, bound, threads) for bound in bounds]


def _estimated(
    source: Checkpoint, sample: Checkpoint, base: Checkpoint | None, bound: Bound, threads: int | None
) -> Estimate:
    report = write_archive(sample, base, Codings.of("nearzip", bound), io.BytesIO(), None, threads)
    n_coded = scaled = 0.0
    for segment in report.index.segments:
        n_bytes = sum(block.length for block in segment.blocks)
        n_coded += n_bytes
        sampled = sum(spec.n_bytes for spec in segment.tensors)
        scaled += n_bytes * sum(source.spec(spec.name).n_bytes for spec in segment.tensors) / max(1, sampled)
    # What describes the tensors does not grow with them.
    n_bytes = round(report.n_bytes - n_coded + scaled)
    return Estimate(bound, n_bytes, None if base is None else _share_kept(source, sample, report.update_kept))


def _share_kept(source: Checkpoint, sample: Checkpoint, kept: UpdateKept | None) -> float:
    """The estimated share of the network's change; each tensor counts by how much of it was looked at."""
    squares = error = 0.0
    for name, change in {} if kept is None else kept.tensors.items():
        weight = source.spec(name).n_elements / sample.spec(name).n_elements
        squares += weight * change.squares
        error += weight * change.error
    return Change(squares=squares, error=error).share


def _sampled(source: Checkpoint, share: float) -> Checkpoint:
    """A part of each tensor: rows from the middle, as near to `share` of all values as that comes."""
    specs = {name: _part(spec, share) for name, spec in source.specs.items()}

    def read(name: str) -> Array:
        rows = specs[name].shape[:1]
        array = source.read(name)
        if not rows or rows == array.shape[:1]:
            return array
        start = (array.shape[0] - rows[0]) // 2
        return np.ascontiguousarray(array[start : start + rows[0]])

    return Checkpoint(specs, keeping_last(read))


def _part(spec: TensorSpec, share: float) -> TensorSpec:
    n = spec.n_elements
    if n <= _MIN_SAMPLE or share >= 1:
        return spec
    per_row = n // spec.shape[0]
    rows = min(spec.shape[0], max(1, math.ceil(max(_MIN_SAMPLE, share * n) / per_row)))
    return TensorSpec(spec.name, spec.dtype, (rows, *spec.shape[1:]))
