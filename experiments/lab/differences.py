"""Delta-DNN's quantized differences, which two papers' tables are made of."""

from __future__ import annotations

import math

import numpy as np

from experiments.lab.traces import Tensors
from nearzip.stages import Context, LogStep, UniformStep


def integers(old: Tensors, new: Tensors, eps: float, mode: str) -> np.ndarray:
    """Quantized differences of all floating-point values: int32, zero where the difference is within the bound."""
    found = []
    for name, w in new.items():
        if w.dtype.kind != "f":
            continue
        values, base = w.reshape(-1), old[name].reshape(-1)
        if mode == "relative":
            coded = LogStep(eps, delta=True).encode(values, Context.of(values, base))
        else:
            coded = UniformStep(2 * math.log1p(eps)).encode(values.astype(np.float64) - base)
        found.append(coded.symbols)
    return np.concatenate(found)
