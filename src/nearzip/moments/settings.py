"""How finely an optimizer's moments are kept, and which keys of its state they have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nearzip.errors import UsageError

__all__ = ["BUFFERS", "MEANS", "ROOTS", "Moments", "is_variance_step"]

#: Second moments, by optimizer state key, and the first moments that are divided by their roots.
ROOTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
MEANS = {"exp_avg": "exp_avg_sq"}
BUFFERS = ("momentum_buffer",)


@dataclass(frozen=True)
class Moments:
    """How finely an optimizer's moments are kept.

    Parameters
    ----------
    mean : float
        Step of Adam's m / (sqrt(v) + eps): the error of what the next update is made of is at most half of it.
        `inf`: first moments are not stored and begin again at zero.
    variance : float
        Step of log2 v: a whole number, or 1/2, 1/4, .. 1/16. v is off by a factor of at most 2^(step / 2). `inf`: what
        has two axes or more is kept as the prediction by row and column, without a promise.
    momentum : float
        Step of SGD's momentum buffer in units of its root mean square. `inf`: not stored.
    unbiased : bool
        Adam's m as restored has the length along m that m has: what rounding to zero takes away of a tensor's next
        updates, its other values make up for. For a `mean` of 2 and more; single values are promised nothing then.

    Examples
    --------
    >>> Moments(mean=0.5, variance=1)
    Moments(mean=0.5, variance=1, momentum=0.5, unbiased=False)
    """

    mean: float = 1.0
    variance: float = 1.0
    momentum: float = 0.5
    unbiased: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "momentum"):
            if not getattr(self, name) > 0:
                raise UsageError(f"moments: the step of {name} is positive, not {getattr(self, name)!r}")
        if not (self.variance == math.inf or is_variance_step(self.variance)):
            raise UsageError(
                f"moments: the step of variance is a whole number up to 64, or 1/2, 1/4, 1/8, 1/16, or inf, "
                f"not {self.variance!r}"
            )


def is_variance_step(step: Any) -> bool:
    """Whether a step of log2 v makes whole levels an octave, or whole octaves a level."""
    return isinstance(step, (int, float)) and (step in (1 / 2, 1 / 4, 1 / 8, 1 / 16) or step in range(1, 65))
