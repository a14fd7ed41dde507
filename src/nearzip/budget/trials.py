"""Runs trials through joblib, as the caller's `parallel_config` says, and files each one as soon as it is measured."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearzip.budget.documents import fields, numbers, read_document
from nearzip.budget.measure import Outcome, Subject, evaluate_original, losses_of, measure, usage_of
from nearzip.budget.plan import Assignment, Choice, Trial, trial_key
from nearzip.errors import CorruptError, Error, UsageError
from nearzip.storage import Path_, atomic_file, naming_errors

__all__ = ["Runner", "Status", "Watch", "check_budgets", "n_workers"]


@dataclass(frozen=True)
class Status:
    """Where a search stands: trials done, the most that it will make, and the best of those within the budget."""

    done: int
    most: int
    latest: Trial | None
    best: Trial | None


Watch = Callable[[Status], None]


def n_workers() -> int:
    """How many trials the caller's joblib configuration runs at once; 1 without joblib."""
    try:
        import joblib
    except ImportError:
        return 1
    return int(joblib.effective_n_jobs(None))


def _in_parallel(function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
    """Number and result of each job, as they end."""
    try:
        import joblib
    except ImportError:
        yield from ((i, function(*job)) for i, job in enumerate(jobs))
        return
    calls = [joblib.delayed(_numbered)(i, function, job) for i, job in enumerate(jobs)]
    try:
        parallel = joblib.Parallel(return_as="generator_unordered")
    except ValueError:  # a backend that gives its results all at once
        parallel = joblib.Parallel()
    try:
        yield from parallel(calls)
    except pickle.PicklingError as error:
        raise UsageError(
            f"evaluate cannot be sent to another process ({error}); make it a function of a module, or run trials with "
            "joblib.parallel_config('threading')"
        ) from error
    except BrokenExecutor as error:
        raise Error(
            f"a worker ended before its trial did, perhaps for want of memory ({error}); run fewer at once, and give "
            "trials= to go on from those that are done"
        ) from error


def _numbered(i: int, function: Callable[..., Any], job: tuple[Any, ...]) -> tuple[int, Any]:
    return i, function(*job)


class Runner:
    """Measures assignments; knows those measured before, in this process or in `folder`.

    Parameters
    ----------
    subject : Subject
    max_loss : float or mapping
        As the caller gave it; `max_loss` afterwards is by metric.
    folder : path or None
        Where trials are filed, one JSON each, and found again.
    watch : callable or None
        Told after every trial.
    """

    def __init__(self, subject: Subject, max_loss: Any, folder: Path_ | None = None, watch: Watch | None = None):
        self.subject = subject
        self.network_id, self.base_id = subject.network_id, subject.base_id
        self.evaluate_name = name_of(subject.evaluate)
        self._folder = None if folder is None else _prepared(folder)
        self._watch = watch
        self._trials: dict[str, Trial] = {}
        self.most = 0
        self.original, self.original_again = self._originals()
        self.max_loss = budgets(max_loss, self.original)

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._trials.values())

    @property
    def best(self) -> Trial | None:
        """The smallest trial within the budget."""
        return min((t for t in self.trials if t.fits), key=lambda t: (t.n_bytes, t.usage), default=None)

    def run(self, assignments: Sequence[Assignment], stage: str) -> list[Trial]:
        """Trials of all assignments, in their order; only what is new is measured."""
        keys = [self._key(assignment) for assignment in assignments]
        new: dict[str, Assignment] = {}
        for key, assignment in zip(keys, assignments, strict=True):
            if key not in self._trials and not self._recall(key, assignment):
                new.setdefault(key, assignment)
        # Trials beside each other share the processors; the bytes do not depend on the threads.
        threads = 1 if min(n_workers(), len(new)) > 1 else None
        jobs = [(self.subject, assignment, threads) for assignment in new.values()]
        waiting = list(new.items())
        for i, outcome in _in_parallel(measure, jobs) if jobs else ():
            self._file(*waiting[i], outcome, stage)
        # In the order asked for, however they ended: plans do not depend on the number of workers' luck.
        for key in new:
            self._trials[key] = self._trials.pop(key)
        return [self._trials[key] for key in keys]

    def _key(self, assignment: Assignment) -> str:
        judge = f"{self.evaluate_name} {self.subject.rounding}".rstrip()
        return trial_key(self.network_id, self.base_id, assignment, judge)

    # ---- one trial ---------------------------------------------------------------------------------------------

    def _file(self, key: str, assignment: Assignment, outcome: Outcome, stage: str) -> None:
        _warn_of_nan(assignment, outcome.metrics)
        metrics = {name: v if math.isfinite(v) else -math.inf for name, v in outcome.metrics.items()}
        losses = losses_of(self.original, metrics)
        usage = usage_of(losses, self.max_loss, self.original)
        settings = assignment.settings()
        trial = Trial(settings, outcome.n_bytes, outcome.restored_id, metrics, losses, usage, stage, outcome.seconds)
        if self._folder is not None:
            _write(self._folder / f"{key}.json", {"key": key, **trial.to_json()})
        self._keep(key, trial)

    def _recall(self, key: str, assignment: Assignment) -> bool:
        """Take a trial from the folder, if it is there."""
        path = None if self._folder is None else self._folder / f"{key}.json"
        if path is None or not path.exists():
            return False
        document = read_document(path)
        try:
            if type(document) is not dict or document.pop("key", None) != key:
                raise CorruptError("is another trial than its name says")
            trial = Trial.from_json(document, "trial")
            if set(trial.metrics) != set(self.original):
                raise CorruptError("has other metrics than the original network")
        except CorruptError as error:
            raise CorruptError(f"{path}: {error}; delete it to have it measured again") from None
        # Budgets may have changed since.
        losses = losses_of(self.original, trial.metrics)
        usage = usage_of(losses, self.max_loss, self.original)
        self._keep(key, replace(trial, assignment=assignment.settings(), losses=losses, usage=usage))
        return True

    def _keep(self, key: str, trial: Trial) -> None:
        self._trials[key] = trial
        if self._watch:
            self._watch(Status(len(self._trials), max(self.most, len(self._trials)), trial, self.best))

    # ---- the original ------------------------------------------------------------------------------------------

    def _originals(self) -> tuple[dict[str, float], dict[str, float]]:
        """The original's metrics, twice; the first may come from the folder. Warns if they differ."""
        path = None if self._folder is None else self._folder / f"original-{self._original_key()}.json"
        if path is not None and path.exists():
            first = _read_original(path)
            second = next(_in_parallel(evaluate_original, [(self.subject,)]))[1]
            _check_same_judge(path, first, second)
        else:
            scores = dict(_in_parallel(evaluate_original, [(self.subject,)] * 2))
            first, second = scores[0], scores[1]
            if path is not None:
                _write(path, {"metrics": first, "spread": any(first[n] != second.get(n) for n in first)})
        losses_of(first, second)  # the same names
        _warn_of_spread(first, second)
        return first, second

    def _original_key(self) -> str:
        return trial_key(self.network_id, None, Assignment(Choice("original")), self.evaluate_name)


def name_of(evaluate: Any) -> str:
    """Module and name of a function; of an object, what it calls itself in `name`, or its class."""
    own = getattr(evaluate, "name", None)
    if isinstance(own, str):
        return own
    named = evaluate if hasattr(evaluate, "__qualname__") else type(evaluate)
    return f"{named.__module__}:{named.__qualname__}"


def budgets(max_loss: Any, original: Mapping[str, float]) -> dict[str, float]:
    """The largest loss by metric; one number counts for every metric. Raises UsageError."""
    given = dict(max_loss) if isinstance(max_loss, Mapping) else dict.fromkeys(original, max_loss)
    unknown = sorted(set(given) - set(original))
    if unknown or not given:
        what = f"no metric {unknown[0]!r}" if unknown else "nothing to be limited"
        raise UsageError(f"max_loss: evaluate returns {what}; it returns {', '.join(sorted(original))}")
    return {name: _budget(name, value) for name, value in given.items()}


def check_budgets(max_loss: Any) -> None:
    """What can be refused before anything is evaluated. Raises UsageError."""
    for name, value in max_loss.items() if isinstance(max_loss, Mapping) else [("every metric", max_loss)]:
        _budget(name, value)


def _budget(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UsageError(f"max_loss of {name} is a number from 0 on, in evaluate's units, not {value!r}")
    return float(value)


def _prepared(folder: Path_) -> Path:
    with naming_errors("create", folder):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UsageError(f"{folder}: is a file; trials need a folder") from None
    return Path(folder)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    with atomic_file(path, force=True) as stream:
        stream.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def _read_original(path: Path) -> dict[str, float]:
    try:
        document = fields(read_document(path), "original", {"metrics": dict, "spread": bool})
        return numbers(document["metrics"], "metrics")
    except CorruptError as error:
        raise CorruptError(f"{path}: {error}; delete the folder's files to begin anew") from None


def _check_same_judge(path: Path, first: Mapping[str, float], second: Mapping[str, float]) -> None:
    """Trials filed by another evaluate, or on other data, are no evidence."""
    if read_document(path)["spread"]:
        return
    if first != second:
        raise UsageError(
            f"{path.parent}: its trials were judged by another evaluate: the original scored {dict(first)} then, "
            f"{dict(second)} now; give another folder"
        )


def _warn_of_spread(first: Mapping[str, float], second: Mapping[str, float]) -> None:
    for name, value in first.items():
        if value != second[name]:
            spread = abs(value - second[name])
            warnings.warn(
                f"evaluate is not deterministic: {name!r} of the original network was {value:g}, then {second[name]:g} "
                f"(apart by {spread:.3g}); losses below that mean nothing: fix its seeds and batches",
                stacklevel=5,
            )


def _warn_of_nan(assignment: Assignment, metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        if math.isnan(value) or value == math.inf:
            warnings.warn(
                f"evaluate returned {value} as {name!r} for the trial of {assignment}; it counts as over the budget",
                stacklevel=5,
            )
