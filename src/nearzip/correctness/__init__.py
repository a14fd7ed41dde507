"""Whether a compressed network still does the same as the original, sample by sample, under limits."""

from nearzip.correctness.answers import AnswersReport, compare_answers
from nearzip.correctness.tasks import TaskComparison

__all__ = ["AnswersReport", "TaskComparison", "compare_answers"]
