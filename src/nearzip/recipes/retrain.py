"""What a user's retraining gets from a pruning method, and what it must leave as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import UsageError
from nearzip.tensors import Array, Checkpoint

__all__ = ["Hold", "Retrain", "retrained"]


@dataclass(frozen=True)
class Hold:
    """What retraining must leave as it is, by tensor name.

    Parameters
    ----------
    zeros : tuple of str
        Tensors whose zeros stay zero: pruned weights ("masks").
    shared : tuple of str
        Tensors whose equal values stay equal: they move together (centroids).
    frozen : tuple of str
        Tensors that stay as they are.
    """

    zeros: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    def broken(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> str | None:
        """What was not left as it is, in words; None if all was."""
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
    """What `retrain` makes of copies of the tensors, checked.

    Raises
    ------
    UsageError
        It raised, or tensors are missing, have another shape or dtype, or did not stay as `hold` says.
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
        if (array.shape, array.dtype) != (after[name].shape, after[name].dtype):
            raise UsageError(
                f"retraining returned tensor {name!r} as {after[name].dtype} {list(after[name].shape)}; it was "
                f"{array.dtype} {list(array.shape)}"
            )
    problem = hold.broken(tensors, after)
    if problem:
        raise UsageError(f"retraining changed what it must not: {problem}; see nearzip.torch.finetune")
    return {name: array.copy() for name, array in after.items()}
