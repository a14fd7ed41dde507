"""Delta-DNN's selection of an error bound: Hu et al., ICPP 2020, section 3.3, Algorithm 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nearzip.budget.spaces import KINDS, Bounds, Options, Space
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Runner
from nearzip.coding import Codings
from nearzip.errors import UsageError

__all__ = ["CANDIDATES", "THETA", "DeltaDnnSearch"]

#: Section 5.1: "from 1 % to 10 %"; section 3.3 says that there are ten.
CANDIDATES = tuple(i / 100 for i in range(1, 11))
#: Section 5.2: "the acceptable relative inference accuracy loss [..] is set to 0.2%".
THETA = "0.2%"
_PHIS = ("relative", "points")


@dataclass(frozen=True)
class DeltaDnnSearch:
    """Try every candidate, keep those that lose at most theta, take the one of the best score.

    Score = alpha Phi + beta Omega (equation 3): Phi is minus the loss in percent, of the metric that loses most, and
    Omega the compression ratio. The paper's loss is relative to the original's score (section 3.3; Table 1 has
    "-0.15 %" for 92.45 % that became 92.31 %). The loss is signed, so that gains pass. If no candidate scores above
    zero, the result is `fallback` (the paper's lambda), which is measured like any other.

    theta is the search's `max_loss`: ``"0.2%"``, the paper's, where the caller gives none.

    Parameters
    ----------
    phi : {"relative", "points"}
        "relative": percent of the original's score, the paper's; points where that score is 0, as of a divergence.
        "points": percent of 1, so hundredths of an accuracy.
    candidates : sequence of float
        Error bounds; for a method whose knob is an option, all of its values.
    alpha, beta : float
        Section 5.1 takes one half each.
    fallback : float
        0.1 %.
    """

    candidates: Sequence[float] = CANDIDATES
    alpha: float = 0.5
    beta: float = 0.5
    fallback: float = 1e-3
    phi: str = "relative"

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", tuple(float(c) for c in self.candidates))
        if not self.candidates or any(not 0 < c < math.inf for c in (*self.candidates, self.fallback)):
            raise UsageError(f"candidates are positive error bounds, not {list(self.candidates)}")
        if not (self.alpha >= 0 and self.beta >= 0 and math.isclose(self.alpha + self.beta, 1)):
            raise UsageError(f"alpha and beta are weights that add up to 1, not {self.alpha} and {self.beta}")
        if self.phi not in _PHIS:
            raise UsageError(f"phi is {' or '.join(_PHIS)}, not {self.phi!r}")

    @property
    def most(self) -> int:
        return len(self.candidates) + 1

    @property
    def ends(self) -> str:
        """How a search ends, for messages."""
        return (
            f"tries every one of its candidates ({len(self.candidates)}), and fallback if none is good: give candidates"
        )

    def search(self, runner: Runner, space: Space) -> Trial | None:
        """The trial chosen, or None if the fallback loses too much as well."""
        trials = runner.run(self._settings(space), "candidate")
        scored = [(self.score(trial, runner), trial) for trial in trials if trial.fits]
        best = max(scored, key=lambda pair: pair[0], default=(0.0, None))
        if best[1] is not None and best[0] > 0:
            return best[1]
        [last] = runner.run([self._fallback(space)], "fallback")
        return last if last.fits else None

    def score(self, trial: Trial, runner: Runner) -> float:
        """Equation 3."""
        # Metrics that nothing limits are recorded; they decide nothing.
        names = runner.max_loss or trial.losses
        phi = -100 * max(self._loss(trial.losses[name], runner.original[name]) for name in names)
        return self.alpha * phi + self.beta * runner.subject.n_bytes / trial.n_bytes

    def _loss(self, loss: float, original: float) -> float:
        # A divergence from the original is 0 for the original: nothing is relative to that.
        return loss if self.phi == "points" or not original else loss / abs(original)

    def _settings(self, space: Space) -> list[Codings]:
        if isinstance(space, Options):
            return [space.at(i) for i in range(len(space.values))]
        if isinstance(space, Bounds):
            return [self._bounded(space, eps) for eps in self.candidates]
        return [space.at(0)]

    def _fallback(self, space: Space) -> Codings:
        return self._bounded(space, self.fallback) if isinstance(space, Bounds) else space.at(space.low)

    @staticmethod
    def _bounded(space: Bounds, eps: float) -> Codings:
        return Codings(space.coding.with_bound(KINDS[space.kind](eps)))
