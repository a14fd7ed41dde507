"""One task, compared before and after compression: figures, verdict, and the messages about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN, Flips, Paired, Test

__all__ = ["TaskComparison", "needed", "summary", "worst"]


@dataclass(frozen=True)
class TaskComparison:
    """One metric of one task, before and after compression.

    `original` and `compressed` are the metric's means (of a perplexity: mean log-likelihood per unit of length, with
    its sign turned). `loss` is positive where the compressed network is worse, whichever direction the metric has.
    """

    task: str
    filter: str
    metric: str
    original: float
    compressed: float
    paired: Paired
    test: Test
    equivalence: Test

    @property
    def n(self) -> int:
        return self.paired.n

    @property
    def loss(self) -> float:
        return self.paired.loss

    @property
    def flips(self) -> Flips | None:
        """Counts of samples that changed, for a right-or-wrong metric; None for other metrics."""
        return self.paired if isinstance(self.paired, Flips) else None

    @property
    def verdict(self) -> str:
        return self.test.verdict

    @property
    def equivalent(self) -> bool:
        """Whether the difference is shown to be within the limit in both directions (two one-sided tests)."""
        return self.equivalence.verdict == KEPT

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided confidence interval of the loss, for this task by itself."""
        return self.paired.interval(self.test.confidence)

    @property
    def samples_needed(self) -> int | None:
        """The number of samples that would show this task's limit to be kept, at the observed rates."""
        return self.paired.samples_needed(self.test.limit, self.test.confidence)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        low, high = self.interval
        document: dict[str, Any] = {
            "task": self.task, "filter": self.filter, "metric": self.metric, "n": self.n, "original": self.original,
            "compressed": self.compressed, "loss": self.loss, "interval": [low, high], "limit": self.test.limit,
            "p_kept": self.test.p_kept, "p_broken": self.test.p_broken, "verdict": self.verdict,
            "equivalent": self.equivalent, "samples_needed": self.samples_needed if self.verdict != KEPT else None,
        }  # fmt: skip
        if self.flips is not None:
            document["flips"] = {
                "lost": self.flips.lost, "gained": self.flips.gained, "changed": self.flips.changed,
                "churn": self.flips.churn, "p_mcnemar": self.flips.p_mcnemar(),
            }  # fmt: skip
        return document


def worst(rows: Iterable[TaskComparison]) -> str:
    """The worst verdict: broken, not shown, kept."""
    verdicts = {row.verdict for row in rows}
    return next(verdict for verdict in (BROKEN, NOT_SHOWN, KEPT) if verdict in verdicts)


def summary(rows: Sequence[TaskComparison], verdict: str) -> str:
    """The verdict on all tasks in one sentence."""
    n_broken, n_open = (sum(row.verdict == one for row in rows) for one in (BROKEN, NOT_SHOWN))
    if verdict == KEPT:
        return f"Kept: every loss is shown to be within its limit ({len(rows)} of {len(rows)} tasks)."
    if n_broken:
        return f"Broken: {n_broken} of {len(rows)} tasks lose more than their limit; {n_open} are not shown."
    if verdict == BROKEN:
        return "Broken: all tasks together lose more than the limit."
    n_decided = len(rows) - n_open
    return (
        f"Not shown: {n_decided} of {len(rows)} tasks are shown to be within their limits; none is shown to break one."
    )


def needed(row: TaskComparison) -> str:
    """How many samples would show the limit to be kept."""
    n = row.samples_needed
    if n is None:
        return (
            f"the loss seen, {row.loss:+.4f}, is not below the limit, {row.test.limit:g}; more samples would not help"
        )
    if n <= row.n:
        return f"{row.n:,} samples show it for this task by itself, not for {row.test.confidence:.0%} over all tasks"
    return f"about {n:,} samples would show it at these rates; there are {row.n:,}"
