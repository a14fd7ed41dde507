"""Runs the trials of a search, in parallel where joblib is configured so, and files each with its networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearzip.api import compress_quietly, decompress
from nearzip.budget.documents import read_document
from nearzip.budget.evaluators import name_of
from nearzip.budget.jobs import in_parallel, n_workers
from nearzip.caching import cached_property
from nearzip.condense.objectives import tensors_of
from nearzip.condense.schemes import Prepared
from nearzip.condense.trial import Outcome, Trial, Work
from nearzip.digests import checkpoint_id, digest
from nearzip.errors import CorruptError, UsageError
from nearzip.fileio import Path_, atomic_file, naming_errors
from nearzip.tensors import Checkpoint
from nearzip.version import __version__

__all__ = ["Runner", "Status", "Watch", "check_folder"]


@dataclass(frozen=True)
class Status:
    """Progress of a search: trainings done, their maximum number, the latest, and the best within the budget."""

    done: int
    most: int
    latest: Trial | None
    best: Trial | None


Watch = Callable[[Status], None]


class Runner:
    """Measures shares; knows those measured before, in this process or in `folder`.

    Attributes
    ----------
    work : Work
    prepared : Prepared
        The scheme for the original network.
    most : int
        Trainings that the search may take, those from the folder counted.
    """

    def __init__(
        self, work: Work, prepared: Prepared, most: int, folder: Path_ | None = None, watch: Watch | None = None,
        seed: int = 0,
    ):  # fmt: skip
        self.work, self.prepared, self.most, self.seed = work, prepared, most, seed
        self._folder = check_folder(folder)
        self._watch = watch
        self._outcomes: dict[str, Outcome] = {}
        self._stages: list[str] = []

    @property
    def trials(self) -> list[Trial]:
        return [outcome.trial for outcome in self._outcomes.values()]

    @property
    def stages(self) -> list[str]:
        """What each trial was for, in their order."""
        return list(self._stages)

    @property
    def left(self) -> int:
        """Trainings that may still be run."""
        return self.most - len(self._outcomes)

    @property
    def feasible(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.fits]

    @property
    def best(self) -> Trial | None:
        """The trial within the budget with the best objective; of equal ones that which loses least."""
        objective, best = self.work.objective, None
        for trial in sorted(self.feasible, key=lambda t: t.usage):
            assert trial.objective is not None
            if best is None or best.objective is None or objective.better(trial.objective, best.objective):
                best = trial
        return best

    def workers(self) -> int:
        """How many trials run at once."""
        return max(1, min(n_workers(), self.left))

    def run(self, keeps: Sequence[float], stage: str, again: int = 0) -> list[Trial]:
        """Trials of these shares. `again`: how often they were tried before; another seed then.

        Each begins with the network of the nearest feasible trial of a larger share, if there is one.
        """
        seed = self.seed + again
        jobs: dict[str, tuple[Any, ...]] = {}
        for keep in keeps[: max(self.left, 0)]:
            start = self._start(keep)
            key = self._key(keep, seed, None if start is None else start.trial)
            if key not in self._outcomes and not self._recall(key, stage):
                jobs[key] = keep, seed, None if start is None else (start.trial.keep, start.tensors)
        waiting = list(jobs)
        done = dict(in_parallel(self.work.measure, list(jobs.values()))) if jobs else {}
        for i, key in enumerate(waiting):
            self._file(key, done[i], stage)
        wanted = set(keeps)
        return [t for t in self.trials if t.keep in wanted and t.seed == seed]

    def outcome(self, trial: Trial) -> Outcome:
        """The networks of a trial."""
        return next(outcome for outcome in self._outcomes.values() if outcome.trial is trial)

    def _start(self, keep: float) -> Outcome | None:
        larger = [o for o in self._outcomes.values() if o.trial.fits and o.trial.keep > keep]
        return min(larger, key=lambda o: o.trial.keep, default=None)

    # ---- files -------------------------------------------------------------------------------------------------

    @cached_property
    def _identity(self) -> str:
        """Digest of everything but share and seed that determines a trial's result."""
        work = self.work
        assert work.evaluator is not None
        network = checkpoint_id(Checkpoint.of(tensors_of(work.module)))
        evaluator = work.evaluator.name, work.evaluator.identity if self._folder else ""
        train = name_of(work.train_epoch), getattr(work.train_epoch, "identity", "")
        described = (
            __version__, network, str(work.module), repr(work.scheme), repr(work.recover), evaluator, train,
            work.objective.name, sorted(work.max_loss.items()), work.evaluations,
        )  # fmt: skip
        return repr(described)

    def _key(self, keep: float, seed: int, start: Trial | None) -> str:
        begun = "" if start is None else f"{start.network_id} {start.keep!r}"
        return digest(self._identity.encode(), f"{keep!r} {seed} {begun}".encode()).hex()

    def _file(self, key: str, outcome: Outcome, stage: str) -> None:
        if self._folder is not None:
            networks = {"net.nz": compress_quietly(outcome.tensors).to_bytes(), "nz": outcome.archive}
            for ending, data in networks.items():
                if data is not None:
                    _write(self._folder / f"{key}.{ending}", data)
            # The document comes last: it says that the trial is complete.
            document = json.dumps({"key": key, "trial": outcome.trial.to_json()}, indent=1, allow_nan=False)
            _write(self._folder / f"{key}.json", document.encode() + b"\n")
        self._keep(key, outcome, stage)

    def _recall(self, key: str, stage: str) -> bool:
        """Read a trial from the folder; whether it was there."""
        path = None if self._folder is None else self._folder / f"{key}.json"
        if path is None or not path.exists():
            return False
        document = read_document(path)
        try:
            if type(document) is not dict or document.get("key") != key:
                raise CorruptError("is another trial than its name says")
            trial = Trial.from_json(document.get("trial"))
            tensors = decompress(path.with_name(f"{key}.net.nz"))
            archive = path.with_name(f"{key}.nz").read_bytes() if trial.fits else None
            if checkpoint_id(Checkpoint.of(tensors)) != trial.network_id:
                raise CorruptError("has another network than it says")
        except (CorruptError, OSError) as error:
            raise CorruptError(f"{path}: {error}; delete it to have it measured again") from None
        self._keep(key, Outcome(trial, tensors, archive), stage)
        return True

    def _keep(self, key: str, outcome: Outcome, stage: str) -> None:
        self._outcomes[key] = outcome
        self._stages.append(stage)
        if self._watch:
            self._watch(Status(len(self._outcomes), self.most, outcome.trial, self.best))


def check_folder(folder: Path_ | None) -> Path | None:
    """The folder for trials, made if need be. Raises UsageError for a file."""
    if folder is None:
        return None
    with naming_errors("create", folder):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise UsageError(f"{folder}: is a file; trials need a folder") from None
    return Path(folder)


def _write(path: Path, data: bytes) -> None:
    with atomic_file(path, force=True) as stream:
        stream.write(data)
