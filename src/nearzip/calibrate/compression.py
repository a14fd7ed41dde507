"""The public calls: a calibrated archive, in memory or from file to file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from nearzip.api import FileReport, open_input
from nearzip.archive import Archive, Progress, WriteReport, write_archive
from nearzip.bounds import Bound, Lossless, NoPromise, PointwiseRelative, Statistics, parse_bound
from nearzip.calibrate.calibration import Calibration, Damping, Rounded, floats_of
from nearzip.calibrate.network import Forward, Output, Runner
from nearzip.calibrate.search import largest_step
from nearzip.calibrate.sensitivity import gather
from nearzip.container import Memory
from nearzip.errors import UsageError
from nearzip.files import write_checkpoint
from nearzip.parallel import number_of_threads
from nearzip.recipes import Setting, Settings
from nearzip.recipes.nearzip import Nearzip
from nearzip.storage import atomic_file, check_free, naming_errors
from nearzip.tensors import Array, Checkpoint

__all__ = ["compress", "compress_file"]

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
            raise UsageError("calibration needs to know how far to go: a step, a divergence (kl), or a bound")
        return NoPromise()
    if isinstance(wanted, (Lossless, PointwiseRelative)):
        raise UsageError(f"calibration keeps absolute, relative and rms bounds, not {wanted}")
    return wanted


def _own_step(bound: Bound, tensors: Mapping[str, Array]) -> float:
    """Without a step: half of what the bound would allow a value, so that there is something to choose from."""
    whole = sum((Statistics.of(array) for array in tensors.values()), Statistics())
    tolerance = bound.tolerance(whole)
    if tolerance.kind != "absolute":
        raise UsageError("the bound leaves nothing to round; give a step")
    return tolerance.value


def _found(
    calibration: Calibration, bound: Bound, step: float | None, kl: float | None, tune: bool
) -> tuple[float, Rounded]:
    if kl is None:
        step = step if step is not None else _own_step(bound, calibration.tensors)
        return step, calibration.round(step, tune)
    first = calibration.steps.for_divergence(kl)
    if first is None:
        raise UsageError("the batches use no weights that could be calibrated; give a step")
    return largest_step(first, kl, lambda step: calibration.round(step, tune), lambda rounded: rounded.divergence)


def _settings(step: float, rounded: Rounded, bound: Bound, names: Iterable[str]) -> Settings:
    """Each tensor with its own step; what the network does not know keeps every bit."""
    wanted = None if isinstance(bound, NoPromise) else bound
    others = {name: Setting.of(Nearzip(own, finer=0.0), wanted) for name, own in rounded.steps.items()}
    exact = Setting.of(Nearzip())
    return Settings(Setting.of(Nearzip(step, finer=0.0), wanted), {name: others.get(name, exact) for name in names})


def _same_kind(base: Checkpoint | None, tensors: Mapping[str, Array]) -> dict[str, Array]:
    if base is None:
        return {}
    found = {name: base.read(name) for name in tensors if name in base.specs}
    return {n: a for n, a in found.items() if (a.dtype, a.shape) == (tensors[n].dtype, tensors[n].shape)}


def _targets(source: Checkpoint, rounded: Rounded) -> Checkpoint:
    return Checkpoint(
        source.specs, lambda name: rounded.tensors[name] if name in rounded.tensors else source.read(name)
    )


def _tied(module: nn.Module) -> dict[str, str]:
    """Names of parameters in the state that are another one's: to the first of them."""
    first: dict[int, str] = {}
    ties = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        ties[name] = first.setdefault(id(parameter), name)
    return {name: to for name, to in ties.items() if name != to}


@dataclass(frozen=True)
class _Request:
    """What both ways to compress are asked for."""

    bound: Bound
    step: float | None
    kl: float | None
    tune: bool
    damping: Damping
    forward: Forward | None
    output: Output
    n_batches: int
    threads: int
    progress: Progress | None

    def written(self, n_bytes: int) -> Progress | None:
        """Progress of the part in which the archive is written."""
        return _part(self.progress, n_bytes, _ROUNDED, 1.0)


def _calibrated(
    source: Checkpoint, base: Checkpoint | None, module: nn.Module, batches: Iterable[Any], request: _Request
) -> tuple[Settings, Checkpoint, Rounded]:
    n_batches, bound = request.n_batches, request.bound
    if type(n_batches) is not int or n_batches < 1:
        raise UsageError(f"n_batches is a positive number, not {n_batches!r}")
    ties = _tied(module)
    known = [name for name in module.state_dict() if name in source.specs and name not in ties]
    tensors = floats_of({name: source.read(name) for name in known})
    runner = Runner(module, batches, request.forward, request.output, n_batches)
    sensitivity = gather(runner, progress=_part(request.progress, source.n_bytes, 0.0, _GATHERED))
    known_base = _same_kind(base, tensors)
    calibration = Calibration(runner, sensitivity, tensors, known_base, bound, request.damping, request.threads)
    step, rounded = _found(calibration, bound, request.step, request.kl, request.tune)
    for name, to in ties.items():
        if to in rounded.tensors:
            rounded.tensors[name], rounded.steps[name] = rounded.tensors[to], rounded.steps[to]
    return _settings(step, rounded, bound, source.specs), _targets(source, rounded), rounded


def compress(
    module: nn.Module,
    batches: Iterable[Any],
    base: Mapping[str, Any] | None = None,
    *,
    step: float | None = None,
    kl: float | None = None,
    bound: Bound | str | None = None,
    tune: bool = True,
    damping: Damping | None = None,
    forward: Forward | None = None,
    output: Output = "logits",
    n_batches: int = 8,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Archive:
    """Compress a network, rounding where its own answers on a few batches say that it matters least.

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
        answers depend on them.
    kl : float
        In place of a step: the most that the answers may diverge, KL(original || restored) in nats per prediction on
        the batches held back; the coarsest step that keeps it is looked for.
    bound : Bound or str
        A promise for every value besides, absolute, relative or rms, kept against the module's own weights. On its own
        it also chooses the step. Without it nothing is promised for single values.
    tune : bool
        Whether biases and norms may follow the rounded weights, where that helps on the batches held back.
    damping : Damping
    forward : callable
        From module and batch to predictions, if it is not ``module(batch)``.
    output : "logits" or "values"
        What the predictions' last dimension is: unnormalised logarithms of probabilities, or plain numbers.
    n_batches : int
        How many batches are taken, the first ones.
    metadata, threads, progress
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
    wanted, damping = _check(step, kl, bound), damping or Damping()
    threads = number_of_threads(threads)
    request = _Request(wanted, step, kl, tune, damping, forward, output, n_batches, threads, progress)
    source = Checkpoint.of(dict(module.state_dict()), metadata)
    reference = None if base is None else base if isinstance(base, Checkpoint) else Checkpoint.of(base)
    settings, targets, rounded = _calibrated(source, reference, module, batches, request)
    written = request.written(source.n_bytes)
    restored: dict[str, Array] = {}
    stream = Memory(source.n_bytes)
    report = write_archive(source, reference, settings, stream, restored.__setitem__, threads, written, targets)
    _note(report, rounded)
    own = {name: restored[name].copy() if name in report.index.aliases else restored[name] for name in source.specs}
    return Archive(stream.written(), own, report)


def _note(report: WriteReport, rounded: Rounded) -> None:
    report.plain.update(rounded.plain)
    report.divergence = rounded.divergence


def compress_file(
    src: Path,
    dst: Path,
    module: nn.Module,
    batches: Iterable[Any],
    base: Path | None = None,
    *,
    step: float | None = None,
    kl: float | None = None,
    bound: Bound | str | None = None,
    tune: bool = True,
    damping: Damping | None = None,
    forward: Forward | None = None,
    output: Output = "logits",
    n_batches: int = 8,
    restored: Path | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> FileReport:
    """Compress a checkpoint file of `module`'s weights, which are loaded into it. Tensors that the module does not have
    keep every bit. Parameters and errors are those of `compress` and `nearzip.compress_file`.
    """
    wanted, damping = _check(step, kl, bound), damping or Damping()
    threads = number_of_threads(threads)
    request = _Request(wanted, step, kl, tune, damping, forward, output, n_batches, threads, progress)
    for path in (dst, restored):
        if path is not None:
            check_free(path, force)
    source = open_input(src)
    reference = None if base is None else open_input(base)
    try:
        _load(module, source, src)
        settings, targets, rounded = _calibrated(source, reference, module, batches, request)
        written = request.written(source.n_bytes)
        with atomic_file(dst, force=force) as stream:
            if restored is None:
                report = write_archive(source, reference, settings, stream, None, threads, written, targets)
            else:
                with write_checkpoint(restored, source.specs, source.metadata, source.tree, force) as writer:
                    keep = writer.write
                    report = write_archive(source, reference, settings, stream, keep, threads, written, targets)
                    with naming_errors("write", dst):
                        stream.flush()
                        os.fsync(stream.fileno())
        _note(report, rounded)
    finally:
        source.close()
        if reference is not None:
            reference.close()
    return FileReport(source.n_bytes, report.n_bytes, report)


def _load(module: nn.Module, source: Checkpoint, path: Path) -> None:
    """The file's weights into the module. Raises UsageError where they do not fit."""
    from nearzip.torch.arrays import to_torch

    state: dict[str, Tensor] = module.state_dict()
    missing = [name for name in state if name not in source.specs]
    if missing:
        raise UsageError(f"{os.fspath(path)}: has no tensor {missing[0]!r}, which the network to calibrate with has")
    for name, value in state.items():
        spec = source.spec(name)
        if tuple(value.shape) != spec.shape:
            raise UsageError(
                f"{os.fspath(path)}: {name!r} has shape {list(spec.shape)}, the network's {list(value.shape)}"
            )
    module.load_state_dict({name: to_torch(np.asarray(source.read(name))) for name in state})
