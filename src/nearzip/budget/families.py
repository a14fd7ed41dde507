"""What a search turns: settings of one method in a row, from exact to small, at positions on a line.

Along a bound one step to the right doubles it; along an option it is the next value.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from nearzip.api import compress
from nearzip.bounds import Absolute, Bound, Lossless, PointwiseRelative, Relative, Rms
from nearzip.budget.measure import Subject
from nearzip.budget.plan import Assignment, Choice
from nearzip.errors import UsageError
from nearzip.recipes import recipe_type
from nearzip.tensors import Array, is_float

__all__ = ["Bounds", "Family", "Only", "Options", "family_of", "with_bound"]

#: In the order in which they are tried on a method.
KINDS: dict[str, type[Absolute | PointwiseRelative | Relative | Rms]] = {
    "abs": Absolute, "pwrel": PointwiseRelative, "rel": Relative, "rms": Rms,
}  # fmt: skip


class Family(ABC):
    """Settings in a row.

    `low`, `high`, `start`: positions: the most exact, the smallest file, where a search begins. Positions are multiples
    of `grid`. `exact`: a setting that loses nothing, or None.
    """

    low: float
    high: float
    start: float
    grid: ClassVar[float]

    @abstractmethod
    def at(self, position: float) -> Assignment:
        """The setting there."""

    def snap(self, position: float) -> float:
        """The nearest position that there is."""
        return min(self.high, max(self.low, round(position / self.grid) * self.grid))

    @property
    def exact(self) -> Assignment | None:
        return None


@dataclass(frozen=True)
class Only(Family):
    """A method with nothing to turn."""

    choice: Choice
    low: float = 0.0
    high: float = 0.0
    start: float = 0.0
    grid = 1.0

    def at(self, position: float) -> Assignment:
        return Assignment(self.choice)


@dataclass(frozen=True)
class Options(Family):
    """One option of a method, its values from the largest file to the smallest."""

    choice: Choice
    option: str
    values: Sequence[Any]
    grid = 1.0
    low = 0.0

    @property
    def high(self) -> float:  # type: ignore[override]
        return float(len(self.values) - 1)

    @property
    def start(self) -> float:  # type: ignore[override]
        return float(len(self.values) // 2)

    def at(self, position: float) -> Assignment:
        value = self.values[round(position)]
        return Assignment(Choice(self.choice.method, {**self.choice.options, self.option: value}, self.choice.bound))


@dataclass(frozen=True)
class Bounds(Family):
    """Bounds of one kind; a position is log2 of the bound over `unit`.

    With absolute bounds, tensors of one dimension (biases, norms and their statistics) keep a finer bound of their own,
    as long as that costs little: they are few values, and much depends on each.
    """

    choice: Choice
    kind: str
    subject: Subject
    grid = 1 / 16

    @cached_property
    def unit(self) -> float:
        """Root mean square of what is coded (the update, where there is a base); 1 for relative kinds."""
        if self.kind != "abs":
            return 1.0
        large = [n for n, a in self._coded.items() if a.ndim > 1] or list(self._coded)
        return rms([self._coded[name] for name in large]) or 1.0

    @cached_property
    def low(self) -> float:  # type: ignore[override]
        return -12.0

    @cached_property
    def high(self) -> float:  # type: ignore[override]
        """Where everything is rounded to zero, or what a relative bound can mean."""
        if self.kind != "abs":
            return -1.0 if self.kind == "pwrel" else 2.0
        largest = max((float(np.max(np.abs(a))) for a in self._coded.values() if a.size), default=0.0)
        return max(self.start, math.ceil(math.log2(max(largest / self.unit, 1.0)) / self.grid) * self.grid)

    @cached_property
    def start(self) -> float:  # type: ignore[override]
        return {"abs": -1.0, "rms": -1.0, "rel": -5.0, "pwrel": -2.0}[self.kind]

    def at(self, position: float) -> Assignment:
        value = float(f"{self.unit * 2.0**position:.4g}")
        finer = {name: with_bound(self.choice, Absolute(own)) for name, own in self._own.items() if own < value}
        return Assignment(with_bound(self.choice, KINDS[self.kind](value)), finer)

    @property
    def exact(self) -> Assignment | None:
        lossless = with_bound(self.choice, Lossless())
        try:
            return Assignment(lossless.checked())
        except UsageError:
            return None

    # ---- tensors of one dimension ------------------------------------------------------------------------------

    @cached_property
    def _coded(self) -> dict[str, Array]:
        """What is coded of every floating-point tensor, finite values only, float64, in its shape where all are."""
        coded = {}
        uses_base = recipe_type(self.choice.method).uses_base
        for name, array in self.subject.tensors.items():
            if is_float(array.dtype):
                base = self.subject.base.get(name) if self.subject.base and uses_base else None
                values = array.astype(np.float64)
                if base is not None and base.dtype == array.dtype and base.shape == array.shape:
                    with np.errstate(invalid="ignore", over="ignore"):
                        values -= base.astype(np.float64)
                finite = np.isfinite(values)
                coded[name] = values if finite.all() else np.where(finite, values, 0.0)
        return coded

    @cached_property
    def _own(self) -> dict[str, float]:
        """The finer bounds of tensors of one dimension, the finest that cost at most a hundredth of the archive."""
        small = {name: rms([a]) for name, a in self._coded.items() if a.ndim <= 1 and a.size}
        small = {name: size for name, size in small.items() if size > 0}
        if self.kind != "abs" or not small or len(small) == len(self._coded):
            return {}
        value = self.unit * 2.0**self.start
        everything = self._bytes(list(self.subject.tensors), Assignment(with_bound(self.choice, Absolute(value))))
        plain = self._bytes(list(small), Assignment(with_bound(self.choice, Absolute(value))))
        for fineness in _FINENESS:
            own = {name: float(f"{size / fineness:.4g}") for name, size in small.items()}
            by_name = {n: with_bound(self.choice, Absolute(min(value, o))) for n, o in own.items()}
            if self._bytes(list(small), Assignment(self.choice, by_name)) - plain <= everything / 100:
                return own
        return {}

    def _bytes(self, names: Sequence[str], assignment: Assignment) -> int:
        subject = self.subject
        return compress({name: subject.tensors[name] for name in names}, subject.base, plan=assignment).nbytes


#: How much finer than a small tensor's root mean square its own bound may be.
_FINENESS = (256, 64, 16, 4)


def with_bound(choice: Choice, bound: Bound) -> Choice:
    """The same method and options with another bound."""
    return Choice(choice.method, choice.options, bound)


def rms(arrays: Sequence[Array]) -> float:
    """Root mean square over all values."""
    n = sum(a.size for a in arrays)
    return math.sqrt(sum(float(np.vdot(a, a)) for a in arrays) / n) if n else 0.0


def family_of(subject: Subject, method: str, options: Mapping[str, Any] | None, kind: str | None) -> Family:
    """What can be turned about a method.

    `kind`: "abs", "rel", "pwrel" or "rms" to turn that bound; None: the method's own knob, else the first kind of bound
    that it promises, else nothing. Raises UsageError, UnknownMethodError.
    """
    choice = Choice(method, dict(options or {}))
    recipe = choice.recipe()
    if kind is not None:
        if kind not in KINDS:
            raise UsageError(f"a kind of bound is one of {', '.join(KINDS)}, not {kind!r}")
        recipe.resolve_bound(KINDS[kind](1e-3))
        return Bounds(choice, kind, subject)
    if recipe.knob is not None and recipe.knob[0] not in choice.options:
        return Options(choice, *recipe.knob)
    for key, bound in KINDS.items():
        if promises(choice, bound(1e-3)):
            return Bounds(choice, key, subject)
    return Only(choice)


def promises(choice: Choice, bound: Bound) -> bool:
    """Whether the method rounds to that bound, rather than refusing it or keeping every bit."""
    try:
        return choice.recipe().resolve_bound(bound) == bound
    except UsageError:
        return False
