"""DeepSZ's choice of error bounds: Jin et al., HPDC 2019, Algorithms 1 and 2 over whole networks, measured."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from nearzip.api import compress_quietly
from nearzip.bounds import Lossless
from nearzip.budget.deepsz.assess import DISTORTION, STARTS, assess_layer, check_starts
from nearzip.budget.deepsz.choices import UNTOUCHED, Chosen, believed, finer_and_finer, most_accurate, neighbours
from nearzip.budget.deepsz.knapsack import Option
from nearzip.budget.spaces import KINDS, Bounds, Space
from nearzip.budget.trial import Trial
from nearzip.budget.trials import Runner
from nearzip.coding import Coding, Codings
from nearzip.errors import BudgetError, UsageError
from nearzip.tensors import is_float

__all__ = ["DeepSzSearch"]

#: The setting of layers that are not being assessed.
_EXACT = Coding("nearzip", {}, Lossless())
#: Layer and bound to loss and bytes.
Known = dict[tuple[str, float], tuple[float, int]]


class _NeedsTestError(Exception):
    """Algorithm 1 needs a test that was not made yet."""

    def __init__(self, bound: float):
        self.bound = bound


@dataclass(frozen=True)
class DeepSzSearch:
    """Assess each layer alone (Algorithm 1), choose by knapsack (Algorithm 2), measure the combined network.

    Layers are the floating-point tensors of two dimensions or more; all others are kept exactly. The loss of the
    combined network is measured on the stored archive; while it is over the budget, the expected loss is cut by a
    quarter and the knapsack solved again, then by halves with losses taken from a layer's other bounds where it lost
    nothing alone. If that ends over the budget too, the best network of all that were measured is taken.

    With `max_bytes` it is the expected-ratio mode: Algorithm 2 chooses the least expected loss among archives of at
    most so many bytes, once with the losses that were measured, once with those that are likely beside a layer's other
    bounds (what lost nothing alone is free to the former, however coarse). Losses add up to more than their sum where
    layers share what they can take, so from the better of the two it goes on: one layer finer or coarser, the others by
    the knapsack, as long as the best of these loses less. Of all networks measured that are small enough, the one that
    loses least is taken. A budget for the loss may be given besides; without one, a layer is
    assessed until nothing is left of it.

    Parameters
    ----------
    starts : sequence of float
        Error bounds to begin with.
    distortion : float
        Loss above which Algorithm 1 ends the search for a range, in evaluate's units (the paper's 0.1 %). With several
        metrics, losses are counted as shares of their budgets, and it is one half.
    most_tests, most_combined : int
        Tests of one layer, and combined networks that are measured.
    max_bytes : int or None
        Of the whole archive.
    """

    starts: Sequence[float] = STARTS
    distortion: float = DISTORTION
    most_tests: int = 60
    most_combined: int = 10
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(float(start) for start in self.starts))
        check_starts(self.starts)
        if not 0 <= self.distortion < math.inf:
            raise UsageError(f"distortion is a loss, a number from 0 on, not {self.distortion!r}")
        for name in ("most_tests", "most_combined", "max_bytes"):
            value = getattr(self, name)
            if not (type(value) is int and value > 0) and (name, value) != ("max_bytes", None):
                raise UsageError(f"{name} is a positive number, not {value!r}")

    @property
    def ends(self) -> str:
        """How a search ends, for messages."""
        return (
            f"ends with its own algorithms, after at most most_tests={self.most_tests} tests of each layer and "
            f"most_combined={self.most_combined} combined networks"
        )

    def search(self, runner: Runner, space: Space) -> Trial | None:
        """The smallest combined network within the budget; None if there is none.

        With `max_bytes` the one that loses least. Raises BudgetError if none is so small.
        """
        if not isinstance(space, Bounds):
            raise UsageError(f"the strategy 'deepsz' chooses error bounds; {space.at(0).default} has none to choose")
        layers = [name for name, a in space.subject.tensors.items() if a.ndim > 1 and is_float(a.dtype)]
        if not layers:
            raise UsageError("the strategy 'deepsz' needs a floating-point tensor of two dimensions or more")
        if not runner.max_loss and len(runner.original) > 1:
            raise UsageError(f"evaluate returns {', '.join(sorted(runner.original))}: max_loss says which one counts")
        options = self._assessed(runner, space, layers)
        if self.max_bytes is None:
            return self._combined(runner, space, options)
        return self._small(runner, space, options, self.max_bytes)

    # ---- Algorithm 1 -------------------------------------------------------------------------------------------

    def _assessed(self, runner: Runner, space: Bounds, layers: Sequence[str]) -> dict[str, list[Option]]:
        """Options of every layer. All layers are assessed in parallel, one test of each at a time."""
        known: Known = {}
        while True:
            found = {layer: self._assess(runner, space, layer, known) for layer in layers}
            needed = [(layer, bound) for layer, bound in found.items() if isinstance(bound, float)]
            if not needed:
                return {n: [*o, self._untouched(space, n)] for n, o in found.items() if isinstance(o, list)}
            trials = runner.run([_one_layer(space, *test) for test in needed], "assess")
            for test, trial in zip(needed, trials, strict=True):
                known[test] = (_loss(runner, trial), _layer_bytes(space, *test))

    def _assess(self, runner: Runner, space: Bounds, layer: str, known: Known) -> list[Option] | float:
        """Algorithm 1 for one layer on the tests known so far: its options, or the bound to be tested next."""

        def test(name: str, bound: float) -> tuple[float, int]:
            if (name, bound) not in known:
                raise _NeedsTestError(bound)
            return known[name, bound]

        distortion = 0.5 if _metric(runner) is None else self.distortion
        # Where no loss is too much, a bound that leaves nothing of the layer is the last one.
        limits = (_allowed(runner), math.inf) if runner.max_loss else (sys.float_info.max, space.largest(layer))
        try:
            return assess_layer(layer, test, limits[0], self.starts, distortion, self.most_tests, limits[1])
        except _NeedsTestError as missing:
            return missing.bound

    def _untouched(self, space: Bounds, layer: str) -> Option:
        return Option(UNTOUCHED, 0.0, _bytes(space, layer, _EXACT))

    # ---- Algorithm 2 -------------------------------------------------------------------------------------------

    def _combined(self, runner: Runner, space: Bounds, options: Mapping[str, Sequence[Option]]) -> Trial | None:
        """The first choice within the budget; if there is none, the best of all trials."""
        for chosen in islice(finer_and_finer(options, _allowed(runner)), self.most_combined):
            [trial] = runner.run([_network(space, chosen)], "combined")
            if trial.fits:
                return trial
        return runner.best

    def _small(
        self, runner: Runner, space: Bounds, options: Mapping[str, Sequence[Option]], max_bytes: int
    ) -> Trial | None:
        """The trial that loses least, of all that are small enough."""
        subject = space.subject
        likely = believed(options, _allowed(runner) if runner.max_loss else None)

        def size_of(chosen: Chosen) -> int:
            return compress_quietly(subject.tensors, subject.seen, plan=_network(space, chosen)).nbytes

        tried: list[tuple[Chosen, Trial]] = []

        def measure(choices: Iterable[Chosen]) -> None:
            known = [_bounds(chosen) for chosen, _ in tried]
            new = {bounds: one for one in choices if (bounds := _bounds(one)) not in known}
            these = list(new.values())[: self.most_combined - len(tried)]
            trials = runner.run([_network(space, one) for one in these], "combined")
            tried.extend(zip(these, trials, strict=True))

        def order(trial: Trial) -> tuple[bool, bool, float, int]:
            return trial.n_bytes > max_bytes, not trial.fits, _loss(runner, trial), trial.n_bytes

        measure(most_accurate(rows, max_bytes, size_of) for rows in (options, likely))
        start = None
        while len(tried) < self.most_combined:
            best_chosen, trial = min(tried, key=lambda pair: order(pair[1]))
            if trial is start or (trial.fits and _loss(runner, trial) <= 0):
                break
            start = trial
            measure(neighbours(likely, best_chosen, max_bytes, size_of))
        small = [trial for trial in runner.trials if trial.n_bytes <= max_bytes]
        best = min(small, key=order, default=None)
        if best is not None and not best.fits:
            losses = ", ".join(f"{name} {best.losses[name]:.6g} of {x:g}" for name, x in runner.max_loss.items())
            raise BudgetError(
                f"no network of at most {max_bytes} bytes is within the budget after {len(runner.trials)} trials; the "
                f"best reached, {best.codings}, takes {best.n_bytes} bytes and loses {losses or 'everything'}; "
                "allow more bytes or more loss"
            )
        return best


def _bounds(chosen: Mapping[str, Option]) -> tuple[float, ...]:
    """What a choice is known by: its losses depend on who made it."""
    return tuple(option.bound for option in chosen.values())


def _network(space: Bounds, chosen: Mapping[str, Option]) -> Codings:
    bounds = {name: KINDS[space.kind](option.bound) for name, option in chosen.items() if option.bound != UNTOUCHED}
    return Codings(_EXACT, {name: space.coding.with_bound(bound) for name, bound in bounds.items()})


def _one_layer(space: Bounds, layer: str, bound: float) -> Codings:
    return Codings(_EXACT, {layer: space.coding.with_bound(KINDS[space.kind](bound))})


def _metric(runner: Runner) -> str | None:
    """The only limited metric; None if there are several."""
    names = list(runner.max_loss or runner.original)
    return names[0] if len(names) == 1 else None


def _loss(runner: Runner, trial: Trial) -> float:
    """The loss in the metric's units if only one is limited, else the largest share of a budget."""
    metric = _metric(runner)
    return trial.usage if metric is None else trial.losses[metric]


def _allowed(runner: Runner) -> float:
    metric = _metric(runner)
    return 1.0 if metric is None else runner.max_loss[metric]


def _layer_bytes(space: Bounds, layer: str, bound: float) -> int:
    return _bytes(space, layer, space.coding.with_bound(KINDS[space.kind](bound)))


def _bytes(space: Bounds, layer: str, coding: Coding) -> int:
    """Bytes of an archive that holds only that layer."""
    subject = space.subject
    return compress_quietly({layer: subject.tensors[layer]}, subject.seen, plan=Codings(coding)).nbytes
