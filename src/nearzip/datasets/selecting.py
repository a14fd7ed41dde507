"""The smallest subset on which a network trained from scratch loses at most so much (C_D of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nearzip.datasets.rankings import RANKINGS, Statistics, chosen
from nearzip.errors import BudgetError, Error, UsageError
from nearzip.tensors import Array

__all__ = ["ALTERNATING", "Selection", "Tried", "select", "statistics_of", "subset_of"]

#: Shares of every class that are tried, the smallest first.
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)
_RANKINGS = ("random", "el2n", "forgetting", "coverage", "coverage-30", "herding")
#: Short trainings whose statistics rank the samples.
_RUNS = 3
#: A ranking that trains: the paper's reference [23].
ALTERNATING = "alternating"
_ROUNDS = 2


class Train(Protocol):
    """Trains a network from scratch."""

    def __call__(self, indices: Array, seed: int, watch: Callable[[Any], None] | None) -> Any:
        """Train on the samples `indices`, with the same number of steps for every size of subset.

        With `watch` the training may be short, and `watch(network)` is called after every epoch. Returns the network.
        """


@dataclass(frozen=True)
class Tried:
    """One ranking at one subset size: the metric for each seed, and its mean."""

    ranking: str
    share: float
    n_samples: int
    metric: float
    metrics: tuple[float, ...]


@dataclass(frozen=True)
class Selection:
    """The result of `select`.

    Attributes
    ----------
    indices : (n,) int64 array
        Of the samples to keep, in order.
    ranking : str
    metric, original : float
        Of networks trained on these samples, and on all of them; means over the seeds.
    tried : tuple of Tried
    """

    indices: Array
    ranking: str
    metric: float
    original: float
    tried: tuple[Tried, ...]

    def __len__(self) -> int:
        return len(self.indices)


def select(
    labels: Any,
    *,
    train: Train,
    predict: Callable[[Any], Array],
    evaluate: Callable[[Any], float],
    max_loss: float,
    features: Callable[[Any], Array] | None = None,
    rankings: Sequence[str] = _RANKINGS,
    shares: Sequence[float] = _SHARES,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[Tried], None] | None = None,
) -> Selection:
    """Find the smallest subset whose training loses at most `max_loss`.

    Samples are ranked by what short trainings on the training set say of them. At each size, from the smallest on,
    every ranking is tried by training from scratch, and `evaluate` decides. Neither the rankings nor the trainings see
    the samples that `evaluate` uses, as long as `train` and `predict` do not: those must be held out, and final figures
    need a third set.

    Parameters
    ----------
    labels : (n,) sequence of int
        Of the training samples.
    train : callable
        train(indices, seed, watch) -> network; see `Train`. Equal steps, not equal epochs: few samples starve
        otherwise.
    predict : callable
        predict(network) -> probabilities of all training samples, (n, classes).
    evaluate : callable
        evaluate(network) -> a number on held-out samples, higher is better.
    max_loss : float
        Absolute, against networks trained on all samples.
    features : callable
        features(network) -> (n, d), for "herding".
    rankings : sequence of str
        "random" (class-balanced), "el2n", "margin", "forgetting", "coverage", "coverage-30", "herding", "sufficient",
        "alternating".
    shares : sequence of float
        Sizes, as shares of every class.
    seeds : sequence of int
        Trainings of each trial; their mean counts.

    Raises
    ------
    BudgetError
        No size is enough; the message says the best one.
    UsageError
        Invalid argument; `evaluate` returned no finite number.
    Error
        A function of yours raised; the message says which.

    Notes
    -----
    "Most influential" samples (el2n, margin) fail at small sizes, where they are the hardest and the mislabelled ones;
    that is why a ranking must win against the others, random among them, at the size at hand. `sufficient` is the step
    for the samples of the alternation of the paper's reference [23] at the networks of the short trainings: the
    smallest losses. `alternating` goes on from there: train on these samples, keep those whose losses are smallest
    then, twice.
    """
    given = np.asarray(labels)
    known = (*RANKINGS, ALTERNATING)
    unknown = [name for name in rankings if name not in known]
    if unknown or not rankings:
        raise UsageError(f"rankings are some of {', '.join(known)}, not {unknown[:1] or 'none'}")
    if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given):
        raise UsageError("labels are whole numbers, one for each training sample")
    if not all(0 < share < 1 for share in shares) or not seeds:
        raise UsageError("shares lie between 0 and 1, and there is at least one seed")
    if not max_loss < math.inf:  # NaN as well
        raise UsageError(f"max_loss is a finite number, not {max_loss!r}")
    train, predict, evaluate = _named("train", train), _named("predict", predict), _score(_named("evaluate", evaluate))
    features = None if features is None else _named("features", features)
    everything = np.arange(len(given))
    original = float(np.mean([evaluate(train(everything, seed, None)) for seed in seeds]))
    statistics = statistics_of(given, everything, train, predict, features)
    tried: list[Tried] = []
    for share in sorted(shares):
        at_size = []
        for name in rankings:
            metrics, indices = [], everything
            for seed in seeds:
                indices = subset_of(name, statistics, share, seed, train, predict)
                metrics.append(evaluate(train(indices, seed, None)))
            found = Tried(name, share, len(indices), float(np.mean(metrics)), tuple(metrics))
            at_size.append((found, indices))
            tried.append(found)
            if progress:
                progress(found)
        best, indices = max(at_size, key=lambda pair: pair[0].metric)
        if original - best.metric <= max_loss:
            return Selection(indices, best.ranking, best.metric, original, tuple(tried))
    best = max(tried, key=lambda t: t.metric)
    raise BudgetError(
        f"no subset tried loses at most {max_loss:g}: the best, {best.share:.0%} by {best.ranking}, reaches "
        f"{best.metric:.4f} of {original:.4f}; give larger shares, or allow more"
    )


def subset_of(
    name: str, statistics: Statistics, share: float, seed: int, train: Train, predict: Callable[[Any], Array]
) -> Array:
    """Indices of the samples that a ranking keeps. Arguments as for `select`."""
    labels = statistics.labels
    ranking = RANKINGS["sufficient" if name == ALTERNATING else name]
    indices = chosen(ranking(statistics, share, np.random.default_rng(seed)), labels, share)
    if name == ALTERNATING:
        for number in range(_ROUNDS):
            # Separate seeds, as for the statistics.
            found = np.asarray(predict(train(indices, 2000 + _ROUNDS * seed + number, None)))
            indices = chosen(found[np.arange(len(labels)), labels], labels, share)
    return indices


def _named(name: str, function: Any) -> Any:
    """A function of the caller's; what it raises says which one it was."""
    if not callable(function):
        raise UsageError(f"{name} is a function, not {type(function).__name__}")

    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Error:
            raise
        except Exception as error:
            raise Error(f"{name} raised {type(error).__name__}: {error}") from error

    return called


def _score(evaluate: Callable[[Any], Any]) -> Callable[[Any], float]:
    """As a number that can be compared."""

    def scored(network: Any) -> float:
        value = evaluate(network)
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            raise UsageError(f"evaluate returned {value!r}; it must return a finite number, higher is better")
        return found

    return scored


@dataclass(frozen=True)
class _Watch:
    """Keeps the probabilities after every epoch."""

    predict: Callable[[Any], Array]
    to: list[Array]

    def __call__(self, network: Any) -> None:
        self.to.append(np.asarray(self.predict(network)))


def statistics_of(
    labels: Array,
    everything: Array,
    train: Train,
    predict: Callable[[Any], Array],
    features: Callable[[Any], Array] | None,
) -> Statistics:
    """Train briefly on all samples and record how each is learned, for rankings. Arguments as for `select`."""
    runs: list[list[Array]] = []
    network: Any = None
    for run in range(_RUNS):
        epochs: list[Array] = []
        # Separate seeds: the runs that rank samples are not those that are evaluated.
        network = train(everything, 1000 + run, _Watch(predict, epochs))
        if not epochs:
            epochs.append(np.asarray(predict(network)))
        runs.append(epochs)
    n = min(map(len, runs))
    probabilities = np.array([epochs[-n:] for epochs in runs])
    if probabilities.ndim != 4 or probabilities.shape[2] != len(labels):
        raise UsageError("predict returns probabilities of all training samples, (n, classes)")
    return Statistics(labels, probabilities, None if features is None else np.asarray(features(network)))
