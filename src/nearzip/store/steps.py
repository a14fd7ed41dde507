"""The steps by which the tensors of stored versions were quantized; `recipes.steps` says how the next ones use them."""

from __future__ import annotations

from nearzip.container import Index
from nearzip.stages import E8Step

__all__ = ["last_steps", "steps_of"]


def steps_of(index: Index) -> dict[str, set[float]]:
    """The steps by which an archive's tensors were quantized, or of which their points have multiples (E8)."""
    found: dict[str, set[float]] = {}
    for segment in index.segments:
        stages = {stage for block in segment.blocks for stage in block.pipeline.stages if hasattr(stage, "step")}
        steps = {stage.grid if isinstance(stage, E8Step) else stage.step for stage in stages}
        for spec in segment.tensors:
            found.setdefault(spec.name, set()).update(steps)
    return found


def last_steps(index: Index) -> dict[str, tuple[float, ...]]:
    """The finest step of each tensor that has any."""
    return {name: (min(steps),) for name, steps in steps_of(index).items() if steps}
