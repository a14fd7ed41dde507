"""Runs trials through joblib, as the caller's `parallel_config` says, and files each one as soon as it is measured."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearzip.budget.documents import read_document
from nearzip.budget.measure import Outcome, Subject, evaluate_original, identity_of, losses_of, measure, usage_of
from nearzip.budget.plan import Assignment, Choice, Trial, trial_key
from nearzip.caching import cached_property
from nearzip.errors import CorruptError, Error, UsageError
from nearzip.storage import Path_, atomic_file, naming_errors
from nearzip.strictjson import as_dict, fields, numbers

__all__ = ["Runner", "Status", "Watch", "check_budgets", "n_workers"]


@dataclass(frozen=True)
class Status:
    """Where a search stands: trials done, the most that it will make, and the best of those within the budget."""

    done: int
    most: int
    latest: Trial | None
    best: Trial | None


Watch = Callable[[Status], None]

#: How far a metric measured again may be off, as other threads and processors make it: as a share of its budget, and
#: where it has none, of itself.
_APART_LIMITED, _APART = 0.05, 1e-3
#: Of metrics around zero.
_TINY = 1e-9


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
    max_loss : float, mapping or None
        As the caller gave it; `max_loss` afterwards is by metric. None: nothing is limited.
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
        #: Of the trials within the budget that come from the folder, what to measure them again with.
        self._recalled: dict[str, Assignment] = {}
        self.most = 0
        self.original, self.original_again = self._originals()
        self.max_loss = {} if max_loss is None else budgets(max_loss, self.original)

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

    def settled(self, find: Callable[[], Trial | None]) -> Trial | None:
        """What `find` chooses. A trial that comes from the folder is measured once more, and `find` asked again if it
        is not within the budget any more.

        Raises UsageError for a trial that is not what was filed.
        """
        while True:
            chosen = find()
            key = next((key for key, trial in self._trials.items() if trial is chosen), None)
            if key is None or key not in self._recalled:
                return chosen
            again = self._again(key)
            if again.fits:
                return again

    def _key(self, assignment: Assignment) -> str:
        judge = f"{self._judge} {self.subject.rounding}".rstrip()
        return trial_key(self.network_id, self.base_id, assignment, judge)

    @cached_property
    def _judge(self) -> str:
        """Name and identity. Without a folder nobody else's trials are near: data are not read for their identity."""
        return f"{self.evaluate_name} {identity_of(self.subject) if self._folder else ''}".rstrip()

    # ---- one trial ---------------------------------------------------------------------------------------------

    def _file(self, key: str, assignment: Assignment, outcome: Outcome, stage: str) -> None:
        odd = {name: str(v) for name, v in outcome.metrics.items() if math.isnan(v) or v == math.inf}
        _warn_of_no_numbers(assignment, odd, self.max_loss)
        trial = self._trial(assignment, outcome, stage)
        if self._folder is not None:
            _write(self._folder / f"{key}.json", {"key": key, "no_numbers": odd, **trial.to_json()})
        self._keep(key, trial)

    def _trial(self, assignment: Assignment, outcome: Outcome, stage: str) -> Trial:
        metrics = {name: v if math.isfinite(v) else -math.inf for name, v in outcome.metrics.items()}
        losses = losses_of(self.original, metrics)
        usage = usage_of(losses, self.max_loss, self.original)
        settings = assignment.settings()
        return Trial(settings, outcome.n_bytes, outcome.restored_id, metrics, losses, usage, stage, outcome.seconds)

    def _recall(self, key: str, assignment: Assignment) -> bool:
        """Take a trial from the folder, if it is there."""
        path = None if self._folder is None else self._folder / f"{key}.json"
        if path is None or not path.exists():
            return False
        document = read_document(path)
        try:
            if type(document) is not dict or document.pop("key", None) != key:
                raise CorruptError("is another trial than its name says")
            odd = as_dict(document.pop("no_numbers", {}), "no_numbers")
            trial = Trial.from_json(document, "trial")
            if set(trial.metrics) != set(self.original):
                raise CorruptError("has other metrics than the original network")
            if not set(odd) <= set(trial.metrics) or not set(map(repr, odd.values())) <= {"'nan'", "'inf'"}:
                raise CorruptError("says of something that it is no number")
        except CorruptError as error:
            raise CorruptError(f"{path}: {error}; delete it to have it measured again") from None
        # Budgets may have changed since.
        losses = losses_of(self.original, trial.metrics)
        usage = usage_of(losses, self.max_loss, self.original)
        trial = replace(trial, assignment=assignment.settings(), losses=losses, usage=usage)
        _warn_of_no_numbers(assignment, odd, self.max_loss)
        if trial.fits:
            self._recalled[key] = assignment
        self._keep(key, trial)
        return True

    def _again(self, key: str) -> Trial:
        """A trial from the folder, measured here. Raises UsageError if it is another one."""
        filed, assignment = self._trials[key], self._recalled.pop(key)
        outcome = next(_in_parallel(measure, [(self.subject, assignment, None)]))[1]
        again = self._trial(assignment, outcome, filed.stage)
        # Of a judge that never says the same twice, what was filed is worth as much.
        steady = self.original == self.original_again
        same = (again.n_bytes, again.restored_id) == (filed.n_bytes, filed.restored_id)
        if not same or (steady and not self._alike(filed.metrics, again.metrics)):
            raise UsageError(
                f"{self._folder}: the trial of {assignment} was filed with {_figures(filed)}; measured again, it has "
                f"{_figures(again)}: its trials were judged by another evaluate or filed by another release; give "
                "another folder"
            )
        if steady:
            self._trials[key] = again
        return self._trials[key]

    def _alike(self, filed: Mapping[str, float], again: Mapping[str, float]) -> bool:
        for name, value in again.items():
            allowed = self.max_loss.get(name)
            share = _APART if allowed is None else _TINY
            apart = max(_TINY, _APART_LIMITED * (allowed or 0.0))
            if not math.isclose(filed[name], value, rel_tol=share, abs_tol=apart):
                return False
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
        return trial_key(self.network_id, None, Assignment(Choice("original")), self._judge)


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


def _figures(trial: Trial) -> str:
    metrics = ", ".join(f"{name} {value:g}" for name, value in trial.metrics.items())
    return f"{trial.n_bytes} bytes and {metrics}"


def _warn_of_no_numbers(assignment: Assignment, odd: Mapping[str, str], limited: Collection[str]) -> None:
    """`odd`: "nan" or "inf" by metric."""
    for name, value in odd.items():
        meaning = "it counts as over the budget" if name in limited else "max_loss does not limit it"
        warnings.warn(f"evaluate returned {value} as {name!r} for the trial of {assignment}; {meaning}", stacklevel=5)
