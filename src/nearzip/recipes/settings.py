"""The method and the bound of each tensor."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.bounds import Bound, Lossless, NoPromise
from nearzip.errors import UsageError
from nearzip.recipes.base import Recipe
from nearzip.recipes.baselines import ZstdRecipe
from nearzip.recipes.nearzip import Nearzip

__all__ = ["Setting", "Settings"]


@dataclass(frozen=True)
class Setting:
    """A method with its options, and the bound that it keeps. `Setting.of` checks that it can."""

    recipe: Recipe
    bound: Bound

    @staticmethod
    def of(recipe: Recipe, bound: Bound | None = None) -> Setting:
        """None: the method's own bound. Raises UsageError if it cannot promise `bound`."""
        if isinstance(bound, NoPromise) and recipe.promises and recipe.resolve_bound(None) != bound:
            raise UsageError(f"{recipe.name} keeps a bound; name one, such as abs:1e-3")
        return Setting(recipe, recipe.resolve_bound(bound))

    def to_json(self) -> dict[str, Any]:
        """As the index of an archive has it."""
        return {"name": self.recipe.name, "options": self.recipe.options()}


@dataclass(frozen=True)
class Settings:
    """A setting for every tensor: `default`, and others by name."""

    default: Setting
    by_name: Mapping[str, Setting] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Setting:
        return self.by_name.get(name, self.default)

    def with_exact(self, names: Iterable[str]) -> Settings:
        """The same, but for tensors that keep every bit unless a setting names them."""
        exact = {name: Setting.of(Nearzip(), Lossless()) for name in names if name not in self.by_name}
        return Settings(self.default, {**self.by_name, **exact}) if exact else self

    def with_bytes(self, names: Iterable[str]) -> Settings:
        """The same, but for tensors that are bytes of files: texts, mostly, which a dictionary coder serves best."""
        names = list(names)
        if not names:
            return self
        return Settings(self.default, {**self.by_name, **dict.fromkeys(names, Setting.of(ZstdRecipe(level=12)))})

    def distinct(self, names: Iterable[str]) -> dict[Setting, list[str]]:
        """The settings of some tensors, and the tensors of each, in order."""
        if not self.by_name:  # hashing a setting for each of many tensors takes longer than all else here
            names = list(names)
            return {self.default: names} if names else {}
        found: dict[Setting, list[str]] = {}
        for name in names:
            found.setdefault(self[name], []).append(name)
        return found

    @staticmethod
    def by_pattern(recipe: Recipe, bounds: Mapping[str, Bound | None], names: Iterable[str]) -> Settings:
        """One method, bounds by name or pattern (`fnmatch`).

        A tensor's own name comes first, then the first pattern that matches, then "*"; without "*" the rest has the
        method's own bound. Raises UsageError for a pattern that matches nothing, and as `Setting.of` does.
        """
        resolved = {pattern: Setting.of(recipe, bound) for pattern, bound in bounds.items()}
        default = resolved.pop("*", None) or Setting.of(recipe)
        unused = set(resolved)
        by_name = {}
        for name in names:
            patterns = [name] if name in resolved else [p for p in resolved if fnmatch.fnmatchcase(name, p)]
            unused -= set(patterns)
            if patterns:
                by_name[name] = resolved[patterns[0]]
        if unused:
            raise UsageError(f"a bound is given for {sorted(unused)[0]!r}, which is no tensor and matches none")
        return Settings(default, by_name)

    @staticmethod
    def of_plan(assignments: Mapping[str, tuple[Recipe, Bound | None]], names: Iterable[str]) -> Settings:
        """As a plan assigned them. Raises UsageError for a tensor that it leaves out."""
        by_name = {}
        for name in names:
            if name not in assignments:
                raise UsageError(f"the plan says nothing about tensor {name!r}; it was made for another network")
            by_name[name] = Setting.of(*assignments[name])
        if not by_name:
            raise UsageError("a plan needs tensors to be applied to")
        # The most frequent one comes first in the archive.
        return Settings(Counter(by_name.values()).most_common(1)[0][0], by_name)
