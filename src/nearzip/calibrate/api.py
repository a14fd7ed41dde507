"""The public calls: a calibrated archive, in memory or from file to file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor, nn

from nearzip import api
from nearzip.api import FileReport, archive_of
from nearzip.archive import Archive, Progress, WriteReport
from nearzip.bounds import Bound, NoPromise, Statistics, parse_bound
from nearzip.budget import Plan
from nearzip.calibrate.largest_step import largest_step
from nearzip.calibrate.prepared import Prepared
from nearzip.calibrate.rounder import Rounded, Rounder
from nearzip.calibrate.settings import Calibration, Damping, check_kept
from nearzip.checkpoints import write_checkpoint
from nearzip.coding import Codings, codings_of_plan
from nearzip.digests import checkpoint_id
from nearzip.errors import UsageError
from nearzip.fileio import Output as Destination
from nearzip.fileio import atomic_file, check_outputs, naming_errors
from nearzip.inputs import open_input
from nearzip.parallel import number_of_threads
from nearzip.tensors import Checkpoint
from nearzip.writing import write_archive

__all__ = ["compress", "compress_file", "load"]

Path = str | os.PathLike[str]

#: Shares of the work after the sensitivity is gathered, and after everything is rounded.
_GATHERED, _ROUNDED = 0.4, 0.9


def _part(progress: Progress | None, total: int, begin: float, end: float) -> Progress | None:
    """Progress of one part of the work as that of the whole, in bytes."""
    if progress is None:
        return None
    return lambda done, of: progress(int(total * (begin + (end - begin) * done / max(1, of))), total)


def _check(step: float | None, kl: float | None, bound: Bound | str | None) -> Bound:
    """The bound that is kept. Raises UsageError for settings that do not go together."""
    if step is not None and kl is not None:
        raise UsageError("give a step or a divergence (kl) to look for one, not both")
    for name, value in (("step", step), ("kl", kl)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise UsageError(f"{name} is positive and finite, not {value!r}")
    wanted = parse_bound(bound) if isinstance(bound, str) else bound
    if wanted is None:
        if step is None and kl is None:
            raise UsageError("calibration needs to know how far to go: a step, a divergence (kl), a bound, or a plan")
        return NoPromise()
    return check_kept(wanted)


def _own_step(rounder: Rounder) -> float:
    """Without a step: half of what the bound would allow a value, so that there is something to choose from."""
    whole = sum((Statistics.of(array) for array in rounder.tensors.values()), Statistics())
    # All tensors have one, but those that an update bound keeps exact.
    tolerances = [bound.tolerance(whole) for bound in rounder.bounds.values()]
    tolerance = next((each for each in tolerances if each.kind == "absolute"), None)
    if tolerance is None:
        raise UsageError("the bound leaves nothing to round; give a step")
    return tolerance.value


@dataclass(frozen=True)
class _Request:
    """What both ways to compress are asked for."""

    calibration: Calibration
    bound: Bound
    step: float | None
    kl: float | None
    plan: Plan | None
    threads: int
    progress: Progress | None

    @staticmethod
    def of(
        plan: Plan | None,
        step: float | None,
        kl: float | None,
        bound: Bound | str | None,
        calibration: Calibration,
        threads: int | None,
        progress: Progress | None,
    ) -> _Request:
        """Raises UsageError for what does not go together."""
        threads = number_of_threads(threads)
        if plan is None:
            return _Request(calibration, _check(step, kl, bound), step, kl, None, threads, progress)
        found = plan.calibration
        assert found is not None
        calibration = replace(
            calibration, fit_biases=found.fit_biases, damping=Damping(found.inputs, found.gradients),
            n_batches=found.n_batches,
        )  # fmt: skip
        kept = check_kept(plan.chosen.codings.default.bound or NoPromise())
        return _Request(calibration, kept, found.step, None, plan, threads, progress)

    def written(self, n_bytes: int) -> Progress | None:
        """Progress of the part in which the archive is written."""
        return _part(self.progress, n_bytes, _ROUNDED, 1.0)

    def rounded(
        self,
        source: Checkpoint,
        base: Checkpoint | None,
        module: nn.Module,
        batches: Iterable[Any],
        rename: Mapping[str, str] | None = None,
    ) -> tuple[Codings, Rounded]:
        """The codings that store the rounded tensors, and what is known of the rounding."""
        gathered = _part(self.progress, source.n_bytes, 0.0, _GATHERED)
        prepared = Prepared.of(
            source, base, module, batches, self.calibration, self.bound, self.threads, gathered, rename
        )
        step, rounded = self._found(prepared)
        return codings_of_plan(prepared.codings(step, rounded), source.specs), rounded

    def _found(self, prepared: Prepared) -> tuple[float, Rounded]:
        if self.kl is None:
            step = self.step if self.step is not None else _own_step(prepared.rounder)
            return step, prepared.round(step)
        return largest_step(prepared.step_for(self.kl), self.kl, prepared.round, lambda rounded: rounded.divergence)

    def check(self, source: Checkpoint, base: Checkpoint | None, report: WriteReport) -> None:
        """Warns where a plan's loss was measured on something else than what was written."""
        if self.plan is None:
            return
        reason = self.plan.differs(checkpoint_id(source), None if base is None else checkpoint_id(base), report)
        if reason:
            warnings.warn(reason, stacklevel=3)


def _is_ordinary(plan: Plan | None, *others: object) -> bool:
    """Whether there is a plan that needs no calibration. Raises UsageError for a plan together with other settings, and
    for what is no plan.
    """
    if plan is not None and not isinstance(plan, Plan):
        raise UsageError(f"a plan comes from nearzip.calibrate.tune or a file that it wrote, not {plan!r}")
    if plan is not None and any(other is not None for other in others):
        raise UsageError("a plan says step and bound; give a plan or those, not both")
    return plan is not None and plan.calibration is None


def compress(
    module: nn.Module,
    batches: Iterable[Any],
    base: Mapping[str, Any] | None = None,
    *,
    step: float | None = None,
    kl: float | None = None,
    bound: Bound | str | None = None,
    plan: Plan | None = None,
    calibration: Calibration | None = None,
    metadata: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **separate: Any,
) -> Archive:
    """Compress a network, rounding its weights where that changes its outputs on a few batches least.

    The archive is an ordinary one: it decodes without the network, the batches and PyTorch.

    Parameters
    ----------
    module : torch module
        With the weights to compress; left as it was.
    batches : iterable
        Training data, a loader for example: tensors, tuples whose first item is the input, or dicts of keyword
        arguments. The last quarter of those that are used is held back to measure on.
    base : mapping of str to array
        What the reader holds already; see `nearzip.compress`.
    step : float
        Distance between the levels of a weight, geometric mean over the network. Tensors get their own by how much the
        outputs depend on them.
    kl : float
        In place of a step: the most that the outputs may diverge, KL(original || restored) in nats per prediction on
        the batches held back; the coarsest step that keeps it is looked for.
    bound : Bound or str
        A promise for every value besides, absolute, relative or rms, kept against the module's own weights. On its own
        it also chooses the step. Without it nothing is promised for single values.
    plan : Plan
        In place of all three: what `nearzip.calibrate.tune` found for the same module and batches. Its `fit_biases`,
        `damping` and `n_batches` are used. Warns if the archive is not the one that was measured. A plan that needs no
        calibration is applied as by `nearzip.compress`.
    calibration : Calibration
        How the network is called and its weights are rounded.
    **separate
        Its fields one by one, in its place: `forward`, `output`, `n_batches`, `damping`, `fit_biases`, `memory`.
    metadata, rename, threads, progress
        As in `nearzip.compress`.

    Raises
    ------
    UsageError
        Settings that do not go together, no batches, predictions that are not finite.
    BudgetError
        No step keeps `kl`.

    Examples
    --------
    >>> import torch, nearzip as nz
    >>> from nearzip import calibrate
    >>> _ = torch.manual_seed(0)
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    >>> archive = calibrate.compress(network, [torch.randn(64, 8) for _ in range(4)], step=0.05)
    >>> sorted(nz.decompress(archive.to_bytes()))
    ['0.bias', '0.weight', '2.bias', '2.weight']
    """
    api.check_rename(rename, base)
    calibration = Calibration.of(calibration, separate, "compress")
    if _is_ordinary(plan, step, kl, bound):
        state = dict(module.state_dict())
        return api.compress(
            state, base, plan=plan, metadata=metadata, rename=rename, threads=threads, progress=progress
        )
    request = _Request.of(plan, step, kl, bound, calibration, threads, progress)
    source = Checkpoint.of(dict(module.state_dict()), metadata)
    reference = None if base is None else base if isinstance(base, Checkpoint) else Checkpoint.of(base)
    codings, rounded = request.rounded(source, reference, module, batches, rename)
    archive = archive_of(source, reference, codings, request.threads, request.written(source.n_bytes), rename)
    _note(archive.report, rounded)
    request.check(source, reference, archive.report)
    api.warn_of_lost_update(archive.update_kept)
    return archive


def _note(report: WriteReport, rounded: Rounded) -> None:
    report.uncalibrated.update(rounded.plain)
    report.divergence = rounded.divergence


def compress_file(
    src: Path | BinaryIO,
    dst: Destination,
    module: nn.Module,
    batches: Iterable[Any],
    base: Path | BinaryIO | None = None,
    *,
    step: float | None = None,
    kl: float | None = None,
    bound: Bound | str | None = None,
    plan: Plan | None = None,
    calibration: Calibration | None = None,
    restored: Destination | None = None,
    force: bool = False,
    rename: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    **separate: Any,
) -> FileReport:
    """Compress a checkpoint file of `module`'s weights, which are loaded into it. Tensors that the module does not have
    keep every bit. Parameters and errors are those of `compress` and `nearzip.compress_file`.
    """
    api.check_rename(rename, base)
    calibration = Calibration.of(calibration, separate, "compress_file")
    if _is_ordinary(plan, step, kl, bound):
        return api.compress_file(
            src, dst, base, plan=plan, restored=restored, force=force, rename=rename, threads=threads, progress=progress
        )
    request = _Request.of(plan, step, kl, bound, calibration, threads, progress)
    check_outputs([dst, restored], [src, base], force)
    source = open_input(src)
    reference = None if base is None else open_input(base)
    try:
        load(module, source, src)
        codings, rounded = request.rounded(source, reference, module, batches, rename)
        written = request.written(source.n_bytes)
        with atomic_file(dst, force=force) as stream:
            if restored is None:
                report = write_archive(
                    source, reference, codings, stream, None, request.threads, written, rename=rename
                )
            else:
                with write_checkpoint(
                    restored, source.specs, source.metadata, source.tree, force, source.read
                ) as writer:
                    keep = writer.write
                    report = write_archive(
                        source, reference, codings, stream, keep, request.threads, written, rename=rename
                    )
                    with naming_errors("write", str(dst)):
                        stream.flush()
                        os.fsync(stream.fileno())
        _note(report, rounded)
        request.check(source, reference, report)
        api.warn_of_lost_update(report.update_kept)
    finally:
        source.close()
        if reference is not None:
            reference.close()
    return FileReport(source.n_bytes, report.n_bytes, report)


def load(module: nn.Module, source: Checkpoint, path: Path | BinaryIO) -> None:
    """The file's weights into the module. Raises UsageError where they do not fit."""
    from nearzip.network.arrays import to_torch

    state: dict[str, Tensor] = module.state_dict()
    missing = [name for name in state if name not in source.specs]
    if missing:
        raise UsageError(f"{path}: has no tensor {missing[0]!r}, which the network to calibrate with has")
    for name, value in state.items():
        spec = source.spec(name)
        if tuple(value.shape) != spec.shape:
            raise UsageError(f"{path}: {name!r} has shape {list(spec.shape)}, the network's {list(value.shape)}")
    module.load_state_dict({name: to_torch(np.asarray(source.read(name))) for name in state})
