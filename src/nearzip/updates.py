"""Bounds relative to the update (`nearzip.Update`), resolved against a base to absolute ones."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearzip.bounds import Absolute, Bound, Lossless, Statistics, Update
from nearzip.container import Index
from nearzip.errors import UsageError
from nearzip.layout import shares_of_work
from nearzip.parallel import ordered_map
from nearzip.recipes import Setting, Settings
from nearzip.recipes.nearzip import Nearzip
from nearzip.tensors import Checkpoint

__all__ = ["Resolved", "absolute_bounds", "resolve_updates", "without_updates", "written_bounds"]

#: Tensors of fewer values get one of few bounds, so that they can share a stream.
_SMALL = 1 << 14


@dataclass(frozen=True)
class Resolved:
    """Settings without `Update` bounds, and what these came to: the absolute bound of each tensor that has one, 0 where
    it has to be exact.
    """

    settings: Settings
    bounds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self, bound: Bound, names: Iterable[str]) -> dict[str, Any]:
        """A bound as it stands in an archive's index, with what it came to for the tensors of these names."""
        if not isinstance(bound, Update):
            return bound.to_json()
        values = [self.bounds.get(name, 0.0) for name in names]
        if bound.per == "network":
            return {**bound.to_json(), "resolved": max(values, default=0.0)}
        return {**bound.to_json(), "resolved": values}


def without_updates(settings: Settings) -> Settings:
    """The same settings with every bit kept where the bound is relative to an update that there is not."""

    def exact(setting: Setting) -> Setting:
        return Setting(setting.recipe, Lossless()) if isinstance(setting.bound, Update) else setting

    return Settings(exact(settings.default), {name: exact(setting) for name, setting in settings.by_name.items()})


def resolve_updates(source: Checkpoint, base: Checkpoint | None, settings: Settings, threads: int) -> Resolved:
    """Measure the change of `source` against `base`, if a bound asks for it: one pass over both.

    Raises
    ------
    UsageError
        There is no base.
    """
    wanted = [setting.bound for setting in settings.distinct(source.specs) if isinstance(setting.bound, Update)]
    if not wanted:
        return Resolved(settings)
    if base is None:
        raise UsageError(
            f"the bound {wanted[0]} is a share of the change against a base, and there is none: give a base that the "
            f"method uses, or a bound of another kind, such as rms:0.001 or lossless"
        )
    changes = _changes(source, base, threads)
    whole = sum(changes.values(), Statistics())
    bounds = {
        name: _bound_of(name, setting.bound, changes, whole)
        for name in source.specs
        if isinstance((setting := settings[name]).bound, Update)
    }
    by_name = dict(settings.by_name)
    for name, value in bounds.items():
        by_name[name] = dataclasses.replace(settings[name], bound=Absolute(value) if value else Lossless())
    return Resolved(_compact(settings, by_name, source), bounds)


def written_bounds(index: Index) -> dict[str, float]:
    """What bounds relative to the update came to, as an archive's index has it: by tensor, 0 where it is exact.

    The index is untrusted: what makes no sense is left out.
    """
    names = [spec.name for spec in index.tensors]
    others = index.method.get("others")
    rows = [row for row in others if isinstance(row, dict)] if isinstance(others, list) else []
    found: dict[str, float] = {}
    theirs: set[str] = set()
    for row in rows:
        numbers = row.get("tensors")
        known = isinstance(numbers, list) and all(type(n) is int and 0 <= n < len(names) for n in numbers)
        some = [names[n] for n in numbers] if known else []  # type: ignore[union-attr]
        theirs.update(some)
        found.update(_resolved_in(row.get("bound"), some))
    return {**_resolved_in(index.bound, [name for name in names if name not in theirs]), **found}


def _resolved_in(bound: Any, names: Sequence[str]) -> dict[str, float]:
    resolved = bound.get("resolved") if isinstance(bound, dict) and bound.get("kind") == Update.key else None
    values = resolved if isinstance(resolved, list) and len(resolved) == len(names) else [resolved] * len(names)
    return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, float) and value >= 0}


def absolute_bounds(
    source: Checkpoint, base: Checkpoint | None, bound: Bound, names: list[str], threads: int
) -> dict[str, Bound]:
    """The bound of each tensor of these names; an `Update` as what it comes to. Raises UsageError as above."""
    if not isinstance(bound, Update):
        return dict.fromkeys(names, bound)
    found = resolve_updates(source, base, Settings(Setting.of(Nearzip(), bound)), threads).bounds
    return {name: Absolute(found[name]) if found[name] else Lossless() for name in names}


def _compact(settings: Settings, by_name: Mapping[str, Setting], source: Checkpoint) -> Settings:
    """One default for all where all have the same: settings by name cost time for each tensor."""
    distinct = set(by_name.values())
    if len(distinct) == 1 and len(by_name) == len(source.specs):
        return Settings(distinct.pop())
    return Settings(settings.default, by_name)


def _changes(source: Checkpoint, base: Checkpoint, threads: int) -> dict[str, Statistics]:
    """Of every floating-point tensor that the base has in the same dtype and shape."""
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
