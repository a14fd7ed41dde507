"""Re-encoding a version so that it restores bit for bit as before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.bounds import EXACT, Bound, Lossless
from nearzip.codec import exact_pipeline
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.recipes.settings import Setting, Settings
from nearzip.stages import Context, Pipeline, Rans, StepThenBits
from nearzip.tensors import Array

__all__ = ["exactly"]

#: Values of a tensor that pipelines are compared on.
_SAMPLE = 1 << 15


@dataclass(frozen=True, eq=False)
class _Exactly(Recipe):
    """A store's: bit for bit, by the steps that quantization once took where that is smaller.

    `steps`: for each tensor, the steps worth trying.
    """

    name = "exactly"

    steps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def resolve_bound(self, bound: Bound | None) -> Bound:
        return Lossless()

    def options(self) -> dict[str, Any]:
        return {}

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        candidates = [exact_pipeline(tensor.with_base)]
        steps = self.steps.get(tensor.name, ())
        candidates += [Pipeline((StepThenBits(step, tensor.with_base), Rans())) for step in steps]
        if len(candidates) == 1:
            return TensorPlan(candidates[0], EXACT)
        values = _sample(tensor.values())
        base = _sample(tensor.base_values()) if tensor.with_base else None
        context = Context.alone(values, base)
        return TensorPlan(min(candidates, key=lambda p: len(p.encode(values, context))), EXACT)


def _sample(array: Array) -> Array:
    """From the middle: the borders of a layer are often special."""
    flat = array.reshape(-1)
    start = max(0, (flat.size - _SAMPLE) // 2)
    return np.ascontiguousarray(flat[start : start + _SAMPLE])


def exactly(steps: Mapping[str, tuple[float, ...]]) -> Settings:
    """Bit for bit, for every tensor."""
    return Settings(Setting.of(_Exactly(steps)))
