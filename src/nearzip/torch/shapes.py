"""One model in one store: its tensors keep their shapes from save to save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearzip.errors import CorruptError, LimitError, NotFoundError, UsageError
from nearzip.store import Store
from nearzip.torch.state import DOCUMENT, TrainingState
from nearzip.torch.wrappers import is_extra_state, unwrapped

__all__ = ["Shapes"]

_Shapes = dict[str, tuple[int, ...]]


class Shapes:
    """The shapes of the model that a store is for: those of its latest version, or of the first state that is saved."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: _Shapes | None = None

    def know(self, state: TrainingState) -> None:
        """Take the shapes of a state that was restored."""
        self._known = _of(state.tensors)

    def check(self, state: TrainingState) -> None:
        """Raises UsageError if this is another model than that of the store."""
        shapes = _of(state.tensors)
        if self._known is None:
            self._known = self._latest()
        if self._known and shapes != self._known and _unwrapped(shapes) != _unwrapped(self._known):
            changed = next(n for n in {**shapes, **self._known} if shapes.get(n) != self._known.get(n))
            was, is_now = self._known.get(changed), shapes.get(changed)
            raise UsageError(
                f"the model changed since the last save: {changed.removeprefix('model/')!r} was {_said(was)}, is "
                f"{_said(is_now)}; save another model into a store of its own"
            )
        self._known = shapes

    def _latest(self) -> _Shapes:
        """Of the version that the next one would be coded against; empty if there is none that can be read."""
        try:
            specs = self._store.specs()
        except (NotFoundError, CorruptError, LimitError):
            return {}
        return _of(specs) if DOCUMENT in specs else {}


def _of(tensors: Mapping[str, Any]) -> _Shapes:
    """Without extra state, whose length may change."""
    return {
        name: tuple(value.shape)
        for name, value in tensors.items()
        if name.startswith("model/") and not is_extra_state(name.removeprefix("model/"))
    }


def _unwrapped(shapes: _Shapes) -> list[tuple[str, tuple[int, ...]]]:
    """Older releases saved a wrapped model with the wrapper's names."""
    return sorted((unwrapped(name.removeprefix("model/")), shape) for name, shape in shapes.items())


def _said(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))
