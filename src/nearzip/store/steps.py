"""Versions quantized with one step, so that each can be coded exactly against any other.

A bound such as rms:0.01 gives every version a step of its own, and versions that were quantized with different steps
have no cheap exact difference: a re-coded one would cost whole mantissas. So a version keeps the step of the one before
as long as the bound allows it and it is not much finer than needed. A finer step keeps every promise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from nearzip.bounds import Bound
from nearzip.container import Index
from nearzip.recipes.base import Recipe, TensorPlan, TensorView
from nearzip.recipes.settings import Setting, Settings
from nearzip.stages import E8Step, Pipeline, UniformStep

__all__ = ["last_steps", "steps_of", "with_steps"]

#: A step is kept while the bound allows no more than this times it: at most 0.17 bits a value, at first none.
_FINER = 1.125
#: A step that has to shrink shrinks a little further, so that the next versions can keep it.
_ROOM = 0.94


class _WithSteps(Recipe):
    """Another recipe, with steps that were used before where the bound allows them."""

    def __init__(self, recipe: Recipe, steps: Mapping[str, float]):
        self._recipe = recipe
        self._steps = steps
        # What the archive says of the method is the recipe's own.
        for name in ("name", "uses_base", "promises", "fallback", "group_bytes", "cut_tensors", "whole_tensors"):
            object.__setattr__(self, name, getattr(recipe, name))

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def options(self) -> dict[str, Any]:
        return self._recipe.options()

    def resolve_bound(self, bound: Bound | None) -> Bound:
        return self._recipe.resolve_bound(bound)

    def exact_pipeline(self, with_base: bool) -> Pipeline | None:
        return self._recipe.exact_pipeline(with_base)

    def without_base(self, pipeline: Pipeline) -> Pipeline | None:
        return self._recipe.without_base(pipeline)

    def by_name(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
        return self._recipe.by_name(name, shapes)

    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        return self._moved(tensor, self._recipe.plan(tensor, bound))

    def plan_all(self, tensors: Iterable[TensorView], bound: Bound) -> Iterator[TensorPlan]:
        views = list(tensors)
        for tensor, plan in zip(views, self._recipe.plan_all(views, bound), strict=True):
            yield self._moved(tensor, plan)

    def _moved(self, tensor: TensorView, plan: TensorPlan) -> TensorPlan:
        before = self._steps.get(tensor.name)
        stages = plan.pipeline.stages
        at = next((i for i, stage in enumerate(stages) if type(stage) is UniformStep), None)
        if before is None or at is None:
            return plan
        wanted = stages[at].step  # type: ignore[attr-defined]
        if before <= wanted <= _FINER * before:
            step = before
        elif wanted < before:
            step = _ROOM * wanted
        else:
            return plan
        if step == wanted:
            return plan
        pipeline = Pipeline((*stages[:at], UniformStep(step), *stages[at + 1 :]))
        return dataclasses.replace(plan, pipeline=pipeline)


def steps_of(index: Index) -> dict[str, set[float]]:
    """The steps by which an archive's tensors were quantized, or of which their points have multiples (E8)."""
    found: dict[str, set[float]] = {}
    for segment in index.segments:
        stages = {stage for block in segment.blocks for stage in block.pipeline.stages if hasattr(stage, "step")}
        steps = {stage.grid if isinstance(stage, E8Step) else stage.step for stage in stages}
        for spec in segment.tensors:
            found.setdefault(spec.name, set()).update(steps)
    return found


def last_steps(index: Index) -> dict[str, float]:
    """One step for each tensor that has any."""
    return {name: min(steps) for name, steps in steps_of(index).items() if steps}


def with_steps(settings: Settings, steps: Mapping[str, float]) -> Settings:
    """The same settings, with the steps of the version before where they will do."""
    if not steps:
        return settings
    recipes: dict[Recipe, _WithSteps] = {}

    def moved(setting: Setting) -> Setting:
        if setting.recipe not in recipes:
            recipes[setting.recipe] = _WithSteps(setting.recipe, steps)
        return Setting(recipes[setting.recipe], setting.bound)

    return Settings(moved(settings.default), {name: moved(setting) for name, setting in settings.by_name.items()})
