"""How each tensor of a training state is coded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearzip.bounds import Bound, Lossless
from nearzip.coding import BoundLike, Coding, Codings
from nearzip.torch.state import DOCUMENT, TrainingState

__all__ = ["BoundOrBounds", "StatePlan"]

#: One bound, or bounds by tensor name or pattern.
BoundOrBounds = Bound | str | Mapping[str, BoundLike]

#: Norms and biases are few and weigh more than others: their bound is so much smaller.
FINER = 8.0


@dataclass(frozen=True)
class StatePlan:
    """A coding for every tensor of one state (`nearzip.compress(.., plan=)`).

    Matrices and filters have the bound; parameters of one axis an eighth of it; buffers, levels of moments and
    everything else are exact. Levels of first moments forget within a few steps, so they are coded without a base.

    Parameters
    ----------
    state : TrainingState
    codings : Codings
        Of the parameters.
    finer : bool
        Whether parameters of one axis get an eighth of the bound; bounds by name or pattern hold as they are.
    """

    state: TrainingState
    codings: Codings
    finer: bool = True

    @staticmethod
    def of(
        state: TrainingState,
        bound: BoundOrBounds | None = None,
        method: str = "nearzip",
        options: Mapping[str, Any] | None = None,
    ) -> StatePlan:
        """Raises UsageError for what the method cannot promise."""
        return StatePlan(state, Codings.of(method, bound, options), not isinstance(bound, Mapping))

    def codings_for(self, names: Sequence[str]) -> Codings:
        """What `nearzip.compress` asks of a plan."""
        exact, without_base = Coding.of("nearzip", Lossless()), Coding.of("nearzip", Lossless(), with_base=False)
        parameters, forgetful = self.state.parameters, _forgetful(self.state)
        finer = self.codings.default.with_bound(_finer(self.codings.default.promise)) if self.finer else None
        chosen: dict[str, Coding] = {}
        for name in names:
            if name not in parameters:
                chosen[name] = without_base if name in forgetful else exact
            elif finer is not None and len(self.state.tensors[name].shape) < 2:
                chosen[name] = finer
            else:
                chosen[name] = self.codings[name]
        return Codings(exact, chosen).codings_for(names)


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
