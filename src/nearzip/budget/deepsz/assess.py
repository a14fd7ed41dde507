"""How much error each layer tolerates: DeepSZ's Algorithm 1, which assesses error bounds one layer at a time.

Jin et al., HPDC 2019, section 3.3. The `return` of the printed algorithm belongs outside its loop over the layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from nearzip.budget.deepsz.knapsack import Option
from nearzip.errors import UsageError

__all__ = ["DISTORTION", "STARTS", "assess", "assess_layer", "check_starts"]

#: Layer and absolute error bound to the accuracy lost with that layer alone compressed, and its bytes.
Test = Callable[[str, float], tuple[float, int]]

#: The bounds that are tried first, in order.
STARTS = (1e-3, 1e-2, 1e-1)
#: Accuracy lost, as a share of 1, above which a network counts as distorted: 0.1 %.
DISTORTION = 1e-3


def assess(
    layers: Sequence[str],
    test: Test,
    max_loss: float,
    starts: Sequence[float] = STARTS,
    distortion: float = DISTORTION,
    most_tests: int = 60,
) -> dict[str, list[Option]]:
    """Losses and sizes of the error bounds worth considering, layer by layer (Algorithm 1).

    Parameters
    ----------
    layers : sequence of str
    test : callable
        test(layer, bound): compress that layer alone with that absolute error bound; returns the accuracy lost and the
        layer's bytes. Called once for each pair.
    max_loss : float
        Expected accuracy loss, in units of the losses: the assessment of a layer ends with the first bound above it.
    starts : sequence of float
        Powers of ten, increasing. The paper notes that 1e-4 can be put in front.
    distortion : float
        The loss above which the search for the range ends (the paper's 0.1 %).
    most_tests : int
        Per layer; the printed algorithm has no end for a layer whose loss never exceeds `max_loss`.

    Returns
    -------
    dict of layer to its options, by increasing bound
        Options over `max_loss` are included, for the record.
    """
    check_starts(starts)
    if not 0 <= max_loss < math.inf:
        raise UsageError(f"an accuracy loss is a number from 0 on, not {max_loss!r}")
    return {layer: assess_layer(layer, test, max_loss, starts, distortion, most_tests) for layer in layers}


def assess_layer(
    layer: str,
    test: Test,
    max_loss: float,
    starts: Sequence[float] = STARTS,
    distortion: float = DISTORTION,
    most_tests: int = 60,
    most_bound: float = math.inf,
) -> list[Option]:
    """`assess` for one layer. The first bound of at least `most_bound` is the last one."""
    tested: dict[float, Option] = {}

    def loss_at(bound: float) -> float:
        if bound not in tested:
            loss, n_bytes = test(layer, bound)
            tested[bound] = Option(bound, loss, n_bytes)
        return tested[bound].loss

    start = next((beta for beta in starts if not loss_at(beta) <= distortion), None)
    # A layer that no start distorts is checked on from the last of them: the printed algorithm leaves it out.
    first = starts[-1] if start is None else start / 10
    for bound in _steps_from(first):
        if len(tested) >= most_tests or not loss_at(bound) <= max_loss or bound >= most_bound:
            break
    return [tested[bound] for bound in sorted(tested)]


def check_starts(starts: Sequence[float]) -> None:
    """Raises UsageError for invalid starting bounds."""
    if not starts or any(not 0 < b < math.inf for b in starts) or list(starts) != sorted(set(starts)):
        raise UsageError(f"error bounds to start from are positive and increasing, not {list(starts)}")


def _steps_from(first: float) -> Iterator[float]:
    """first, 2 first, .. 9 first, 10 first, 20 first, ..: each exactly the number that its decimals say."""
    exponent = round(math.log10(first))
    digit = round(first / 10.0**exponent) or 1
    while True:
        yield float(f"{digit}e{exponent}")
        digit += 1
        if digit == 10:
            digit, exponent = 1, exponent + 1
