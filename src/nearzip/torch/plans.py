"""How each tensor of a training state is coded."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearzip.bounds import Bound, Lossless
from nearzip.recipes import Recipe, recipe_type
from nearzip.recipes.nearzip import Nearzip
from nearzip.torch.state import DOCUMENT, TrainingState

__all__ = ["BoundOrBounds", "StatePlan"]

#: One bound, or bounds by tensor name or pattern.
BoundOrBounds = Bound | Mapping[str, Bound]

#: Norms and biases are few and weigh more than others: their bound is so much smaller.
FINER = 8.0


@dataclass(frozen=True)
class _Alone(Nearzip):
    """nearzip without regard to a base: for what has nothing to do with the version before."""

    uses_base = False


@dataclass(frozen=True)
class StatePlan:
    """A recipe and a bound for every tensor of one state (`nearzip.compress(.., plan=)`).

    Matrices and filters have the bound; parameters of one axis an eighth of it; buffers, levels of moments and
    everything else are exact. Levels of first moments forget within a few steps, so they are coded without a base.
    """

    state: TrainingState
    bound: BoundOrBounds
    recipe: Recipe

    @staticmethod
    def of(
        state: TrainingState,
        bound: BoundOrBounds | None = None,
        method: str = "nearzip",
        options: Mapping[str, Any] | None = None,
    ) -> StatePlan:
        """Bounds by tensor name or pattern hold as they are. Raises UsageError for what the method cannot promise."""
        recipe = recipe_type(method).from_options(options)
        if isinstance(bound, Mapping):
            return StatePlan(state, {name: recipe.resolve_bound(each) for name, each in bound.items()}, recipe)
        return StatePlan(state, recipe.resolve_bound(bound), recipe)

    def assignments(self, names: Sequence[str]) -> Mapping[str, tuple[Recipe, Bound | None]]:
        """What `nearzip.compress` asks of a plan."""
        exact, alone = (Nearzip(), Lossless()), (_Alone(), Lossless())
        parameters, forgetful = self.state.parameters, _forgetful(self.state)
        chosen: dict[str, tuple[Recipe, Bound | None]] = {}
        for name in names:
            if name in parameters:
                chosen[name] = (self.recipe, self._bound_of(name))
            else:
                chosen[name] = alone if name in forgetful else exact
        return chosen

    def _bound_of(self, name: str) -> Bound:
        """A parameter's."""
        bounds = self.bound
        if not isinstance(bounds, Mapping):
            return _finer(bounds) if len(self.state.tensors[name].shape) < 2 else bounds
        patterns = [name] if name in bounds else [p for p in bounds if p != "*" and fnmatch.fnmatchcase(name, p)]
        return bounds[patterns[0]] if patterns else bounds.get("*") or self.recipe.resolve_bound(None)


def _finer(bound: Bound) -> Bound:
    value = getattr(bound, "value", None)
    return bound if value is None else dataclasses.replace(bound, value=value / FINER)  # type: ignore[call-arg]


def _forgetful(state: TrainingState) -> set[str]:
    """Tensors to which the version before is no help."""
    found = {DOCUMENT} | {name for name in state.tensors if name.startswith("rng")}
    states = [pair for part in state.document.get("optimizers", ()) for pair in part["state"]]
    for node in (node for _, nodes in states for node in nodes.values()):
        for kind in ("m", "s", "r"):
            if isinstance(node, dict) and kind in node:
                found |= {
                    node[kind][key] for key in ("levels", "places", "exact", "rows", "columns") if key in node[kind]
                }
    return found
