"""Runs the trials of a search, in parallel where joblib is configured so, and files each as soon as it is measured."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nearzip.budget.budgets import Budgets, losses_of, usage_of
from nearzip.budget.documents import read_document
from nearzip.budget.evaluators import Evaluation
from nearzip.budget.intervals import Interval, check_confidence, interval
from nearzip.budget.jobs import in_parallel, n_workers
from nearzip.budget.subject import Outcome, Subject
from nearzip.budget.trial import Trial, trial_key
from nearzip.caching import cached_property
from nearzip.coding import Coding, Codings
from nearzip.errors import CorruptError, NotShownError, UsageError
from nearzip.fileio import Path_, atomic_file, naming_errors
from nearzip.strictjson import as_dict, fields, numbers

__all__ = ["Runner", "Status", "Watch"]


@dataclass(frozen=True)
class Status:
    """Progress of a search: trials done, their maximum number, the latest, and the best within the budget."""

    done: int
    most: int
    latest: Trial | None
    best: Trial | None


Watch = Callable[[Status], None]

#: Tolerance for a metric that is measured again, on other threads or processors: as a share of its budget, or of itself
#: where it has none.
_APART_LIMITED, _APART = 0.05, 1e-3
#: Tolerance for metrics around zero.
_TINY = 1e-9


class Runner:
    """Measures candidates; knows those measured before, in this process or in `folder`.

    Parameters
    ----------
    subject : Subject
    max_loss : MaxLoss or None
        As the caller gave it. None: nothing is limited.
    folder : path or None
        Where trials are filed, one JSON each, and found again.
    watch : callable or None
        Called after every trial.
    confidence : float or None
        With it a trial is within a budget if the upper confidence bound of its loss is. None: the evaluator's own.

    Attributes
    ----------
    budgets : Budgets
    max_loss : dict of str to float
        The budgets, absolute, by metric.
    original, original_again : dict of str to float
        The original's metrics, evaluated twice.

    Raises
    ------
    NotShownError
        The evaluator has too few samples: not even an unchanged output of every one of them shows that a budget is
        kept.
    """

    def __init__(
        self,
        subject: Subject,
        max_loss: Any,
        folder: Path_ | None = None,
        watch: Watch | None = None,
        confidence: float | None = None,
    ):
        self.subject = subject
        self.id, self.base_id = subject.id, subject.base_id
        self.evaluate_name = subject.evaluator.name
        found = subject.evaluator.confidence if confidence is None else confidence
        self.confidence = None if found is None else check_confidence(found)
        self._folder = None if folder is None else _prepared(folder)
        self._watch = watch
        self._trials: dict[str, Trial] = {}
        #: Candidates of the trials within the budget that come from the folder, to measure them again.
        self._recalled: dict[str, Codings] = {}
        self.most = 0
        self._samples = Evaluation({})
        self.original, self.original_again = self._originals()
        self.budgets = Budgets.of(max_loss, self.original)
        self.max_loss = self.budgets.allowed
        if self.confidence is not None:
            self._check_samples()

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self._trials.values())

    @property
    def best(self) -> Trial | None:
        """The smallest trial within the budget."""
        return min((t for t in self.trials if t.fits), key=lambda t: (t.n_bytes, t.usage), default=None)

    def run(self, candidates: Sequence[Codings], stage: str) -> list[Trial]:
        """Trials of all candidates, in their order; only new ones are measured."""
        keys = [self._key(candidate) for candidate in candidates]
        new: dict[str, Codings] = {}
        for key, candidate in zip(keys, candidates, strict=True):
            if key not in self._trials and not self._recall(key, candidate):
                new.setdefault(key, candidate)
        # Parallel trials share the processors; the bytes do not depend on the threads.
        threads = 1 if min(n_workers(), len(new)) > 1 else None
        jobs = [(candidate, threads, self._with_samples) for candidate in new.values()]
        waiting = list(new.items())
        for i, outcome in in_parallel(self.subject.measure, jobs) if jobs else ():
            self._file(*waiting[i], outcome, stage)
        # In the order asked for, not the order of completion: plans do not depend on the timing of workers.
        for key in new:
            self._trials[key] = self._trials.pop(key)
        return [self._trials[key] for key in keys]

    def settled(self, find: Callable[[], Trial | None]) -> Trial | None:
        """The trial that `find` chooses. One that comes from the folder is measured once more, and `find` is called
        again if it is no longer within the budget.

        Raises UsageError for a trial that differs from what was filed.
        """
        while True:
            chosen = find()
            key = next((key for key, trial in self._trials.items() if trial is chosen), None)
            if key is None or key not in self._recalled:
                return chosen
            again = self._again(key)
            if again.fits:
                return again

    def _key(self, candidate: Codings) -> str:
        evaluator = f"{self._evaluator} {self.subject.rounding}".rstrip()
        return trial_key(self.id, self.base_id, candidate, evaluator)

    @cached_property
    def _evaluator(self) -> str:
        """Name and identity. Without a folder there are no other trials: data are not read for their identity."""
        return f"{self.evaluate_name} {self.subject.evaluator_identity() if self._folder else ''}".rstrip()

    @property
    def _with_samples(self) -> bool:
        return self.confidence is not None

    # ---- one trial ---------------------------------------------------------------------------------------------

    def _file(self, key: str, candidate: Codings, outcome: Outcome, stage: str) -> None:
        metrics = outcome.evaluation.metrics
        odd = {name: str(v) for name, v in metrics.items() if math.isnan(v) or v == math.inf}
        _warn_of_no_numbers(candidate, odd, self.max_loss)
        trial = self._trial(candidate, outcome, stage)
        if self._folder is not None:
            _write(self._folder / f"{key}.json", {"key": key, "no_numbers": odd, **trial.to_json()})
        self._keep(key, trial)

    def _trial(self, candidate: Codings, outcome: Outcome, stage: str) -> Trial:
        metrics = {name: v if math.isfinite(v) else -math.inf for name, v in outcome.evaluation.metrics.items()}
        losses = losses_of(self.original, metrics)
        intervals = self._intervals(outcome)
        usage = self._usage(losses, intervals)
        return Trial(
            candidate.without_substitutes(), outcome.n_bytes, outcome.restored_id, metrics, losses, usage, stage,
            outcome.seconds, intervals,
        )  # fmt: skip

    def _usage(self, losses: Mapping[str, float], intervals: Mapping[str, Interval]) -> float:
        bounds = {**losses, **{name: found.upper for name, found in intervals.items()}}
        return usage_of(bounds, self.max_loss, self.original)

    @cached_property
    def _confidences(self) -> dict[str, float]:
        """The confidence of each metric's bounds, limited or not."""
        if self.confidence is None:
            return {}
        return {**dict.fromkeys(self._samples.statistics, self.confidence), **self.budgets.confidences(self.confidence)}

    def _intervals(self, outcome: Outcome) -> dict[str, Interval]:
        found = {}
        for name, confidence in self._confidences.items():
            restored = outcome.evaluation.statistics.get(name)
            if restored is None:
                raise UsageError(f"evaluate returned no samples for {name!r} of a trial; confidence needs them")
            found[name] = interval(self._samples.statistics[name], restored, confidence)
            if outcome.restored_id == self.id:
                found[name] = Interval.exact(found[name].n, confidence)
        return found

    def _check_samples(self) -> None:
        """Raises UsageError for a limited metric without samples, NotShownError for one with too few."""
        for name, confidence in self.budgets.confidences(self.confidence or 0.5).items():
            own = self._samples.statistics.get(name)
            if own is None:
                raise UsageError(
                    f"confidence needs per-sample values of {name!r}; take an evaluator that has them, such as "
                    "nearzip.torch.evaluator"
                )
            at_best = interval(own, own, confidence)
            if at_best.upper > self.max_loss[name]:
                needed = at_best.samples_needed(self.max_loss[name])
                enough = "no number of samples would do" if needed is None else f"{needed} samples would do"
                raise NotShownError(
                    f"{at_best.n} samples of {name!r} cannot show a loss of at most {self.max_loss[name]:g} with "
                    f"{confidence:g} confidence, even if no output changes; {enough}"
                )

    def _recall(self, key: str, candidate: Codings) -> bool:
        """Read a trial from the folder; whether it was there."""
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
        if any(self._stale(trial, name) for name in self._confidences):
            return False
        # Budgets may have changed since.
        losses = losses_of(self.original, trial.metrics)
        intervals = {name: trial.intervals[name] for name in self._confidences}
        usage = self._usage(losses, intervals)
        trial = replace(trial, codings=candidate.without_substitutes(), losses=losses, usage=usage, intervals=intervals)
        _warn_of_no_numbers(candidate, odd, self.max_loss)
        if trial.fits:
            self._recalled[key] = candidate
        self._keep(key, trial)
        return True

    def _stale(self, trial: Trial, metric: str) -> bool:
        """Whether a filed trial lacks a metric's bounds at the confidence asked for: it is measured again."""
        found = trial.intervals.get(metric)
        return found is None or not math.isclose(found.confidence, self._confidences[metric], rel_tol=1e-12)

    def _again(self, key: str) -> Trial:
        """Measure a trial from the folder again. Raises UsageError if it differs."""
        filed, candidate = self._trials[key], self._recalled.pop(key)
        outcome = next(in_parallel(self.subject.measure, [(candidate, None, self._with_samples)]))[1]
        again = self._trial(candidate, outcome, filed.stage)
        # From an evaluator that is not deterministic, the filed metrics are worth as much.
        steady = self.original == self.original_again
        same = (again.n_bytes, again.restored_id) == (filed.n_bytes, filed.restored_id)
        if not same or (steady and not self._alike(filed.metrics, again.metrics)):
            raise UsageError(
                f"{self._folder}: the trial of {candidate} was filed with {_figures(filed)}; measured again, it has "
                f"{_figures(again)}: its trials were scored by another evaluate or filed by another release; give "
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
        evaluate = self.subject.evaluate_original
        path = None if self._folder is None else self._folder / f"original-{self._original_key()}.json"
        if path is not None and path.exists():
            first = _read_original(path)
            self._samples = next(in_parallel(evaluate, [(self._with_samples,)]))[1]
            second = dict(self._samples.metrics)
            _check_same_evaluator(path, first, second)
        else:
            both = dict(in_parallel(evaluate, [(self._with_samples,)] * 2))
            self._samples = both[1]
            first, second = dict(both[0].metrics), dict(both[1].metrics)
            if path is not None:
                _write(path, {"metrics": first, "spread": any(first[n] != second.get(n) for n in first)})
        losses_of(first, second)  # the same names
        _warn_of_spread(first, second)
        return first, second

    def _original_key(self) -> str:
        # No method has that name.
        return trial_key(self.id, None, Codings(Coding("original")), self._evaluator)


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
        raise CorruptError(f"{path}: {error}; delete the folder's files to start again") from None


def _check_same_evaluator(path: Path, first: Mapping[str, float], second: Mapping[str, float]) -> None:
    """Trials filed by another evaluate, or on other data, are no evidence."""
    if read_document(path)["spread"]:
        return
    if first != second:
        raise UsageError(
            f"{path.parent}: its trials were scored by another evaluate: the original scored {dict(first)} then, "
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


def _warn_of_no_numbers(candidate: Codings, odd: Mapping[str, str], limited: Collection[str]) -> None:
    """`odd`: "nan" or "inf" by metric."""
    for name, value in odd.items():
        meaning = "it counts as over the budget" if name in limited else "max_loss does not limit it"
        warnings.warn(f"evaluate returned {value} as {name!r} for the trial of {candidate}; {meaning}", stacklevel=5)
