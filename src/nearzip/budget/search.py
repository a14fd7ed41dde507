"""Our search: few evaluations, each where a model of the loss expects the budget to end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from nearzip.budget.families import Family
from nearzip.budget.plan import Trial
from nearzip.budget.trials import Runner, n_workers

__all__ = ["EVALUATIONS", "search"]

#: Most trials, unless the caller says otherwise.
EVALUATIONS = 5
#: The share of the budget that the next trial aims at: the rest is for what the model does not know.
_AIM = 0.85
#: log2 of usage per position, until measurements say otherwise: divergence and loss grow with the square of the error,
#: lost accuracy and agreement with the error itself.
_SLOPE = 1.5
#: A trial within the budget and one over it that differ by less in size end the search.
_CLOSE = 1.01


@dataclass
class _Line:
    """Trials by position."""

    family: Family
    trials: dict[float, Trial] = field(default_factory=dict)

    @property
    def inside(self) -> float | None:
        """The farthest position within the budget."""
        return max((x for x, trial in self.trials.items() if trial.fits), default=None)

    @property
    def outside(self) -> float | None:
        """The nearest position beyond it that is not."""
        inside = -math.inf if self.inside is None else self.inside
        return min((x for x, trial in self.trials.items() if not trial.fits and x > inside), default=None)

    def ended(self) -> bool:
        inside, outside = self.inside, self.outside
        if inside is None:
            return outside is not None and outside <= self.family.low
        if outside is None:
            return inside >= self.family.high
        near = self.trials[inside].n_bytes <= _CLOSE * self.trials[outside].n_bytes
        return near or outside - inside <= self.family.grid * 1.001

    def proposals(self, n: int) -> list[float]:
        """Up to n positions not tried yet, the most promising in the middle."""
        inside, outside = self.inside, self.outside
        if inside is None and outside is None:
            centre, width = self.family.start, 2.0
        elif outside is None:
            assert inside is not None
            centre = inside + self._step(inside)
            width = max(1.0, centre - inside)
        elif inside is None:
            centre = outside - self._step(outside)
            width = max(1.0, outside - centre)
        else:
            centre, width = self._between(inside, outside), (outside - inside) / 2
        spread = [centre + width * (2 * (i + 1) / (n + 1) - 1) for i in range(n)] if n > 1 else [centre]
        found = dict.fromkeys(self._free(x, inside, outside) for x in spread)
        return [x for x in found if x is not None]

    def _between(self, inside: float, outside: float) -> float:
        """Where usage reaches the aim on the line through both trials, in logarithms."""
        width = outside - inside
        used, over = self.trials[inside].usage, self.trials[outside].usage
        if not used > 0 or not math.isfinite(over):
            # Nothing is known about one end.
            guess = outside - self._step(outside) if math.isfinite(over) else inside + width / 2
        else:
            slope = max(0.25, math.log2(over / used) / width)
            guess = inside + math.log2(max(_AIM, (1 + used) / 2) / used) / slope
        return min(max(guess, inside + 0.15 * width), outside - 0.15 * width)

    def _step(self, position: float) -> float:
        """How far from a trial the aim is, on the slope measured or assumed; at most a factor of eight either way."""
        usage = self.trials[position].usage
        if not math.isfinite(usage):
            return 3.0
        if usage <= 0.01:
            return 2.0
        return min(3.0, max(0.25, abs(math.log2(usage / _AIM)) / self._slope()))

    def _slope(self) -> float:
        """Between the trials of least usage that tell anything."""
        telling = sorted((t.usage, x) for x, t in self.trials.items() if 0.01 < t.usage < math.inf)[:2]
        if len(telling) < 2:
            return _SLOPE
        (low, x), (high, y) = telling
        return min(3.0, max(0.5, math.log2(high / low) / (y - x))) if y > x else _SLOPE

    def _free(self, x: float, inside: float | None, outside: float | None) -> float | None:
        """The nearest position that was not tried, inside what is still open."""
        low = self.family.low if inside is None else inside + self.family.grid
        high = self.family.high if outside is None else outside - self.family.grid
        x = self.family.snap(min(max(x, low), high))
        return None if x in self.trials else x


def search(runner: Runner, family: Family, evaluations: int) -> Trial | None:
    """The smallest trial within the budget, after at most `evaluations`; None if there is none.

    A bracket in the logarithm of the bound, with the next trial where a power law through the bracket's ends meets the
    budget. With several workers a round tries as many positions as there are workers.
    """
    line = _Line(family)
    while len(runner.trials) < evaluations and not line.ended():
        positions = line.proposals(min(n_workers(), evaluations - len(runner.trials)))
        if not positions:
            break
        trials = runner.run([family.at(x) for x in positions], "search")
        line.trials.update(zip(positions, trials, strict=True))
    if line.inside is None and family.exact is not None:
        runner.run([family.exact], "exact")
    return runner.best
