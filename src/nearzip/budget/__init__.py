"""Accuracy budgets: settings that lose at most so much, found by measuring."""

from nearzip.budget.assignment import Assignment, Choice
from nearzip.budget.evaluators import Evaluation, Evaluator
from nearzip.budget.intervals import Interval
from nearzip.budget.plan import CalibratedRounding, Plan
from nearzip.budget.subject import Outcome, Subject
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Status
from nearzip.budget.tune import STRATEGIES, tune

__all__ = [
    "STRATEGIES",
    "Assignment",
    "CalibratedRounding",
    "Choice",
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
