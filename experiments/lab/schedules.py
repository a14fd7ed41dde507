"""Learning rates over a training, and which of its versions are saved."""

from __future__ import annotations

import math
from collections.abc import Callable

#: Name: factor on the learning rate when a share of the steps, 0 <= done < 1, is over. `step`: a tenth from the half
#: on and a hundredth from three quarters on, as He et al. 2016 train ResNet-20.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),
}

Rule = Callable[[int, float], bool]


class DeltaDnnRule:
    """Delta-DNN, section 5.1: save when the test accuracy is the best so far, or the first of every 20 epochs.

    Examples
    --------
    >>> rule = DeltaDnnRule()
    >>> [epoch for epoch, accuracy in enumerate([0.3, 0.5, 0.4, 0.5, 0.6], 1) if rule(epoch, accuracy)]
    [1, 2, 5]
    >>> rule(21, 0.1), rule(22, 0.2)
    (True, False)
    """

    def __init__(self, interval: int = 20):
        self.interval, self.best = interval, -math.inf

    def __call__(self, epoch: int, accuracy: float) -> bool:
        """`epoch` counts from 1."""
        improved = accuracy > self.best
        self.best = max(self.best, accuracy)
        return improved or epoch % self.interval == 1


RULES: dict[str, Callable[[], Rule]] = {"all": lambda: lambda epoch, accuracy: True, "delta-dnn": DeltaDnnRule}


def make_rule(name: str) -> Rule:
    """A fresh rule: it remembers what it has seen."""
    return RULES[name]()
