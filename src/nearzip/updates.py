"""Bounds relative to the update (`nearzip.Update`), resolved against a base to absolute ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.blocks import shares_of_work
from nearzip.bounds import Absolute, Bound, Lossless, Statistics, Update
from nearzip.coding import Coding, Codings
from nearzip.errors import UsageError
from nearzip.parallel import ordered_map
from nearzip.tensors import Checkpoint

__all__ = ["Resolved", "absolute_bounds", "resolve_updates", "without_updates"]

#: Tensors of fewer values get one of few bounds, so that they can share a stream.
_SMALL = 1 << 14


@dataclass(frozen=True)
class Resolved:
    """Codings without `Update` bounds, and what these came to: the absolute bound of each tensor that has one, 0 where
    it has to be exact.
    """

    codings: Codings
    bounds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self, bound: Update, names: Iterable[str]) -> dict[str, Any]:
        """A bound as an archive's index has it, with what it came to for the tensors of these names."""
        values = [self.bounds.get(name, 0.0) for name in names]
        if bound.per == "network":
            return {**bound.to_json(), "resolved": max(values, default=0.0)}
        return {**bound.to_json(), "resolved": values}


def without_updates(codings: Codings) -> Codings:
    """The same codings with every bit kept where the bound is relative to an update that there is not."""

    def exact(coding: Coding) -> Coding:
        return coding.keeping(Lossless()) if isinstance(coding.promise, Update) else coding

    by_name = {name: exact(coding) for name, coding in codings.by_name.items()}
    return dataclasses.replace(codings, default=exact(codings.default), by_name=by_name)


def resolve_updates(source: Checkpoint, base: Checkpoint | None, codings: Codings, threads: int) -> Resolved:
    """Measure the change of `source` against `base`, if a bound asks for it: one pass over both.

    Raises
    ------
    UsageError
        There is no base.
    """
    wanted = [coding.promise for coding in codings.distinct(source.specs) if isinstance(coding.promise, Update)]
    if not wanted:
        return Resolved(codings)
    if base is None:
        raise UsageError(
            f"the bound {wanted[0]} is a share of the change against a base, and there is none: give a base that the "
            f"method uses, or a bound of another kind, such as rms:0.001 or lossless"
        )
    changes = _changes(source, base, threads)
    whole = sum(changes.values(), Statistics())
    bounds = {
        name: _bound_of(name, promise, changes, whole)
        for name in source.specs
        if isinstance(promise := codings[name].promise, Update)
    }
    by_name = dict(codings.by_name)
    for name, value in bounds.items():
        by_name[name] = codings[name].keeping(Absolute(value) if value else Lossless())
    return Resolved(_compact(codings, by_name, source), bounds)


def absolute_bounds(
    source: Checkpoint, base: Checkpoint | None, bound: Bound, names: list[str], threads: int
) -> dict[str, Bound]:
    """The bound of each tensor of these names; an `Update` as what it comes to. Raises UsageError as above."""
    if not isinstance(bound, Update):
        return dict.fromkeys(names, bound)
    found = resolve_updates(source, base, Codings.of("nearzip", bound), threads).bounds
    return {name: Absolute(found[name]) if found[name] else Lossless() for name in names}


def _compact(codings: Codings, by_name: Mapping[str, Coding], source: Checkpoint) -> Codings:
    """One default for all where all have the same: codings by name cost time for each tensor."""
    distinct = set(by_name.values())
    if len(distinct) == 1 and len(by_name) == len(source.specs):
        return dataclasses.replace(codings, default=distinct.pop(), by_name={})
    return dataclasses.replace(codings, by_name=by_name)


def _changes(source: Checkpoint, base: Checkpoint, threads: int) -> dict[str, Statistics]:
    """Statistics of the change of every floating-point tensor that the base has with the same dtype and shape."""
    names = [name for name, spec in source.specs.items() if spec.is_float and spec.same_kind(base.specs.get(name))]

    def measure(some: list[str]) -> list[Statistics]:
        return [Statistics.of_difference(source.read(name), base.read(name)) for name in some]

    found = ordered_map(measure, shares_of_work(source, names), threads)
    return dict(zip(names, itertools.chain.from_iterable(found), strict=True))


def _bound_of(name: str, bound: Update, changes: Mapping[str, Statistics], whole: Statistics) -> float:
    """The absolute bound of one tensor; 0: exact."""
    if name not in changes:
        return 0.0
    if bound.per == "network":
        return bound.tolerance(whole).value
    value = bound.tolerance(changes[name]).value
    if value and changes[name].finite < _SMALL:
        return math.pow(2, math.floor(2 * math.log2(value)) / 2)
    return value
