"""An option that may differ from tensor to tensor: one number, or numbers by name or pattern."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nearzip.errors import UsageError

__all__ = ["ByName"]


@dataclass(frozen=True)
class ByName:
    """Numbers by tensor name or pattern (`fnmatch`); "*" matches the rest.

    Examples
    --------
    >>> keep = ByName.parse("fc1.weight=0.08,conv*=0.3")
    >>> keep["fc1.weight"], keep["conv2.weight"], keep["fc2.weight"]
    (0.08, 0.3, None)
    >>> ByName.parse(0.1)["anything"]
    0.1
    """

    pairs: tuple[tuple[str, float], ...]

    @staticmethod
    def parse(value: Any) -> ByName:
        """From a number, a mapping of patterns to numbers, or text: "0.1" or "PATTERN=0.1,PATTERN=0.2".

        Raises UsageError.
        """
        if isinstance(value, ByName):
            return value
        if isinstance(value, Mapping):
            items = list(value.items())
        elif isinstance(value, str) and "=" in value:
            items = [pair.rpartition("=")[::2] for pair in value.split(",")]
        else:
            items = [("*", value)]
        pairs = tuple((_pattern(pattern), _number(number)) for pattern, number in items)
        if not pairs or len(dict(pairs)) != len(pairs):
            raise UsageError(f"each tensor name or pattern is given once, with a number; not so in {value!r}")
        return ByName(pairs)

    def __getitem__(self, name: str) -> float | None:
        """A tensor's own name comes first, then the first pattern that matches, then "*"; None if nothing matches."""
        numbers = dict(self.pairs)
        if name in numbers:
            return numbers[name]
        found = (p for p in numbers if p != "*" and fnmatch.fnmatchcase(name, p))
        return numbers.get(next(found, "*"))

    def check_names(self, option: str, names: Iterable[str]) -> None:
        """Raise UsageError for a pattern that matches none of the names."""
        known = list(names)
        for pattern, _ in self.pairs:
            if pattern != "*" and pattern not in known and not fnmatch.filter(known, pattern):
                raise UsageError(f"{option} is given for {pattern!r}, which is no tensor and matches none")

    def to_option(self) -> float | dict[str, float]:
        """As plain data, for an archive's index."""
        if len(self.pairs) == 1 and self.pairs[0][0] == "*":
            return self.pairs[0][1]
        return dict(self.pairs)


def _pattern(pattern: Any) -> str:
    if not isinstance(pattern, str) or not pattern.strip():
        raise UsageError(f"a tensor name or pattern is text, not {pattern!r}")
    return pattern.strip()


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{value!r} is not a number; write 0.1 or PATTERN=0.1,PATTERN=0.2")
    return number
