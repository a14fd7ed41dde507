"""Distributions and intervals for paired samples, without SciPy (the tests compare with it)."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

__all__ = ["bonett_price", "missed", "normal_quantile", "smallest", "student_t_cdf", "student_t_quantile"]

_NORMAL = NormalDist()
#: No data set of a user is larger; a sample count beyond it is reported as None.
_MAX_SAMPLES = 10**9


def normal_quantile(p: float) -> float:
    """The z with P(Z <= z) = p of a standard normal variable."""
    return _NORMAL.inv_cdf(p)


def bonett_price(n: float, lost: float, gained: float) -> tuple[float, float]:
    """Loss and its standard error for paired right-or-wrong samples.

    Bonett and Price, 2012: one is added to both counts of flips and two to the samples, and the rest is Wald's formula.
    """
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    return p - q, math.sqrt((p + q - (p - q) ** 2) / (n + 2))


def missed(gap: float, spread: float, n: int) -> float:
    """Chance of seeing no differing sample in n where they would have to move the mean by `gap`.

    `spread`: the most that one sample can differ by.
    """
    if gap <= 0:
        return 1.0
    return float(max(0.0, 1 - gap / spread) ** n) if spread > 0 else 0.0


def smallest(shows: Callable[[int], bool], start: int) -> int | None:
    """The smallest n at which `shows(n)`, found by doubling and bisection; None beyond a billion."""
    high = start
    while not shows(high):
        high *= 2
        if high > _MAX_SAMPLES:
            return None
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if shows(middle):
            high = middle
        else:
            low = middle
    return high


def student_t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` degrees of freedom.

    Examples
    --------
    >>> round(student_t_cdf(2.0, 10), 6)
    0.963306
    """
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    tail = 0.5 * _incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return 1 - tail if t > 0 else tail


def student_t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, p > 0.5, by bisection."""
    low, high = 0.0, 1.0
    while student_t_cdf(high, df) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_t_cdf(middle, df) < p else (low, middle)
    return high


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function, by Lentz's continued fraction."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side only
        return 1 - _incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # fmt: skip
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    fraction = d
    for m in range(1, 10_000):
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            c = 1 + step / c
            d = 1 / (d if abs(d) > tiny else tiny)
            c = c if abs(c) > tiny else tiny
            fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return front * fraction / a
