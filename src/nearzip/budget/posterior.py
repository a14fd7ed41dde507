"""Predicts the usage of settings from earlier trials: a smooth curve of expected usage with noise of unknown size.

Accuracies are counts: on a few hundred samples, losses vary from one setting to the next by as much as a budget, with a
gain here and there. A divergence varies by a share of itself. The trials show which kind a metric is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from nearzip.tensors import Array

__all__ = ["Model", "Posterior"]

#: Standard deviations of usage and their prior weights: in budgets, and as a share of the usage.
_ABSOLUTE = {0.03: 1.0, 0.25: 0.25, 0.5: 0.25, 1.0: 0.25, 2.0: 0.15, 4.0: 0.1}
_RELATIVE = {0.05: 0.5, 0.15: 1.0, 0.3: 0.5, 0.6: 0.2}
#: Usage is clipped here: beyond it everything is lost, and the amount carries no information.
_MAX_USAGE = 64.0
#: Trials farther from the budget than this, in log2 of usage, have little weight: models hold only near it.
_NEAR = 4.0
_ROUNDS = 12
#: Gauss-Hermite: nodes and weights for the mean over a normal distribution.
_NODES, _WEIGHTS = (a.astype(np.float64) for a in np.polynomial.hermite_e.hermegauss(7))


class Model(Protocol):
    """Expected usage as a function of parameters that are normally distributed before any trial."""

    @property
    def mean(self) -> Array: ...

    @property
    def covariance(self) -> Array: ...

    def log_usage(self, parameters: Array, settings: Array) -> tuple[Array, Array]:
        """Natural logarithm of the expected usage of every setting, (n,), and its derivatives, (n, parameters)."""


@dataclass(frozen=True)
class _Noise:
    """The standard deviation of usage: `absolute`, or `relative` times the expected usage where that is more."""

    absolute: float
    relative: float

    @property
    def likely(self) -> float:
        """Prior probability, up to a factor."""
        return _ABSOLUTE[self.absolute] * _RELATIVE[self.relative]

    def scaled(self, usage: Array) -> Array:
        """Usage on a scale on which its standard deviation is 1 everywhere."""
        return np.arcsinh(self.relative / self.absolute * usage) / self.relative

    def spread(self, usage: Array) -> Array:
        """d usage / d scaled."""
        return np.hypot(self.absolute, self.relative * usage)


@dataclass(frozen=True)
class _Fit:
    """The distribution of the parameters given the trials and one size of the noise."""

    noise: _Noise
    mean: Array
    covariance: Array
    evidence: float


class Posterior:
    """A model given some trials: parameters fitted by Gauss-Newton steps, noise sizes weighted by their evidence.

    Parameters
    ----------
    model : Model
    settings : (n, ..) array
        Of the trials, as the model takes them.
    usage : sequence of n floats
    """

    def __init__(self, model: Model, settings: Array, usage: Sequence[float]):
        self._model = model
        observed = np.array([min(u, _MAX_USAGE) if math.isfinite(u) else _MAX_USAGE for u in usage], np.float64)
        noises = [_Noise(*sizes) for sizes in product(_ABSOLUTE, _RELATIVE)]
        fits = [_fit(model, noise, settings, observed) for noise in noises]
        most = max(fit.evidence for fit in fits)
        self._weighted = [(math.exp(fit.evidence - most), fit) for fit in fits if fit.evidence > most - 5]

    def chances(self, settings: Array) -> Array:
        """Probability that a trial is within the budget, (n,)."""
        total = sum(weight for weight, _ in self._weighted)
        parts = [weight / total * self._chances(fit, settings) for weight, fit in self._weighted]
        return np.asarray(np.sum(parts, axis=0))

    def _chances(self, fit: _Fit, settings: Array) -> Array:
        mean, derivatives = self._model.log_usage(fit.mean, settings)
        spread = np.sqrt(np.einsum("ni,ij,nj->n", derivatives, fit.covariance, derivatives))
        expected = np.exp(np.clip(mean[:, None] + spread[:, None] * _NODES, -60, 60))
        above = fit.noise.scaled(expected) - fit.noise.scaled(np.ones(1))
        return np.asarray(_below(above) @ _WEIGHTS / _WEIGHTS.sum())

    def draw(self, generator: np.random.Generator) -> Array:
        """Parameters drawn from the posterior."""
        weights = np.array([weight for weight, _ in self._weighted])
        fit = self._weighted[generator.choice(len(weights), p=weights / weights.sum())][1]
        drawn: Array = generator.multivariate_normal(fit.mean, fit.covariance, method="cholesky")
        return drawn

    @property
    def best(self) -> Array:
        """The likeliest parameters."""
        return max(self._weighted, key=lambda pair: pair[0])[1].mean


def _below(deviations: Array) -> Array:
    """Probability that a standard normal variable is above each deviation."""
    return np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in deviations.reshape(-1)]).reshape(deviations.shape)


def _fit(model: Model, noise: _Noise, settings: Array, usage: Array) -> _Fit:
    precision = np.linalg.inv(model.covariance)
    observed, lost = noise.scaled(usage), usage >= _MAX_USAGE
    # Noise larger than the budget: trials within the noise count as near the budget.
    distance = np.log2(np.maximum(np.maximum(usage, noise.absolute), 2.0**-4) / max(1.0, noise.absolute))
    deviation = 1 + (distance / _NEAR) ** 2
    parameters = mean = model.mean
    for _ in range(_ROUNDS):
        residuals, derivatives = _residuals(model, noise, settings, parameters, observed, lost)
        weighted = derivatives / deviation[:, None]
        information = precision + weighted.T @ weighted
        gradient = weighted.T @ (residuals / deviation) + precision @ (mean - parameters)
        step = np.linalg.solve(information, gradient)
        # Half a step keeps from jumping to and fro where the model is far from straight.
        parameters = parameters + step * min(1.0, 2.0 / max(float(np.abs(step).max(initial=0.0)), 1e-9))
    residuals, _ = _residuals(model, noise, settings, parameters, observed, lost)
    off = parameters - mean
    evidence = math.log(noise.likely) - 0.5 * float(np.sum((residuals / deviation) ** 2) + off @ precision @ off)
    evidence -= float(np.sum(np.log(deviation * noise.spread(usage))))
    evidence -= 0.5 * (np.linalg.slogdet(information)[1] - np.linalg.slogdet(precision)[1])
    return _Fit(noise, parameters, np.linalg.inv(information), evidence)


def _residuals(
    model: Model, noise: _Noise, settings: Array, parameters: Array, observed: Array, lost: Array
) -> tuple[Array, Array]:
    """Observed minus expected usage on the scale of `_Noise.scaled`, and the derivatives of the expected one."""
    logarithms, derivatives = model.log_usage(parameters, settings)
    expected = np.exp(np.clip(logarithms, -60, 60))
    residuals = observed - noise.scaled(expected)
    # A trial that lost everything agrees with any expectation to lose as much.
    agrees = lost & (residuals < 0)
    slopes = np.where(agrees, 0.0, expected / noise.spread(expected))
    return np.where(agrees, 0.0, residuals), slopes[:, None] * derivatives
