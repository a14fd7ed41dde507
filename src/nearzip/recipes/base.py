"""The recipe of a method: options with the paper's defaults, the bound it can promise, a pipeline for each tensor."""

from __future__ import annotations

import functools
import typing
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from nearzip.bounds import Bound, NoPromise, Statistics, Tolerance
from nearzip.errors import UsageError
from nearzip.recipes.by_name import ByName
from nearzip.recipes.retrain import Retrain
from nearzip.stages import Pipeline
from nearzip.tensors import Array

__all__ = ["Fallback", "Recipe", "TensorPlan", "TensorView", "Unpromised"]


Fallback = Literal["values", "restored", "never"]


@dataclass(eq=False)  # one a tensor: a frozen one takes three times as long to make
class TensorView:
    """A floating-point tensor as recipes see it. Not to be changed.

    Parameters
    ----------
    name : str
    dtype : numpy dtype
    shape : tuple of int
    with_base : bool
        Whether the receiver has a tensor of the same dtype and shape.
    own, whole : Statistics
        Of this tensor, and of all floating-point tensors that share its method and bound (empty if the bound is
        lossless).
    values, base_values : callable
        The tensor and the receiver's, shape `shape` (UsageError if it has none). They are read when called, so a recipe
        that does not need them costs nothing. Read-only.
    steps : tuple of float
        The steps of quantization by which the tensor's earlier versions were rounded, as far as the base carries them.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    with_base: bool
    own: Statistics
    whole: Statistics
    values: Callable[[], Array]
    base_values: Callable[[], Array]
    steps: tuple[float, ...] = ()


@dataclass(frozen=True, init=False)
class TensorPlan:
    """How one tensor is coded.

    Parameters
    ----------
    pipeline : Pipeline
    tolerance : Tolerance
        What is promised for it.
    own_block : bool
        Whether the tensor is in one block without others, never cut, as all tensors of a recipe with `whole_tensors`.
        Its name in release 0.1, `alone`, still works, with a DeprecationWarning.
    """

    pipeline: Pipeline
    tolerance: Tolerance
    own_block: bool = False

    def __init__(
        self, pipeline: Pipeline, tolerance: Tolerance, own_block: bool = False, *, alone: bool | None = None
    ) -> None:
        if alone is not None:
            warnings.warn("TensorPlan: alone= is now called own_block=", DeprecationWarning, stacklevel=2)
            own_block = alone
        self.__dict__.update(pipeline=pipeline, tolerance=tolerance, own_block=own_block)

    @property
    def alone(self) -> bool:
        """The old name of `own_block`."""
        warnings.warn("TensorPlan.alone is now called own_block", DeprecationWarning, stacklevel=2)
        return self.own_block


@dataclass(frozen=True)
class Recipe(ABC):
    """A published method, or ours. Fields are its options.

    The docstring's first line is its one-line description. `uses_base`: whether it makes anything of a base.
    `promises`: whether it keeps a bound (see `Unpromised`). `needs`: packages that an extra installs. `group_bytes`:
    tensors up to this size are coded together, up to this size in all. `cut_tensors`: whether larger ones are cut into
    blocks of that size; if not, a tensor is in one block, however large. `whole_tensors`: every tensor is a block of
    its own, never grouped and never cut, because stages keep side data for it.
    """

    name: ClassVar[str]
    uses_base: ClassVar[bool] = True
    promises: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()
    group_bytes: ClassVar[int] = 4 << 20
    cut_tensors: ClassVar[bool] = True
    whole_tensors: ClassVar[bool] = False
    #: What may be stored in place of the method's coding where it is smaller: the exact "values"; exactly what the
    #: method restores ("restored"), if that is not meant to be the tensor itself; or nothing ("never").
    fallback: ClassVar[Fallback] = "values"
    #: Options that trade size for accuracy, each with values from the largest file to the smallest: what `nearzip.tune`
    #: may turn. Without bounds it turns the first.
    knobs: ClassVar[Mapping[str, Sequence[Any]]] = {}
    #: Of an experimental method or option the name, the values and the bytes written may change between releases.
    #: Archives stay readable either way.
    stability: ClassVar[Literal["stable", "experimental"]] = "stable"
    experimental_options: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def resolve_bound(self, bound: Bound | None) -> Bound:
        """The bound that is kept: the caller's, or the method's default. Raises UsageError if it cannot be promised."""

    @abstractmethod
    def plan(self, tensor: TensorView, bound: Bound) -> TensorPlan:
        """How to code a floating-point tensor, under a bound as `resolve_bound` gave it."""

    def plan_all(self, tensors: Iterable[TensorView], bound: Bound) -> Iterator[TensorPlan]:
        """Plans for all floating-point tensors that share this recipe and bound, in their order.

        For recipes that compare tensors with each other before they decide; by default each is planned by itself, when
        its turn comes.
        """
        for tensor in tensors:
            yield self.plan(tensor, bound)

    def exact_pipeline(self, with_base: bool) -> Pipeline | None:
        """For integers, booleans and complex numbers; None: as `codec.exact_pipeline` does."""
        return None

    def without_base(self, pipeline: Pipeline) -> Pipeline | None:
        """A pipeline that keeps the promise of `pipeline` without a base, or None."""
        return pipeline.without_base()

    def by_name(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> Hashable:
        """What the options say of one tensor by its name. Tensors may be equal and share their bytes only if this is.

        `shapes`: of all floating-point tensors that share this recipe and bound, in order.
        """
        return None

    def check_names(self, names: Iterable[str]) -> None:  # noqa: B027
        """Raise UsageError if an option names a tensor, or has a pattern, that is none of `names`."""

    def prepare(self, tensors: Mapping[str, Array], retrain: Retrain) -> dict[str, Array]:
        """The tensors to compress, after the steps of the method that `retrain` takes part in.

        Raises UsageError for methods without such steps.
        """
        raise UsageError(f"method {self.name!r} has no step that retrains; leave retrain out")

    @classmethod
    def summary(cls) -> str:
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Recipe:
        """From the caller's options; strings (from the command line) are converted. Raises UsageError."""
        known = _option_types(cls)
        for name in options or {}:
            if name not in known:
                raise UsageError(f"method {cls.name!r} has no option {name!r}; it takes {', '.join(known) or 'none'}")
        return cls(**{name: _convert(cls.name, name, known[name], value) for name, value in (options or {}).items()})

    def options(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v.to_option() if isinstance(v, ByName) else v for name, v in values.items()}


@functools.cache
def _option_types(recipe: type[Recipe]) -> dict[str, Any]:
    """Type of each option."""
    hints = typing.get_type_hints(recipe)
    return {f.name: hints[f.name] for f in fields(recipe)}


@dataclass(frozen=True)
class Unpromised(Recipe):
    """A recipe that promises nothing against its input: it prunes, clusters, or has a fixed number of bits."""

    promises = False

    def resolve_bound(self, bound: Bound | None) -> Bound:
        if bound is None or isinstance(bound, NoPromise):
            return NoPromise()
        settings = ", ".join(f.name for f in fields(self))
        raise UsageError(
            f"{self.name} promises nothing against its input, so it cannot keep {bound}; leave the bound out and set "
            f"its options ({settings}), or take a method that keeps bounds"
        )

    def without_base(self, pipeline: Pipeline) -> Pipeline | None:
        # With nothing promised, what rounding of differences gives cannot be had from the values.
        return None


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
    if hint is ByName:
        return ByName.parse(value)
    if hint is bool:
        words = {"true": True, "false": False}
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value in words:
            return words[value]
        raise UsageError(f"method {method!r}: {name} is true or false, not {value!r}")
    try:
        converted = hint(value)
        if isinstance(value, bool) or (not isinstance(value, str) and converted != value):
            raise TypeError
        return converted
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"method {method!r}: {name} cannot be {value!r}") from None
