"""A checkpoint whose network's sensitivity is known, to be rounded for any step and stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nearzip.archive import Progress
from nearzip.bounds import Bound, NoPromise
from nearzip.calibrate.network import Predictor
from nearzip.calibrate.rounder import Rounded, Rounder, floats_of
from nearzip.calibrate.scratch import Scratch
from nearzip.calibrate.sensitivity import gather
from nearzip.calibrate.settings import Calibration
from nearzip.coding import Coding, Codings
from nearzip.errors import UsageError
from nearzip.matching import match_tensors, matched
from nearzip.tensors import Array, Checkpoint
from nearzip.updates import absolute_bounds

__all__ = ["Prepared", "same_kind", "tied"]


@dataclass(frozen=True)
class Prepared:
    """A checkpoint and its rounder: everything but the choice of the step.

    Parameters
    ----------
    source : Checkpoint
        The tensors to store: the module's, and perhaps others, which keep every bit.
    base : Checkpoint or None
    rounder : Rounder
        Of the module's tensors, tied ones under their first name.
    ties : dict of str to str
        Names of parameters that are another one's, to the first of them.
    calibration : Calibration
    bound : Bound
        Kept for every value.
    """

    source: Checkpoint
    base: Checkpoint | None
    rounder: Rounder
    ties: Mapping[str, str]
    calibration: Calibration
    bound: Bound

    @staticmethod
    def of(
        source: Checkpoint,
        base: Checkpoint | None,
        module: nn.Module,
        batches: Iterable[Any],
        calibration: Calibration,
        bound: Bound,
        threads: int,
        progress: Progress | None = None,
        rename: Mapping[str, str] | None = None,
    ) -> Prepared:
        """One pass forward and one back. `rename`: as for `compress`.

        Raises
        ------
        UsageError
            Batches that the module cannot be calibrated with.
        """
        ties = tied(module)
        known = [name for name in module.state_dict() if name in source.specs and name not in ties]
        tensors = floats_of({name: source.read(name) for name in known})
        predictor = Predictor(module, batches, calibration.forward, calibration.output, calibration.n_batches)
        keep = {*predictor.held, *(predictor.fitted if calibration.fit_biases else ())}
        scratch, fits = Scratch(calibration.memory), calibration.fit_biases
        sensitivity = gather(predictor, progress=progress, scratch=scratch, keep=keep, with_norms=fits)
        matches = {} if base is None else match_tensors(source, base, rename)
        same = same_kind(None if base is None else matched(base, source.specs, matches), tensors)
        before = None if base is None else matched(base, source.specs, matches, source.read)
        bounds = absolute_bounds(source, before, bound, list(tensors), threads)
        rounder = Rounder(predictor, sensitivity, tensors, same, bounds, calibration.damping, threads)
        return Prepared(source, base, rounder, ties, calibration, bound)

    @property
    def known(self) -> frozenset[str]:
        """Names of the tensors that are rounded."""
        return frozenset({*self.rounder.tensors, *(n for n, to in self.ties.items() if to in self.rounder.tensors)})

    def step_for(self, divergence: float) -> float:
        """The step estimated to lead to that divergence. Raises UsageError if nothing is known about it."""
        found = self.rounder.steps.for_divergence(divergence)
        if found is None:
            raise UsageError("the batches use no weights that could be calibrated; give a step")
        return found

    def round(self, step: float) -> Rounded:
        """All tensors of the module, tied ones included."""
        rounded = self.rounder.round(step, self.calibration.fit_biases)
        for name, to in self.ties.items():
            if to in rounded.tensors:
                rounded.tensors[name], rounded.steps[name] = rounded.tensors[to], rounded.steps[to]
        return rounded

    def codings(self, step: float, rounded: Rounded) -> Codings:
        """The codings that store what was rounded."""
        return self._codings(step, rounded.steps, rounded.tensors)

    def uncalibrated(self, step: float) -> Codings:
        """Codings of nearly the same size without calibrating: each value to its nearest level."""
        steps = self.rounder.plain_steps(step)
        steps |= {name: steps[to] for name, to in self.ties.items() if to in steps}
        return self._codings(step, steps, None)

    def _codings(self, step: float, steps: Mapping[str, float], substitutes: Mapping[str, Array] | None) -> Codings:
        """Each tensor with its own step; what the network does not know keeps every bit."""
        bound = None if isinstance(self.bound, NoPromise) else self.bound

        # One object for all tensors of a step: each makes its recipe once.
        of_step = {own: Coding("nearzip", {"step": own, "finer": 0.0}, bound) for own in {step, *steps.values()}}
        exact = Coding("nearzip")
        by_name = {name: of_step[steps[name]] if name in steps else exact for name in self.source.specs}
        return Codings(of_step[step], by_name, substitutes=substitutes)


def tied(module: nn.Module) -> dict[str, str]:
    """Names of parameters in the state that are another one's: to the first of them."""
    first: dict[int, str] = {}
    ties = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        ties[name] = first.setdefault(id(parameter), name)
    return {name: to for name, to in ties.items() if name != to}


def same_kind(base: Checkpoint | None, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The base's tensors of the same dtype and shape, which differences are taken to."""
    if base is None:
        return {}
    found = {name: base.read(name) for name in tensors if name in base.specs}
    return {n: a for n, a in found.items() if (a.dtype, a.shape) == (tensors[n].dtype, tensors[n].shape)}
