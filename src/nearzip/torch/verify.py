"""Whether a training that goes on from a restored state ends where it would have ended."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from nearzip.errors import UsageError

__all__ = ["Equivalence", "verify_resume"]

State = TypeVar("State")

#: 97.5 % quantiles of Student's t by degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Equivalence:
    """What `verify_resume` found.

    Parameters
    ----------
    seeds : tuple of int
    original, restored : tuple of tuple of float
        Losses by seed: right after restoring, then after each epoch.
    share : float
        How much of the seed-to-seed deviation the difference may reach.
    """

    seeds: tuple[int, ...]
    original: tuple[tuple[float, ...], ...]
    restored: tuple[tuple[float, ...], ...]
    share: float

    @property
    def differences(self) -> tuple[float, ...]:
        """Final loss from the restored state less final loss from the original one, seed by seed."""
        return tuple(b[-1] - a[-1] for a, b in zip(self.original, self.restored, strict=True))

    @property
    def difference(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the mean difference (paired, Student's t)."""
        n = len(self.seeds)
        half = _quantile(n - 1) * statistics.stdev(self.differences) / math.sqrt(n)
        return self.difference - half, self.difference + half

    @property
    def deviation(self) -> float:
        """Standard deviation of the original's final loss from seed to seed."""
        return statistics.stdev(losses[-1] for losses in self.original)

    @property
    def margin(self) -> float:
        return self.share * self.deviation

    @property
    def equivalent(self) -> bool:
        """Whether the whole interval lies within the margin."""
        low, high = self.interval
        return -self.margin <= low and high <= self.margin

    @property
    def recovery_epochs(self) -> tuple[int | None, ...]:
        """For each seed, the first epoch after which the restored training reaches the original's loss at the crash.

        0: right away; None: not within the epochs trained.
        """
        return tuple(
            next((epoch for epoch, loss in enumerate(b) if loss <= a[0]), None)
            for a, b in zip(self.original, self.restored, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "seeds": list(self.seeds),
            "original": [list(losses) for losses in self.original],
            "restored": [list(losses) for losses in self.restored],
            "difference": self.difference,
            "interval": list(self.interval),
            "deviation": self.deviation,
            "margin": self.margin,
            "equivalent": self.equivalent,
            "recovery_epochs": list(self.recovery_epochs),
        }

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "equivalent" if self.equivalent else "not shown to be equivalent"
        return (
            f"{verdict}: final loss differs by {self.difference:+.3g} (95 %: {low:+.3g} to {high:+.3g}), allowed "
            f"+-{self.margin:.3g}, from {len(self.seeds)} seeds"
        )


def _quantile(degrees: int) -> float:
    if degrees <= len(_T):
        return _T[degrees - 1]
    # Cornish-Fisher; exact to four digits from 30 degrees on.
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def verify_resume(
    train: Callable[[State, int], Sequence[float]],
    original: State,
    restored: State,
    seeds: int | Iterable[int] = 8,
    *,
    share: float = 0.25,
) -> Equivalence:
    """Train on from the original and from the restored state, with the same order of data, for several seeds.

    Parameters
    ----------
    train : callable
        Takes a state and a seed; makes a fresh model and optimizer, puts the state into them, seeds the order of the
        data (and whatever else is random) with the seed, trains, and returns losses, lower is better: the first as it
        is right after restoring, then one for each epoch.
    original, restored
        What `train` takes: training states, version numbers, paths.
    seeds : int or iterable of int
        How many, or which; at least 2.
    share : float
        Equivalent means: the 95 % interval of the difference in final loss lies within this share of the deviation
        from seed to seed.

    Raises
    ------
    UsageError
        Fewer than two seeds, or a training that returned nothing, or not finite losses.

    Examples
    --------
    >>> report = verify_resume(lambda start, seed: [start, start / 2 + seed], 1.0, 1.0, seeds=3)
    >>> report.equivalent, report.recovery_epochs
    (True, (0, 0, 0))
    """
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if len(chosen) < 2:
        raise UsageError("verify_resume needs two seeds or more: the deviation between them is the yardstick")
    losses = [(_losses(train, original, seed), _losses(train, restored, seed)) for seed in chosen]
    return Equivalence(chosen, tuple(a for a, _ in losses), tuple(b for _, b in losses), share)


def _losses(train: Callable[[State, int], Sequence[float]], state: State, seed: int) -> tuple[float, ...]:
    found = tuple(float(loss) for loss in train(state, seed))
    if len(found) < 2 or not math.isfinite(found[-1]):
        raise UsageError(
            f"train returned {list(found)[:5]} for seed {seed}; it returns the loss right after restoring and after "
            "each epoch, the last of them finite"
        )
    return found
