"""Whether a compressed network still does the same as the original, sample by sample, under limits.

The measures need PyTorch and are imported when they are asked for; comparing logs does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nearzip.correctness.answers import AnswersReport, compare_answers
from nearzip.correctness.tasks import TaskComparison

if TYPE_CHECKING:
    from nearzip.measures import (
        MEASURES,
        Agreement,
        ClassAccuracy,
        Cost,
        Divergence,
        Embedding,
        Flips,
        Loss,
        Measure,
        OutputDistance,
        Predictions,
        TopK,
        measures_of,
    )

__all__ = [
    "MEASURES",
    "Agreement",
    "AnswersReport",
    "ClassAccuracy",
    "Cost",
    "Divergence",
    "Embedding",
    "Flips",
    "Loss",
    "Measure",
    "OutputDistance",
    "Predictions",
    "TaskComparison",
    "TopK",
    "compare_answers",
    "measures_of",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nearzip import measures

    return getattr(measures, name)


def __dir__() -> list[str]:
    return __all__
