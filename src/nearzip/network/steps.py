"""Functions that are called before or after every step of every optimizer of the process, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

__all__ = ["Handle", "after_steps", "before_steps"]

#: Called with the optimizer and the arguments of its step; before a step it may return others in their place.
StepHook = Callable[[Optimizer, Any, Any], tuple[Any, Any] | None]

_LOCK = threading.Lock()


class _Calls:
    """PyTorch walks over its own hooks while other threads may add some, and fails: one is added, once, and stays."""

    def __init__(self, register: Callable[[Any], Any]) -> None:
        self._register = register
        self._is_registered = False
        self._functions: tuple[StepHook, ...] = ()

    def __call__(self, optimizer: Optimizer, arguments: Any, named: Any) -> tuple[Any, Any] | None:
        is_changed = False
        for function in self._functions:
            found = function(optimizer, arguments, named)
            if found is not None:
                (arguments, named), is_changed = found, True
        return (arguments, named) if is_changed else None

    def add(self, function: StepHook) -> None:
        with _LOCK:
            if not self._is_registered:
                self._register(self)
                self._is_registered = True
            self._functions = (*self._functions, function)

    def remove(self, function: StepHook) -> None:
        with _LOCK:
            self._functions = tuple(each for each in self._functions if each is not function)


_BEFORE = _Calls(register_optimizer_step_pre_hook)
_AFTER = _Calls(register_optimizer_step_post_hook)


@dataclass(frozen=True)
class Handle:
    """What was added; `remove` ends it."""

    calls: _Calls
    function: StepHook

    def remove(self) -> None:
        self.calls.remove(self.function)


def before_steps(function: StepHook) -> Handle:
    """Call `function` before every step, until the handle is removed."""
    _BEFORE.add(function)
    return Handle(_BEFORE, function)


def after_steps(function: StepHook) -> Handle:
    """Call `function` after every step, until the handle is removed."""
    _AFTER.add(function)
    return Handle(_AFTER, function)
