"""One trial of a search: a network condensed to one share, recovered, stored, restored and evaluated."""

from __future__ import annotations

import contextlib
import copy
import math
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from nearzip.api import compress_quietly, decompress
from nearzip.budget import tune as find_plan
from nearzip.budget.budgets import losses_of, usage_of
from nearzip.budget.evaluators import Evaluation, Evaluator, evaluation_of
from nearzip.budget.intervals import interval
from nearzip.condense.objectives import Objective, tensors_of
from nearzip.condense.recovery import Job, Recovery, load_values, marked
from nearzip.condense.schemes import Prepared, Scheme
from nearzip.condense.training import TrainEpoch, Training, restimate
from nearzip.digests import checkpoint_id
from nearzip.errors import BudgetError, CorruptError
from nearzip.network.fitting import fit
from nearzip.strictjson import Kinds, fields, number
from nearzip.tensors import Array, Checkpoint

__all__ = ["Outcome", "Trial", "Work", "evaluated", "seeded"]

#: The confidence of one standard error of a normal distribution.
_ONE_SIGMA = 0.8413


@dataclass(frozen=True)
class Trial:
    """What was measured of one trial.

    Parameters
    ----------
    keep : float
        Share that was kept.
    seed : int
        Global generators started from it.
    start : float or None
        The share of the trial whose network it began with; None: the original.
    metrics, losses : dict of str to float
        Of what the archive restores; of the recovered network where that is over the budget already.
    usage : float
        The largest share of a budget that was used: at most 1 is within.
    recovered : float
        The same before anything was stored.
    noise : float
        One standard error of the usage, where the evaluator has samples; else 0.
    objective : float or None
        None for a trial over the budget.
    details : dict
        More of the objective.
    n_bytes : int or None
        Of the archive.
    network_id : str
        Content id of the recovered tensors.
    shapes : dict of str to list
        Shapes that differ from the original's.
    nonzeros : float
        Share of the original's weights that are not zero.
    epochs : int
    seconds : float
    """

    keep: float
    seed: int
    start: float | None
    metrics: Mapping[str, float]
    losses: Mapping[str, float]
    usage: float
    recovered: float
    noise: float
    objective: float | None
    details: Mapping[str, Any]
    n_bytes: int | None
    network_id: str
    shapes: Mapping[str, list[int]]
    nonzeros: float
    epochs: int
    seconds: float

    @property
    def fits(self) -> bool:
        return self.usage <= 1

    @property
    def nearly(self) -> bool:
        """Over the budget by no more than the metric's standard error."""
        return not self.fits and self.usage - self.noise <= 1

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        for name in ("usage", "recovered"):
            document[name] = document[name] if math.isfinite(document[name]) else None
        for name in ("metrics", "losses"):
            document[name] = {k: v if math.isfinite(v) else None for k, v in document[name].items()}
        return document

    @staticmethod
    def from_json(document: Any, where: str = "trial") -> Trial:
        """The opposite of `to_json`, for files that others may have written. Raises CorruptError."""
        found = fields(document, where, _KINDS)
        known = {name: found[name] for name in _KINDS if name not in ("usage", "recovered", "metrics", "losses")}
        trial = Trial(
            **known,
            metrics=_with_infinite(found["metrics"], f"{where}, metrics", -math.inf),
            losses=_with_infinite(found["losses"], f"{where}, losses", math.inf),
            usage=math.inf if found["usage"] is None else number(found["usage"], where),
            recovered=math.inf if found["recovered"] is None else number(found["recovered"], where),
        )
        if not 0 < trial.keep <= 1:
            raise CorruptError(f"{where}: keep is no share")
        return trial


_NUMBER = (int, float)
_PERHAPS = (int, float, type(None))
_KINDS: Kinds = {
    "keep": _NUMBER, "seed": int, "start": _PERHAPS, "metrics": dict, "losses": dict, "usage": _PERHAPS,
    "recovered": _PERHAPS, "noise": _NUMBER, "objective": _PERHAPS, "details": dict, "n_bytes": (int, type(None)),
    "network_id": str, "shapes": dict, "nonzeros": _NUMBER, "epochs": int, "seconds": _NUMBER,
}  # fmt: skip


def _with_infinite(values: Mapping[str, Any], where: str, infinite: float) -> dict[str, float]:
    return {name: infinite if value is None else number(value, where) for name, value in values.items()}


@dataclass(frozen=True)
class Outcome:
    """A trial, and its networks.

    Parameters
    ----------
    trial : Trial
    tensors : dict of str to array
        Recovered, not stored.
    archive : bytes or None
        None for a trial over the budget.
    """

    trial: Trial
    tensors: Mapping[str, Array]
    archive: bytes | None


@dataclass(frozen=True)
class Work:
    """All that trials need; it is sent to worker processes with each.

    Parameters
    ----------
    module : torch.nn.Module
        The original.
    max_loss : dict of str to float
        Absolute budgets by metric.
    original : Evaluation
        The original's metrics, with their samples where there are any.
    evaluations : int
        Most trials of the search for a bound, when storing.
    """

    module: nn.Module
    train_epoch: TrainEpoch
    scheme: Scheme
    recover: Recovery
    objective: Objective
    evaluator: Evaluator | None
    max_loss: Mapping[str, float]
    original: Evaluation
    inputs: Any = None
    evaluations: int = 12
    size: int = 0
    bound: Any = field(default=None)

    def measure(self, keep: float, seed: int, start: tuple[float, Mapping[str, Array]] | None = None) -> Outcome:
        """One trial. `start`: share and tensors of the network to begin with; None: the original."""
        begun = time.perf_counter()
        with seeded(seed):
            module, epochs = self._recovered(keep, start)
            tensors = tensors_of(module)
            found = self._judged(tensors, f"the network of keep {keep:.4g}")
            losses, usage, noise = self._lost(found)
            archive, recovered = None, usage
            if usage <= 1:
                archive = self._stored(tensors, losses, seed)
                found = self._judged(decompress(archive), f"the archive of keep {keep:.4g}")
                losses, usage, noise = self._lost(found)
        n_bytes = None if archive is None else len(archive)
        measured = None if archive is None else self.objective.measure(module, self.module, n_bytes)
        trial = Trial(
            keep, seed, None if start is None else start[0], dict(found.metrics), losses, usage, recovered, noise,
            None if measured is None else measured.value, {} if measured is None else dict(measured.details), n_bytes,
            checkpoint_id(Checkpoint.of(tensors)), self._shapes(tensors), self._share(tensors), epochs,
            time.perf_counter() - begun,
        )  # fmt: skip
        return Outcome(trial, tensors, archive)

    def one_shot(self, keep: float, prepared: Prepared) -> float:
        """The usage of the network that is projected and not trained."""
        module = copy.deepcopy(self.module)
        load_values(module, prepared.project(marked(module, prepared), keep))
        restimate(module, self.inputs)
        return self._lost(self._judged(tensors_of(module), f"the untrained network of keep {keep:.4g}"))[1]

    def _recovered(self, keep: float, start: tuple[float, Mapping[str, Array]] | None) -> tuple[nn.Module, int]:
        module = copy.deepcopy(self.module)
        if start is not None:
            fit(module, start[1])
        prepared = self.scheme.prepare(module, _first(self.inputs), self.size or None)
        training = Training(self.train_epoch)
        judge = None if self.evaluator is None else self._score
        return self.recover.run(Job(module, prepared, keep, training, self.inputs, judge)), training.epochs

    def _score(self, module: nn.Module) -> float:
        """Higher is better: what a recovery compares its iterates with."""
        return -self._lost(self._judged(tensors_of(module), "an iterate"))[1]

    def _stored(self, tensors: Mapping[str, Array], losses: Mapping[str, float], seed: int) -> bytes:
        """The archive of recovered tensors: `nearzip.tune` spends what is left of the budget."""
        left = {name: max(0.0, allowed - losses[name]) for name, allowed in self.max_loss.items()}
        if self.evaluator is None or self.bound is not None:
            return compress_quietly(tensors, bound=self.bound).to_bytes()
        try:
            plan = find_plan(tensors, None, "nearzip", self.evaluator, left, evaluations=self.evaluations, seed=seed)
        except BudgetError:
            return compress_quietly(tensors).to_bytes()
        return compress_quietly(tensors, plan=plan).to_bytes()

    def _judged(self, tensors: Mapping[str, Array], what: str) -> Evaluation:
        return Evaluation({}) if self.evaluator is None else evaluated(self.evaluator, tensors, what)

    def _lost(self, found: Evaluation) -> tuple[dict[str, float], float, float]:
        """Losses, usage and its standard error."""
        if self.evaluator is None:
            return {}, 0.0, 0.0
        losses = losses_of(self.original.metrics, found.metrics)
        bounds, noise = dict(losses), 0.0
        for name, allowed in self.max_loss.items():
            own, other = self.original.statistics.get(name), found.statistics.get(name)
            if own is None or other is None or not math.isfinite(losses[name]):
                continue
            if self.evaluator.confidence is not None:
                bounds[name] = interval(own, other, self.evaluator.confidence).upper
            if allowed:
                noise = max(noise, (interval(own, other, _ONE_SIGMA).upper - losses[name]) / allowed)
        return losses, usage_of(bounds, self.max_loss, self.original.metrics), noise if math.isfinite(noise) else 0.0

    def _shapes(self, tensors: Mapping[str, Array]) -> dict[str, list[int]]:
        own = {name: tuple(value.shape) for name, value in self.module.state_dict().items()}
        return {name: list(a.shape) for name, a in tensors.items() if a.shape != own[name]}

    def _share(self, tensors: Mapping[str, Array]) -> float:
        names = [name for name, _ in self.module.named_parameters()]
        total = sum(p.numel() for p in self.module.parameters())
        return sum(int(np.count_nonzero(tensors[name])) for name in names) / max(total, 1)


def _first(inputs: Any) -> Any:
    """One batch of example inputs."""
    return inputs[0] if isinstance(inputs, list) and inputs else inputs


def evaluated(evaluator: Evaluator, tensors: Mapping[str, Array], what: str) -> Evaluation:
    """Metrics of named tensors. Raises UsageError for what is no number, Error if the evaluator raises."""
    return evaluation_of(lambda: evaluator.evaluation({name: array.copy() for name, array in tensors.items()}), what)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from `seed`; afterwards their states are restored."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
