"""What may be lost: limits by metric or pattern, absolute or relative to the original's score."""

from __future__ import annotations

import contextlib
import fnmatch
import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nearzip.errors import UsageError

__all__ = ["Budgets", "Loss", "MaxLoss", "check_budgets", "losses_of", "usage_of"]

#: 0.002, in the metric's units, or "0.2%" of the original's score.
Loss = float | str
MaxLoss = Loss | Mapping[str, Loss]
#: How many units in the last place of the larger figure a loss may be above its budget.
_ROUNDINGS = 4


@dataclass(frozen=True)
class Budgets:
    """The largest loss allowed, by metric.

    Parameters
    ----------
    allowed : dict of str to float
        Absolute, in the metric's units; metrics that are not named are recorded, not limited.
    patterns : dict of str to str
        Of each limited metric: the name or pattern that limits it.
    """

    allowed: Mapping[str, float]
    patterns: Mapping[str, str]

    @staticmethod
    def of(max_loss: Any, original: Mapping[str, float]) -> Budgets:
        """From what the caller gave: one loss for every metric, or losses by name or pattern (`fnmatch`).

        A metric's own name comes before patterns, and those in the order given, "*" last. Raises UsageError.

        Examples
        --------
        >>> Budgets.of({"class/*": 0.02, "top1": "0.5%"}, {"top1": 0.8, "class/0": 0.9, "class/1": 0.7}).allowed
        {'top1': 0.004, 'class/0': 0.02, 'class/1': 0.02}
        """
        if max_loss is None:
            return Budgets({}, {})
        given = dict(max_loss) if isinstance(max_loss, Mapping) else {"*": max_loss}
        patterns = {name: found for name in original if (found := _pattern_of(name, given)) is not None}
        unknown = [pattern for pattern in given if pattern not in patterns.values() and not _matches(pattern, original)]
        if unknown or not patterns:
            what = f"no metric {sorted(unknown)[0]!r}" if unknown else "nothing to be limited"
            raise UsageError(f"max_loss: evaluate returns {what}; it returns {', '.join(sorted(original))}")
        allowed = {name: _absolute(name, given[pattern], original[name]) for name, pattern in patterns.items()}
        return Budgets(allowed, patterns)

    def confidences(self, confidence: float) -> dict[str, float]:
        """The confidence of each metric's own bound.

        Where one pattern limits several metrics ("class/*"), all of them are kept at once with `confidence`: each has
        an equal share of the risk (Bonferroni).
        """
        sizes = Counter(self.patterns.values())
        return {name: 1 - (1 - confidence) / sizes[pattern] for name, pattern in self.patterns.items()}


def _matches(pattern: str, names: Mapping[str, float]) -> bool:
    return pattern in names or bool(fnmatch.filter(names, pattern))


def _pattern_of(name: str, given: Mapping[str, Any]) -> str | None:
    if name in given:
        return name
    found = (p for p in given if p != "*" and fnmatch.fnmatchcase(name, p))
    return next(found, "*" if "*" in given else None)


def _absolute(name: str, value: Any, original: float) -> float:
    loss, relative = _parsed(name, value)
    if not relative:
        return loss
    if not original:
        raise UsageError(
            f"max_loss of {name} is {value!r} of the original's score, which is 0; give the loss in its own units"
        )
    return loss * abs(original)


def check_budgets(max_loss: Any) -> None:
    """Refuses what can be refused before anything is evaluated. Raises UsageError."""
    for name, value in max_loss.items() if isinstance(max_loss, Mapping) else [("every metric", max_loss)]:
        _parsed(name, value)


def _parsed(name: object, value: Any) -> tuple[float, bool]:
    """The number, and whether it is a share of the original's score."""
    relative = isinstance(value, str)
    number = math.nan
    if isinstance(value, str) and value.strip().endswith("%"):
        with contextlib.suppress(ValueError):
            number = float(value.strip().removesuffix("%"))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    if not 0 <= number < math.inf:
        raise UsageError(
            f"max_loss of {name} is a number from 0 on, in evaluate's units, or a share of the original's score such "
            f"as '0.2%', not {value!r}"
        )
    return (number / 100 if relative else number), relative


def losses_of(original: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """Losses by metric, original minus restored. A metric that is not finite loses infinity. Raises UsageError."""
    if set(metrics) != set(original):
        raise UsageError(
            f"evaluate returned {', '.join(sorted(original))} for the original network, "
            f"{', '.join(sorted(metrics))} for another"
        )
    return {name: original[name] - value if math.isfinite(value) else math.inf for name, value in metrics.items()}


def usage_of(losses: Mapping[str, float], max_loss: Mapping[str, float], original: Mapping[str, float]) -> float:
    """The largest share of a budget that was used: at most 1 is within, negative is a gain in every metric.

    A loss that is above its budget by no more than metrics are rounded by is within: 0.978 - 0.976 is more than 0.002
    in floating point. Without any budget nothing is used, unless a metric was no number.

    Examples
    --------
    >>> usage_of({"top1": 0.001, "kl": 0.004}, {"top1": 0.002, "kl": 0.01}, {"top1": 0.9, "kl": 0.0})
    0.5
    >>> usage_of({"top1": 0.978 - 0.976}, {"top1": 0.002}, {"top1": 0.978})
    1.0
    """
    if not max_loss:
        return 0.0 if all(map(math.isfinite, losses.values())) else math.inf
    return max(_share(losses[name], allowed, original[name]) for name, allowed in max_loss.items())


def _share(loss: float, allowed: float, original: float) -> float:
    if not allowed:
        return 0.0 if loss <= 0 else math.inf
    # Rounding of the two metrics, of their difference, and of the budget as the caller computed it.
    if not loss <= allowed + _ROUNDINGS * sys.float_info.epsilon * max(abs(original), allowed):
        # The quotient may round down to 1.
        return max(loss / allowed, math.nextafter(1, 2))
    return min(loss / allowed, 1.0)
