"""Which combined networks DeepSZ's search measures: one option for each layer, chosen by the layers' own tests."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from nearzip.budget.deepsz.knapsack import Option, best_accuracy, smallest
from nearzip.errors import BudgetError

__all__ = ["UNTOUCHED", "believed", "finer_and_finer", "most_accurate", "neighbours"]

#: The bound of the option that keeps a layer unchanged.
UNTOUCHED = 0.0
#: The expected loss is cut by this factor while the combined network loses more than was expected.
_BACK_OFF = 0.75
#: Until it is a thousandth.
_CUTS = 25
#: How often the bytes left for the layers are corrected by the size of the whole archive.
_CORRECTIONS = 10

#: The options of every layer, and one of each.
Layers = Mapping[str, Sequence[Option]]
Chosen = dict[str, Option]


def finer_and_finer(options: Layers, allowed: float) -> Iterator[Chosen]:
    """Choices to measure while the combined network loses too much, each once, with ever finer bounds.

    First the knapsack's, with the expected loss cut by a quarter each time. Options that lost nothing on their own cost
    it nothing, so it may end before the network is within the budget. From there on, the losses are those that the
    layer's other options make likely, and half of the expected loss of the choice before.
    """
    chosen = smallest(options, allowed)
    yield chosen
    for expected in (allowed * _BACK_OFF**k for k in range(1, _CUTS)):
        following = smallest(options, expected)
        if following != chosen:
            chosen = following
            yield chosen
    likely = believed(options, allowed)
    losses = {layer: {option.bound: option.loss for option in row} for layer, row in likely.items()}
    while any(option.bound for option in chosen.values()):
        lost = sum(losses[layer][option.bound] for layer, option in chosen.items())
        chosen = smallest(likely, lost / 2)
        yield chosen


def most_accurate(options: Layers, max_bytes: int, size_of: Callable[[Chosen], int]) -> Chosen:
    """The choice of least expected loss whose archive takes at most `max_bytes` (expected-ratio mode).

    Parameters
    ----------
    options : mapping of layer to its options
    max_bytes : int
        Of the whole archive.
    size_of : callable
        Bytes of the whole archive of a choice. It holds other tensors too, and layers share a header, so the
        bytes that the knapsack may use are corrected by the difference to the archive.

    Raises
    ------
    BudgetError
        No archive is so small; the message says the smallest.
    """
    best = {layer: min(_known(row), key=lambda o: (o.n_bytes, o.loss)) for layer, row in options.items()}
    least = size_of(best)
    if least > max_bytes:
        raise BudgetError(
            f"no choice of error bounds gets down to {max_bytes} bytes; the smallest reached takes {least}; allow more "
            "bytes, or more loss if it is limited"
        )
    available = max_bytes - least + sum(option.n_bytes for option in best.values())
    tried = []
    for _ in range(_CORRECTIONS):
        try:
            chosen = best_accuracy(options, max(0, available))
        except BudgetError:
            break
        if chosen in tried:
            break
        tried.append(chosen)
        n_bytes = size_of(chosen)
        if n_bytes <= max_bytes and _expected(chosen) < _expected(best):
            best = chosen
        available += max_bytes - n_bytes
    return best


def neighbours(
    options: Layers, chosen: Mapping[str, Option], max_bytes: int, size_of: Callable[[Chosen], int]
) -> list[Chosen]:
    """Choices of at most `max_bytes` that differ from `chosen` in one layer, finer or coarser, and in what follows.

    The others are `most_accurate` beside it: bytes that a finer layer takes come from them, and they get those that a
    coarser one saves. Those of least expected loss first.
    """
    found = []
    for layer, now in chosen.items():
        finer = [option for option in options[layer] if option.bound < now.bound]
        coarser = [option for option in options[layer] if option.bound > now.bound and option.loss < math.inf]
        for row in filter(None, (finer, coarser)):
            with contextlib.suppress(BudgetError):
                found.append(most_accurate({**options, layer: row}, max_bytes, size_of))
    return sorted(found, key=_expected)


def believed(options: Layers, allowed: float | None) -> dict[str, list[Option]]:
    """Options with the losses that their neighbours make likely: growing with the bound, with its square at least.

    `allowed`: the loss assumed for the coarsest option of a layer that never lost anything.
    """
    return {layer: _believed(row, allowed or 1.0) for layer, row in options.items()}


def _believed(options: Sequence[Option], allowed: float) -> list[Option]:
    lossy = ((o.bound, o.loss) for o in options if o.bound and 0 < o.loss < math.inf)
    bound, loss = next(lossy, (max(o.bound for o in options), allowed))
    found, least = [], 0.0
    for option in sorted(options, key=lambda o: o.bound):
        if option.loss < math.inf:
            least = max(least, option.loss, loss * (option.bound / bound) ** 2 if option.bound else 0.0)
        found.append(Option(option.bound, least if option.loss < math.inf else math.inf, option.n_bytes))
    return found


def _known(row: Sequence[Option]) -> list[Option]:
    """Options whose loss was a number."""
    return [option for option in row if option.loss < math.inf]


def _expected(chosen: Chosen) -> float:
    return sum(max(0.0, option.loss) for option in chosen.values())
