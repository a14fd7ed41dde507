"""Version selectors: latest, 12, tag:best, step=1200, best:accuracy, min:loss."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from nearzip.errors import NotFoundError, UsageError
from nearzip.store.manifest import Manifest

__all__ = ["Selector", "extreme", "is_selector", "needs_log", "select"]

#: What a caller may say.
Selector = int | str
_FORM = re.compile(r"latest|\d+|tag:(?P<tag>.+)|step=(?P<step>-?\d+)|(?P<way>best|max|min):(?P<metric>.+)", re.DOTALL)


def _parsed(selector: Selector) -> re.Match[str]:
    if isinstance(selector, bool) or not isinstance(selector, (int, str)):
        raise UsageError(f"a version is a number or a text such as 'latest', not {selector!r}")
    match = _FORM.fullmatch(str(selector))
    if not match:
        raise UsageError(
            f"cannot read the version {selector!r}; write latest, a number, tag:NAME, step=N, best:METRIC or min:METRIC"
        )
    return match


def is_selector(text: str) -> bool:
    """Whether it could mean a version."""
    return _FORM.fullmatch(text) is not None


def needs_log(selector: Selector) -> bool:
    """Whether all versions have to be looked at."""
    return not (_parsed(selector)[0] == "latest" or _parsed(selector)[0].isdecimal())


def select(selector: Selector, versions: Iterable[Manifest], url: str) -> int:
    """The number of the version that the selector names; of several, the newest.

    Parameters
    ----------
    selector : int or str
    versions : iterable of Manifest
        Those that are not pruned.
    url : str
        For messages.

    Raises
    ------
    UsageError
        A selector that cannot be read.
    NotFoundError
        No such version.
    """
    match = _parsed(selector)
    found = [version for version in versions if version.pruned is None]
    if match["tag"] is not None:
        found = [version for version in found if match["tag"] in version.tags]
    elif match["step"] is not None:
        found = [version for version in found if version.step == int(match["step"])]
    elif match["metric"] is not None:
        found = extreme(found, match["metric"], min if match["way"] == "min" else max)
    elif match[0] != "latest":
        found = [version for version in found if version.number == int(match[0])]
    if not found:
        raise NotFoundError(f"{url}: no version {selector!r}; see 'nearzip store log {url}'")
    return max(version.number for version in found)


def extreme(versions: Sequence[Manifest], metric: str, which: Callable[..., float]) -> list[Manifest]:
    """Those with the largest (`max`) or smallest value of a metric. NaN is neither."""
    rated = [version for version in versions if not math.isnan(version.metrics.get(metric, math.nan))]
    if not rated:
        return []
    wanted = which(version.metrics[metric] for version in rated)
    return [version for version in rated if version.metrics[metric] == wanted]
