"""DeepSZ's choice of error bounds: Jin et al., HPDC 2019, Algorithms 1 and 2 over whole networks, measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from nearzip.api import compress
from nearzip.bounds import Lossless
from nearzip.budget.assess import DISTORTION, STARTS, assess_layer
from nearzip.budget.families import KINDS, Bounds, Family
from nearzip.budget.knapsack import Option, smallest
from nearzip.budget.plan import Assignment, Choice, Trial
from nearzip.budget.trials import Runner
from nearzip.errors import UsageError
from nearzip.tensors import is_float

__all__ = ["DeepSzSearch"]

#: What is not being assessed.
_EXACT = Choice("nearzip", {}, Lossless())
#: An option's number that stands for the layer as it was.
_UNTOUCHED = 0.0
#: The expected loss is cut by this factor while the combined network loses more than was expected.
_BACK_OFF = 0.75
#: Until it is a thousandth.
_CUTS = 25

#: Layer and bound to loss and bytes.
Known = dict[tuple[str, float], tuple[float, int]]


class _NeedsTestError(Exception):
    """Algorithm 1 asks for a test that was not made yet."""

    def __init__(self, bound: float):
        self.bound = bound


@dataclass(frozen=True)
class DeepSzSearch:
    """Assess each layer alone (Algorithm 1), choose by knapsack (Algorithm 2), measure the combined network.

    Layers are the floating-point tensors of two dimensions or more; all others are kept exactly. The loss of the
    combined network is measured on the stored archive; while it is over the budget, the expected loss is cut by a
    quarter and the knapsack solved again, then by halves with losses taken from a layer's other bounds where it lost
    nothing alone. If that ends over the budget too, the best network of all that were measured is taken.

    Parameters
    ----------
    starts : sequence of float
        Error bounds to begin with.
    distortion : float
        Loss above which Algorithm 1 ends the search for a range, in evaluate's units (the paper's 0.1 %). With several
        metrics, losses are counted as shares of their budgets, and it is one half.
    most_tests, most_combined : int
        Tests of one layer, and combined networks that are measured.
    """

    starts: Sequence[float] = STARTS
    distortion: float = DISTORTION
    most_tests: int = 60
    most_combined: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(float(start) for start in self.starts))

    def search(self, runner: Runner, family: Family) -> Trial | None:
        """The smallest combined network within the budget; None if there is none."""
        if not isinstance(family, Bounds):
            raise UsageError(f"the strategy 'deepsz' chooses error bounds; {family.at(0).default} has none to choose")
        layers = [name for name, a in runner.subject.tensors.items() if a.ndim > 1 and is_float(a.dtype)]
        if not layers:
            raise UsageError("the strategy 'deepsz' needs a floating-point tensor of two dimensions or more")
        options = self._assessed(runner, family, layers)
        return self._combined(runner, family, options)

    # ---- Algorithm 1 -------------------------------------------------------------------------------------------

    def _assessed(self, runner: Runner, family: Bounds, layers: Sequence[str]) -> dict[str, list[Option]]:
        """Options of every layer. Layers are assessed beside each other, each from test to test."""
        known: Known = {}
        while True:
            found = {layer: self._assess(runner, layer, known) for layer in layers}
            needed = [(layer, bound) for layer, bound in found.items() if isinstance(bound, float)]
            if not needed:
                return {n: [*o, self._untouched(runner, n)] for n, o in found.items() if isinstance(o, list)}
            trials = runner.run([_one_layer(family, *test) for test in needed], "assess")
            for test, trial in zip(needed, trials, strict=True):
                known[test] = (_loss(runner, trial), _layer_bytes(runner, family, *test))

    def _assess(self, runner: Runner, layer: str, known: Known) -> list[Option] | float:
        """Algorithm 1 for one layer on the tests known so far: its options, or the bound to be tested next."""

        def test(name: str, bound: float) -> tuple[float, int]:
            if (name, bound) not in known:
                raise _NeedsTestError(bound)
            return known[name, bound]

        distortion = self.distortion if len(runner.max_loss) == 1 else 0.5
        try:
            return assess_layer(layer, test, _allowed(runner), self.starts, distortion, self.most_tests)
        except _NeedsTestError as missing:
            return missing.bound

    def _untouched(self, runner: Runner, layer: str) -> Option:
        return Option(_UNTOUCHED, 0.0, _bytes(runner, layer, _EXACT))

    # ---- Algorithm 2 -------------------------------------------------------------------------------------------

    def _combined(self, runner: Runner, family: Bounds, options: Mapping[str, Sequence[Option]]) -> Trial | None:
        """The first choice that keeps the budget; failing all, the best of what was measured on the way."""
        for chosen in islice(_choices(options, _allowed(runner)), self.most_combined):
            by_name = {n: family.choice.with_bound(KINDS[family.kind](o.bound)) for n, o in chosen.items() if o.bound}
            [trial] = runner.run([Assignment(_EXACT, by_name)], "combined")
            if trial.fits:
                return trial
        return runner.best


def _choices(options: Mapping[str, Sequence[Option]], allowed: float) -> Iterator[dict[str, Option]]:
    """What to measure while the combined network loses too much, each choice once, finer and finer.

    First the knapsack's, with the expected loss cut by a quarter each time. Options that lost nothing alone are free to
    it whatever is expected, so it comes to an end before the network is within the budget; from there on losses are
    those that the layer's other options make likely, and half of what the choice before was believed to lose.
    """
    chosen = smallest(options, allowed)
    yield chosen
    for expected in (allowed * _BACK_OFF**k for k in range(1, _CUTS)):
        following = smallest(options, expected)
        if following != chosen:
            chosen = following
            yield chosen
    believed = {layer: _believed(layer_options, allowed) for layer, layer_options in options.items()}
    losses = {layer: {option.bound: option.loss for option in row} for layer, row in believed.items()}
    while any(option.bound for option in chosen.values()):
        lost = sum(losses[layer][option.bound] for layer, option in chosen.items())
        chosen = smallest(believed, lost / 2)
        yield chosen


def _believed(options: Sequence[Option], allowed: float) -> list[Option]:
    """Options with the losses that their neighbours make likely: growing with the bound, with its square at least."""
    lossy = ((o.bound, o.loss) for o in options if o.bound and 0 < o.loss < math.inf)
    bound, loss = next(lossy, (max(o.bound for o in options), allowed or 1.0))
    found, least = [], 0.0
    for option in sorted(options, key=lambda o: o.bound):
        if option.loss < math.inf:
            least = max(least, option.loss, loss * (option.bound / bound) ** 2 if option.bound else 0.0)
        found.append(Option(option.bound, least if option.loss < math.inf else math.inf, option.n_bytes))
    return found


def _one_layer(family: Bounds, layer: str, bound: float) -> Assignment:
    return Assignment(_EXACT, {layer: family.choice.with_bound(KINDS[family.kind](bound))})


def _loss(runner: Runner, trial: Trial) -> float:
    """In evaluate's units if one metric is limited, else the largest share of a budget."""
    if len(runner.max_loss) == 1:
        return trial.losses[next(iter(runner.max_loss))]
    return trial.usage


def _allowed(runner: Runner) -> float:
    return next(iter(runner.max_loss.values())) if len(runner.max_loss) == 1 else 1.0


def _layer_bytes(runner: Runner, family: Bounds, layer: str, bound: float) -> int:
    return _bytes(runner, layer, family.choice.with_bound(KINDS[family.kind](bound)))


def _bytes(runner: Runner, layer: str, choice: Choice) -> int:
    """Of an archive of that layer alone."""
    subject = runner.subject
    return compress({layer: subject.tensors[layer]}, subject.base, plan=Assignment(choice)).nbytes
