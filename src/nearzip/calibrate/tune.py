"""The smallest calibrated archive within an accuracy budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from nearzip.api import archive_of, check_rename
from nearzip.bounds import Bound, Lossless, NoPromise, parse_bound
from nearzip.budget import CalibratedRounding, Plan, Trial
from nearzip.budget.budgets import MaxLoss
from nearzip.budget.evaluators import Evaluate, evaluator_of, name_of
from nearzip.budget.plan import CALIBRATE
from nearzip.budget.search import search
from nearzip.budget.spaces import Bounds, Space
from nearzip.budget.subject import Network, network_parts
from nearzip.budget.trials import Runner, Watch
from nearzip.budget.tune import check_tuned, evaluations_of, plan_of
from nearzip.caching import cached_property
from nearzip.calibrate.api import load
from nearzip.calibrate.prepared import Prepared
from nearzip.calibrate.settings import Calibration, check_kept
from nearzip.coding import Coding, Codings, codings_of_plan
from nearzip.digests import digest
from nearzip.fileio import Path_
from nearzip.inputs import open_input
from nearzip.network.arrays import digest_of
from nearzip.parallel import number_of_threads
from nearzip.tensors import Checkpoint

__all__ = ["tune", "tune_checkpoint", "tune_file"]

#: The divergence at which a search begins. On five networks the steps that kept 0.2 points of accuracy were 0.8 to 2.5
#: times the one that is estimated for it.
_START = 2e-3
#: At this multiple of the largest difference, every tensor's own step leaves only zeros.
_COARSEST = 128.0


@dataclass(frozen=True)
class CalibratedNetwork(Network):
    """A network whose candidates bring their tensors, rounded by its calibration."""

    calibrated_by: str = ""

    @property
    def rounding(self) -> str:
        return f"{super().rounding} {self.calibrated_by}".lstrip()


@dataclass(frozen=True)
class _Steps(Space):
    """Steps of the network; a position is log2 of the step over `unit`.

    The last one is not calibrated, unless there is a bound to keep: it makes every weight zero, or its base's, which is
    enough for some updates.
    """

    prepared: Prepared
    subject: Network
    unit: float
    low = -12.0
    start = 0.0
    grid = 1 / 16

    @cached_property
    def high(self) -> float:
        largest = self.prepared.rounder.largest_difference / self.unit
        return self.start + max(1, math.ceil(math.log2(max(_COARSEST * largest, 1.0))))

    @property
    def first(self) -> tuple[float, ...]:
        return (self.high,) if self._ends and self.prepared.rounder.base else ()

    @property
    def _ends(self) -> bool:
        return isinstance(self.prepared.bound, NoPromise)

    @cached_property
    def _end(self) -> Codings:
        """A bound beyond every value, of one digit: it takes the fewest bytes in the archive."""
        bounds, specs = Bounds(Coding("nearzip"), "abs", self.subject), self.prepared.source.specs
        end, known = bounds.at(bounds.high), self.prepared.known
        exact = {name: Coding("nearzip") for name in specs if specs[name].is_float and name not in known}
        return replace(end, by_name={**end.by_name, **exact})

    def at(self, position: float) -> Codings:
        if position >= self.high and self._ends:
            return self._end
        step = self._step(position)
        return self.prepared.codings(step, self.prepared.round(step))

    def n_bytes(self, position: float) -> int:
        """Bytes of values rounded to the nearest level, which are nearly as many."""
        source = self.prepared.source
        codings = codings_of_plan(self.prepared.uncalibrated(self._step(position)), source.specs)
        threads, rename = self.prepared.rounder.threads, self.subject.rename
        return archive_of(source, self.prepared.base, codings, threads, rename=rename).nbytes

    @property
    def exact(self) -> Codings:
        return Codings(Coding("nearzip", {}, Lossless()))

    def _step(self, position: float) -> float:
        return float(f"{self.unit * 2.0**position:.3g}")


def tune(
    module: nn.Module,
    batches: Iterable[Any],
    base: Mapping[str, Any] | None = None,
    *,
    evaluate: Evaluate,
    max_loss: MaxLoss,
    evaluations: int | None = None,
    bound: Bound | str | None = None,
    calibration: Calibration | None = None,
    trials: Path_ | None = None,
    seed: int = 0,
    confidence: float | None = None,
    rename: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Watch | None = None,
    **separate: Any,
) -> Plan:
    """Find the step of the smallest calibrated archive within an accuracy budget.

    As `nearzip.tune` with its own strategy, over the archives that `nearzip.calibrate.compress` makes.

    Parameters
    ----------
    module, batches, base, rename, calibration, threads, **separate
        As for `nearzip.calibrate.compress`. Calibrate on other data than `evaluate` scores.
    evaluate, max_loss, evaluations, trials, seed, confidence, progress
        As for `nearzip.tune`; tensors are named as in `module.state_dict()`.
    bound : Bound or str
        A promise for every value that every trial keeps besides, absolute, relative or rms.

    Returns
    -------
    Plan
        For `nearzip.calibrate.compress(module, batches, base, plan=plan)`; `nearzip.compress` refuses it, unless it
        needs no calibration: every bit is kept, or nothing of an update.

    Raises
    ------
    BudgetError, UsageError, Error
        As `nearzip.tune` and `nearzip.calibrate.compress`.

    Examples
    --------
    >>> import torch
    >>> from nearzip import calibrate
    >>> from nearzip.torch import evaluator
    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> batches = [torch.randn(64, 8) for _ in range(4)]
    >>> evaluate = evaluator(network, [torch.randn(256, 8)], "agreement")
    >>> plan = calibrate.tune(network, batches, evaluate=evaluate, max_loss=0.02)
    >>> archive = calibrate.compress(network, batches, plan=plan)
    >>> 1 - evaluate(archive.restored) <= 0.02, archive.nbytes == plan.nbytes
    (True, True)
    """
    wanted = parse_bound(bound) if isinstance(bound, str) else bound
    kept = check_kept(wanted or NoPromise())
    calibration = Calibration.of(calibration, separate, "tune")
    source = Checkpoint.of(dict(module.state_dict()))
    reference = None if base is None else base if isinstance(base, Checkpoint) else Checkpoint.of(base)
    return tune_checkpoint(
        source, reference, module, batches, calibration, kept, evaluate, max_loss,
        evaluations=evaluations, trials=trials, seed=seed, confidence=confidence, rename=rename, threads=threads,
        progress=progress,
    )  # fmt: skip


def tune_checkpoint(
    source: Checkpoint,
    base: Checkpoint | None,
    module: nn.Module,
    batches: Iterable[Any],
    calibration: Calibration,
    bound: Bound,
    evaluate: Evaluate,
    max_loss: MaxLoss,
    *,
    evaluations: int | None = None,
    trials: Path_ | None = None,
    seed: int = 0,
    confidence: float | None = None,
    rename: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Watch | None = None,
) -> Plan:
    """The same for a checkpoint of which `module` has some tensors or all; the others keep every bit."""
    check_tuned(max_loss, seed, confidence)
    most = evaluations_of(evaluations)
    check_rename(rename, base)
    n_threads = number_of_threads(threads)
    prepared = Prepared.of(source, base, module, batches, calibration, bound, n_threads, rename=rename)
    arrays, held = network_parts(dict(source.arrays()), None if base is None else dict(base.arrays()))
    subject = CalibratedNetwork(arrays, held, evaluator_of(evaluate), seed, rename or None, _identity(prepared))
    runner = Runner(subject, max_loss, trials, progress, confidence)
    runner.most = most
    # A divergence that is the budget is what a step can be estimated for.
    space = _Steps(prepared, subject, prepared.step_for(runner.max_loss.get("kl") or _START))
    chosen = runner.settled(lambda: search(runner, space, most))
    strategy = {"name": "nearzip", "knob": "step", "evaluations": most}
    versions = {"torch": torch.__version__}
    return plan_of(runner, chosen, "nearzip", strategy, _made_by(chosen, calibration), versions)


def tune_file(
    source: Checkpoint,
    path: Path_,
    base: Path_ | None,
    module: nn.Module,
    batches: Iterable[Any],
    evaluate: Evaluate,
    max_loss: MaxLoss,
    *,
    calibration: Calibration | None = None,
    **options: Any,
) -> Plan:
    """The same for a file of `module`'s weights, opened as `source`; they are loaded into it.

    `options`: as for `tune_checkpoint`.
    """
    calibration = calibration or Calibration()
    load(module, source, path)
    reference = None if base is None else open_input(base)
    try:
        return tune_checkpoint(
            source, reference, module, batches, calibration, NoPromise(), evaluate, max_loss, **options
        )
    finally:
        if reference is not None:
            reference.close()


def _made_by(chosen: Trial | None, calibration: Calibration) -> dict[str, Any] | None:
    """What made the plan; None if nothing is rounded: every bit is kept, or nothing of an update."""
    step = None if chosen is None else chosen.codings.default.options.get("step")
    if step is None:
        return None
    damping = calibration.damping
    rounding = CalibratedRounding(
        step, calibration.fit_biases, damping.inputs, damping.gradients, calibration.n_batches
    )
    return {"name": CALIBRATE, **asdict(rounding)}


def _identity(prepared: Prepared) -> str:
    """Identity of everything that decides the rounding besides weights and steps: trials of another are not reused."""
    own = prepared.calibration
    data = b"".join(digest_of(batch) for batch in prepared.rounder.predictor.batches)
    parts = (own.fit_biases, own.damping, own.output, prepared.bound, own.forward and name_of(own.forward))
    return f"calibrated {digest(data + repr(parts).encode()).hex()}"
