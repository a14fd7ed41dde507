"""What identifies samples and tensors in a certificate: SHA-256, because XXH3 is no proof against forgery."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from nearzip.correctness.canonical import sha256
from nearzip.errors import UsageError
from nearzip.tensors import Array, as_array

__all__ = ["batch_digests", "digest_of_list", "sample_digests", "tensors_digest"]


def tensors_digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of named tensors: names, dtypes, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        array = as_array(name, tensors[name])
        found.update(f"{len(name.encode())} {name} {array.dtype.name} {list(array.shape)}\n".encode())
        found.update(_bytes_of(array))
    return found.hexdigest()


def sample_digests(loader: Iterable[Any] | Mapping[str, Iterable[Any]]) -> list[str]:
    """SHA-256 of every sample's inputs, for `certify(tuned_on=)` and for files that are kept beside a plan.

    Parameters
    ----------
    loader : iterable of batches, or mapping of str to iterables
        As for `nearzip.torch.evaluator`. Targets do not count: an image with another label is not a fresh image.
    """
    loaders = loader.values() if isinstance(loader, Mapping) else [loader]
    return [each for one in loaders for batch in one for each in batch_digests(batch)]


def digest_of_list(digests: Iterable[str]) -> str:
    """SHA-256 of digests, in order."""
    return sha256("\n".join(digests).encode())


def batch_digests(batch: Any) -> list[str]:
    """SHA-256 of each row of a batch, without its targets."""
    if isinstance(batch, Mapping):
        named = {name: batch[name] for name in sorted(batch) if name != "labels"}
        if "input_ids" in named and "attention_mask" in named:
            return _tokens(as_array("input_ids", named["input_ids"]), as_array("mask", named["attention_mask"]))
    else:
        named = {"": batch[0] if isinstance(batch, (tuple, list)) else batch}
    arrays = {name: as_array(name or "inputs", value) for name, value in named.items()}
    if not arrays or len({len(array) for array in arrays.values() if array.ndim}) != 1:
        raise UsageError("the parts of a batch have different numbers of rows; each row is a sample")
    rows = len(next(array for array in arrays.values() if array.ndim))
    return [sha256(b"".join(_row(name, array, i) for name, array in arrays.items())) for i in range(rows)]


def _tokens(ids: Array, mask: Array) -> list[str]:
    """Texts are the same whatever they are padded to."""
    return [sha256(_row("input_ids", row[kept != 0][None], 0)) for row, kept in zip(ids, mask, strict=True)]


def _row(name: str, array: Array, i: int) -> bytes:
    row = array[i] if array.ndim else array
    return f"{name} {array.dtype.name} {list(row.shape)}\n".encode() + _bytes_of(row)


def _bytes_of(array: Array) -> bytes:
    """Little-endian, in C order."""
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not np.little_endian):
        array = array.byteswap()
    return array.tobytes()
