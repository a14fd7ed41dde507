"""Evaluators: what scores a network, a dataset or whatever else is compressed. Plain functions are taken for one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from nearzip.budget.intervals import Statistic
from nearzip.errors import Error, UsageError
from nearzip.tensors import Array

__all__ = [
    "ONE_METRIC",
    "Evaluate",
    "Evaluation",
    "Evaluator",
    "MetricError",
    "check_original",
    "evaluation_of",
    "evaluator_of",
    "name_of",
]

#: The name of the metric of a function that returns one number, unless the function has an attribute `metric`.
ONE_METRIC = "score"


class MetricError(UsageError):
    """A function returned something that is no number."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one candidate.

    Parameters
    ----------
    metrics : dict of str to float
        Higher is better.
    statistics : dict of str to Statistic
        Per-sample values of the metrics that have them: what a confidence bound is computed from.
    yardsticks : dict of str to float
        Figures beside them that are no scores, so that nothing limits them: a chance level, counts, quantiles.
    details : dict of str to a pair of arrays
        By metric, a value of each sample under the original and under the candidate.
    """

    metrics: Mapping[str, float]
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    yardsticks: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, tuple[Array, Array]] = field(default_factory=dict)

    def without_statistics(self) -> Evaluation:
        return Evaluation(self.metrics, yardsticks=self.yardsticks)


class Evaluator(Protocol):
    """Scores what a reader would get.

    A function of a dict of arrays that returns a number or a dict of numbers does as well (`evaluator_of`); its
    attributes `name`, `metric` and `identity` are read if it has them.
    """

    @property
    def name(self) -> str:
        """What plans call it."""

    @property
    def identity(self) -> str:
        """Distinguishes it from others of the same name, by its data above all; "" if nothing is known.

        Trials on disk are reused only for the same name and identity.
        """

    @property
    def confidence(self) -> float | None:
        """The confidence at which losses are bounded, unless the caller of the search names another; None: not."""

    def evaluation(self, tensors: dict[str, Array]) -> Evaluation:
        """Metrics, and their per-sample values where there are any."""


#: What searches take: an evaluator, or a function of a dict of arrays.
Evaluate = Evaluator | Callable[[dict[str, Array]], Any]


@dataclass(frozen=True)
class _Function:
    """A plain function as an evaluator."""

    function: Callable[[dict[str, Array]], Any]

    @property
    def name(self) -> str:
        return name_of(self.function)

    @property
    def identity(self) -> str:
        own = getattr(self.function, "identity", None)
        return own if isinstance(own, str) else ""

    @property
    def confidence(self) -> float | None:
        return None

    def evaluation(self, tensors: dict[str, Array]) -> Evaluation:
        value = self.function(tensors)
        if isinstance(value, Mapping):
            return Evaluation({str(name): _as_float(number, name) for name, number in value.items()})
        metric = getattr(self.function, "metric", None)
        name = metric if isinstance(metric, str) else ONE_METRIC
        return Evaluation({name: _as_float(value, name)})


def _as_float(value: Any, name: object) -> float:
    """A number; NaN and +inf are left to the search."""
    if not isinstance(value, (str, bytes)) and value is not None:
        try:
            return float(value)
        except (TypeError, ValueError):
            value = f"a {type(value).__name__}"
    else:
        value = repr(value)
    raise MetricError(f"evaluate returns a number or a dict of numbers; {name!r} is {value}")


def evaluator_of(evaluate: Any) -> Evaluator:
    """An evaluator as it is, a function as an evaluator. Raises UsageError for anything else."""
    # Not isinstance of a protocol: that reads `identity`, and with it all data.
    if callable(getattr(type(evaluate), "evaluation", None)):
        return evaluate  # type: ignore[no-any-return]
    if not callable(evaluate):
        raise UsageError(f"evaluate is a function of a dict of arrays, not {type(evaluate).__name__}")
    return _Function(evaluate)


def evaluation_of(evaluate: Callable[[], Evaluation], what: str) -> Evaluation:
    """What `evaluate()` finds on `what`, with errors that say so.

    Raises UsageError for what is no number or no metric, Error if it raised anything.
    """
    try:
        found = evaluate()
    except MetricError as error:
        raise UsageError(f"{error}, for {what}") from None
    except Exception as error:
        raise Error(f"evaluate raised {type(error).__name__} on {what}: {error}") from error
    if not found.metrics:
        raise UsageError(f"evaluate returned no metric on {what}")
    return found


def check_original(found: Evaluation, what: str) -> Evaluation:
    """The metrics of the original, all finite. Raises Error if there is nothing to compare with."""
    for name, value in found.metrics.items():
        if not math.isfinite(value):
            raise Error(f"evaluate returned {value} as {name!r} of {what}; there is nothing to compare with")
    return found


def name_of(evaluate: Any) -> str:
    """Module and name of a function; of an object, its attribute `name` or its class."""
    own = getattr(evaluate, "name", None)
    if isinstance(own, str):
        return own
    named = evaluate if hasattr(evaluate, "__qualname__") else type(evaluate)
    return f"{named.__module__}:{named.__qualname__}"
