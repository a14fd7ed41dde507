"""Further than one bound for all: tensors that bear more get coarser bounds, those that bear less finer ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nearzip.budget.belief import Belief
from nearzip.budget.curves import GRID, Curves, groups_of
from nearzip.budget.families import Bounds
from nearzip.budget.plan import Assignment, Trial
from nearzip.budget.trials import Runner, n_workers
from nearzip.caching import cached_property
from nearzip.tensors import Array

__all__ = ["refine"]

#: The power of the squared error that usage grows with: 1 where losses grow with the square of the error (a
#: divergence), one half where with the error itself (accuracy).
_POWER, _POWER_SPREAD = 0.75, 0.25
#: Standard deviation of the logarithm of what a group's error costs: a group's own, and that of all together.
_OWN_SPREAD, _COMMON_SPREAD = 1.5, 6.0
#: Directions drawn for every trial, and bytes of the settings along each, as shares of the best so far.
_DRAWS = 16
_SHARES = np.concatenate([np.linspace(0.3, 0.9, 25), np.linspace(0.91, 0.998, 23)])
#: A search ends when no trial is expected to save this share of the best.
_WORTH = 0.0003
#: Trials of one round differ by at least this share of the best.
_APART = 0.005
#: Smaller chances are not believed: the tails of the noise are not known, and settings that are alike fail together.
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
class _Space:
    """Settings of all groups, as indices into the curves' positions, (n, groups)."""

    runner: Runner
    family: Bounds
    curves: Curves
    tried: list[Array] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    @cached_property
    def model(self) -> _Sum:
        """Before any trial: what makes the bounds best that tensors are believed to bear, the start just within."""
        start = self._indices(self.family.start)
        shares = [float(np.mean([self.family.bears(name) for name in group])) for group in self.curves.groups]
        weights = -2 * math.log(2) * np.array(shares)
        return _Sum(weights - np.log(np.exp(self.curves.errors(start[None])[0] + weights).sum()))

    def add(self, settings: Array, trial: Trial) -> None:
        self.tried.append(settings)
        self.trials.append(trial)

    def add_shared(self, position: float, trial: Trial) -> None:
        """A trial of the family's own settings."""
        self.add(self._indices(position), trial)

    @cached_property
    def shared(self) -> Array:
        """One setting for the whole network, from fine to coarse."""
        return np.stack([self._indices(position) for position in self.curves.positions])

    def assignment(self, settings: Array) -> Assignment:
        """Those of the last group, the vectors if there are any, stand for what is in no group."""
        positions = self.curves.positions[settings]
        by_name = {
            name: float(x) for group, x in zip(self.curves.groups[:-1], positions[:-1], strict=True) for name in group
        }
        return self.family.apart(by_name, float(positions[-1]))

    def _indices(self, position: float) -> Array:
        own = np.array([self.family.position_of(group[0], position) for group in self.curves.groups])
        low, high = self.curves.positions[[0, -1]]
        return np.asarray(np.rint((own.clip(low, high) - low) / GRID), np.intp)


def refine(runner: Runner, family: Bounds, shared: Mapping[float, Trial], evaluations: int) -> None:
    """Bounds of single tensors, up to `evaluations` trials in all, as long as they are expected to save bytes.

    What each group of tensors costs in usage is believed from all trials so far (`shared`: those of one setting for
    all, by position). Beliefs are drawn from, and for every draw the settings of least bytes by error are taken: of
    these the ones that are expected to save most are measured. So several groups change with each trial, and a group
    whose cost is unknown is tried with values that it may have.
    """
    space = None
    if not groups_of(runner.subject.tensors):
        return
    generator = np.random.default_rng(runner.subject.seed)
    while len(runner.trials) < evaluations and runner.best is not None:
        if space is None:
            space = _Space(runner, family, Curves.of(runner.subject, family))
            for position, trial in shared.items():
                space.add_shared(position, trial)
        chosen = _proposals(space, generator, min(n_workers(), evaluations - len(runner.trials)))
        if not chosen:
            return
        trials = runner.run([space.assignment(settings) for settings in chosen], "refine")
        for settings, trial in zip(chosen, trials, strict=True):
            space.add(settings, trial)


def _proposals(space: _Space, generator: np.random.Generator, n: int) -> list[Array]:
    """Up to n settings that are expected to save most; none if none is worth a trial."""
    best = space.runner.best
    assert best is not None
    belief = Belief(space.model, space.curves.errors(np.array(space.tried)), [t.usage for t in space.trials])
    candidates = _candidates(space, belief, generator, best.n_bytes / _correction(space))
    chances = belief.chances(space.curves.errors(candidates))
    sizes = space.curves.n_bytes(candidates) * _correction(space)
    gains = chances * (best.n_bytes - sizes)
    chosen: list[int] = []
    # Those of small chances last, however much they would save.
    for i in np.lexsort((-gains, chances < _LIKELY)).tolist():
        new = all((candidates[i] != tried).any() for tried in space.tried)
        apart = all(abs(sizes[i] - sizes[j]) > _APART * best.n_bytes for j in chosen)
        if len(chosen) < n and new and apart and gains[i] > _WORTH * best.n_bytes:
            chosen.append(i)
    return [candidates[i] for i in chosen]


def _candidates(space: _Space, belief: Belief, generator: np.random.Generator, n_bytes: float) -> Array:
    """For the likeliest weights and some drawn ones, the best settings of fewer and fewer bytes; the family's own."""
    beliefs = [belief.best, *(belief.draw(generator) for _ in range(_DRAWS))]
    rows = [space.curves.cheapest(drawn[:-1] - drawn[:-1].max(), n_bytes * _SHARES) for drawn in beliefs]
    return np.unique(np.concatenate([*rows, space.shared]), axis=0)


def _correction(space: _Space) -> float:
    """Archives share streams and headers between groups: by how much they are smaller than their parts."""
    parts = space.curves.n_bytes(np.array(space.tried))
    return float(np.median([trial.n_bytes for trial in space.trials] / parts))
