"""Sparse arrays of other packages, made of indices and values."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np

from nearzip.errors import UsageError, missing_extra
from nearzip.stages import SparseValues
from nearzip.tensors import TensorSpec

__all__ = ["sparse_in"]


def sparse_in(form: str, spec: TensorSpec, sparse: SparseValues) -> Any:
    """A tensor as `Reader.sparse` gives it. Raises UsageError, MissingExtraError."""
    if not spec.shape:
        raise UsageError(f"tensor {spec.name!r} has no dimensions and no sparse form")
    if form == "csr":
        return _csr(spec, sparse)
    if form == "torch":
        return _torch(spec, sparse)
    raise UsageError(f"sparse forms are 'csr' and 'torch', not {form!r}")


def _csr(spec: TensorSpec, sparse: SparseValues) -> Any:
    try:
        scipy_sparse = importlib.import_module("scipy.sparse")
    except ImportError:
        raise missing_extra("SciPy", "sparse", "a CSR array") from None
    if spec.numpy_dtype.kind == "V" or spec.dtype in ("bfloat16", "float16"):
        raise UsageError(f"tensor {spec.name!r} is {spec.dtype}, which SciPy's sparse arrays do not have; take 'torch'")
    n_rows, n_columns = spec.shape[0], math.prod(spec.shape[1:])
    rows, columns = np.divmod(sparse.indices, max(1, n_columns))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n_rows))])
    return scipy_sparse.csr_array((sparse.values, columns, starts), shape=(n_rows, n_columns))


def _torch(spec: TensorSpec, sparse: SparseValues) -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise missing_extra("PyTorch", "torch", "a sparse tensor") from None
    dtype = getattr(torch, spec.dtype, None)
    if dtype is None:
        raise UsageError(f"tensor {spec.name!r} is {spec.dtype}, which this PyTorch does not have")
    raw = torch.from_numpy(np.ascontiguousarray(sparse.values).view(np.uint8).copy())
    indices = torch.from_numpy(np.stack(np.unravel_index(sparse.indices, spec.shape)))
    return torch.sparse_coo_tensor(indices, raw.view(dtype), spec.shape, is_coalesced=True, check_invariants=False)
