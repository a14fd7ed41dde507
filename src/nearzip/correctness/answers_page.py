"""One self-contained HTML page about a comparison of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from nearzip.correctness.logs import Log
from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN
from nearzip.correctness.tasks import TaskComparison, needed, summary, worst
from nearzip.report.engine import environment, number
from nearzip.report.svg import Interval, intervals
from nearzip.version import __version__

__all__ = ["render"]

#: Tasks drawn in the chart; the table lists all.
_MAX_DRAWN = 60

_KINDS = {KEPT: "good", BROKEN: "bad", NOT_SHOWN: "open"}


def render(
    tasks: Sequence[TaskComparison],
    all_tasks: TaskComparison | None,
    confidence: float,
    logs: Mapping[str, tuple[Log, Log]],
    notes: Sequence[str],
) -> str:
    """The page as text. Raises MissingExtraError where jinja2 is not installed."""
    engine = environment()
    engine.filters.update(kind=_KINDS.__getitem__, points=_points, needed=needed)
    template = (resources.files("nearzip.correctness") / "answers.html").read_text("utf-8")
    rows = [*([all_tasks] if all_tasks else []), *tasks]
    verdict = worst(rows)
    drawn = sorted(tasks, key=lambda row: row.test.limit - row.loss)[:_MAX_DRAWN]
    flips = [row for row in tasks if row.flips is not None]
    return str(engine.from_string(template).render(
        tasks=tasks,
        confidence=confidence,
        logs=logs,
        notes=notes,
        verdict=verdict,
        version=__version__,
        summary=summary(tasks, verdict),
        rows=rows,
        total=all_tasks or (flips[0] if len(flips) == 1 else None),
        n_samples=sum(row.n for row in tasks),
        n_hidden=len(tasks) - len(drawn),
        chart=intervals("Loss by task", [_interval(row) for row in drawn], number),
        undecided=[row for row in rows if row.verdict == NOT_SHOWN],
    ))  # fmt: skip


def _points(share: float) -> str:
    return f"{100 * share:g} %"


def _interval(row: TaskComparison) -> Interval:
    low, high = row.interval
    return Interval(row.task, row.loss, low, high, row.test.limit, f"{row.loss:+.4f}", _KINDS[row.verdict])
