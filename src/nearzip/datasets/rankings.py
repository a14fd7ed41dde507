"""Rankings of training samples: which to keep if only so many are kept. NumPy only.

Every ranking works within the classes, so that subsets are class-balanced: a share of each class is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nearzip.tensors import Array

__all__ = ["RANKINGS", "Statistics", "chosen"]


@dataclass(frozen=True)
class Statistics:
    """How each sample was learned in short trainings on all samples.

    Parameters
    ----------
    labels : (n,) int
    probabilities : (runs, epochs, n, classes) float
        Of every run, after each of its epochs.
    features : (n, d) float or None
        For `herding`; without them the mean probabilities serve.
    """

    labels: Array
    probabilities: Array
    features: Array | None = None

    @property
    def last(self) -> Array:
        """Probabilities at the end of each run: (runs, n, classes)."""
        return np.asarray(self.probabilities[:, -1])

    @property
    def own(self) -> Array:
        """Mean probability of the true class at the end: (n,)."""
        return np.asarray(self.last[:, np.arange(len(self.labels)), self.labels].mean(0))

    def el2n(self) -> Array:
        """Paul et al. 2021 (2107.07075): norm of the error vector, mean over runs."""
        errors = self.last - np.eye(self.last.shape[2])[self.labels]
        return np.asarray(np.sqrt((errors**2).sum(2)).mean(0))

    def margins(self) -> Array:
        """Probability of the true class minus the largest other one, mean over runs."""
        others = self.last.copy()
        others[:, np.arange(len(self.labels)), self.labels] = -1
        return np.asarray(self.own - others.max(2).mean(0))

    def forgotten(self) -> Array:
        """Toneva et al. 2019: how often a sample that was right became wrong; never right counts most."""
        right = self.probabilities.argmax(3) == self.labels
        events = (right[:, :-1] & ~right[:, 1:]).sum(1) if right.shape[1] > 1 else np.zeros(right[:, 0].shape)
        return np.asarray(np.where(right.any(1), events, right.shape[1]).mean(0)) + 1e-3 * self.el2n()


def _random(s: Statistics, share: float, rng: np.random.Generator) -> Array:
    return rng.random(len(s.labels))


def _el2n(s: Statistics, share: float, rng: np.random.Generator) -> Array:
    return s.el2n()


def _margin(s: Statistics, share: float, rng: np.random.Generator) -> Array:
    return -s.margins()


def _forgetting(s: Statistics, share: float, rng: np.random.Generator) -> Array:
    return s.forgotten()


def _sufficient(s: Statistics, share: float, rng: np.random.Generator) -> Array:
    """The z-step of the paper's reference [23] at the network of the short trainings: the smallest losses."""
    return s.own


def _coverage(hardest: float) -> Callable[[Statistics, float, np.random.Generator], Array]:
    """Zheng et al. 2023 (2210.15809): the hardest samples dropped, then as many from every stratum of the score."""

    def rank(s: Statistics, share: float, rng: np.random.Generator) -> Array:
        scores, values = s.el2n(), np.full(len(s.labels), -1.0)
        for label in np.unique(s.labels):
            of_class = np.flatnonzero(s.labels == label)
            ordered = of_class[np.argsort(scores[of_class], kind="stable")]
            wanted = max(1, round(share * len(ordered)))
            kept = ordered[: max(wanted, round((1 - hardest) * len(ordered)))]
            # Equal steps of the score, not of the rank: strata.
            edges = np.linspace(scores[kept[0]], scores[kept[-1]] + 1e-9, 51)
            strata = np.clip(np.digitize(scores[kept], edges) - 1, 0, 49)
            order = rng.permutation(len(kept))
            within = np.empty(len(kept))
            for stratum in np.unique(strata):
                members = order[strata[order] == stratum]
                within[members] = np.arange(len(members))
            values[kept] = len(kept) - within + rng.random(len(kept)) * 0.5
        return values

    return rank


def _herding(s: Statistics, share: float, rng: np.random.Generator) -> Array:
    """Welling 2009: greedily, the samples whose mean stays nearest to the class's mean."""
    features = s.features if s.features is not None else s.last.mean(0)
    values = np.zeros(len(s.labels))
    for label in np.unique(s.labels):
        of_class = np.flatnonzero(s.labels == label)
        x = features[of_class].astype(np.float64)
        center, total = x.mean(0), np.zeros(x.shape[1])
        free = np.ones(len(x), bool)
        wanted = max(1, round(share * len(x)))
        squares = (x**2).sum(1)
        for k in range(wanted):
            aim = (k + 1) * center - total
            distance = np.where(free, squares - 2 * x @ aim, np.inf)
            i = int(np.argmin(distance))
            free[i] = False
            total += x[i]
            values[of_class[i]] = len(x) - k
    return values


#: Larger values are kept first. Each takes the statistics, the share to keep, and a generator.
RANKINGS: Mapping[str, Callable[[Statistics, float, np.random.Generator], Array]] = {
    "random": _random,
    "el2n": _el2n,
    "margin": _margin,
    "forgetting": _forgetting,
    "sufficient": _sufficient,
    "coverage": _coverage(0.05),
    "coverage-30": _coverage(0.3),
    "herding": _herding,
}


def chosen(values: Array, labels: Array, share: float) -> Array:
    """Indices of the samples with the largest values, the same share of every class, at least one of each; in order."""
    found = []
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        n = max(1, round(share * len(of_class)))
        found.append(of_class[np.argsort(-values[of_class], kind="stable")[:n]])
    return np.sort(np.concatenate(found))
