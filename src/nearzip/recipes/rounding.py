"""What rounding to a tensor's dtype takes of a tolerance."""

from __future__ import annotations

import functools
import math
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["half_spacing", "headroom"]


def half_spacing(dtype: np.dtype[Any], largest: float) -> float:
    """Half the distance between neighbouring values of `dtype` at magnitude `largest`: the rounding of a result."""
    if largest == 0:
        return 0.0
    half, lowest = _spacing(dtype)
    return math.ldexp(half, max(math.frexp(largest)[1] - 1, lowest))


@functools.cache
def _spacing(dtype: np.dtype[Any]) -> tuple[float, int]:
    """Half the distance between neighbours from 1 on, and the exponent below which distances stay the same."""
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.eps) / 2, int(info.minexp)


def headroom(tolerance: float, rounding: float) -> float:
    """What quantization may use of the tolerance, when the result is rounded to the tensor's dtype as well.

    A thousandth is always left, so that tensors whose rounding is below that get the same step.
    """
    return tolerance - min(max(rounding, tolerance / 1024), tolerance / 2)
