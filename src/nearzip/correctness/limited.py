"""From limits to what measures them: metrics and patterns as `max_loss` has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nearzip.measures.measure import Measure
from nearzip.measures.registry import MEASURES

__all__ = ["measure_of", "measures_for"]

#: Groups whose members are asked for one by one.
_FAMILIES = ("kl", "robust", "attribution", "boundary")


def measures_for(limits: Iterable[str], given: Sequence[str | Measure] = ()) -> list[str | Measure]:
    """The given measures, and those that the limits name beside them.

    Examples
    --------
    >>> measures_for(["flips/worse", "class/3", "code/kl", "*"], ["top1"])
    ['top1', 'flips', 'class/*', 'kl']
    """
    found: list[str | Measure] = list(given)
    known = {name for each in given for name in _names(each)}
    for pattern in limits:
        name = None if pattern == "*" else measure_of(pattern)
        if name is not None and not _names(name) & known:
            found.append(name)
            known |= _names(name)
    return found


def _names(metric: str | Measure) -> set[str]:
    """What a measure goes by, its family included where that is one measure."""
    names = {part.strip() for part in str(metric).split(",")} | {str(metric).partition(" ")[0]}
    families = {name.partition("/")[0] for name in names}
    whole = {family for family in families if family not in _FAMILIES or family in names or f"{family}/*" in names}
    return names | whole


def measure_of(pattern: str) -> str | None:
    """The name of the measure that gives a metric: "flips" for "flips/worse", "kl" for "code/kl"; None: unknown."""
    parts = pattern.split("/")
    for start, first in enumerate(parts):
        rest = "/".join(parts[start:])
        if rest in MEASURES or re.fullmatch(r"top[1-9]\d{0,5}", rest):
            return rest
        if first in _FAMILIES:
            return rest
        if first == "class":
            return "class/*"
        if first in MEASURES:
            return first
    return None
