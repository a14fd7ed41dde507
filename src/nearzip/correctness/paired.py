"""Statistics of paired outcomes: the same samples evaluated before and after compression.

A loss is what the compressed network scores less than the original: `original - compressed`. Three verdicts compare it
with a limit at a given confidence: `kept` (an upper confidence bound of the loss is at most the limit), `broken` (a
lower confidence bound is above it), and `not shown` (these samples cannot decide).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol

from nearzip.statistics import bonett_price, missed, smallest, student_t_cdf, student_t_quantile

__all__ = ["BROKEN", "KEPT", "NOT_SHOWN", "Differences", "Flips", "Paired", "Ratio", "Test", "holm", "student_t_cdf"]

KEPT, BROKEN, NOT_SHOWN = "kept", "broken", "not shown"

_NORMAL = NormalDist()


class Paired(Protocol):
    """What a metric measured on the same samples before and after compression says of the loss."""

    @property
    def n(self) -> int:
        """Samples."""

    @property
    def loss(self) -> float:
        """Original minus compressed, in the metric's units; positive where the compressed network is worse."""

    def p_above(self, limit: float) -> float:
        """One-sided p-value against "the loss is at least `limit`": small where the loss is below it."""

    def p_below(self, limit: float) -> float:
        """One-sided p-value against "the loss is at most `limit`": small where the loss is above it."""

    def interval(self, confidence: float) -> tuple[float, float]:
        """Two-sided confidence interval of the loss."""

    def samples_needed(self, limit: float, confidence: float) -> int | None:
        """The number of samples that would show the limit to be kept, at the observed rates. None: no number would."""


@dataclass(frozen=True)
class Flips:
    """Counts of a right-or-wrong metric over paired samples.

    Parameters
    ----------
    n : int
        Samples.
    n_right : int
        Samples that the original got right.
    lost : int
        Right before, wrong after ("negative flips").
    gained : int
        Wrong before, right after.
    changed : int or None
        Wrong before and after, with another answer; None where the answers themselves are unknown.

    Notes
    -----
    The interval is Bonett and Price's for a difference of paired proportions (2012): one is added to both counts of
    flips and two to the samples, and the rest is Wald's formula.

    Examples
    --------
    >>> flips = Flips(n=1000, n_right=800, lost=12, gained=7)
    >>> flips.loss, flips.churn
    (0.005, 0.019)
    >>> low, high = flips.interval(0.95)
    >>> round(low, 5), round(high, 5)
    (-0.00397, 0.01395)
    """

    n: int
    n_right: int
    lost: int
    gained: int
    changed: int | None = None

    @property
    def loss(self) -> float:
        return (self.lost - self.gained) / self.n if self.n else math.nan

    @property
    def original(self) -> float:
        """Accuracy before."""
        return self.n_right / self.n if self.n else math.nan

    @property
    def compressed(self) -> float:
        """Accuracy after."""
        return (self.n_right - self.lost + self.gained) / self.n if self.n else math.nan

    @property
    def churn(self) -> float:
        """Share of samples whose outcome changed; with `changed` known, of samples whose answer changed."""
        return (self.lost + self.gained + (self.changed or 0)) / self.n if self.n else math.nan

    def __add__(self, other: Flips) -> Flips:
        changed = None if self.changed is None or other.changed is None else self.changed + other.changed
        return Flips(
            self.n + other.n, self.n_right + other.n_right, self.lost + other.lost, self.gained + other.gained, changed
        )

    def _estimate(self, n: float | None = None) -> tuple[float, float]:
        """Loss and its standard error, by Bonett and Price. `n`: as if so many samples had shown the same rates."""
        size = float(self.n) if n is None else n
        scale = size / self.n if self.n else 0.0
        return bonett_price(size, self.lost * scale, self.gained * scale)

    def p_above(self, limit: float) -> float:
        loss, error = self._estimate()
        return _NORMAL.cdf((loss - limit) / error)

    def p_below(self, limit: float) -> float:
        loss, error = self._estimate()
        return _NORMAL.cdf((limit - loss) / error)

    def interval(self, confidence: float) -> tuple[float, float]:
        loss, error = self._estimate()
        z = _NORMAL.inv_cdf(0.5 + confidence / 2)
        return max(-1.0, loss - z * error), min(1.0, loss + z * error)

    def p_mcnemar(self) -> float:
        """McNemar's exact test: two-sided p-value of `lost` among `lost + gained` fair coins."""
        return _fair_coin_p(self.lost, self.lost + self.gained)

    def samples_needed(self, limit: float, confidence: float) -> int | None:
        z = _NORMAL.inv_cdf(confidence)

        def shows(n: int) -> bool:
            loss, error = self._estimate(n)
            return loss + z * error <= limit

        return smallest(shows, max(self.n, 1))


def _fair_coin_p(k: int, n: int) -> float:
    """Two-sided exact binomial p-value of k heads in n throws of a fair coin."""
    if n == 0:
        return 1.0
    tail = min(k, n - k)
    # Logarithms: 2^-n underflows beyond a thousand throws, and sums of n choose i grow beyond any float.
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(tail + 1)]
    top = max(logs)
    total = math.fsum(math.exp(value - top) for value in logs)
    return min(1.0, 2.0 * math.exp(top + math.log(total) - n * math.log(2.0)))


@dataclass(frozen=True)
class Differences:
    """Paired differences of a numeric metric, one for each sample, original minus compressed.

    Student's t interval. Where all differences are equal (usually all zero) a t interval would have no width, so the
    chance that a share of differing samples was missed is bounded instead: `loss + (1 - alpha^(1/n)) * spread`.

    Parameters
    ----------
    values : sequence of float
        Finite differences, at least one.
    spread : float
        The largest difference that the metric allows (1 for scores between 0 and 1).
    """

    values: Sequence[float]
    spread: float
    n: int = field(init=False)
    loss: float = field(init=False)
    error: float = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.values)
        mean = math.fsum(self.values) / n
        square = math.fsum((value - mean) ** 2 for value in self.values)
        error = math.sqrt(square / (n - 1) / n) if n > 1 else 0.0
        for name, value in (("n", n), ("loss", mean), ("error", error)):
            object.__setattr__(self, name, value)

    def p_above(self, limit: float) -> float:
        if self.error == 0.0:
            return missed(limit - self.loss, self.spread, self.n)
        return student_t_cdf((self.loss - limit) / self.error, self.n - 1)

    def p_below(self, limit: float) -> float:
        if self.error == 0.0:
            return missed(self.loss - limit, self.spread, self.n)
        return student_t_cdf((limit - self.loss) / self.error, self.n - 1)

    def interval(self, confidence: float) -> tuple[float, float]:
        alpha = (1 - confidence) / 2
        if self.error == 0.0:
            width = (1 - alpha ** (1 / self.n)) * self.spread
        else:
            width = student_t_quantile(1 - alpha, self.n - 1) * self.error
        return self.loss - width, self.loss + width

    def samples_needed(self, limit: float, confidence: float) -> int | None:
        if self.loss >= limit:
            return None
        if self.error == 0.0:
            return smallest(lambda n: missed(limit - self.loss, self.spread, n) <= 1 - confidence, 1)
        deviation = self.error * math.sqrt(self.n)

        def shows(n: int) -> bool:
            return n > 1 and student_t_cdf((self.loss - limit) / (deviation / math.sqrt(n)), n - 1) <= 1 - confidence

        return smallest(shows, self.n)


@dataclass(frozen=True)
class Ratio(Differences):
    """A loss per unit of length over documents of different lengths, such as log perplexity per word.

    `values` are differences summed within each document, `weights` the documents' lengths. The standard error is the
    ratio estimator's over documents, because units of one document are not independent.
    """

    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        n, total = len(self.values), math.fsum(self.weights)
        loss = math.fsum(self.values) / total
        square = math.fsum(
            (value - loss * weight) ** 2 for value, weight in zip(self.values, self.weights, strict=True)
        )
        error = math.sqrt(square * n / (n - 1)) / total if n > 1 else 0.0
        for name, value in (("n", n), ("loss", loss), ("error", error)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Test:
    """The verdict on one limit.

    `p_kept` and `p_broken` are one-sided p-values, adjusted where several limits were tested together.
    """

    __test__ = False  # not a test of pytest's

    limit: float
    p_kept: float
    p_broken: float
    confidence: float

    @property
    def verdict(self) -> str:
        alpha = 1 - self.confidence
        if self.p_kept <= alpha:
            return KEPT
        return BROKEN if self.p_broken <= alpha else NOT_SHOWN


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given.

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
