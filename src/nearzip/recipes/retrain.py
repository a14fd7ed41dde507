"""What a user's retraining gets from a method: what must stay as it is, and what values are pulled towards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.errors import UsageError
from nearzip.tensors import Array, Checkpoint

__all__ = ["Hold", "Retrain", "retrained"]


@dataclass(frozen=True)
class Hold:
    """What retraining must leave as it is, and what it is pulled towards, by tensor name.

    Parameters
    ----------
    zeros : tuple of str
        Tensors whose zeros stay zero: pruned weights ("masks").
    shared : tuple of str
        Tensors whose equal values stay equal: they move together (centroids).
    frozen : tuple of str
        Tensors that stay as they are.
    near : dict of str to array
        Values that tensors are pulled towards while they train, by the penalty ``weight / 2 * sum((w - near) ** 2)``:
        the learning step of learning-compression algorithms, where `near` is the compressed network. Weights at a NaN
        are not pulled.
    weight : float
        Of the penalty, from 0 on.
    reshaped : tuple of str
        Tensors whose shape retraining may change, where a method removes whole rows or channels.

    Raises
    ------
    UsageError
        A tensor that may change its shape is to be held otherwise as well, or the weight is no number from 0 on.
    """

    zeros: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    near: Mapping[str, Array] = field(default_factory=dict)
    weight: float = 0.0
    reshaped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (
            isinstance(self.weight, bool)
            or not isinstance(self.weight, (int, float))
            or not 0 <= self.weight < math.inf
        ):
            raise UsageError(f"the weight of a penalty is a number from 0 on, not {self.weight!r}")
        both = sorted(set(self.reshaped) & {*self.zeros, *self.shared, *self.frozen, *self.near})
        if both:
            raise UsageError(f"tensor {both[0]!r} may change its shape, so its values cannot be held")

    def broken(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> str | None:
        """Which tensor was not left as it must be, and how; None if all were.

        A penalty leaves values free: nothing is checked of `near`.
        """
        for name in self.frozen:
            if before[name].tobytes() != after[name].tobytes():
                return f"tensor {name!r} was to stay as it is"
        for name in self.zeros:
            if (after[name][before[name] == 0] != 0).any():
                return f"zeros of tensor {name!r} were to stay zero"
        for name in self.shared:
            if not _still_shared(before[name], after[name]):
                return f"equal values of tensor {name!r} were to stay equal"
        return None


def _still_shared(before: Array, after: Array) -> bool:
    _, first, group = np.unique(before.reshape(-1), return_index=True, return_inverse=True)
    flat = after.reshape(-1)
    return bool((flat == flat[first][group.reshape(-1)]).all())


#: retrain(tensors, hold): all tensors of the network as they are now, and what to hold; returns them retrained.
Retrain = Callable[[dict[str, Array], Hold], Mapping[str, Any]]


def retrained(retrain: Retrain, tensors: Mapping[str, Array], hold: Hold) -> dict[str, Array]:
    """The tensors that `retrain` returns for copies of `tensors`, checked.

    Raises
    ------
    UsageError
        It raised, or tensors are missing, have another dtype, a shape that `hold` does not let them change, or did not
        stay as `hold` says.
    """
    try:
        returned = retrain({name: array.copy() for name, array in tensors.items()}, hold)
    except Exception as error:
        raise UsageError(f"retraining raised {type(error).__name__}: {error}") from error
    if not isinstance(returned, Mapping):
        raise UsageError(f"retraining returns a mapping of names to arrays, not {type(returned).__name__}")
    missing = [name for name in tensors if name not in returned]
    if missing:
        raise UsageError(f"retraining returned no tensor {missing[0]!r}")
    found = Checkpoint.of({name: returned[name] for name in tensors})
    after = dict(found.arrays())
    for name, array in tensors.items():
        free = name in hold.reshaped
        if array.dtype != after[name].dtype or (not free and array.shape != after[name].shape):
            raise UsageError(
                f"retraining returned tensor {name!r} as {after[name].dtype} {list(after[name].shape)}; it was "
                f"{array.dtype} {list(array.shape)}"
            )
    problem = hold.broken(tensors, after)
    if problem:
        raise UsageError(f"retraining changed what it must not: {problem}; see nearzip.torch.finetune")
    return {name: array.copy() for name, array in after.items()}
