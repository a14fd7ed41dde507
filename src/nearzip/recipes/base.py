"""What a recipe is: options with a paper's defaults, the bound that it can promise, a pipeline for each tensor."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from nearzip.bounds import Bound, Statistics, Tolerance
from nearzip.errors import UsageError
from nearzip.stages import Pipeline

__all__ = ["Recipe", "TensorPlan"]


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor is coded: its pipeline and what is promised for it."""

    pipeline: Pipeline
    tolerance: Tolerance


@dataclass(frozen=True)
class Recipe(ABC):
    """A published method, or ours. Fields are its options.

    The docstring's first line is its one-line description. `uses_base`: whether it makes anything of a base.
    `group_bytes`: tensors up to this size are coded together, up to this size in all.
    """

    name: ClassVar[str]
    uses_base: ClassVar[bool] = True
    group_bytes: ClassVar[int] = 4 << 20

    @abstractmethod
    def resolve_bound(self, bound: Bound | None) -> Bound:
        """The bound that is kept: the caller's, or the method's default. Raises UsageError if it cannot be promised."""

    @abstractmethod
    def plan(
        self, dtype: np.dtype[Any], with_base: bool, bound: Bound, own: Statistics, whole: Statistics
    ) -> TensorPlan:
        """How to code a floating-point tensor.

        Parameters
        ----------
        dtype : numpy dtype
        with_base : bool
            Whether the reader holds a tensor of the same dtype and shape.
        bound : Bound
            As `resolve_bound` gave it.
        own, whole : Statistics
            Of this tensor and of all of the network's floating-point tensors (empty if the bound needs none).
        """

    def exact_pipeline(self, with_base: bool) -> Pipeline | None:
        """For integers, booleans and complex numbers; None: as `codec.exact_pipeline` does."""
        return None

    @classmethod
    def summary(cls) -> str:
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Recipe:
        """From the caller's options; strings (from the command line) are converted. Raises UsageError."""
        hints = typing.get_type_hints(cls)
        known = {f.name: hints[f.name] for f in fields(cls)}
        for name in options or {}:
            if name not in known:
                raise UsageError(f"method {cls.name!r} has no option {name!r}; it takes {', '.join(known) or 'none'}")
        return cls(**{name: _convert(cls.name, name, known[name], value) for name, value in (options or {}).items()})

    def options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _convert(method: str, name: str, hint: Any, value: Any) -> Any:
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        if value in kinds:
            return value
        raise UsageError(f"method {method!r}: {name} is one of {', '.join(map(str, kinds))}, not {value!r}")
    if type(None) in kinds:
        if value is None:
            return None
        return _convert(method, name, next(kind for kind in kinds if kind is not type(None)), value)
    if hint is bool:
        words = {"true": True, "false": False}
        if isinstance(value, bool) or value in words:
            return words.get(value, value)
        raise UsageError(f"method {method!r}: {name} is true or false, not {value!r}")
    try:
        converted = hint(value)
        if isinstance(value, bool) or (not isinstance(value, str) and converted != value):
            raise TypeError
        return converted
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"method {method!r}: {name} cannot be {value!r}") from None
