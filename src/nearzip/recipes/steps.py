"""The step of an earlier version, used again.

A bound such as rms:0.01 gives every version a step of its own, and versions that were quantized with different steps
have no cheap exact difference: a re-coded one would cost whole mantissas. So a version keeps the step of the one before
as long as the bound allows it and it is not much finer than needed. A finer step keeps every promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nearzip.recipes.base import TensorPlan
from nearzip.stages import Pipeline, UniformStep

__all__ = ["with_known_step"]

#: A step is kept while the bound allows no more than this times it: at most 0.17 bits a value, at first none.
_FINER = 1.125
#: A step that has to shrink shrinks a little further, so that the next versions can keep it.
_ROOM = 0.94


def with_known_step(plan: TensorPlan, steps: Sequence[float]) -> TensorPlan:
    """A recipe's plan, with the finest of the steps known of earlier versions where the bound allows it."""
    stages = plan.pipeline.stages
    at = next((i for i, stage in enumerate(stages) if type(stage) is UniformStep), None)
    if not steps or at is None:
        return plan
    known, wanted = min(steps), stages[at].step  # type: ignore[attr-defined]
    if known <= wanted <= _FINER * known:
        step = known
    elif wanted < known:
        step = _ROOM * wanted
    else:
        return plan
    if step == wanted:
        return plan
    return replace(plan, pipeline=Pipeline((*stages[:at], UniformStep(step), *stages[at + 1 :])))
