"""How tensors are coded: a method with its options and the bound that it keeps, for all tensors or for each."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol

from nearzip.bounds import Bound, Lossless, NoPromise, parse_bound
from nearzip.caching import cached_property
from nearzip.errors import CorruptError, Error, UsageError
from nearzip.recipes import Recipe, recipe_type
from nearzip.recipes.baselines import ZstdRecipe
from nearzip.recipes.nearzip import Nearzip
from nearzip.strictjson import Kinds, as_dict, fields, number, text
from nearzip.tensors import Array

__all__ = ["BoundLike", "Coding", "Codings", "PlanLike", "as_bound", "bound_from_json", "check_plan", "codings_of_plan"]

#: A bound as callers give it: `nearzip.Absolute(1e-3)`, "abs:1e-3", or None for the method's own.
BoundLike = Bound | str | None

_NOTHING = type(None)


def as_bound(bound: BoundLike) -> Bound | None:
    """A bound as a caller gave it. Raises UsageError for anything that is not a bound."""
    if bound is None or isinstance(bound, Bound):
        return bound
    if isinstance(bound, str):
        return parse_bound(bound)
    raise UsageError(f"a bound is nearzip.Lossless(), Absolute(e), .. or a string such as 'abs:1e-3', not {bound!r}")


@dataclass(frozen=True, eq=False)
class Coding:
    """How a tensor is coded: a method, its options, and the bound that it keeps.

    `Coding.of` makes one of a method of this installation and checks it. The constructor checks nothing, because
    documents and other subjects than networks have methods that are not recipes; their codings fail when the recipe is
    asked for. Two codings are equal if they code alike, however they are spelled.

    Parameters
    ----------
    method : str
    options : mapping
        Those that were given; the method has defaults for the others.
    bound : Bound or None
        As it was asked for; None: the method's own.
    with_base : bool
        Whether a base may take part.
    """

    method: str = "nearzip"
    options: Mapping[str, Any] = field(default_factory=dict)
    bound: Bound | None = None
    with_base: bool = True

    @staticmethod
    def of(
        method: str | Recipe,
        bound: BoundLike = None,
        options: Mapping[str, Any] | None = None,
        with_base: bool = True,
    ) -> Coding:
        """A checked coding. A recipe brings its own options.

        Raises
        ------
        UnknownMethodError, UsageError
            There is no such method, an option is invalid, or the method cannot promise `bound`.
        """
        if isinstance(method, str):
            kind = recipe_type(method)
            if not options and with_base and isinstance(bound, (str, Bound, _NOTHING)):
                return _without_options(kind, bound)
            recipe = kind.from_options(options)
        else:
            recipe = method
        own = recipe.options() if options is None and not isinstance(method, str) else dict(options or {})
        return Coding(recipe.name, own, as_bound(bound), with_base)._made_of(recipe).checked()

    @cached_property
    def recipe(self) -> Recipe:
        """The method with its options. Raises UnknownMethodError, UsageError."""
        return recipe_type(self.method).from_options(self.options)

    @cached_property
    def promise(self) -> Bound:
        """The bound that is kept: the one asked for, or the method's own. Raises UsageError if that is impossible."""
        recipe, bound = self.recipe, self.bound
        if isinstance(bound, NoPromise) and recipe.promises and recipe.resolve_bound(None) != bound:
            raise UsageError(f"{recipe.name} keeps a bound; name one, such as abs:1e-3")
        return recipe.resolve_bound(bound)

    @property
    def uses_base(self) -> bool:
        """Whether the method makes anything of a base, and may."""
        return self.with_base and self.recipe.uses_base

    def checked(self) -> Coding:
        """Itself, if the method exists and can keep the bound. Raises UnknownMethodError, UsageError."""
        _ = self.promise
        return self

    def with_bound(self, bound: Bound) -> Coding:
        """The same method and options with another bound, not checked yet."""
        made = replace(self, bound=bound)
        return made._made_of(self.recipe) if "recipe" in self.__dict__ else made

    def keeping(self, promise: Bound) -> Coding:
        """The same, keeping a bound that this one came to for a certain tensor. The method is not asked."""
        made = self.with_bound(promise)
        made.__dict__["promise"] = promise
        return made

    def _made_of(self, recipe: Recipe) -> Coding:
        self.__dict__["recipe"] = recipe
        return self

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        try:
            return self.recipe, self.promise, self.with_base
        except Error:
            return self.method, json.dumps(self.options, sort_keys=True, default=repr), self.bound, self.with_base

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Coding) and self._key == other._key)

    def __hash__(self) -> int:
        return hash(self._key)

    def __str__(self) -> str:
        """The coding as the command line spells it."""
        options = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.method, *options] + ([] if self.bound is None else [str(self.bound)]))

    def to_json(self) -> dict[str, Any]:
        """The coding as it was given, for plans and trials."""
        bound = None if self.bound is None else self.bound.to_json()
        base = {} if self.with_base else {"with_base": False}
        return {"method": self.method, "options": dict(self.options), "bound": bound, **base}

    @staticmethod
    def from_json(document: Any, where: str) -> Coding:
        """What `to_json` wrote. Raises CorruptError; whether the method exists is not checked here."""
        base: Kinds = {"with_base": bool} if type(document) is dict and "with_base" in document else {}
        d = fields(document, where, {"method": str, "options": dict, "bound": (dict, _NOTHING), **base})
        bound = None if d["bound"] is None else bound_from_json(d["bound"], f"{where}, bound")
        return Coding(d["method"], d["options"], bound, d.get("with_base", True))


# Training loops and rounds of federated learning ask for the same coding again and again; making and checking it takes
# about as long as encoding a small tensor.
@functools.lru_cache(maxsize=256)
def _without_options(kind: type[Recipe], bound: BoundLike) -> Coding:
    recipe = kind.from_options(None)
    return Coding(recipe.name, {}, as_bound(bound))._made_of(recipe).checked()


def bound_from_json(document: Any, where: str) -> Bound:
    """What `Bound.to_json` wrote, from an untrusted document. Raises CorruptError."""
    kind = text(as_dict(document, where).get("kind"), where)
    value = f":{number(document['value'], where)!r}" if "value" in document else ""
    if document.get("per", "network") != "network":
        value += f":{text(document['per'], where)}"
    try:
        found = NoPromise() if kind + value == NoPromise.key else parse_bound(kind + value)
    except UsageError as error:
        raise CorruptError(f"{where}: {error}") from None
    if set(document) != set(found.to_json()):
        raise CorruptError(f"{where}: has unknown fields")
    return found


@dataclass(frozen=True)
class Codings:
    """A coding for every tensor: `default`, and others by name.

    It is no Mapping: it has a coding for every name, so that its length and its keys would mean nothing.

    Parameters
    ----------
    default : Coding
    by_name : mapping of str to Coding
    by_pattern : mapping of str to Coding
        By `fnmatch` pattern, for tensors whose names are not known yet; `for_tensors` resolves them. A tensor's own
        name comes first, then the first pattern that matches.
    substitutes : mapping of str to array, or None
        What the pipelines are given in place of the tensors of these names, of the same dtypes and shapes; rounded by a
        calibration, for example. Bounds are kept against the tensors themselves. Not part of documents.
    """

    default: Coding
    by_name: Mapping[str, Coding] = field(default_factory=dict)
    by_pattern: Mapping[str, Coding] = field(default_factory=dict)
    substitutes: Mapping[str, Array] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(
        method: str | Recipe,
        bound: BoundLike | Mapping[str, BoundLike] = None,
        options: Mapping[str, Any] | None = None,
    ) -> Codings:
        """One method for all tensors, with one bound, or with bounds by name or pattern ("*": all others).

        Without "*" the others have the method's own bound. Raises UnknownMethodError, UsageError as `Coding.of`.
        """
        if not isinstance(bound, Mapping):
            return Codings(Coding.of(method, bound, options))
        recipe = recipe_type(method).from_options(options) if isinstance(method, str) else method
        own = dict(options or {}) if isinstance(method, str) else None
        patterns = {pattern: _coding(recipe, each, own) for pattern, each in bound.items()}
        default = patterns.pop("*", None) or _coding(recipe, None, own)
        return Codings(default, by_pattern=patterns)

    def __getitem__(self, name: str) -> Coding:
        found = self.by_name.get(name)
        if found is not None:
            return found
        if name in self.by_pattern:
            return self.by_pattern[name]
        return next((c for pattern, c in self.by_pattern.items() if fnmatchcase(name, pattern)), self.default)

    def for_tensors(self, names: Iterable[str]) -> Codings:
        """The same for tensors of these names, patterns resolved. Raises UsageError for a pattern without a match."""
        if not self.by_pattern:
            return self
        unused = set(self.by_pattern)
        by_name = dict(self.by_name)
        for name in names:
            matching = [name] if name in self.by_pattern else [p for p in self.by_pattern if fnmatchcase(name, p)]
            unused -= set(matching)
            if matching:
                by_name.setdefault(name, self.by_pattern[matching[0]])
        if unused:
            raise UsageError(f"a bound is given for {sorted(unused)[0]!r}, which is no tensor and matches none")
        return replace(self, by_name=by_name, by_pattern={})

    def codings_for(self, names: Sequence[str]) -> Codings:
        """Codings for a plan for these tensors: all by name, the most frequent coding as the default."""
        chosen = replace(self, by_name={name: self[name] for name in names})
        groups = chosen.distinct(names)
        return replace(chosen, default=max(groups, key=lambda coding: len(groups[coding]))) if groups else chosen

    def check_names(self, names: Sequence[str]) -> None:
        """Raise UsageError if an option names a tensor, or has a pattern, that is none of `names`."""
        self.default.recipe.check_names(names)

    def without_substitutes(self) -> Codings:
        """The same without what is stored in place of the tensors."""
        return replace(self, substitutes=None)

    def with_exact(self, names: Iterable[str]) -> Codings:
        """The same, but tensors of these names keep every bit unless they have a coding of their own."""
        exact = [name for name in names if name not in self.by_name]
        return self._with(exact, Coding.of(Nearzip(), Lossless())) if exact else self

    def with_bytes(self, names: Iterable[str]) -> Codings:
        """The same, but tensors of these names are bytes of files: mostly text, which a dictionary coder suits best."""
        names = list(names)
        return self._with(names, Coding.of(ZstdRecipe(level=12))) if names else self

    def _with(self, names: Iterable[str], coding: Coding) -> Codings:
        return replace(self, by_name={**self.by_name, **dict.fromkeys(names, coding)})

    def distinct(self, names: Iterable[str]) -> dict[Coding, list[str]]:
        """The codings of some tensors, and the tensors of each, in order."""
        if not self.by_name:
            names = list(names)
            return {self.default: names} if names else {}
        groups: dict[Coding, list[str]] = {}
        # By identity first: hashing a coding for each of many tensors takes longer than all else here.
        of_object: dict[int, list[str]] = {}
        for name in names:
            coding = self[name]
            members = of_object.get(id(coding))
            if members is None:
                members = of_object[id(coding)] = groups.setdefault(coding, [])
            members.append(name)
        return groups

    def to_json(self) -> dict[str, Any]:
        """The codings as JSON for trials, without the substitutes."""
        return {
            "default": self.default.to_json(),
            "tensors": {name: coding.to_json() for name, coding in self.by_name.items()},
        }

    @staticmethod
    def from_json(document: Any, where: str) -> Codings:
        """What `to_json` wrote. Raises CorruptError."""
        d = fields(document, where, {"default": dict, "tensors": dict})
        others = {name: Coding.from_json(c, f"{where}, tensor {name[:80]!r}") for name, c in d["tensors"].items()}
        return Codings(Coding.from_json(d["default"], f"{where}, default"), others)

    def __str__(self) -> str:
        if len(self.by_name) == 1:
            [(name, coding)] = self.by_name.items()
            return f"{self.default} and {name!r} {coding}"
        return str(self.default) + (f" and {len(self.by_name)} tensors otherwise" if self.by_name else "")


def _coding(recipe: Recipe, bound: BoundLike, options: Mapping[str, Any] | None) -> Coding:
    """A recipe that several codings share, with the options as they were given."""
    return Coding.of(recipe, bound, options)


class PlanLike(Protocol):
    """What `plan=` takes: anything that says how each tensor is coded."""

    def codings_for(self, names: Sequence[str]) -> Codings:
        """Codings for all tensors of these names. Raises UsageError for tensors that are not the plan's."""


def codings_of_plan(plan: PlanLike, names: Iterable[str]) -> Codings:
    """What a plan says of these tensors. Raises UsageError for what is no plan, and for a plan of other tensors."""
    names = list(names)
    if not callable(getattr(plan, "codings_for", None)):
        plan = _of_assignments(plan)
    if not names:
        raise UsageError("a plan needs tensors to be applied to")
    codings = plan.codings_for(names)
    for coding in codings.distinct(names):
        coding.checked()
    return codings


def check_plan(plan: object) -> None:
    """Raise UsageError for what is no plan."""
    if not any(callable(getattr(plan, name, None)) for name in ("codings_for", "assignments")):
        raise UsageError(f"a plan comes from nearzip.tune or a file that it wrote, not {plan!r}")


@dataclass(frozen=True)
class _Assigned:
    """A plan as other packages wrote them for the first release: `assignments` gives recipes and bounds by name."""

    plan: Any

    def codings_for(self, names: Sequence[str]) -> Codings:
        assigned = self.plan.assignments(names)
        for name in names:
            if name not in assigned:
                raise UsageError(f"the plan says nothing about tensor {name!r}; it was made for another network")
        by_name = {name: Coding.of(*assigned[name]) for name in names}
        return Codings(by_name[names[0]], by_name).codings_for(names)


def _of_assignments(plan: Any) -> PlanLike:
    check_plan(plan)
    warnings.warn(
        "plans have codings_for(names), which returns nearzip.coding.Codings; assignments(names) is read until the "
        "next release",
        DeprecationWarning,
        stacklevel=4,
    )
    return _Assigned(plan)
