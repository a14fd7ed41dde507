"""Properties that are computed once, without a lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

__all__ = ["cached_property"]

T = TypeVar("T")


class cached_property(Generic[T]):  # noqa: N801 - as the standard library spells it
    """`functools.cached_property` as it is from Python 3.12 on: without a lock.

    The lock of older releases is one for all instances of a class. A thread that computes a property holds it, and a
    process forked meanwhile inherits it, held for ever: its first use of the property waits without end. Without it two
    threads may both compute a value; both then get that of the first.

    Examples
    --------
    >>> class Square:
    ...     @cached_property
    ...     def area(self):
    ...         print("computed")
    ...         return 4
    >>> square = Square()
    >>> square.area, square.area
    computed
    (4, 4)
    """

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self._name = function.__name__
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> cached_property[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Any:
        if instance is None:
            return self
        # Next time the attribute is found in the instance first.
        return instance.__dict__.setdefault(self._name, self._function(instance))
