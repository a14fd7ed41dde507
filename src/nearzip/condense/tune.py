"""The calls: condense a network to a share that is given, or search for the share within an accuracy budget."""

from __future__ import annotations

import copy
import importlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from nearzip.api import decompress
from nearzip.budget.budgets import Budgets, MaxLoss, losses_of, usage_of
from nearzip.budget.evaluators import Evaluate, Evaluation, Evaluator, check_original, evaluator_of
from nearzip.budget.tune import check_tuned
from nearzip.condense.objectives import Objective, tensors_of
from nearzip.condense.recovery import LC, Recovery
from nearzip.condense.result import Archived, Condensed
from nearzip.condense.runner import Runner, Watch, check_folder
from nearzip.condense.schemes import Prepared, Prune, check_keep, scheme_of
from nearzip.condense.search import SAMPLES, candidates, search
from nearzip.condense.training import TrainEpoch, Training
from nearzip.condense.trial import Outcome, Trial, Work, evaluated, seeded
from nearzip.errors import BudgetError, UsageError
from nearzip.fileio import Path_
from nearzip.network.fitting import fit
from nearzip.version import __version__

__all__ = ["STRATEGIES", "compress", "tune"]

STRATEGIES = ("nearzip", "condensa")
#: Trials of the search for a bound, when the recovered network is stored.
_EVALUATIONS = 12


def tune(
    module: nn.Module,
    train_epoch: TrainEpoch,
    *,
    evaluate: Evaluate | None = None,
    max_loss: MaxLoss | None = None,
    scheme: Any = None,
    objective: str | Callable[[nn.Module], Any] | Objective = "bytes",
    inputs: Any = None,
    recover: Recovery | None = None,
    samples: int | None = None,
    trials: Path_ | None = None,
    strategy: str = "nearzip",
    seed: int = 0,
    evaluations: int = _EVALUATIONS,
    progress: Watch | None = None,
    **parameters: Any,
) -> Condensed:
    """Find how much of a network can go within an accuracy budget, and retrain and store what is left.

    Every trial condenses the network to one share, trains it back, stores it within what is left of the budget
    (`nearzip.tune`), restores it from those bytes and evaluates that. Trials run through joblib:
    `with joblib.parallel_config(...)` around the call says where and how many at once.

    Parameters
    ----------
    module : torch.nn.Module
        The trained network. It is not changed: trials work on copies.
    train_epoch : callable
        train_epoch(module), or train_epoch(module, factor of the learning rate): one epoch of your own training of the
        module that it gets, with an optimizer made inside. Gradient accumulation, mixed precision, clipping and fused
        optimizers work; a penalty is added to the gradients before each optimizer step. With trials in processes it
        must be a function of a module.
    evaluate : callable or Evaluator
        As for `nearzip.tune`: takes a dict of arrays in the shapes of the condensed network, higher is better.
        `nearzip.torch.evaluator` makes one that fits itself to the shapes.
    max_loss : float, str or dict
        As for `nearzip.tune`: what pruning and storing may lose together, counted from `module`.
    scheme : Scheme or tuple of them
        `Prune()` by default; `Structure()`, `Quantize()`, or a tuple.
    objective : str, callable or Objective
        "bytes", "flops", "throughput", "nonzeros16", or function(module) -> a number, higher is better.
    inputs : batch, or list of batches
        Example inputs, for `Structure`, for "flops" and "throughput" (the first batch), and for the statistics of batch
        norm. A tuple is (inputs, targets); a mapping goes to the module by keyword.
    recover : Recovery
        `LC(epochs=10)` by default.
    samples : int
        Most trainings: 5 by default, 10 for strategy "condensa".
    trials : path
        A folder where every trial is filed with its networks; a search that was interrupted goes on from there, for the
        same network, scheme, recovery, objective, budget and evaluator. A `train_epoch` that changes under the same
        name needs another folder, or an attribute `identity` (a text).
    strategy : str
        "nearzip": a root finder for the share. "condensa": two phases of Bayesian optimization; read
        `nearzip.condense.condensa` about a patent first.
    seed : int
        Python's, NumPy's and torch's global generators start from it at every trial.
    evaluations : int
        Most trials of the search for a bound, when a network is stored.
    progress : callable
        Called with a `Status` after every trial.
    **parameters
        Of the strategy "condensa": `coordinate`, `accuracy_samples`, `gamma`.

    Returns
    -------
    Condensed

    Raises
    ------
    BudgetError
        No share that was tried is within the budget; the message says the best one reached.
    UsageError
        Invalid argument; a network of which nothing can be removed; a training that cannot work.
    Error
        `train_epoch`, `evaluate` or the objective raised.
    """
    if evaluate is None or max_loss is None:
        raise UsageError("condense.tune needs evaluate, a function of a dict of arrays, and max_loss")
    check_tuned(max_loss, seed)
    finder = _finder(strategy, parameters)
    most = _samples(samples, finder)
    check_folder(trials)
    work, prepared = _work(
        module, train_epoch, evaluate, max_loss, scheme, objective, inputs, recover, seed, evaluations
    )
    if not prepared.prunes:
        raise UsageError(f"the scheme {work.scheme} has no share to search for; condense.compress applies it")
    runner = Runner(work, prepared, most, trials, progress, seed)
    chosen = search(runner, candidates(work, prepared)) if finder is None else finder.search(runner)
    if chosen is None:
        raise _nothing_fits(runner)
    described = {"strategy": strategy, "samples": most, **({} if finder is None else vars(finder))}
    return _condensed(work, prepared, runner.outcome(chosen), runner.trials, runner.stages, seed, described)


def compress(
    module: nn.Module,
    train_epoch: TrainEpoch | None = None,
    *,
    keep: float = 1.0,
    scheme: Any = None,
    evaluate: Evaluate | None = None,
    max_loss: MaxLoss | None = None,
    bound: Any = None,
    objective: str | Callable[[nn.Module], Any] | Objective = "bytes",
    inputs: Any = None,
    recover: Recovery | None = None,
    seed: int = 0,
    evaluations: int = _EVALUATIONS,
) -> Condensed:
    """Condense a network to a share that is given, without a search.

    Parameters
    ----------
    module, train_epoch, scheme, objective, inputs, recover, seed, evaluations
        As for `tune`. Without `train_epoch` nothing is trained.
    keep : float
        The share that is kept, above 0 and at most 1: of weights, or of channels.
    evaluate, max_loss
        As for `tune`. Without both, accuracy is not measured.
    bound : Bound, str or None
        How the tensors are stored, as for `nearzip.compress`. None: within what is left of `max_loss`, or lossless
        without it.

    Returns
    -------
    Condensed

    Raises
    ------
    BudgetError
        The network loses more than `max_loss`; the message says how much.
    UsageError, Error
        As `tune`.
    """
    check_keep(keep)
    if (evaluate is None) != (max_loss is None):
        raise UsageError("evaluate and max_loss go together; give both or none")
    if max_loss is not None:
        check_tuned(max_loss, seed)
    if train_epoch is None:
        if recover is not None:
            raise UsageError("recover= needs train_epoch, the training that it uses")
        train_epoch, recover = _no_training, LC(epochs=0)
    work, prepared = _work(
        module, train_epoch, evaluate, max_loss, scheme, objective, inputs, recover, seed, evaluations, bound
    )
    outcome = work.measure(float(keep), seed)
    if outcome.archive is None:
        raise BudgetError(f"keep {keep:g} {_loses(outcome.trial, work)}; keep more, allow more, or train longer")
    return _condensed(work, prepared, outcome, [outcome.trial], ["given"], seed, {"strategy": "none"})


def _no_training(module: nn.Module) -> None:
    """Stands for the training of a network that is not trained."""


def _finder(strategy: str, parameters: Mapping[str, Any]) -> Any:
    """None: ours."""
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}")
    # By name: the module is loaded only for those who ask for it.
    kind = importlib.import_module("nearzip.condense.condensa").Condensa if strategy == "condensa" else None
    known = () if kind is None else tuple(kind.__dataclass_fields__)
    for name in parameters:
        if name not in known:
            raise UsageError(f"strategy {strategy!r} has no parameter {name!r}; it takes {', '.join(known) or 'none'}")
    return None if kind is None else kind(**parameters)


def _samples(samples: Any, finder: Any) -> int:
    if samples is None:
        return SAMPLES if finder is None else 10
    if type(samples) is not int or samples < 1:
        raise UsageError(f"samples is a positive number, not {samples!r}")
    return samples


def _work(
    module: nn.Module,
    train_epoch: TrainEpoch,
    evaluate: Evaluate | None,
    max_loss: MaxLoss | None,
    scheme: Any,
    objective: Any,
    inputs: Any,
    recover: Recovery | None,
    seed: int,
    evaluations: int,
    bound: Any = None,
) -> tuple[Work, Prepared]:
    """What trials need, checked as far as that goes without a training."""
    if not isinstance(module, nn.Module):
        raise UsageError(f"module is a torch.nn.Module, not {type(module).__name__}")
    Training(train_epoch)
    if recover is not None and not isinstance(recover, Recovery):
        raise UsageError(f"recover is LC(), Gradual() or Direct(), not {recover!r}")
    how = scheme_of(Prune() if scheme is None else scheme)
    first = inputs[0] if isinstance(inputs, list) and inputs else inputs
    aim = objective if isinstance(objective, Objective) else Objective(objective, first)
    own = copy.deepcopy(module)
    prepared = how.prepare(own, first)
    evaluator = None if evaluate is None else evaluator_of(evaluate)
    found = Evaluation({}) if evaluator is None else _original(evaluator, own, seed)
    allowed = Budgets.of(max_loss, found.metrics).allowed
    work = Work(
        own,
        train_epoch,
        how,
        recover or LC(),
        aim,
        evaluator,
        allowed,
        found,
        inputs,
        evaluations,
        prepared.size,
        bound,
    )
    return work, prepared


def _original(evaluator: Evaluator, module: nn.Module, seed: int) -> Evaluation:
    with seeded(seed):
        what = "the original network"
        return check_original(evaluated(evaluator, tensors_of(module), what), what)


def _loses(trial: Trial, work: Work) -> str:
    losses = ", ".join(f"{name} {trial.losses[name]:.6g} of {allowed:g}" for name, allowed in work.max_loss.items())
    return f"loses {losses}"


def _nothing_fits(runner: Runner) -> BudgetError:
    best = min(runner.trials, key=lambda trial: trial.usage)
    return BudgetError(
        f"no share tried is within the budget after {len(runner.trials)} trainings; the best reached, keep "
        f"{best.keep:.4g}, {_loses(best, runner.work)}; allow more, train longer, or give more samples"
    )


def _condensed(
    work: Work,
    prepared: Prepared,
    outcome: Outcome,
    trials: list[Trial],
    stages: list[str],
    seed: int,
    described: Mapping[str, Any],
) -> Condensed:
    """The result, its losses and its objective measured once more on what its archive restores."""
    assert outcome.archive is not None
    tensors = decompress(outcome.archive)
    found = Evaluation({})
    if work.evaluator is not None:
        with seeded(outcome.trial.seed):
            found = evaluated(work.evaluator, tensors, "the condensed network")
    losses = losses_of(work.original.metrics, found.metrics) if found.metrics else {}
    usage = usage_of(losses, work.max_loss, work.original.metrics) if losses else 0.0
    if usage > 1:
        raise UsageError(
            f"the network of keep {outcome.trial.keep:.4g} was within the budget and is not when measured again: "
            f"{_loses(outcome.trial, work)} before, {dict(losses)} now; evaluate is not deterministic, or its trials "
            "were filed with another: fix its seeds and batches, or give another folder"
        )
    module = fit(copy.deepcopy(work.module), tensors).eval()
    before = work.objective.original(work.module)
    after = work.objective.measure(module, work.module, len(outcome.archive))
    versions = {
        "nearzip": __version__, "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
    return Condensed(
        module=module,
        archive=Archived(outcome.archive),
        keep=outcome.trial.keep,
        objective={
            "name": work.objective.name, "before": before.value, "after": after.value,
            "gain": work.objective.gain(before.value, after.value), "details": dict(after.details),
        },
        original_bytes=sum(array.nbytes for array in tensors_of(work.module).values()),
        losses=losses,
        max_loss=work.max_loss,
        metrics=found.metrics,
        original=work.original.metrics,
        chosen=outcome.trial,
        trials=tuple(trials),
        stages=stages,
        notes=prepared.notes,
        described={
            "scheme": str(work.scheme), "recover": str(work.recover), **described, "seed": seed, "versions": versions,
        },
    )  # fmt: skip
