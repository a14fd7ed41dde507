"""SZ on raw floats as Delta-DNN's section 5.1 runs it: without a base, within a relative bound of each value."""

from __future__ import annotations

import numpy as np
import zstandard

from experiments.lab.traces import Tensors

#: Of SZ3: with its predictors, and without.
_SZ = ("INTERP_LORENZO", "NOPRED")


def _sz_logs(logs: np.ndarray, eps: float, algorithm: str) -> tuple[int, np.ndarray]:
    """Bytes of logarithms under bound log(1 + eps), and what comes back."""
    from pysz import sz, szAlgorithm, szConfig, szErrorBoundMode

    config = szConfig((logs.size,))
    config.errorBoundMode, config.absErrorBound = szErrorBoundMode.ABS, float(np.log1p(eps))
    config.cmprAlgo = getattr(szAlgorithm, algorithm)
    packed, _ = sz.compress(logs, config)
    return packed.nbytes, sz.decompress(packed.copy(), np.float32, (logs.size,))[0]


def _float_values(tensors: Tensors) -> np.ndarray:
    return np.concatenate([w.reshape(-1) for w in tensors.values() if w.dtype == np.float32])


def _with_floats(tensors: Tensors, flat: np.ndarray) -> Tensors:
    """The tensors with other float32 values."""
    found, at = {}, 0
    for name, w in tensors.items():
        if w.dtype == np.float32:
            found[name] = flat[at : at + w.size].reshape(w.shape)
            at += w.size
        else:
            found[name] = w
    return found


def sz_each(tensors: Tensors, eps: float) -> dict[str, tuple[int, Tensors]]:
    """SZ on raw floats as the paper runs it, without a base: SZ3 on log|x| with bound log(1 + eps), as SZ does for
    pointwise relative bounds; signs and zeros apart. Bytes, and what comes back, by SZ3's algorithm."""
    flat = _float_values(tensors)
    logs = np.log(np.maximum(np.abs(flat), np.finfo(np.float32).tiny)).astype(np.float32)
    signs = zstandard.compress(np.packbits(np.signbit(flat)).tobytes() + np.packbits(flat == 0).tobytes())
    found = {}
    for algorithm in _SZ:
        n_bytes, back = _sz_logs(logs, eps, algorithm)
        found[algorithm] = (
            n_bytes + len(signs), _with_floats(tensors, (np.sign(flat) * np.exp(back)).astype(np.float32))
        )  # fmt: skip
    return found


def sz_pointwise(tensors: Tensors, eps: float) -> tuple[int, Tensors]:
    """The smaller of SZ's two: bytes, and what comes back."""
    return min(sz_each(tensors, eps).values(), key=lambda found: found[0])
