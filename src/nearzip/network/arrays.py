"""NumPy arrays as torch tensors, bfloat16 and float8 included; what tells batches apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nearzip.digests import digest
from nearzip.frameworks import as_torch
from nearzip.tensors import Array, as_array

__all__ = ["digest_of", "to_torch"]


def to_torch(array: Array | torch.Tensor, copy: bool = True) -> torch.Tensor:
    """A tensor of the array's values, shape and dtype, on the CPU.

    Parameters
    ----------
    array : array or tensor
        Of any dtype that archives hold.
    copy : bool
        False: share memory where that is possible.
    """
    if isinstance(array, torch.Tensor):
        return array.detach().clone() if copy else array.detach()
    if not copy and not array.flags.writeable:
        copy = True  # torch knows no read-only tensors
    array = np.array(array, order="C", copy=True) if copy else np.asarray(array, order="C")
    found: torch.Tensor = as_torch(torch, array)
    return found


def digest_of(batch: Any) -> bytes:
    """Of all tensors in a batch, with their types, shapes and names, and of plain numbers and texts."""
    if isinstance(batch, torch.Tensor):
        batch = as_array("batch", batch)
    if isinstance(batch, np.ndarray) and not batch.dtype.hasobject:
        return digest(f"{batch.dtype.name} {batch.shape}".encode(), batch.tobytes())
    if isinstance(batch, Mapping):
        return digest(*(part for name, value in batch.items() for part in (repr(name).encode(), digest_of(value))))
    if isinstance(batch, (tuple, list)):
        return digest(*(digest_of(value) for value in batch))
    return digest(repr(batch).encode()) if isinstance(batch, (str, bytes, int, float)) else b""
