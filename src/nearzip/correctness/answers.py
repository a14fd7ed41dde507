"""Compare a network with its compressed self from the logs that evaluation harnesses write already.

Neither the networks nor PyTorch are needed: both runs logged every sample (`lm_eval --log_samples`), so the outcomes
are paired. For each task and over all: flips, a confidence interval of the loss, McNemar's exact test, and whether the
loss is shown to be within a limit (non-inferiority) and the difference within it both ways (equivalence).
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearzip.budget.intervals import check_confidence
from nearzip.correctness.answers_page import render
from nearzip.correctness.logs import Log, Sample, find_logs, read_log
from nearzip.correctness.paired import Differences, Flips, Paired, Ratio, Test, holm
from nearzip.correctness.tasks import TaskComparison, summary, worst
from nearzip.errors import UsageError
from nearzip.fileio import atomic_file
from nearzip.version import __version__

__all__ = ["AnswersReport", "TaskComparison", "compare_answers"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AnswersReport:
    """What `compare_answers` found. `all_tasks` pools the right-or-wrong metrics; None where there is none.

    `notes` say what a reader should know: tasks that only one side logged, prompts that differ.
    """

    tasks: tuple[TaskComparison, ...]
    all_tasks: TaskComparison | None
    confidence: float
    logs: Mapping[str, tuple[Log, Log]]
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[TaskComparison, ...]:
        """The tasks, and all of them together where there are several."""
        return (*self.tasks, *([self.all_tasks] if self.all_tasks else []))

    @property
    def verdict(self) -> str:
        """The worst of all verdicts: broken, not shown, kept."""
        return worst(self.rows)

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        return summary(self.tasks, self.verdict)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON, with the SHA-256 of every log."""
        return {
            "version": 1,
            "nearzip": __version__,
            "confidence": self.confidence,
            "verdict": self.verdict,
            "all_tasks": None if self.all_tasks is None else self.all_tasks.to_json(),
            "tasks": [row.to_json() for row in self.tasks],
            "notes": list(self.notes),
            "logs": {
                task: {"original": _named(before), "compressed": _named(after)}
                for task, (before, after) in self.logs.items()
            },
        }

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write `to_json` to a file, whole or not at all."""
        text = json.dumps(self.to_json(), indent=2, sort_keys=True, allow_nan=False)
        with atomic_file(path, force=force) as stream:
            stream.write(text.encode() + b"\n")

    def page(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write one self-contained HTML page. Raises MissingExtraError where jinja2 is not installed."""
        text = render(self.tasks, self.all_tasks, self.confidence, self.logs, self.notes)
        with atomic_file(path, force=force) as stream:
            stream.write(text.encode("utf-8", "backslashreplace"))

    def __repr__(self) -> str:
        return f"<nearzip.correctness.AnswersReport of {len(self.tasks)} tasks: {self.verdict}>"


def _named(log: Log) -> dict[str, str]:
    return {"name": log.path.name, "sha256": log.sha256}


def compare_answers(
    original: str | os.PathLike[str],
    compressed: str | os.PathLike[str],
    *,
    max_loss: float | Mapping[str, float] = 0.02,
    metric: str | Mapping[str, str] | None = None,
    confidence: float = 0.95,
    progress: Progress | None = None,
) -> AnswersReport:
    """Compare two sets of per-sample logs of the same evaluation, for any quantizer.

    Parameters
    ----------
    original, compressed : path
        Folders with lm-evaluation-harness's `samples_TASK_TIME.jsonl` (searched below them, plain or .gz; the newest
        of each task), or two such files.
    max_loss : float or mapping of pattern to float
        What may be lost, in the metric's units: 0.02 is two points of accuracy, or 0.02 nats of log perplexity. A
        task's own name comes first, then the first pattern that matches (`fnmatch`), then "*".
    metric : str or mapping of pattern to str, optional
        The metric to compare, such as "acc_norm", or "exact_match,flexible-extract" for one filter of several. Default,
        and where a task does not log it: the first that the task logs.
    confidence : float
        Of every verdict, and of the family of tasks as a whole: p-values are adjusted by Holm's method.
    progress : callable(done, total), optional
        Called with tasks read.

    Returns
    -------
    AnswersReport

    Raises
    ------
    UsageError
        Nothing to compare, or a limit that matches no task.
    CorruptError
        A log that is damaged, holds NaN, or holds other samples than its counterpart.
    """
    check_confidence(confidence)
    pairs, notes = _paired_logs(Path(original), Path(compressed), progress)
    limits = _Limits.of(max_loss, list(pairs))
    _check_metrics(metric, pairs)
    chosen = [_Chosen.of(task, before, after, metric) for task, (before, after) in pairs.items()]
    tests, equivalences = _tests([row.paired for row in chosen], [limits[row.task] for row in chosen], confidence)
    rows = tuple(
        TaskComparison(row.task, row.filter, row.metric, row.original, row.compressed, row.paired, *both)
        for row, *both in zip(chosen, tests, equivalences, strict=True)
    )
    notes += [note for row in chosen for note in row.notes]
    return AnswersReport(rows, _pooled(chosen, limits, confidence), confidence, pairs, tuple(notes))


def _paired_logs(
    original: Path, compressed: Path, progress: Progress | None
) -> tuple[dict[str, tuple[Log, Log]], list[str]]:
    before, after = find_logs(original), find_logs(compressed)
    if original.is_file() and compressed.is_file():
        after = dict(zip(before, after.values(), strict=True))  # two files are one task, whatever their names
    shared = [task for task in before if task in after]
    if not shared:
        raise UsageError(f"{original} and {compressed} have no task in common")
    notes = [f"task {task!r} is logged for the original only" for task in before if task not in after]
    notes += [f"task {task!r} is logged for the compressed network only" for task in after if task not in before]
    found: dict[str, tuple[Log, Log]] = {}
    for done, task in enumerate(shared, 1):
        found[task] = (read_log(task, before[task]), read_log(task, after[task]))
        if progress is not None:
            progress(done, len(shared))
    return found, notes


def _check_metrics(wanted: str | Mapping[str, str] | None, pairs: Mapping[str, tuple[Log, Log]]) -> None:
    """Raise UsageError for a metric that no task logs, or a pattern that matches none: judging by another in silence
    would answer another question."""
    by_pattern = dict(wanted) if isinstance(wanted, Mapping) else {} if wanted is None else {"*": wanted}
    for pattern, text in by_pattern.items():
        tasks = [task for task in pairs if fnmatch.fnmatchcase(task, pattern)]
        if not tasks:
            raise UsageError(f"the metric for {pattern!r} matches no task; there are {', '.join(list(pairs)[:8])}")
        name = text.partition(",")[0]
        logged = {found for task in tasks for one in pairs[task][0].samples.values() for found in one.metrics}
        if name not in logged:
            there = ", ".join(sorted(logged)[:8]) or "none"
            raise UsageError(f"metric {name!r} is logged by no task that {pattern!r} matches; there are {there}")


@dataclass(frozen=True)
class _Limits:
    """What each task may lose."""

    by_pattern: Mapping[str, float]

    @staticmethod
    def of(value: float | Mapping[str, float], tasks: Sequence[str]) -> _Limits:
        by_pattern = dict(value) if isinstance(value, Mapping) else {"*": value}
        for pattern, limit in by_pattern.items():
            if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < float("inf"):
                raise UsageError(f"a limit is a positive number such as 0.02, not {limit!r}")
            if pattern != "*" and not fnmatch.filter(tasks, pattern):
                raise UsageError(f"the limit for {pattern!r} matches no task; there are {', '.join(tasks[:8])}")
        return _Limits(by_pattern)

    def __getitem__(self, task: str) -> float:
        found = _matching(self.by_pattern, task)
        if found is None:
            raise UsageError(f"no limit matches task {task!r}; give one for '*'")
        return float(found)


def _matching(by_pattern: Mapping[str, Any], name: str) -> Any:
    """A name's own entry, else the first pattern that matches, else that of "*", else None."""
    if name in by_pattern:
        return by_pattern[name]
    found = (pattern for pattern in by_pattern if pattern != "*" and fnmatch.fnmatchcase(name, pattern))
    return by_pattern.get(next(found, "*"))


@dataclass(frozen=True)
class _Chosen:
    """The metric to compare of a task, with its paired outcomes."""

    task: str
    filter: str
    metric: str
    original: float
    compressed: float
    paired: Paired
    notes: tuple[str, ...]

    @staticmethod
    def of(task: str, before: Log, after: Log, wanted: str | Mapping[str, str] | None) -> _Chosen:
        name = _matching(wanted, task) if isinstance(wanted, Mapping) else wanted
        name, _, chosen_filter = (name or "").partition(",")
        if chosen_filter and chosen_filter not in before.filters:
            raise UsageError(f"{before.path}: has no filter {chosen_filter!r}; there are {', '.join(before.filters)}")
        chosen_filter = chosen_filter or before.filters[0]
        samples, notes = _aligned(before, after, chosen_filter)
        logged = list(samples[0][0].metrics)
        if not logged:
            raise UsageError(f"{before.path}: logs no metric of single samples; its task cannot be compared")
        if name not in logged:
            name = logged[0]
        rises = before.higher_is_better.get(name, True)
        return _Chosen(task, chosen_filter, name, *_outcomes(samples, name, rises, before, after), tuple(notes))


def _aligned(before: Log, after: Log, chosen: str) -> tuple[list[tuple[Sample, Sample]], list[str]]:
    """Pairs of samples in the original's order. Raises CorruptError where the logs are of other samples."""
    ours = {key: sample for key, sample in before.samples.items() if key[1] == chosen}
    theirs = {key: sample for key, sample in after.samples.items() if key[1] == chosen}
    if missing := [key[0] for key in [*ours, *theirs] if key not in ours or key not in theirs]:
        raise UsageError(
            f"{before.path} and {after.path}: logs of different samples: {len(missing)} documents are in only one, "
            f"the first is {missing[0]}; evaluate both networks with the same --limit and filters"
        )
    pairs = [(ours[key], theirs[key]) for key in ours]
    for key, (one, other) in zip(ours, pairs, strict=True):
        if one.document != other.document:
            raise UsageError(
                f"{before.path} and {after.path}: logs of different samples: document {key[0]} is not the same question"
            )
    n_prompts = sum(one.prompt != other.prompt for one, other in pairs)
    notes = [f"task {before.task!r}: {n_prompts} of {len(pairs)} prompts differ"] if n_prompts else []
    return pairs, notes


def _outcomes(
    samples: Sequence[tuple[Sample, Sample]], name: str, rises: bool, before: Log, after: Log
) -> tuple[float, float, Paired]:
    """Mean before, mean after, and the paired outcomes."""
    values = []
    for one, other in samples:
        if name not in one.metrics or name not in other.metrics:
            log = before if name not in one.metrics else after
            raise UsageError(f"{log.path}: some samples have no metric {name!r}")
        values.append((one.metrics[name], other.metrics[name]))
    pairs = [(a, b) for a, b in values if isinstance(a, tuple) and isinstance(b, tuple)]
    if len(pairs) == len(values):
        return _ratio(pairs)
    scores = [(a, b) for a, b in values if isinstance(a, float) and isinstance(b, float)]
    if len(scores) != len(values):
        raise UsageError(f"{before.path}: metric {name!r} is a number in some samples only")
    if all(score in (0.0, 1.0) for pair in scores for score in pair):
        flips = _flips(samples, scores, rises)
        accuracy, accuracy_after = (
            (flips.original, flips.compressed) if rises else (1 - flips.original, 1 - flips.compressed)
        )
        return accuracy, accuracy_after, flips
    mean, mean_after = (sum(pair[side] for pair in scores) / len(scores) for side in (0, 1))
    low, high = min(map(min, scores)), max(map(max, scores))
    spread = high - low if low < 0 or high > 1 else 1.0
    sign = 1 if rises else -1
    return mean, mean_after, Differences([sign * (a - b) for a, b in scores], spread)


def _ratio(values: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> tuple[float, float, Paired]:
    weights = [a[1] for a, _ in values]
    if any(a[1] != b[1] for a, b in values):
        raise UsageError("the lengths of documents differ between the logs; evaluate both with the same tokenization")
    gaps = [a[0] - b[0] for a, b in values]
    total = sum(weights)
    spread = max(abs(gap) / weight for gap, weight in zip(gaps, weights, strict=True)) or 1.0
    return -sum(a[0] for a, _ in values) / total, -sum(b[0] for _, b in values) / total, Ratio(gaps, spread, weights)


def _flips(samples: Sequence[tuple[Sample, Sample]], values: Sequence[tuple[float, float]], rises: bool) -> Flips:
    right = [(a == rises, b == rises) for a, b in values]
    answers = [(one.answer, other.answer) for one, other in samples]
    known = all(a is not None and b is not None for a, b in answers)
    wrong = [pair for pair, outcome in zip(answers, right, strict=True) if outcome == (False, False)]
    return Flips(
        n=len(right),
        n_right=sum(a for a, _ in right),
        lost=sum(a and not b for a, b in right),
        gained=sum(b and not a for a, b in right),
        changed=sum(a != b for a, b in wrong) if known else None,
    )


def _tests(paired: Sequence[Paired], limits: Sequence[float], confidence: float) -> tuple[list[Test], list[Test]]:
    """Non-inferiority and equivalence of every task, each family adjusted by Holm's method."""
    above = [row.p_above(limit) for row, limit in zip(paired, limits, strict=True)]
    below = [row.p_below(limit) for row, limit in zip(paired, limits, strict=True)]
    both = [max(p, row.p_below(-limit)) for p, row, limit in zip(above, paired, limits, strict=True)]
    tests = [Test(*row, confidence) for row in zip(limits, holm(above), holm(below), strict=True)]
    return tests, [Test(limit, p, 1.0, confidence) for limit, p in zip(limits, holm(both), strict=True)]


def _pooled(chosen: Sequence[_Chosen], limits: _Limits, confidence: float) -> TaskComparison | None:
    """All right-or-wrong metrics as one, under the largest limit of their tasks' ("*" where it is given)."""
    flips = [row.paired for row in chosen if isinstance(row.paired, Flips)]
    if len(flips) < 2:
        return None
    total = flips[0]
    for row in flips[1:]:
        total = total + row
    default = limits.by_pattern.get("*")
    limit = default if default is not None else max(limits[row.task] for row in chosen)
    [test], [equivalence] = _tests([total], [float(limit)], confidence)
    return TaskComparison("all tasks", "", "", total.original, total.compressed, total, test, equivalence)
