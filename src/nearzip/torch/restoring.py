"""A training state back into live objects. Everything is checked before the first of them is touched."""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.nn.parameter import is_lazy

from nearzip.errors import CorruptError, UsageError
from nearzip.network.arrays import to_torch
from nearzip.torch.renames import Rename, checked, renamed_names
from nearzip.torch.state import TrainingState, listed, parameter_names, unpack_optimizer, unpack_parts
from nearzip.torch.subclasses import distributed_like, has_parts
from nearzip.torch.trees import Json, unpack
from nearzip.torch.wrappers import is_extra_state, plain_names, plain_parameters

__all__ = ["Restored", "restore"]

_LOG = logging.getLogger("nearzip")


@dataclass(frozen=True)
class Restored:
    """The restored state, besides the objects that were restored in place.

    Parameters
    ----------
    step : int
    metrics : dict
    loader
        The plain value that was given as the loader's position; None if it was an object with `state_dict`.
    extra
        What was given as `extra`.
    version : int or None
        The number of the version in its store.
    missing : tuple of str
        With `strict=False`: tensors of the model that the state does not hold. They keep their values.
    unexpected : tuple of str
        With `strict=False`: tensors of the state that the model does not have.
    mismatched : tuple of str
        With `strict=False`: tensors of the model that have another shape in the state. They keep their values.
    notes : tuple of str
        What was not restored, and why.
    """

    step: int
    metrics: dict[str, Any]
    loader: Any = None
    extra: Any = None
    version: int | None = None
    notes: tuple[str, ...] = field(default=())
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


def restore(
    state: TrainingState,
    model: nn.Module,
    optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
    scheduler: Any = None,
    *,
    scaler: Any = None,
    loader: Any = None,
    rng: bool = True,
    strict: bool = True,
    rename: Rename | None = None,
) -> Restored:
    """Put a state back. All of it is checked against the objects first; if anything does not fit, none is changed.

    What was saved but is not asked for (an optimizer, when only the model is wanted) is left out. A model that is
    wrapped (`torch.compile`, DDP, DataParallel) takes the state of one that is not, and the other way round.

    Parameters
    ----------
    strict : bool
        False: load the tensors that fit by name and shape, and leave the others of the model as they are. `missing`,
        `unexpected` and `mismatched` of the result name what did not fit. Optimizer, scheduler, scaler, loader and
        random generators are restored only if all tensors fit; otherwise `notes` says that they were not, and the
        logger `nearzip` warns.
    rename : mapping of str to str
        For tensors that are called otherwise in the state: their names there, or what these begin with, and what the
        model has in their place. The model's own names come first.

    Raises
    ------
    UsageError
        The state does not fit: other tensors or shapes, another optimizer, a scheduler that was not saved.
    CorruptError
        The state is damaged.
    """
    document, arrays = state.document, state.tensors
    rename = checked(rename)
    fit = _fit_model(document, arrays, model, rename)
    if strict:
        fit.check()
    rest = _Rest(fit.complaint())
    loads: list[tuple[Any, Any]] = []
    optimizers = listed(optimizer)
    if optimizers:
        read = functools.partial(_optimizer_states, document, arrays, model, optimizers, rename)
        for contents in rest.read("optimizer", strict, read):
            loads += zip(optimizers, contents, strict=True)
    for key, thing in (("scheduler", scheduler), ("scaler", scaler), ("loader", loader)):
        if thing is not None:
            read = functools.partial(_object_state, key, thing, document, arrays)
            loads += [(thing, content) for content in rest.read(key, strict, read)]
    generators: list[Any] = []
    if rng and "rng" in document and fit.complaint() is None:
        generators = rest.read("random generators", strict, lambda: unpack(document["rng"], arrays))
    metrics = unpack(document.get("metrics"), {}) or {}
    extra = unpack(document["extra"], arrays) if "extra" in document else None
    position = _position(document, arrays) if loader is None else None

    model.load_state_dict(fit.weights, strict=strict)
    for thing, content in loads:
        thing.load_state_dict(content)
    for content in generators:
        _set_random_state(content)
    for note in rest.notes:
        _LOG.warning("%s", note)
    found = (fit.missing, fit.unexpected, tuple(fit.mismatched))
    return Restored(state.step, metrics, position, extra, None, tuple(rest.notes), *found)


@dataclass(frozen=True)
class _Fit:
    """What of a saved model goes where in the live one.

    Parameters
    ----------
    weights : dict
        What is loaded, by the live model's names.
    missing, unexpected : tuple of str
    mismatched : dict
        Name to the shapes that it had and has.
    """

    weights: dict[str, Any]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[list[int], list[int]]]

    def complaint(self) -> str | None:
        """What does not fit; None if all of it does."""
        if self.missing or self.unexpected:
            parts = [f"has no {_some(self.missing)}"] if self.missing else []
            parts += [f"holds {_some(self.unexpected)}, which the model lacks"] if self.unexpected else []
            return f"it {' and '.join(parts)}"
        for name, (was, is_now) in self.mismatched.items():
            return f"{name!r} was {was}, is {is_now}"
        return None

    def check(self) -> None:
        """Raise UsageError unless everything fits."""
        complaint = self.complaint()
        if complaint is not None:
            raise UsageError(
                f"the saved state does not fit the model: {complaint}; strict=False restores the tensors that fit"
            )


class _Rest:
    """Reads what belongs to a training besides its model, and notes what is left out."""

    def __init__(self, complaint: str | None) -> None:
        self._complaint = complaint
        self.notes: list[str] = []

    def read(self, what: str, strict: bool, content: Callable[[], Any]) -> list[Any]:
        """One content, or none if it does not fit, which is an error if `strict`."""
        if self._complaint is not None:
            self.notes.append(f"not restored: {what}, since the saved state does not fit the model: {self._complaint}")
            return []
        try:
            return [content()]
        except UsageError as error:
            if strict:
                raise
            self.notes.append(f"not restored: {what}: {error}")
            return []


def _some(names: Iterable[str]) -> str:
    found = list(names)
    return ", ".join(map(repr, found[:3])) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _fit_model(document: dict[str, Json], arrays: Mapping[str, Any], model: nn.Module, rename: Rename | None) -> _Fit:
    saved = {name.removeprefix("model/"): value for name, value in arrays.items() if name.startswith("model/")}
    other = unpack(document.get("other"), arrays) or {}
    if not isinstance(other, dict) or not all(isinstance(name, str) for name in other):
        raise CorruptError("training state: the document is damaged")
    live = model.state_dict()
    names = renamed_names({**saved, **other}, plain_names(model, live), rename)
    weights: dict[str, Any] = {}
    mismatched = {}
    for name, target in names.items():
        given = other[name] if name in other else saved[name]
        if name in other and (is_extra_state(target) or not isinstance(live[target], torch.Tensor)):
            weights[target] = given
            continue
        if name in other and not isinstance(given, torch.Tensor):
            raise CorruptError(f"training state: {name[:80]!r} is a {type(given).__name__}, not a tensor")
        _check_kind(target, given, live[target])
        was, is_now = list(given.shape), _shape(live[target])
        if is_extra_state(target) or is_now is None or was == is_now:
            weights[target] = distributed_like(live[target], to_torch(given, copy=False))
        else:
            mismatched[target] = was, is_now
    reached = set(names.values())
    missing = tuple(name for name in live if name not in reached)
    unexpected = tuple(name for name in (*saved, *other) if name not in names)
    return _Fit(weights, missing, unexpected, mismatched)


def _check_kind(name: str, given: Any, live: Any) -> None:
    """Raise UsageError for a tensor made of tensors where the model has one of another class, or a plain one."""
    was, is_now = (isinstance(each, torch.Tensor) and has_parts(each) for each in (given, live))
    if (was or is_now) and type(given) is not type(live):
        was_text, is_text = (
            type(each).__name__ if isinstance(each, torch.Tensor) else "Tensor" for each in (given, live)
        )
        raise UsageError(
            f"the saved state does not fit the model: {name!r} was a {was_text}, is a {is_text}; quantize the model in "
            "the same way before restoring it"
        )


def _shape(value: Any) -> list[int] | None:
    """None: any shape fits, since a lazy module takes that of what is loaded."""
    if isinstance(value, torch.Tensor) and is_lazy(value):
        return None
    return list(getattr(value, "shape", ()))


def _optimizer_states(
    document: dict[str, Json],
    arrays: Mapping[str, Any],
    model: nn.Module,
    optimizers: list[optim.Optimizer],
    rename: Rename | None,
) -> list[dict[str, Any]]:
    parts = unpack_parts(document)
    if not parts:
        raise UsageError("the state was saved without an optimizer; restore it without one")
    if len(parts) != len(optimizers):
        raise UsageError(f"the state is of {len(parts)} optimizers, not {len(optimizers)}")
    parameters = plain_parameters(model)
    saved = {name for part in parts for group in part["groups"] for name in group["names"]}
    known = renamed_names(saved, {name: name for name in parameters}, rename)
    found = []
    for part, optimizer in zip(parts, optimizers, strict=True):
        if part["class"] != type(optimizer).__name__:
            raise UsageError(f"the state is of the optimizer {part['class']}, not {type(optimizer).__name__}")
        live = parameter_names(parameters, optimizer)
        names = [[known.get(name, name) for name in group["names"]] for group in part["groups"]]
        if names != live:
            raise UsageError(f"the optimizer's parameters differ: {_difference(names, live)}")
        content = unpack_optimizer(part, arrays)
        _check_shapes(optimizer, content["state"], [name for group in live for name in group])
        _distribute(optimizer, content["state"])
        found.append(content)
    return found


def _difference(saved: list[list[str]], live: list[list[str]]) -> str:
    if len(saved) != len(live):
        return f"it had {len(saved)} groups, this one has {len(live)}"
    for i, (was, has) in enumerate(zip(saved, live, strict=True)):
        gone, new = [n for n in was if n not in has], [n for n in has if n not in was]
        if gone or new:
            lacks, also = _some(gone) or "nothing", _some(new) or "nothing"
            return f"group {i} lacks {lacks} and has {also} instead"
    return "they are in another order"


def _check_shapes(optimizer: optim.Optimizer, content: Mapping[int, Mapping[str, Any]], names: list[str]) -> None:
    """State of as many axes as its parameter has its shape (Adafactor's rows and columns have fewer)."""
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, values in content.items():
        for key, value in values.items():
            same_rank = isinstance(value, torch.Tensor) and value.dim() == live[i].dim() > 0
            if same_rank and value.shape != live[i].shape and key in _LIKE_PARAMETERS:
                raise UsageError(
                    f"optimizer state {key!r} of {names[i]!r} was {list(value.shape)}, "
                    f"but the parameter is {list(live[i].shape)}"
                )


def _distribute(optimizer: optim.Optimizer, content: Mapping[int, dict[str, Any]]) -> None:
    """State of the shape of a parameter that is a DTensor becomes one."""
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, values in content.items():
        values.update({key: distributed_like(live[i], value) for key, value in values.items()})


#: State that always has its parameter's shape.
_LIKE_PARAMETERS = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "grad_avg", "sum", "prev", "exp_inf"}
)


def _object_state(key: str, thing: Any, document: dict[str, Json], arrays: Mapping[str, Any]) -> Any:
    saved = document.get(key)
    if not isinstance(saved, dict) or "state" not in saved:
        raise UsageError(f"the state was saved without a {key}; restore it without one")
    if not hasattr(thing, "load_state_dict"):
        raise UsageError(f"the {key} given has no load_state_dict; leave it out, restore() returns the saved value")
    if key == "scheduler" and saved.get("class") != type(thing).__name__:
        raise UsageError(f"the state is of the scheduler {saved.get('class')}, not {type(thing).__name__}")
    return unpack(saved["state"], arrays)


def _position(document: dict[str, Json], arrays: Mapping[str, Any]) -> Any:
    saved = document.get("loader")
    if not isinstance(saved, dict) or saved.get("class") is not None:
        return None
    return unpack(saved.get("state"), arrays)


def _set_random_state(state: Any) -> None:
    try:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        devices = state.get("cuda")
        if devices is not None and torch.cuda.is_available() and len(devices) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(devices)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptError(f"training state: the random generators' part is damaged: {error}") from None
