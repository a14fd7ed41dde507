"""How a network is called and its weights are rounded: one value for all calls of `nearzip.calibrate`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.bounds import Bound, Lossless, PointwiseRelative, Update
from nearzip.calibrate.network import Forward, Output
from nearzip.errors import UsageError

__all__ = ["Calibration", "Damping", "check_kept"]

#: So much is rounding to the nearest.
_MAX_DAMPING = 1e6


@dataclass(frozen=True)
class Damping:
    """What is added to the diagonals of the second moments, as shares of their means."""

    inputs: float = 0.1
    gradients: float = 0.3

    def __post_init__(self) -> None:
        if not (0 < self.inputs <= _MAX_DAMPING and 0 < self.gradients <= _MAX_DAMPING):
            raise UsageError(f"damping is positive and at most {_MAX_DAMPING:g}")


@dataclass(frozen=True)
class Calibration:
    """How a network is called on the batches, and how its weights are rounded.

    Parameters
    ----------
    forward : callable
        From module and batch to predictions, if it is not ``module(batch)``.
    output : "logits" or "values"
        What the predictions' last dimension is: unnormalised logarithms of probabilities, or plain numbers.
    n_batches : int
        How many batches are taken, the first ones. The last quarter of them is held back to measure on.
    damping : Damping
    fit_biases : bool
        Whether biases and norms may follow the rounded weights, where that helps on the batches held back.
    memory : int or None
        Bytes of memory that the moments of inputs and gradients may take (about 15 for each weight of a transformer);
        those beyond lie in a temporary file, below `TMPDIR`. The archive is the same. None: no limit.

    Examples
    --------
    >>> Calibration(output="values", n_batches=16).n_batches
    16
    """

    forward: Forward | None = None
    output: Output = "logits"
    n_batches: int = 8
    damping: Damping = field(default_factory=Damping)
    fit_biases: bool = True
    memory: int | None = None

    def __post_init__(self) -> None:
        if type(self.n_batches) is not int or self.n_batches < 1:
            raise UsageError(f"n_batches is a positive number, not {self.n_batches!r}")
        if self.memory is not None and (type(self.memory) is not int or self.memory < 0):
            raise UsageError(f"memory is a number of bytes or None, not {self.memory!r}")

    @staticmethod
    def of(calibration: Calibration | None, separate: Mapping[str, Any], called: str) -> Calibration:
        """`calibration`, or one of its fields given one by one to the function `called`.

        Raises UsageError for both at once, TypeError for a keyword that neither knows. `tune`, the name of `fit_biases`
        until 0.1, is accepted with a DeprecationWarning.
        """
        given = dict(separate)
        if "tune" in given:
            warnings.warn(f"{called}: tune= is now called fit_biases=", DeprecationWarning, stacklevel=3)
            given["fit_biases"] = given.pop("tune")
        unknown = sorted(set(given) - {f.name for f in dataclasses.fields(Calibration)})
        if unknown:
            raise TypeError(f"{called}() got an unexpected keyword argument {unknown[0]!r}")
        if calibration is None:
            return Calibration(**{name: value for name, value in given.items() if (name, value) != ("damping", None)})
        if not isinstance(calibration, Calibration):
            raise UsageError(f"calibration= takes a nearzip.calibrate.Calibration, not {calibration!r}")
        if given:
            raise UsageError(f"give calibration= or {next(iter(given))}=, not both")
        return calibration


def check_kept(bound: Bound) -> Bound:
    """The bound itself. Raises UsageError for one that calibrated rounding does not keep."""
    if isinstance(bound, (Lossless, PointwiseRelative)) or (isinstance(bound, Update) and bound.per != "network"):
        raise UsageError(f"calibration keeps absolute, relative, rms and (per network) update bounds, not {bound}")
    return bound
