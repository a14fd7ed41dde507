"""One model in one store: its tensors keep their shapes from save to save, up to the size of the vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from nearzip.errors import CorruptError, LimitError, NotFoundError, UsageError
from nearzip.store import Store
from nearzip.torch.renames import Rename, renamed_tensors
from nearzip.torch.state import DOCUMENT, TrainingState
from nearzip.torch.wrappers import is_extra_state, plain_names, unwrapped

__all__ = ["Shapes"]

_LOG = logging.getLogger("nearzip")

_Shapes = dict[str, tuple[int, ...]]


class Shapes:
    """The shapes of the model that a store is for: those of its latest version, or of the first state that is saved."""

    def __init__(self, store: Store, rename: Rename | None = None) -> None:
        self._store = store
        self._rename = rename
        self._known: _Shapes | None = None

    def know(self, state: TrainingState) -> None:
        """Take the shapes of a state that was restored."""
        self._known = _of(state.tensors)

    def check(self, state: TrainingState, model: nn.Module | None = None) -> None:
        """Raises UsageError if this is another model than that of the store.

        With the `model` given, its vocabulary may have changed its size since.
        """
        shapes = _of(state.tensors)
        if self._known is None:
            self._known = self._latest()
        now = renamed_tensors(self._known, shapes, self._rename)
        self._known = {now.get(name, name): shape for name, shape in self._known.items()}
        if self._known and shapes != self._known and _unwrapped(shapes) != _unwrapped(self._known):
            rows = None if model is None else _resized(self._known, shapes, model)
            if rows is None:
                raise _another_model(self._known, shapes)
            _LOG.warning("%s: the vocabulary changed from %d to %d rows", self._store.url, *rows)
        self._known = shapes

    def _latest(self) -> _Shapes:
        """Shapes of the version that the next one would be coded against; empty if there is none that can be read."""
        try:
            specs = self._store.specs()
        except (NotFoundError, CorruptError, LimitError):
            return {}
        return _of(specs) if DOCUMENT in specs else {}


def _another_model(known: _Shapes, shapes: _Shapes) -> UsageError:
    changed = next(name for name in {**shapes, **known} if shapes.get(name) != known.get(name))
    was, is_now = _said(known.get(changed)), _said(shapes.get(changed))
    return UsageError(
        f"the model changed since the last save: {changed.removeprefix('model/')!r} was {was}, is {is_now}; save "
        "another model into a store of its own"
    )


def _resized(known: _Shapes, shapes: _Shapes, model: nn.Module) -> tuple[int, int] | None:
    """How many rows an embedding had and has, if that is all that changed: in it, and in the head of as many rows."""
    changed = [name for name in shapes if shapes[name] != known.get(name)]
    if shapes.keys() != known.keys() or not all(known[name] and shapes[name] for name in changed):
        return None
    rows = {(known[name][0], shapes[name][0]) for name in changed}
    same_rest = all(known[name][1:] == shapes[name][1:] for name in changed)
    kinds = (nn.Embedding, nn.EmbeddingBag)
    paths = [path for path, module in model.named_modules(remove_duplicate=False) if isinstance(module, kinds)]
    embeddings = {f"model/{name}" for name in plain_names(model, [f"{path}.weight" for path in paths]).values()}
    return rows.pop() if len(rows) == 1 and same_rest and embeddings & set(changed) else None


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
