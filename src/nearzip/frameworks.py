"""Arrays as other libraries have them: what comes in from any, what goes out to PyTorch and JAX."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np

from nearzip.errors import MissingExtraError, UsageError, missing_extra
from nearzip.tensors import Array, dtype_name

__all__ = ["as_torch", "check_framework", "to_framework"]

_NUMPY, _TORCH, _JAX = ("np", "numpy"), ("pt", "torch"), ("jax",)
#: Types that NumPy does not know itself go to PyTorch as integers of the same width.
_BY_WIDTH = {1: np.uint8, 2: np.int16, 4: np.int32}
#: NumPy's number of the first type that another package registered.
_REGISTERED = 256


def check_framework(framework: str) -> str:
    """Itself. Raises UsageError for a framework that is not known, MissingExtraError for one that is not installed."""
    if framework not in (*_NUMPY, *_TORCH, *_JAX):
        raise UsageError(
            "framework is 'np' for NumPy arrays, 'pt' for PyTorch tensors or 'jax' for arrays of JAX, "
            f"not {framework!r}"
        )
    if framework in _TORCH:
        _torch()
    if framework in _JAX:
        _jax()
    return framework


def to_framework(array: Array, framework: str) -> Any:
    """The array itself, or a tensor on the CPU that shares its memory (a read-only one is copied first), or a copy on
    JAX's default device.

    Raises UsageError for a dtype that the framework does not have.
    """
    if framework in _NUMPY:
        return array
    if framework in _JAX:
        return _as_jax(_jax(), array)
    torch = _torch()
    if not array.flags.writeable or not array.flags.c_contiguous:
        array = np.array(array, order="C")
    return as_torch(torch, array)


def as_torch(torch: Any, array: Array) -> Any:
    """A tensor that shares the memory of a contiguous, writable array.

    Raises UsageError for a dtype that this PyTorch does not have.
    """
    # Types that other packages register have larger numbers. (`isbuiltin` is 0 of dtypes that were unpickled.)
    if array.dtype.kind in "fiubc" and array.dtype.num < _REGISTERED:
        return torch.from_numpy(array)
    name = dtype_name(array.dtype)
    kind = getattr(torch, name, None)
    if kind is None:
        raise UsageError(f"this PyTorch has no dtype {name}; ask for NumPy arrays, or upgrade PyTorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that complex32 is experimental
        return torch.from_numpy(array.view(_BY_WIDTH[array.dtype.itemsize])).view(kind)


def _as_jax(jax: Any, array: Array) -> Any:
    name = dtype_name(array.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 64 bits become 32: no result has lost any
            found = jax.numpy.array(array)
    except TypeError:
        raise UsageError(f"this JAX has no dtype {name}; ask for NumPy arrays") from None
    if found.dtype != array.dtype:
        raise UsageError(
            f"JAX would make {found.dtype.name} of {name}; call jax.config.update('jax_enable_x64', True) first, or "
            "ask for NumPy arrays"
        )
    return found


def _jax() -> Any:
    try:
        return importlib.import_module("jax")
    except ImportError:
        raise MissingExtraError("framework='jax' needs JAX; install it with: pip install jax") from None


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise missing_extra("PyTorch", "torch", "framework='pt'") from None
