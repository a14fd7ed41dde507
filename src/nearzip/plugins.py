"""Plug-ins: what other packages register as entry points, loaded at its first use."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from nearzip.errors import PluginError

__all__ = ["Plugins", "subclass_check"]

T = TypeVar("T")


class Plugins(Generic[T]):
    """The plug-ins of one entry point group.

    Parameters
    ----------
    group : str
        As in the package's metadata: `nearzip.recipes`, say.
    what : str
        What a plug-in of this group is, for messages.
    check : callable
        Gets the name of the entry point and the object. Returns the object, or raises TypeError with what is wrong.

    Notes
    -----
    The names are read once per process, the objects are loaded at their first use. A plug-in that cannot be loaded
    fails where it is asked for by name, with a PluginError that names it and its package, and nowhere else.
    """

    def __init__(self, group: str, what: str, check: Callable[[str, Any], T]) -> None:
        self.group = group
        self._what, self._check = what, check
        self._points: dict[str, EntryPoint] | None = None
        self._loaded: dict[str, T] = {}

    def forget(self) -> None:
        """Read the names again at the next use: packages were installed meanwhile."""
        self._points = None
        self._loaded = {}

    def _by_name(self) -> dict[str, EntryPoint]:
        if self._points is None:
            found: dict[str, EntryPoint] = {}
            for point in entry_points(group=self.group):
                found.setdefault(point.name, point)  # the first on the path, as for modules
            self._points = found
        return self._points

    def names(self) -> list[str]:
        return list(self._by_name())

    def __contains__(self, name: object) -> bool:
        return name in self._by_name()

    def load(self, name: str) -> T | None:
        """The plug-in of that name, or None if there is none. Raises PluginError if it cannot be loaded."""
        if name not in self._loaded:
            point = self._by_name().get(name)
            if point is None:
                return None
            try:
                self._loaded[name] = self._check(name, point.load())
            except Exception as error:  # whatever the package's own code raises
                raise PluginError(
                    f"{self._what} {name!r} of the plug-in {_package(point)} cannot be loaded ({point.value}): "
                    f"{type(error).__name__}: {error}; mend or uninstall it"
                ) from error
        return self._loaded[name]

    def all(self) -> tuple[dict[str, T], dict[str, PluginError]]:
        """The plug-ins that can be loaded, and the errors of the others, by name."""
        loaded: dict[str, T] = {}
        broken: dict[str, PluginError] = {}
        for name in self.names():
            try:
                found = self.load(name)
            except PluginError as error:
                broken[name] = error
                continue
            if found is not None:
                loaded[name] = found
        return loaded, broken


def _package(point: EntryPoint) -> str:
    if point.dist is None:
        return point.module
    return f"{point.dist.name} {point.dist.version}"


def subclass_check(base: type[T], attribute: str) -> Callable[[str, Any], type[T]]:
    """A check for `Plugins`: a class below `base` whose `attribute` is the entry point's name."""

    def check(name: str, found: Any) -> type[T]:
        if not isinstance(found, type) or not issubclass(found, base):
            raise TypeError(f"it is no subclass of {base.__module__}.{base.__name__}")
        if getattr(found, attribute, None) != name:
            raise TypeError(f"its {attribute} is {getattr(found, attribute, None)!r}, not the entry point's {name!r}")
        return found

    return check
