"""How tensors are stored in a trial: a method, its options and bound for every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nearzip.bounds import Bound, parse_bound
from nearzip.errors import CorruptError, UsageError
from nearzip.recipes import Recipe, recipe_type
from nearzip.strictjson import as_dict, fields, number, text
from nearzip.tensors import Array

__all__ = ["Assignment", "Choice"]

_NOTHING = type(None)


@dataclass(frozen=True)
class Choice:
    """A method, its options, and the bound that was asked of it (None: the method's own)."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    bound: Bound | None = None

    def recipe(self) -> Recipe:
        """The method with its options. Raises UnknownMethodError, UsageError."""
        return recipe_type(self.method).from_options(self.options)

    def checked(self) -> Choice:
        """Itself, if the method exists and can keep the bound. Raises UnknownMethodError, UsageError."""
        self.recipe().resolve_bound(self.bound)
        return self

    def with_bound(self, bound: Bound) -> Choice:
        """The same method and options with another bound."""
        return replace(self, bound=bound)

    def to_json(self) -> dict[str, Any]:
        bound = None if self.bound is None else self.bound.to_json()
        return {"method": self.method, "options": dict(self.options), "bound": bound}

    @staticmethod
    def from_json(document: Any, where: str) -> Choice:
        """Raises CorruptError; whether the method exists is `recipe`'s question."""
        d = fields(document, where, {"method": str, "options": dict, "bound": (dict, _NOTHING)})
        return Choice(d["method"], d["options"], _bound(d["bound"], f"{where}, bound"))

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.method, *options] + ([] if self.bound is None else [str(self.bound)]))


def _bound(document: Any, where: str) -> Bound | None:
    if document is None:
        return None
    kind = text(as_dict(document, where).get("kind"), where)
    value = f":{number(document['value'], where)!r}" if "value" in document else ""
    if document.get("per", "network") != "network":
        value += f":{text(document['per'], where)}"
    try:
        found = parse_bound(kind + value)
    except UsageError as error:
        raise CorruptError(f"{where}: {error}") from None
    if set(document) != set(found.to_json()):
        raise CorruptError(f"{where}: has unknown fields")
    return found


@dataclass(frozen=True)
class Assignment:
    """A choice for every tensor: `default`, and others by name.

    `targets`: what is stored in place of the tensors of these names; rounded on a grid by a calibration, for example.
    """

    default: Choice
    by_name: Mapping[str, Choice] = field(default_factory=dict)
    targets: Mapping[str, Array] | None = field(default=None, compare=False, repr=False)

    def __getitem__(self, name: str) -> Choice:
        return self.by_name.get(name, self.default)

    def settings(self) -> Assignment:
        """The same without what is stored."""
        return replace(self, targets=None)

    def assignments(self, names: Sequence[str]) -> dict[str, tuple[Recipe, Bound | None]]:
        """What `compress(plan=...)` asks for: every tensor's recipe and bound."""
        return {name: (self[name].recipe(), self[name].bound) for name in names}

    def to_json(self) -> dict[str, Any]:
        return {
            "default": self.default.to_json(),
            "tensors": {name: choice.to_json() for name, choice in self.by_name.items()},
        }

    @staticmethod
    def from_json(document: Any, where: str) -> Assignment:
        d = fields(document, where, {"default": dict, "tensors": dict})
        others = {name: Choice.from_json(c, f"{where}, tensor {name[:80]!r}") for name, c in d["tensors"].items()}
        return Assignment(Choice.from_json(d["default"], f"{where}, default"), others)

    def __str__(self) -> str:
        if len(self.by_name) == 1:
            [(name, choice)] = self.by_name.items()
            return f"{self.default} and {name!r} {choice}"
        return str(self.default) + (f" and {len(self.by_name)} tensors otherwise" if self.by_name else "")
