"""Whether a compressed network still does the same as the original, sample by sample, under limits.

The measures need PyTorch and are imported when they are asked for; comparing logs does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nearzip.correctness.answers import AnswersReport, compare_answers
from nearzip.correctness.certificate import Certificate
from nearzip.correctness.samples import sample_digests
from nearzip.correctness.tasks import TaskComparison

if TYPE_CHECKING:
    from nearzip.correctness.certifying import certify
    from nearzip.correctness.objective import Objective
    from nearzip.measures import (
        MEASURES,
        PERTURBATIONS,
        Agreement,
        Attribution,
        Boundary,
        ClassAccuracy,
        Cost,
        Divergence,
        Embedding,
        Flips,
        Loss,
        Measure,
        OutputDistance,
        Predictions,
        Robustness,
        TopK,
        jaccard,
        measures_of,
    )

__all__ = [
    "MEASURES",
    "PERTURBATIONS",
    "Agreement",
    "AnswersReport",
    "Attribution",
    "Boundary",
    "Certificate",
    "ClassAccuracy",
    "Cost",
    "Divergence",
    "Embedding",
    "Flips",
    "Loss",
    "Measure",
    "Objective",
    "OutputDistance",
    "Predictions",
    "Robustness",
    "TaskComparison",
    "TopK",
    "certify",
    "compare_answers",
    "jaccard",
    "measures_of",
    "sample_digests",
]

#: Modules that need PyTorch and are imported when a name of theirs is first asked for; others are measures.
_HOMES = {"certify": "correctness.certifying", "Objective": "correctness.objective"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"nearzip.{_HOMES.get(name, 'measures')}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return __all__
