"""Accuracy budgets: settings that lose at most so much, found by measuring."""

import warnings
from typing import Any

from nearzip.budget.evaluators import Evaluation, Evaluator
from nearzip.budget.intervals import Interval
from nearzip.budget.plan import CalibratedRounding, Plan
from nearzip.budget.subject import Outcome, Subject
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Status
from nearzip.budget.tune import STRATEGIES, tune

__all__ = [
    "STRATEGIES",
    "CalibratedRounding",
    "Evaluation",
    "Evaluator",
    "Interval",
    "Outcome",
    "Plan",
    "Status",
    "Subject",
    "Trial",
    "tune",
]

#: Names of the first release, and what they are in `nearzip.coding`.
_RENAMED = {"Choice": "Coding", "Assignment": "Codings"}


def __getattr__(name: str) -> Any:
    if name not in _RENAMED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nearzip import coding

    warnings.warn(f"{__name__}.{name} is nearzip.coding.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return getattr(coding, _RENAMED[name])
