"""One trial: compress with a setting, restore from the stored bytes, ask `evaluate`. Losses against the original."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.api import archive_of, decompress
from nearzip.archive import Archive
from nearzip.budget.assignment import Assignment
from nearzip.digests import checkpoint_id
from nearzip.errors import Error, UsageError
from nearzip.recipes import Settings
from nearzip.tensors import Array, Checkpoint

__all__ = [
    "ONE_METRIC",
    "Outcome",
    "Subject",
    "evaluate_original",
    "identity_of",
    "losses_of",
    "measure",
    "usage_of",
]

#: Takes a network's arrays by name; a number or numbers by metric, higher is better.
Evaluate = Callable[[dict[str, Array]], Any]
#: What the metric of a function that returns one number is called, unless the function has a `metric`.
ONE_METRIC = "score"
#: How many units in the last place of the larger figure a loss may be above its budget.
_ROUNDINGS = 4


@dataclass(frozen=True)
class Subject:
    """What is compressed, and who judges it.

    Parameters
    ----------
    tensors, base : dict of str to array
    evaluate : callable
    seed : int
        Where the global generators start at every evaluation.
    rounding : str
        What decides, besides the settings, what tensors are rounded to; "" if nothing does.
    """

    tensors: Mapping[str, Array]
    base: Mapping[str, Array] | None
    evaluate: Evaluate
    seed: int = 0
    rounding: str = ""

    @staticmethod
    def of(
        tensors: Mapping[str, Any],
        base: Mapping[str, Any] | None,
        evaluate: Evaluate,
        seed: int = 0,
        rounding: str = "",
    ) -> Subject:
        """Raises UsageError for what is no network or no function."""
        if not callable(evaluate):
            raise UsageError(f"evaluate is a function of a dict of arrays, not {type(evaluate).__name__}")
        own = dict(Checkpoint.of(tensors).arrays())
        if not own:
            raise UsageError("there is no tensor to tune")
        return Subject(own, None if base is None else dict(Checkpoint.of(base).arrays()), evaluate, seed, rounding)

    @property
    def network_id(self) -> str:
        return checkpoint_id(Checkpoint.of(self.tensors))

    @property
    def base_id(self) -> str | None:
        return None if self.base is None else checkpoint_id(Checkpoint.of(self.base))

    @property
    def n_bytes(self) -> int:
        return sum(array.nbytes for array in self.tensors.values())


@dataclass(frozen=True)
class Outcome:
    """What one trial gave."""

    n_bytes: int
    restored_id: str
    metrics: Mapping[str, float]
    seconds: float


def measure(subject: Subject, assignment: Assignment, threads: int | None = None) -> Outcome:
    """Store, restore from the bytes, evaluate.

    Raises
    ------
    UsageError, MissingExtraError, ..
        What `compress` raises for the setting.
    Error
        `evaluate` raised; the message says what and for which setting.
    """
    started = time.perf_counter()
    archive = _archived(subject, assignment, threads)
    restored = decompress(archive.to_bytes(), subject.base, threads=threads)
    metrics = _evaluated(subject, restored, f"the trial of {assignment}")
    return Outcome(archive.nbytes, archive.id, metrics, time.perf_counter() - started)


def _archived(subject: Subject, assignment: Assignment, threads: int | None) -> Archive:
    source = Checkpoint.of(subject.tensors)
    base = None if subject.base is None else Checkpoint.of(subject.base)
    settings = Settings.of_plan(assignment.assignments(list(source.specs)), source.specs)
    targets = None if assignment.targets is None else Checkpoint.of({**subject.tensors, **assignment.targets})
    return archive_of(source, base, settings, threads, targets=targets)


def evaluate_original(subject: Subject) -> dict[str, float]:
    """The original's metrics, all finite. Raises Error if there is none to compare with."""
    # Copies: whoever writes to what it judges must not change what is compressed.
    metrics = _evaluated(subject, {n: a.copy() for n, a in subject.tensors.items()}, "the original network")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Error(
                f"evaluate returned {value} as {name!r} of the original network; there is nothing to compare with"
            )
    return metrics


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from `seed`, and afterwards stand where they stood."""
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


def _evaluated(subject: Subject, tensors: dict[str, Array], what: str) -> dict[str, float]:
    try:
        with _seeded(subject.seed):
            value = subject.evaluate(tensors)
    except Exception as error:
        raise Error(f"evaluate raised {type(error).__name__} on {what}: {error}") from error
    values = dict(value) if isinstance(value, Mapping) else {_metric_of(subject.evaluate): value}
    if not values:
        raise UsageError(f"evaluate returned no metric on {what}")
    return {str(name): _as_float(number, name, what) for name, number in values.items()}


def identity_of(subject: Subject) -> str:
    """What tells the judge from others of the same name, its data above all: its attribute `identity`; "" without one.

    Read under the seed, as data that are drawn at random are drawn for an evaluation. Raises Error if reading it does.
    """
    try:
        with _seeded(subject.seed):
            own = getattr(subject.evaluate, "identity", None)
    except Exception as error:
        raise Error(f"the identity of evaluate raised {type(error).__name__}: {error}") from error
    return own if isinstance(own, str) else ""


def _metric_of(evaluate: Evaluate) -> str:
    """What the number of a function that returns one is called: its attribute `metric`, or "score"."""
    name = getattr(evaluate, "metric", None)
    return name if isinstance(name, str) else ONE_METRIC


def _as_float(value: Any, name: object, what: str) -> float:
    """A number; NaN and +inf say that something broke."""
    if isinstance(value, (str, bytes)) or value is None:
        raise UsageError(f"evaluate returns a number or a dict of numbers; {name!r} on {what} is {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"evaluate returns a number or a dict of numbers; {name!r} on {what} is a {type(value).__name__}"
        ) from None


def losses_of(original: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """By metric, original minus restored. What is no finite number lost everything. Raises UsageError."""
    if set(metrics) != set(original):
        raise UsageError(
            f"evaluate returned {', '.join(sorted(original))} for the original network, "
            f"{', '.join(sorted(metrics))} for another"
        )
    return {name: original[name] - value if math.isfinite(value) else math.inf for name, value in metrics.items()}


def usage_of(losses: Mapping[str, float], max_loss: Mapping[str, float], original: Mapping[str, float]) -> float:
    """The largest share of a budget that was used: at most 1 is within, negative is a gain in every metric.

    A loss that is above its budget by no more than metrics are rounded by is within: 0.978 - 0.976 is more than 0.002
    in floating point. Without any budget nothing is used, unless a metric was no number.

    Examples
    --------
    >>> usage_of({"top1": 0.001, "kl": 0.004}, {"top1": 0.002, "kl": 0.01}, {"top1": 0.9, "kl": 0.0})
    0.5
    >>> usage_of({"top1": 0.978 - 0.976}, {"top1": 0.002}, {"top1": 0.978})
    1.0
    """
    if not max_loss:
        return 0.0 if all(map(math.isfinite, losses.values())) else math.inf
    return max(_share(losses[name], allowed, original[name]) for name, allowed in max_loss.items())


def _share(loss: float, allowed: float, original: float) -> float:
    if not allowed:
        return 0.0 if loss <= 0 else math.inf
    # Rounding of the two metrics, of their difference, and of the budget as the caller computed it.
    if not loss <= allowed + _ROUNDINGS * sys.float_info.epsilon * max(abs(original), allowed):
        # The quotient may round down to 1.
        return max(loss / allowed, math.nextafter(1, 2))
    return min(loss / allowed, 1.0)
