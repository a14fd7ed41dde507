"""Arrays as other libraries have them: what comes in from any, what goes out to PyTorch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from nearzip.errors import UsageError, missing_extra
from nearzip.tensors import Array

__all__ = ["check_framework", "to_framework"]

_NUMPY, _TORCH = ("np", "numpy"), ("pt", "torch")
#: What NumPy does not know itself goes to PyTorch by way of integers of the same width.
_BY_BITS = {"bfloat16": np.int16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}


def check_framework(framework: str) -> str:
    """Itself. Raises UsageError for a framework that is not known, MissingExtraError for one that is not installed."""
    if framework not in (*_NUMPY, *_TORCH):
        raise UsageError(f"framework is 'np' for NumPy arrays or 'pt' for PyTorch tensors, not {framework!r}")
    if framework in _TORCH:
        _torch()
    return framework


def to_framework(array: Array, framework: str) -> Any:
    """The array itself, or a tensor on the CPU that shares its memory; a read-only one is copied first."""
    if framework in _NUMPY:
        return array
    torch = _torch()
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    integers = _BY_BITS.get(array.dtype.name)
    if integers is None:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(integers)).view(getattr(torch, array.dtype.name))


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise missing_extra("PyTorch", "torch", "framework='pt'") from None
