"""Per-tensor bounds: looser for tolerant tensors, tighter for sensitive ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nearzip.budget.curves import GRID, Curves, groups_of
from nearzip.budget.jobs import n_workers
from nearzip.budget.posterior import Posterior
from nearzip.budget.spaces import Bounds
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Runner
from nearzip.caching import cached_property
from nearzip.coding import Codings
from nearzip.tensors import Array

__all__ = ["refine"]

#: The power of the squared error that usage grows with: 1 where losses grow with the square of the error (a
#: divergence), one half where with the error itself (accuracy).
_POWER, _POWER_SPREAD = 0.75, 0.25
#: Standard deviations of the logarithm of the cost of a group's error: per group, and common to all groups.
_OWN_SPREAD, _COMMON_SPREAD = 1.5, 6.0
#: Parameters drawn for every trial, and sizes of the settings derived from each, as shares of the best so far.
_DRAWS = 16
_SHARES = np.concatenate([np.linspace(0.3, 0.9, 25), np.linspace(0.91, 0.998, 23)])
#: A search ends when no trial is expected to save this share of the best archive.
_WORTH = 0.0003
#: Trials of one round differ by at least this share of the best.
_APART = 0.005
#: Settings with a smaller probability come last: the tails of the noise are unknown, and similar settings fail
#: together.
_LIKELY = 0.1


@dataclass(frozen=True)
class _Sum:
    """Usage as a power of a weighted sum of the groups' squared errors.

    Parameters: logarithms of the weights, (groups,), then the power. Settings: logarithms of errors, (n, groups).
    """

    log_weights: Array

    @property
    def mean(self) -> Array:
        return np.append(self.log_weights, _POWER)

    @property
    def covariance(self) -> Array:
        n = len(self.log_weights)
        found = np.diag([_OWN_SPREAD**2] * n + [_POWER_SPREAD**2])
        found[:n, :n] += _COMMON_SPREAD**2
        return found

    def log_usage(self, parameters: Array, settings: Array) -> tuple[Array, Array]:
        terms = settings + parameters[:-1]
        largest = terms.max(1, keepdims=True)
        total = largest[:, 0] + np.log(np.exp(terms - largest).sum(1))
        power = max(parameters[-1], 0.1)
        shares = np.exp(terms - total[:, None])
        return power * total, np.hstack([power * shares, total[:, None]])


@dataclass
class _ByGroup:
    """Settings of all groups, as indices into the curves' positions, (n, groups)."""

    runner: Runner
    space: Bounds
    curves: Curves
    tried: list[Array] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    @cached_property
    def model(self) -> _Sum:
        """The prior: under it the space's own bounds are optimal, and the start is just within the budget."""
        start = self._indices(self.space.start)
        shares = [float(np.mean([self.space.bears(name) for name in group])) for group in self.curves.groups]
        weights = -2 * math.log(2) * np.array(shares)
        return _Sum(weights - np.log(np.exp(self.curves.errors(start[None])[0] + weights).sum()))

    def add(self, settings: Array, trial: Trial) -> None:
        self.tried.append(settings)
        self.trials.append(trial)

    def add_shared(self, position: float, trial: Trial) -> None:
        """Add a trial of one of the space's own settings."""
        self.add(self._indices(position), trial)

    @cached_property
    def shared(self) -> Array:
        """One setting for the whole network, from fine to coarse."""
        return np.stack([self._indices(position) for position in self.curves.positions])

    def codings(self, settings: Array) -> Codings:
        """Settings as codings. Tensors in no group get the bound of the last group, usually the vectors."""
        positions = self.curves.positions[settings]
        by_name = {
            name: float(x) for group, x in zip(self.curves.groups[:-1], positions[:-1], strict=True) for name in group
        }
        return self.space.apart(by_name, float(positions[-1]))

    def _indices(self, position: float) -> Array:
        own = np.array([self.space.position_of(group[0], position) for group in self.curves.groups])
        low, high = self.curves.positions[[0, -1]]
        return np.asarray(np.rint((own.clip(low, high) - low) / GRID), np.intp)


def refine(runner: Runner, space: Bounds, shared: Mapping[float, Trial], evaluations: int) -> None:
    """Search bounds of single tensors, up to `evaluations` trials in all, while savings are expected.

    The cost of each group's error is estimated from all trials so far (`shared`: those with one setting for all, by
    position). Costs are drawn from the posterior, each draw gives the settings of least error for a number of bytes,
    and the settings with the largest expected saving are measured (Thompson sampling). So several groups change with
    each trial, and a group whose cost is uncertain is tried at values that are plausible for it.
    """
    by_group = None
    if not groups_of(space.subject.tensors):
        return
    generator = np.random.default_rng(runner.subject.seed % 2**64)  # torch takes negative ones
    while len(runner.trials) < evaluations and runner.best is not None:
        if by_group is None:
            by_group = _ByGroup(runner, space, Curves.of(space.subject, space))
            for position, trial in shared.items():
                by_group.add_shared(position, trial)
        chosen = _proposals(by_group, generator, min(n_workers(), evaluations - len(runner.trials)))
        if not chosen:
            return
        trials = runner.run([by_group.codings(settings) for settings in chosen], "refine")
        for settings, trial in zip(chosen, trials, strict=True):
            by_group.add(settings, trial)


def _proposals(by_group: _ByGroup, generator: np.random.Generator, n: int) -> list[Array]:
    """Up to n settings with the largest expected saving; none if none is worth a trial."""
    best = by_group.runner.best
    assert best is not None
    posterior = Posterior(
        by_group.model, by_group.curves.errors(np.array(by_group.tried)), [t.usage for t in by_group.trials]
    )
    candidates = _candidates(by_group, posterior, generator, best.n_bytes / _correction(by_group))
    chances = posterior.chances(by_group.curves.errors(candidates))
    sizes = by_group.curves.n_bytes(candidates) * _correction(by_group)
    gains = chances * (best.n_bytes - sizes)
    chosen: list[int] = []
    # Improbable settings come last, however much they would save.
    for i in np.lexsort((-gains, chances < _LIKELY)).tolist():
        new = all((candidates[i] != tried).any() for tried in by_group.tried)
        apart = all(abs(sizes[i] - sizes[j]) > _APART * best.n_bytes for j in chosen)
        if len(chosen) < n and new and apart and gains[i] > _WORTH * best.n_bytes:
            chosen.append(i)
    return [candidates[i] for i in chosen]


def _candidates(by_group: _ByGroup, posterior: Posterior, generator: np.random.Generator, n_bytes: float) -> Array:
    """The best settings at decreasing sizes, for the likeliest and some drawn weights; and the space's own."""
    weights = [posterior.best, *(posterior.draw(generator) for _ in range(_DRAWS))]
    rows = [by_group.curves.cheapest(drawn[:-1] - drawn[:-1].max(), n_bytes * _SHARES) for drawn in weights]
    return np.unique(np.concatenate([*rows, by_group.shared]), axis=0)


def _correction(by_group: _ByGroup) -> float:
    """Size of archives relative to the sum of their groups, which share streams and headers in an archive."""
    parts = by_group.curves.n_bytes(np.array(by_group.tried))
    return float(np.median([trial.n_bytes for trial in by_group.trials] / parts))
