"""Search spaces: one method's settings, ordered from most accurate to smallest, at positions on a line.

In a space of bounds, one step to the right doubles the bound; in a space of options, it takes the next value.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nearzip.api import compress_quietly
from nearzip.bounds import Absolute, Bound, Lossless, PointwiseRelative, Relative, Rms, Update
from nearzip.budget.subject import Network
from nearzip.caching import cached_property
from nearzip.coding import Coding, Codings
from nearzip.errors import UsageError
from nearzip.recipes import recipe_type
from nearzip.tensors import Array, is_float

__all__ = ["Bounds", "Only", "Options", "Space", "Steps", "space_of"]

#: Kinds of bound, in the order in which a method is asked for them.
KINDS: dict[str, type[Absolute | PointwiseRelative | Relative | Rms | Update]] = {
    "abs": Absolute, "pwrel": PointwiseRelative, "rel": Relative, "rms": Rms, "upd": Update,
}  # fmt: skip


class Space(ABC):
    """Settings of one method, ordered.

    Attributes
    ----------
    low, high : float
        Positions of the most accurate setting and of the smallest file.
    start : float
        Where a search begins.
    grid : float
        Positions are multiples of it.
    first : tuple of float
        Positions that are tried before any other.
    droppable : bool
        Whether the setting at `high` leaves the base unchanged.
    exact : Codings or None
        A setting that loses nothing.
    """

    low: float
    high: float
    start: float
    grid: ClassVar[float]

    @property
    def first(self) -> tuple[float, ...]:
        return ()

    @property
    def droppable(self) -> bool:
        return False

    @abstractmethod
    def at(self, position: float) -> Codings:
        """The setting at a position."""

    def n_bytes(self, position: float) -> int:
        """Estimated bytes of the archive at a position, without evaluating it: a quarter less for each step."""
        return max(1, round(1e9 * math.pow(0.75, position)))

    @property
    def exact(self) -> Codings | None:
        return None


@dataclass(frozen=True)
class Only(Space):
    """A method with one setting only."""

    coding: Coding
    low: float = 0.0
    high: float = 0.0
    start: float = 0.0
    grid = 1.0

    def at(self, position: float) -> Codings:
        return Codings(self.coding)


@dataclass(frozen=True)
class Options(Space):
    """One option of a method, its values from the largest file to the smallest."""

    coding: Coding
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

    def at(self, position: float) -> Codings:
        value = self.values[round(position)]
        return Codings(Coding(self.coding.method, {**self.coding.options, self.option: value}, self.coding.bound))


@dataclass(frozen=True)
class Bounds(Space):
    """Bounds of one kind; a position is log2 of the bound over `unit`.

    With absolute bounds, tensors without a base differ from each other:

    * A matrix has a share of the bound in proportion to the fourth root of its number of rows (outputs, channels) and
      the eighth root of its number of values: the more units a layer has, the less an output depends on each, so large
      layers tolerate more error than small ones. The divergence caused by a squared error times these was the same
      within a factor of four in three fully connected and small convolutional networks and the linear layers of a
      transformer; not in its embeddings, which tolerate more, nor in the first layers of a deeper convolutional one,
      which tolerate less. Updates were smaller with one bound for all.
    * A tensor of one dimension that is positive throughout (variances, scales of norms) stays so: a variance that is
      rounded to zero ruins a network. Finer bounds for biases and norms cost more than they gained on the networks that
      we measured.
    """

    coding: Coding
    kind: str
    subject: Network
    grid = 1 / 16

    @cached_property
    def unit(self) -> float:
        """Root mean square of what is coded (the update, where there is a base); 1 for relative kinds."""
        if self.kind != "abs":
            return 1.0
        matrices = [facts for facts in self._facts.values() if facts.rank > 1] or list(self._facts.values())
        n = sum(facts.n for facts in matrices)
        return math.sqrt(sum(facts.squares for facts in matrices) / n) or 1.0 if n else 1.0

    @cached_property
    def low(self) -> float:
        return -12.0

    @cached_property
    def high(self) -> float:
        """Where everything is rounded to zero, or what a relative bound can mean."""
        if self.kind != "abs":
            return -1.0 if self.kind == "pwrel" else 2.0
        largest = max((facts.largest / self._shares.get(n, 1.0) for n, facts in self._facts.items()), default=0.0)
        return max(self.start, math.ceil(math.log2(max(largest / self.unit, 1.0)) / self.grid) * self.grid)

    @cached_property
    def start(self) -> float:
        if self.kind == "abs":
            # Divergences end around the update's root mean square, accuracies at four times that.
            return 1.0 if self.updates else -2.0
        return {"rms": -2.0, "rel": -6.0, "pwrel": -3.0, "upd": 0.0}[self.kind]

    @property
    def droppable(self) -> bool:
        return self.kind == "abs" and bool(self.updates)

    def at(self, position: float) -> Codings:
        return self._highest if position >= self.high else self._shared(self._value(position))

    def n_bytes(self, position: float) -> int:
        return compress_quietly(self.subject.tensors, self.subject.seen, plan=self.at(position)).nbytes

    def coding_at(self, position: float) -> Coding:
        """One bound, for some tensors that differ in nothing."""
        value = self._value(position)
        if self.kind == "upd":  # of the whole network's change, whatever tensors these are
            return self.coding.with_bound(Absolute(_within_range(value * self._update_rms)))
        return self.coding.with_bound(KINDS[self.kind](value))

    @cached_property
    def _update_rms(self) -> float:
        facts = [self._facts[name] for name in self.updates if name in self._facts]
        n = sum(one.n for one in facts)
        return math.sqrt(sum(one.squares for one in facts) / n) if n else 0.0

    def apart(self, positions: Mapping[str, float], others: float) -> Codings:
        """The settings with bounds by tensor, and one for all others. What is positive throughout stays so."""
        by_name = {name: self._value(position) for name, position in positions.items()}
        value = self._value(others)
        by_name |= {name: most for name, most in self._own.items() if most < by_name.get(name, value)}
        kind = KINDS[self.kind]
        default = self.coding.with_bound(kind(value))
        return Codings(default, {name: self.coding.with_bound(kind(v)) for name, v in by_name.items() if v != value})

    def largest(self, name: str) -> float:
        """The bound beyond which nothing is left of a tensor's values, or of what is coded of them."""
        return self._facts[name].largest if self.kind == "abs" else 2.0**self.high

    def position_of(self, name: str, position: float) -> float:
        """The position of a tensor's own bound in the setting at `position`."""
        return position + math.log2(self._shares.get(name, 1.0))

    def bears(self, name: str) -> float:
        """The best position of a tensor's bound as estimated before any trial, relative to a matrix's.

        A matrix, and whatever has a base, where the setting has it. Vectors (biases, norms) have few rows and values,
        so a squared error costs more in them: as much as the rule for matrices says, on the networks that it is from.
        """
        matrices = [n for n, facts in self._facts.items() if facts.rank > 1 and n not in self.updates]
        if self.kind != "abs" or self.subject.tensors[name].ndim > 1 or name in self.updates or not matrices:
            return self.position_of(name, 0.0)
        n = sum(self._facts[other].n for other in matrices)
        mean = sum(self._facts[other].n * self._bears(other) for other in matrices) / max(n, 1)
        return self._bears(name) - mean

    def _value(self, position: float) -> float:
        return _within_range(float(f"{self.unit * 2.0**position:.3g}"))

    def _shared(self, value: float) -> Codings:
        own = {name: _within_range(float(f"{value * share:.3g}")) for name, share in self._shares.items()}
        own |= {name: most for name, most in self._own.items() if most < value}
        others = {name: self.coding.with_bound(Absolute(bound)) for name, bound in own.items()}
        return Codings(self.coding.with_bound(KINDS[self.kind](value)), others)

    @cached_property
    def _highest(self) -> Codings:
        """Bounds of one digit, beyond which nothing changes but how many bytes it takes to name them."""
        first = _rounded_up(self.unit * 2.0**self.high)
        exponent = math.floor(math.log10(first) + 1e-9)
        digits = range(round(first / 10.0**exponent), 10)
        values = [first, *(float(f"{digit}e{exponent}") for digit in digits)] if self.kind == "abs" else [first]
        every = [self._shared(value) for value in dict.fromkeys(values)]
        return min(every, key=lambda a: compress_quietly(self.subject.tensors, self.subject.seen, plan=a).nbytes)

    @property
    def exact(self) -> Codings | None:
        try:
            return Codings(self.coding.with_bound(Lossless()).checked())
        except UsageError:
            return None

    @cached_property
    def updates(self) -> frozenset[str]:
        """Tensors that are coded against a base."""
        base = self.subject.seen or {}
        if not self.coding.uses_base:
            return frozenset()
        kinds = {name: (a.dtype, a.shape) for name, a in base.items()}
        return frozenset(n for n, a in self.subject.tensors.items() if kinds.get(n) == (a.dtype, a.shape))

    @cached_property
    def _facts(self) -> dict[str, _Facts]:
        """Of what is coded of every floating-point tensor, one after the other."""
        base = self.subject.seen or {}
        floats = {name: a for name, a in self.subject.tensors.items() if is_float(a.dtype)}
        return {name: _Facts.of(a, base[name] if name in self.updates else None) for name, a in floats.items()}

    @cached_property
    def _shares(self) -> dict[str, float]:
        """The factor of the bound for each matrix without a base; their geometric mean over all values is 1.

        In steps of the square root of two, so that tensors that are much alike keep sharing a bound.
        """
        alone = {name: f for name, f in self._facts.items() if name not in self.updates and f.rank > 1 and f.squares}
        if self.kind != "abs" or len(alone) < 2:
            return {}
        logs = {name: self._bears(name) for name in alone}
        mean = sum(alone[name].n * own for name, own in logs.items()) / sum(facts.n for facts in alone.values())
        shares = {name: 2.0 ** (round(2 * (own - mean)) / 2) for name, own in logs.items()}
        return {name: share for name, share in shares.items() if share != 1}

    def _bears(self, name: str) -> float:
        """log2 of the bound that makes a tensor without a base cost as much for each value as others, up to a sum."""
        shape = self.subject.tensors[name].shape
        return math.log2(max(1, math.prod(shape))) / 8 + math.log2(max((1, *shape[:1]))) / 4

    @cached_property
    def _own(self) -> dict[str, float]:
        """Finer bounds for tensors of one dimension that are positive throughout and have no base."""
        if self.kind != "abs":
            return {}
        alone = {name: facts for name, facts in self._facts.items() if name not in self.updates}
        return {n: float(f"{f.lowest / 2:.3g}") for n, f in alone.items() if f.rank == 1 and f.n and f.lowest > 0}


@dataclass(frozen=True)
class Steps(Space):
    """Steps of the method "nearzip", which then promises nothing for single values; twice the bounds of `bounds`.

    `options`: the method's others.
    """

    bounds: Bounds
    options: Mapping[str, Any]
    grid = Bounds.grid

    @property
    def low(self) -> float:  # type: ignore[override]
        return self.bounds.low

    @property
    def high(self) -> float:  # type: ignore[override]
        return self.bounds.high

    @property
    def start(self) -> float:  # type: ignore[override]
        return self.bounds.start

    @property
    def droppable(self) -> bool:
        return self.bounds.droppable

    def at(self, position: float) -> Codings:
        step = _within_range(float(f"{2 * self.bounds.unit * 2.0**position:.3g}"))
        return Codings(Coding(self.bounds.coding.method, {**self.options, "step": step}))

    def n_bytes(self, position: float) -> int:
        return compress_quietly(self.bounds.subject.tensors, self.bounds.subject.seen, plan=self.at(position)).nbytes

    @cached_property
    def exact(self) -> Codings | None:
        return self.bounds.exact

    @property
    def roundings(self) -> list[Steps]:
        """The same with other ways to round that promise nothing either, those that the options leave open."""
        ways: list[dict[str, Any]] = [{"unbiased": True}, {"lattice": True}, {"unbiased": True, "lattice": True}]
        found = [{**way, **self.options} for way in ways]
        unlike = [each for i, each in enumerate(found) if each not in (self.options, *found[:i])]
        return [Steps(self.bounds, options) for options in unlike]


@dataclass(frozen=True)
class _Facts:
    """Facts about the finite values of a tensor, or of its difference to a base."""

    rank: int
    n: int
    squares: float
    largest: float
    lowest: float

    @staticmethod
    def of(array: Array, base: Array | None) -> _Facts:
        values = array.astype(np.float64).reshape(-1)
        if base is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                values -= base.astype(np.float64).reshape(-1)
        values = values[np.isfinite(values)]
        if not values.size:
            return _Facts(array.ndim, 0, 0.0, 0.0, 0.0)
        with np.errstate(over="ignore"):
            squares = float(np.vdot(values, values))
        largest = float(max(values.max(), -values.min()))
        return _Facts(array.ndim, values.size, min(squares, sys.float_info.max), largest, float(values.min()))


def _within_range(bound: float) -> float:
    return min(max(bound, sys.float_info.min), sys.float_info.max)


def _rounded_up(value: float) -> float:
    """The value rounded up to one digit."""
    exponent = math.floor(math.log10(value))
    return float(f"{math.ceil(value / 10.0**exponent)}e{exponent}")


def space_of(subject: Network, method: str, options: Mapping[str, Any] | None, knob: str | None) -> Space:
    """The search space of a method.

    `knob`: "abs", "rel", "pwrel", "rms" or "upd" to vary that bound, "step" of "nearzip" without a bound, or an option
    in the recipe's `knobs`; None: the first kind of bound that it promises, else its first knob that the options do
    not hold, else nothing. Raises UsageError, UnknownMethodError.
    """
    if knob == "step" and method == "nearzip" and "step" not in (options or {}):
        given = recipe_type(method).from_options({**(options or {}), "step": 1.0}).options()
        return Steps(Bounds(Coding(method), "abs", subject), {name: given[name] for name in options or {}})
    recipe = recipe_type(method).from_options(options)
    # As plain data, whatever the caller gave.
    coding = Coding(method, {name: recipe.options()[name] for name in options or {}})
    free = [name for name in recipe.knobs if name not in coding.options]
    if knob in KINDS:
        coding.with_bound(KINDS[knob](1e-3)).checked()
        return Bounds(coding, knob, subject)
    if knob is not None and knob not in free:
        raise UsageError(f"{method} has no knob {knob!r} to turn; take one of {', '.join([*KINDS, *free])}")
    kinds = [kind for kind, bound in KINDS.items() if promises(coding, bound(1e-3))]
    if knob is None and kinds:
        return Bounds(coding, kinds[0], subject)
    return Options(coding, knob or free[0], recipe.knobs[knob or free[0]]) if free else Only(coding)


def promises(coding: Coding, bound: Bound) -> bool:
    """Whether the method rounds within that bound, rather than refusing it or keeping every bit."""
    try:
        return coding.recipe.resolve_bound(bound) == bound
    except UsageError:
        return False
