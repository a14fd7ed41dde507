"""What is compressed within a budget: a network here; datasets and others derive from `Subject` as well."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.api import archive_of, check_rename, decompress
from nearzip.archive import Archive
from nearzip.budget.evaluators import Evaluation, Evaluator, check_original, evaluation_of, evaluator_of
from nearzip.caching import cached_property
from nearzip.coding import Codings, codings_of_plan
from nearzip.digests import checkpoint_id
from nearzip.errors import Error, UsageError
from nearzip.matching import match_tensors, matched
from nearzip.tensors import Array, Checkpoint

__all__ = ["Network", "Outcome", "Subject"]


@dataclass(frozen=True)
class Outcome:
    """The result of one trial.

    Parameters
    ----------
    n_bytes : int
        Of the whole archive.
    restored_id : str
        Content id of what a reader gets.
    evaluation : Evaluation
        Of what a reader gets.
    seconds : float
    """

    n_bytes: int
    restored_id: str
    evaluation: Evaluation
    seconds: float


class Subject(ABC):
    """What a search makes smaller: it measures candidates, and itself as it is.

    A subject is sent to worker processes with every trial, so it must be picklable where trials run in processes.
    Subclasses say how a candidate is stored and restored (`stored`); evaluating is the same for all.

    Attributes
    ----------
    evaluator : Evaluator
    seed : int
        Python's, NumPy's and torch's global generators start from it at every evaluation.
    """

    evaluator: Evaluator
    seed: int

    @property
    @abstractmethod
    def id(self) -> str:
        """Content id of the original."""

    @property
    def base_id(self) -> str | None:
        """Content id of the base that candidates are stored against."""
        return None

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes of the original, uncompressed."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The parts that have settings of their own: a network's tensors."""

    @property
    def rounding(self) -> str:
        """What else decides, besides the settings, what is restored; "" if nothing does. Part of a trial's key."""
        return ""

    @abstractmethod
    def original(self) -> dict[str, Array]:
        """What the evaluator gets as the original. Arrays of its own: an evaluator may write to them."""

    @abstractmethod
    def stored(self, candidate: Codings, threads: int | None) -> tuple[int, str, dict[str, Array]]:
        """Store a candidate: bytes of the archive, content id, and what a reader restores from those bytes."""

    def measure(self, candidate: Codings, threads: int | None = None, statistics: bool = False) -> Outcome:
        """One trial: store, restore from the stored bytes, evaluate.

        `statistics`: keep the samples that the metrics are computed from.

        Raises
        ------
        UsageError, MissingExtraError, ..
            What `compress` raises for the setting.
        Error
            The evaluator raised; the message says what and for which setting.
        """
        started = time.perf_counter()
        n_bytes, restored_id, restored = self.stored(candidate, threads)
        found = self._evaluated(restored, f"the trial of {candidate}", statistics)
        return Outcome(n_bytes, restored_id, found, time.perf_counter() - started)

    def evaluate_original(self, statistics: bool = False) -> Evaluation:
        """The original's metrics, all finite. Raises Error if there is none to compare with."""
        what = "the original network"
        return check_original(self._evaluated(self.original(), what, statistics), what)

    def evaluator_identity(self) -> str:
        """The evaluator's `identity`; "" without one. Raises Error if reading it does.

        Read under the seed: data that are drawn at random are then drawn as for an evaluation.
        """
        try:
            with _seeded(self.seed):
                return self.evaluator.identity
        except Exception as error:
            raise Error(f"the identity of evaluate raised {type(error).__name__}: {error}") from error

    def _evaluated(self, tensors: dict[str, Array], what: str, statistics: bool) -> Evaluation:
        with _seeded(self.seed):
            found = evaluation_of(lambda: self.evaluator.evaluation(tensors), what)
        return found if statistics else found.without_statistics()


@dataclass(frozen=True)
class Network(Subject):
    """Named tensors, stored as `compress` stores them."""

    tensors: Mapping[str, Array]
    base: Mapping[str, Array] | None
    evaluator: Evaluator
    seed: int = 0
    #: What tensors of the base are called now, as for `compress`.
    rename: Mapping[str, str] | None = None

    @staticmethod
    def of(
        tensors: Mapping[str, Any],
        base: Mapping[str, Any] | None,
        evaluate: Any,
        seed: int = 0,
        rename: Mapping[str, str] | None = None,
    ) -> Network:
        """Raises UsageError for what is no network or no evaluator."""
        check_rename(rename, base)
        return Network(*network_parts(tensors, base), evaluator_of(evaluate), seed, rename or None)

    @cached_property
    def seen(self) -> Mapping[str, Array] | None:
        """The base under the network's names and in its dtypes. Tensors with more or fewer rows are as they were."""
        if self.base is None:
            return None
        source, base = Checkpoint.of(self.tensors), Checkpoint.of(self.base)
        matches = match_tensors(source, base, self.rename)
        same = {name: origin for name, origin in matches.items() if origin.shape == source.specs[name].shape}
        return dict(matched(base, source.specs, same).arrays()) if same else self.base

    @property
    def rounding(self) -> str:
        return f"rename={sorted(self.rename.items())}" if self.rename else ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def id(self) -> str:
        return checkpoint_id(Checkpoint.of(self.tensors))

    @property
    def base_id(self) -> str | None:
        return None if self.base is None else checkpoint_id(Checkpoint.of(self.base))

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())

    def original(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self.tensors.items()}

    def stored(self, candidate: Codings, threads: int | None) -> tuple[int, str, dict[str, Array]]:
        archive = self._archived(candidate, threads)
        return archive.nbytes, archive.id, decompress(archive.to_bytes(), self.base, threads=threads)

    def _archived(self, candidate: Codings, threads: int | None) -> Archive:
        source = Checkpoint.of(self.tensors)
        base = None if self.base is None else Checkpoint.of(self.base)
        return archive_of(source, base, codings_of_plan(candidate, source.specs), threads, rename=self.rename)


def network_parts(
    tensors: Mapping[str, Any], base: Mapping[str, Any] | None
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """Tensors and base as arrays. Raises UsageError for what is no network."""
    own = dict(Checkpoint.of(tensors).arrays())
    if not own:
        raise UsageError("there is no tensor to tune")
    return own, None if base is None else dict(Checkpoint.of(base).arrays())


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from `seed`; afterwards their states are restored."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if torch:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        if torch:
            torch.set_rng_state(states[2])
