"""Correctness as a training objective: a loss whose weights are found from limits. Needs the extra `torch`."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from nearzip.budget.budgets import Budgets, check_budgets, losses_of
from nearzip.correctness.limited import measures_for
from nearzip.errors import UsageError
from nearzip.measures.measure import Measure, Predictions, check_counts, check_original
from nearzip.torch.evaluator import Evaluator, Predict
from nearzip.torch.observing import Loader

__all__ = ["Objective"]

#: Batches that limits are checked on where no data are given.
_KEPT = 8
#: How far over a limit still counts as how far: a network that is far off would raise a multiplier without measure.
_MAX_OVER = 3.0
#: All multipliers together: the task, whose weight is 1, keeps a share, and a multiplier that was raised for long comes
#: down again as soon as its limit is kept.
_MAX_TOTAL = 8.0

Task = Callable[[Predictions], Tensor]


class Objective:
    """A loss for your training loop that keeps a network's behaviour within limits of the original's.

    ``objective(student, batch)`` is the weighted mean of the loss of the task, whose weight is 1, and of a
    differentiable loss of every measure, whose weight is its multiplier. After every epoch
    ``objective.update(student)`` measures the limited metrics and adapts the multipliers: it raises those whose limit
    is missed, in proportion to the excess, and lowers those whose limit is kept by a margin.

    Parameters
    ----------
    network : torch.nn.Module
        The original.
    limits : mapping of str to float
        The largest loss by metric or pattern, as `max_loss` of `nearzip.tune`: ``{"churn": 0.02, "attribution": 0.3}``.
    measures : sequence of str or Measure
        Measures with options of their own, such as ``Cost(d)``, in place of those that the limits name.
    data : iterable of batches
        The data on which `update` checks the limits. Default: the last eight batches that were trained on.
    task : "cross-entropy", "none" or callable
        The loss of the task; a callable takes `Predictions`. "cross-entropy" takes squared errors where targets are
        real numbers.
    predict, features
        As for `nearzip.torch.evaluator`.
    start, rate : float
        Multipliers at the start, and how fast they grow: a limit missed by its own size raises its multiplier by
        `rate`.
    rows : int
        Samples of each batch on which measures that call the networks again are trained (attributions, boundary,
        robustness): each of them costs several passes.

    Attributes
    ----------
    multipliers : dict of str to float
        By measure.
    losses : dict of str to float
        By limited metric, as `update` measured it last.

    Raises
    ------
    UsageError
        A limit without a measure of that name, or whose measure cannot be trained on.

    Notes
    -----
    Dual ascent: multiplier <- max(0, multiplier + rate * (loss / limit - 1)), with the quotient capped at 4.
    Multipliers that sum to more than 8 are scaled down to it. The loss is a mean, so that the learning rate of plain
    training fits it, however hard limits are to keep. Measures that compare with the original train on its
    probabilities, also "agreement", "churn" and "flips".

    The original gives nearly the same answer as the labels on images that it has learnt by heart: give it what it has
    not seen, such as images shifted and mirrored at random. Norms with running statistics use them while networks are
    called again.

    Examples
    --------
    >>> import torch
    >>> from nearzip.correctness import Objective
    >>> _ = torch.manual_seed(0)
    >>> net, student = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)
    >>> batch = torch.randn(64, 6), torch.randint(3, (64,))
    >>> objective = Objective(net, {"kl": 0.01}, task="none")
    >>> optimizer = torch.optim.SGD(student.parameters(), 0.5)
    >>> for epoch in range(60):
    ...     optimizer.zero_grad()
    ...     objective(student, batch).backward()
    ...     optimizer.step()
    ...     losses = objective.update(student)
    >>> losses["kl"] < 0.01
    True
    """

    def __init__(
        self,
        network: nn.Module,
        limits: Mapping[str, float],
        *,
        measures: Sequence[str | Measure] = (),
        data: Loader | None = None,
        task: str | Task = "cross-entropy",
        predict: Predict | None = None,
        features: str | None = None,
        start: float = 1.0,
        rate: float = 1.0,
        rows: int = 32,
    ):
        check_budgets(limits)
        if not isinstance(limits, Mapping) or not limits:
            raise UsageError("an objective has limits by metric, such as {'churn': 0.02}")
        if isinstance(task, str) and task not in ("cross-entropy", "none"):
            raise UsageError(f"a task is 'cross-entropy', 'none' or a function of Predictions, not {task!r}")
        check_counts("an objective", rows=rows)
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in (start, rate)) or not (
            0 <= start < math.inf and 0 < rate < math.inf
        ):
            raise UsageError("start is a number from 0 on, rate is a positive one")
        self._network, self._predict, self._features = network, predict, features
        self._limits, self._task, self._rate, self._data = dict(limits), task, rate, data
        self._kept: deque[Any] = deque(maxlen=_KEPT)
        wanted = measures_for(limits, measures)
        if not wanted:
            raise UsageError(f"the limits {', '.join(limits)} name no measure; give measures= for metrics of your own")
        self._seen = Evaluator(network, [None], wanted, predict, None, None, features, keep=False)
        self._measures = {str(measure): _of_rows(measure, rows) for measure in self._seen.measures}
        for name, measure in self._measures.items():
            if not measure.trainable:
                raise UsageError(f"measure {name} has no gradient; limits of an objective need one")
        self.multipliers = dict.fromkeys(self._measures, float(start))
        self.losses: dict[str, float] = {}
        self._allowed: Mapping[str, float] = {}

    def __call__(self, student: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch. Raises UsageError for batches that a measure cannot use."""
        if self._data is None:
            self._kept.append(batch)
        seen = self._seen.observed(student, batch)
        assert seen.network is not None
        check_original(seen, "the objective")
        called = replace(seen, network=_with_running_norms(student, seen.network))
        total = self._of_task(seen)
        weight = float(self._task != "none")
        for name, measure in self._measures.items():
            if self.multipliers[name]:
                measure.check(seen)
                total = total + self.multipliers[name] * measure.loss(called)
                weight += self.multipliers[name]
        # A sum would make a limit that is hard to keep an ever larger learning rate.
        return total / (weight or 1.0)

    def update(self, student: nn.Module, tensors: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Check the limits and set the multipliers; once an epoch.

        Parameters
        ----------
        tensors : mapping
            What is checked in place of the student's own tensors: what its archive restores, so that compression
            counts.

        Returns
        -------
        dict of str to float
            The loss of every limited metric.
        """
        data = list(self._kept) if self._data is None else self._data
        if isinstance(data, list) and not data:
            raise UsageError("update comes after some batches of training; or give data=")
        measures = list(self._seen.measures)
        evaluator = Evaluator(self._network, data, measures, self._predict, None, None, self._features, keep=False)
        before, after = evaluator.compared(student.state_dict() if tensors is None else tensors)
        budgets = Budgets.of(self._limits, before.metrics)
        losses = losses_of(before.metrics, after.metrics)
        self.losses = {name: losses[name] for name in budgets.allowed}
        owners = {metric: _owner(metric, self._measures) for metric in budgets.allowed}
        for name in self._measures:
            over = [_over(self.losses[each], budgets.allowed[each]) for each, own in owners.items() if own == name]
            self.multipliers[name] = max(0.0, self.multipliers[name] + self._rate * max(over, default=0.0))
        share = max(1.0, sum(self.multipliers.values()) / _MAX_TOTAL)
        self.multipliers = {name: value / share for name, value in self.multipliers.items()}
        self._allowed = budgets.allowed
        return dict(self.losses)

    @property
    def kept(self) -> bool:
        """Whether `update` found every limit kept."""
        return bool(self.losses) and all(self.losses[name] <= limit for name, limit in self._allowed.items())

    def _of_task(self, seen: Predictions) -> Tensor:
        if callable(self._task):
            return self._task(seen)
        if self._task == "none" or seen.targets is None:
            return seen.logits.sum() * 0.0
        if seen.targets.is_floating_point():
            return functional.mse_loss(seen.logits.flatten(), seen.targets.flatten())
        return functional.cross_entropy(seen.logits, seen.targets)


def _of_rows(measure: Measure, rows: int) -> Measure:
    """For training: on so many rows of a batch, if the measure calls the networks again."""
    found = copy.copy(measure)
    if measure.needs_gradients and hasattr(found, "n"):
        found.n = rows
    return found


def _over(loss: float, limit: float) -> float:
    if not math.isfinite(loss):
        return _MAX_OVER
    return min(_MAX_OVER, loss / limit - 1) if limit else (_MAX_OVER if loss > 0 else 0.0)


def _owner(metric: str, measures: Iterable[str]) -> str | None:
    """The measure that gives a metric: the one of its name, else one of its family."""
    parts = {name: [part.strip() for part in name.split(",")] for name in measures}
    exact = [name for name, own in parts.items() if metric in own]
    family = metric.partition("/")[0]
    related = [name for name, own in parts.items()
               if any(re.split("[/ ]", part)[0] == family for part in own)]  # fmt: skip
    return next(iter(exact + related), None)


@contextlib.contextmanager
def _running_norms(module: nn.Module) -> Iterator[None]:
    norms = [m for m in module.modules() if getattr(m, "track_running_stats", False) and m.training]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def _with_running_norms(module: nn.Module, network: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """A perturbed batch must not move the statistics that the network keeps of its data."""

    def run(batch: Any) -> Tensor:
        with _running_norms(module):
            return network(batch)

    return run
