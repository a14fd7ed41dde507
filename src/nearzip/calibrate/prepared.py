"""A checkpoint whose network's sensitivity is known, to be rounded for any step and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from nearzip.archive import Progress
from nearzip.bounds import Bound, Lossless, NoPromise, PointwiseRelative, Update
from nearzip.budget import Assignment, Choice
from nearzip.calibrate.calibration import Calibration, Damping, Rounded, floats_of
from nearzip.calibrate.network import Forward, Output, Runner
from nearzip.calibrate.sensitivity import gather
from nearzip.errors import UsageError
from nearzip.tensors import Array, Checkpoint
from nearzip.updates import absolute_bounds

__all__ = ["How", "Prepared", "check_kept"]


def check_kept(bound: Bound) -> Bound:
    """Itself. Raises UsageError for a bound that calibrated rounding does not keep."""
    if isinstance(bound, (Lossless, PointwiseRelative)) or (isinstance(bound, Update) and bound.per != "network"):
        raise UsageError(f"calibration keeps absolute, relative, rms and (per network) update bounds, not {bound}")
    return bound


@dataclass(frozen=True)
class How:
    """How a network is called and its weights are rounded; `nearzip.calibrate.compress` describes each."""

    bound: Bound
    tune: bool = True
    damping: Damping = field(default_factory=Damping)
    forward: Forward | None = None
    output: Output = "logits"
    n_batches: int = 8

    def __post_init__(self) -> None:
        if type(self.n_batches) is not int or self.n_batches < 1:
            raise UsageError(f"n_batches is a positive number, not {self.n_batches!r}")


@dataclass(frozen=True)
class Prepared:
    """What calibrating leaves to be done once the step is known.

    Parameters
    ----------
    source : Checkpoint
        What is stored: the module's tensors, and perhaps others, which keep every bit.
    base : Checkpoint or None
    calibration : Calibration
        Of the module's tensors, tied ones under their first name.
    ties : dict of str to str
        Names of parameters that are another one's, to the first of them.
    how : How
    """

    source: Checkpoint
    base: Checkpoint | None
    calibration: Calibration
    ties: Mapping[str, str]
    how: How

    @staticmethod
    def of(
        source: Checkpoint,
        base: Checkpoint | None,
        module: nn.Module,
        batches: Iterable[Any],
        how: How,
        threads: int,
        progress: Progress | None = None,
    ) -> Prepared:
        """One pass forward and one back. Raises UsageError for batches that the module cannot be calibrated with."""
        ties = _tied(module)
        known = [name for name in module.state_dict() if name in source.specs and name not in ties]
        tensors = floats_of({name: source.read(name) for name in known})
        runner = Runner(module, batches, how.forward, how.output, how.n_batches)
        sensitivity = gather(runner, progress=progress)
        same = _same_kind(base, tensors)
        bounds = absolute_bounds(source, base, how.bound, list(tensors), threads)
        calibration = Calibration(runner, sensitivity, tensors, same, bounds, how.damping, threads)
        return Prepared(source, base, calibration, ties, how)

    @property
    def known(self) -> frozenset[str]:
        """Names of the tensors that are rounded."""
        return frozenset(
            {*self.calibration.tensors, *(n for n, to in self.ties.items() if to in self.calibration.tensors)}
        )

    def step_for(self, divergence: float) -> float:
        """The step estimated to lead to that divergence. Raises UsageError if nothing is known about it."""
        found = self.calibration.steps.for_divergence(divergence)
        if found is None:
            raise UsageError("the batches use no weights that could be calibrated; give a step")
        return found

    def round(self, step: float) -> Rounded:
        """All tensors of the module, tied ones included."""
        rounded = self.calibration.round(step, self.how.tune)
        for name, to in self.ties.items():
            if to in rounded.tensors:
                rounded.tensors[name], rounded.steps[name] = rounded.tensors[to], rounded.steps[to]
        return rounded

    def assignment(self, step: float, rounded: Rounded) -> Assignment:
        """The settings that store what was rounded."""
        return self._assignment(step, rounded.steps, rounded.tensors)

    def plain(self, step: float) -> Assignment:
        """Settings of nearly the same size without calibrating: each value to its nearest level."""
        steps = self.calibration.plain_steps(step)
        steps |= {name: steps[to] for name, to in self.ties.items() if to in steps}
        return self._assignment(step, steps, None)

    def _assignment(self, step: float, steps: Mapping[str, float], targets: Mapping[str, Array] | None) -> Assignment:
        """Each tensor with its own step; what the network does not know keeps every bit."""
        bound = None if isinstance(self.how.bound, NoPromise) else self.how.bound

        def choice(own: float) -> Choice:
            return Choice("nearzip", {"step": own, "finer": 0.0}, bound)

        exact = Choice("nearzip")
        by_name = {name: choice(steps[name]) if name in steps else exact for name in self.source.specs}
        return Assignment(choice(step), by_name, targets)


def _tied(module: nn.Module) -> dict[str, str]:
    """Names of parameters in the state that are another one's: to the first of them."""
    first: dict[int, str] = {}
    ties = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        ties[name] = first.setdefault(id(parameter), name)
    return {name: to for name, to in ties.items() if name != to}


def _same_kind(base: Checkpoint | None, tensors: Mapping[str, Array]) -> dict[str, Array]:
    if base is None:
        return {}
    found = {name: base.read(name) for name in tensors if name in base.specs}
    return {n: a for n, a in found.items() if (a.dtype, a.shape) == (tensors[n].dtype, tensors[n].shape)}
