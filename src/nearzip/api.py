"""The public functions: compress and decompress, in memory and from file to file."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from nearzip.archive import Archive, Progress, WriteReport
from nearzip.attached import attached_names, without_attached
from nearzip.buffers import WriteBuffer
from nearzip.changes import UpdateKept
from nearzip.checkpoints import write_checkpoint
from nearzip.coding import BoundLike, Codings, PlanLike, check_plan, codings_of_plan
from nearzip.digests import checkpoint_id
from nearzip.errors import CorruptError, Error, UpdateLostWarning, UsageError
from nearzip.fileio import Output, atomic_file, check_outputs, naming_errors, naming_memory
from nearzip.frameworks import to_framework
from nearzip.inputs import checkpoint_of, checkpoints_of, open, open_input
from nearzip.limits import Limits
from nearzip.recipes import Retrain, broken_recipes, recipe_types
from nearzip.tensors import Array, Checkpoint, check_text, keeping_last
from nearzip.writing import write_archive

__all__ = ["PlanLike", "compress", "compress_file", "decompress", "decompress_file", "methods", "open"]

Path = str | os.PathLike[str]


def methods() -> dict[str, str]:
    """Name and one-line description of every method, plug-ins' included; for one that cannot be loaded, its error.

    Examples
    --------
    >>> print(methods()["lzma"])
    Baseline: LZMA2 on raw bytes, lossless.
    """
    summaries = {name: recipe.summary() for name, recipe in recipe_types().items()}
    return summaries | {name: str(error) for name, error in broken_recipes().items()}


@dataclass(frozen=True)
class _Request:
    """How a caller wants tensors coded, checked before anything is read: one method for all, or a plan."""

    codings: Codings | None
    plan: PlanLike | None

    @staticmethod
    def of(
        method: str,
        bound: BoundLike | Mapping[str, BoundLike],
        plan: PlanLike | None,
        options: Mapping[str, Any] | None,
        retrain: Retrain | None = None,
    ) -> _Request:
        """Raises UsageError, UnknownMethodError."""
        if plan is None:
            return _Request(Codings.of(method, bound, options), None)
        if bound is not None or options is not None:
            raise UsageError("a plan says bounds and options for every tensor; give a plan or those, not both")
        check_plan(plan)
        if retrain is not None:
            raise UsageError(
                "a plan's codings were found for the tensors as they are; give a plan or retrain, not both"
            )
        return _Request(None, plan)

    def codings_for(self, source: Checkpoint) -> Codings:
        """The codings of a checkpoint's tensors. Raises UsageError for names that it does not have."""
        names = list((without_attached(source) if source.attached else source).specs)
        if self.codings is None:
            assert self.plan is not None
            return codings_of_plan(self.plan, names)
        self.codings.check_names(names)
        return self.codings.for_tensors(names) if self.codings.by_pattern else self.codings

    def prepared(self, source: Checkpoint, retrain: Retrain | None) -> Checkpoint:
        """The tensors to compress: `source`, or what the method and its retraining make of it."""
        if retrain is None or self.codings is None:
            return source
        network = without_attached(source)
        self.codings.check_names(list(network.specs))
        prepared = self.codings.default.recipe.prepare(dict(network.arrays()), retrain)
        rest = {name: source.read(name) for name in source.specs if name not in network.specs}
        made = Checkpoint.of({**prepared, **rest})
        return dataclasses.replace(source, specs=made.specs, read=made.read)


def check_rename(rename: Mapping[str, str] | None, base: object) -> None:
    """Refuse names for a base that is not given, and what are no names."""
    if rename is None:
        return
    if not isinstance(rename, Mapping):
        raise UsageError(f"rename is a mapping of the base's names to the new ones, not {type(rename).__name__}")
    for pair in rename.items():
        for text in pair:
            check_text("names in rename", text)
    if rename and base is None:
        raise UsageError("rename says what tensors of a base are called; give a base")


def _warn_of_another_archive(
    plan: PlanLike | None, source: Checkpoint, base: Checkpoint | None, report: WriteReport
) -> None:
    """A plan's loss was measured on one archive; its settings may be applied to others, its promise not."""
    differs = getattr(plan, "differs", None)
    reason = differs(checkpoint_id(source), base and checkpoint_id(base), report) if callable(differs) else None
    if reason:
        warnings.warn(reason, stacklevel=3)


def warn_of_lost_update(kept: UpdateKept | None, stacklevel: int = 2) -> None:
    """Warn if nearly nothing of a tensor's, or the network's, change against the base is kept."""
    text = None if kept is None else kept.warning()
    if text:
        warnings.warn(text, UpdateLostWarning, stacklevel=stacklevel + 1)


def compress(
    tensors: Mapping[str, Any] | Path,
    base: Mapping[str, Any] | Path | None = None,
    method: str = "nearzip",
    bound: BoundLike | Mapping[str, BoundLike] = None,
    plan: PlanLike | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    retrain: Retrain | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Archive:
    """Compress named tensors, against what the reader already holds if `base` is given.

    Parameters
    ----------
    tensors, base : mapping of str to array, or path
        NumPy arrays, torch tensors, or arrays of other libraries that have `__array__` or DLPack, of any shape;
        float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, integers, bool, complex. Names of mappings
        inside are joined with dots. A path: a checkpoint file, as for `compress_file`. `base` is what the reader has:
        the `restored` of an earlier archive, not the original it was made from. Its tensors may have other names that
        differ in what wrappers such as torch.compile (``_orig_mod.``) or DDP (``module.``) put into them, or in one
        prefix, another floating-point dtype, and more or fewer rows: `Archive.report.matches` says what was matched.
    method : str
        One of `methods()`.
    bound : Bound, str, None, or mapping
        What is promised for every element; None: lossless for "nearzip", the paper's default for the others. A mapping
        gives bounds by tensor name or pattern (`fnmatch`): ``{"*": nz.Absolute(1e-3), "*.bias": nz.Lossless()}``. A
        name comes before patterns, and those in the order given, "*" last. For an update, `nz.Update(0.1)` or
        "upd:0.1": at most a tenth of the rms of the change against `base`.
    plan : PlanLike
        Method and bound for each tensor, in place of `method`, `bound` and `options`; see `tune`. Warns if the plan was
        made for another network or base, or measured on another archive than this.
    options : mapping
        The method's own settings.
    metadata : mapping of str to str
        Kept in the archive as it is.
    rename : mapping of str to str
        What tensors of `base` are called in `tensors`, by whole names or their beginnings: ``{"model.": "encoder."}``.
    retrain : callable
        For the methods that prune: retrain(tensors, hold) gets a dict of arrays, pruned or clustered, and a
        `nearzip.Hold` that says what must stay as it is; it returns the tensors retrained, by the same names.
        `nearzip.torch.finetune` does the holding. Without it, what the options say is pruned and not retrained.
    threads : int or None
        None: `NEARZIP_THREADS`, or all processors. The bytes do not depend on it.
    progress : callable
        Called with bytes done and bytes in all.

    Raises
    ------
    UsageError
        Unsupported input, a bound that the method cannot promise, a bound together with a plan, or a retraining that
        the method has no use for or that changed what it must not.
    UnknownMethodError
        No such method.

    Warns
    -----
    UpdateLostWarning
        The bound is so coarse that nearly nothing of the change against `base` is kept (`Archive.update_kept`).

    Examples
    --------
    >>> import numpy as np, nearzip as nz
    >>> old = {"w": np.linspace(0, 1, 10_000, dtype=np.float32)}
    >>> new = {"w": old["w"] + np.float32(0.003)}
    >>> archive = nz.compress(new, base=old, bound=nz.Absolute(1e-3))
    >>> restored = nz.decompress(archive.to_bytes(), base=old)
    >>> bool(abs(restored["w"] - new["w"]).max() <= 1e-3), archive.ratio > 50
    (True, True)
    """
    request = _Request.of(method, bound, plan, options, retrain)
    check_rename(rename, base)
    with checkpoints_of(tensors, base, metadata) as (opened, reference):
        source = request.prepared(opened, retrain)
        archive = archive_of(source, reference, request.codings_for(source), threads, progress, rename)
        _warn_of_another_archive(plan, source, reference, archive.report)
    warn_of_lost_update(archive.update_kept)
    return archive


def compress_quietly(
    tensors: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    method: str = "nearzip",
    bound: BoundLike | Mapping[str, BoundLike] = None,
    plan: PlanLike | None = None,
    options: Mapping[str, Any] | None = None,
) -> Archive:
    """`compress` without its warnings, for searches and training loops that try settings out."""
    source = checkpoint_of(tensors)
    codings = _Request.of(method, bound, plan, options).codings_for(source)
    return archive_of(source, None if base is None else checkpoint_of(base), codings)


def archive_of(
    source: Checkpoint,
    base: Checkpoint | None,
    codings: Codings,
    threads: int | None = None,
    progress: Progress | None = None,
    rename: Mapping[str, str] | None = None,
) -> Archive:
    """An archive in memory. The arguments are those of `write_archive`."""
    restored: dict[str, Array] = {}
    stream = WriteBuffer(source.n_bytes)
    report = write_archive(source, base, codings, stream, restored.__setitem__, threads, progress, rename=rename)
    _separate(restored, report.index.aliases)
    return Archive(stream.written(), {name: restored[name] for name in source.specs}, report)


def _separate(tensors: dict[str, Array], aliases: Mapping[str, str]) -> None:
    """Give equal tensors, stored once, memory of their own: a caller may write to one of them."""
    for name in aliases:
        if name in tensors:
            tensors[name] = tensors[name].copy()


def decompress(
    archive: Archive | bytes | Path | BinaryIO,
    base: Mapping[str, Any] | Path | None = None,
    limits: Limits | None = None,
    *,
    framework: str = "np",
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """All tensors of an archive, bit for bit what `archive.restored` was when it was made.

    Parameters
    ----------
    archive : Archive, bytes, path, URL or binary stream
    base : mapping of str to array, or path of a checkpoint
        What the archive was made against, if anything; ignored if it needs none.
    limits : Limits
        What reading may take; see `Limits`.
    framework : {"np", "pt", "jax"}
        NumPy arrays; PyTorch tensors on the CPU, for `load_state_dict`; or arrays of JAX on its default device.

    Raises
    ------
    WrongBaseError
        The base is missing or another one.
    CorruptError, TruncatedError, NewerFormatError, LimitError
        The archive is damaged, cut short, too new, or larger than the limits or the memory that the process can get.
    """
    with (
        naming_memory("all tensors together"),
        open(archive, base, limits, framework=framework, threads=threads) as reader,
    ):
        tensors = dict(reader.stream(set(reader), progress))
        _separate(tensors, reader.index.aliases)
        return {name: to_framework(tensors[name], framework) for name in reader}


# ---- file to file ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileReport:
    """What `compress_file` did."""

    n_bytes_in: int
    n_bytes: int
    write: WriteReport

    @property
    def ratio(self) -> float:
        return self.n_bytes_in / self.n_bytes


def compress_file(
    src: Path | BinaryIO,
    dst: Output,
    base: Path | BinaryIO | None = None,
    method: str = "nearzip",
    bound: BoundLike | Mapping[str, BoundLike] = None,
    plan: PlanLike | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    restored: Output | None = None,
    rename: Mapping[str, str] | None = None,
    retrain: Retrain | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> FileReport:
    """Compress a checkpoint file, tensor by tensor; memory does not grow with the file.

    Parameters
    ----------
    src, base : path
        A checkpoint of any format that is known, told by its content, or an .nz archive that needs no base. `src` may
        be an open binary stream.
    dst : path or binary stream
        Pipes and streams get all bytes at the end.
    restored : path or binary stream
        Also write what a reader will get, the next base.
    force : bool
        Overwrite outputs that exist. An input is never overwritten.
    retrain : callable
        All tensors are held in memory then.
    method, bound, plan, options, rename, threads, progress
        As for `compress`, whose errors are raised. Outputs are written whole or not at all.
    """
    request = _Request.of(method, bound, plan, options, retrain)
    check_rename(rename, base)
    check_outputs([dst], [src, base, restored], force)
    check_outputs([restored], [src, base, dst], force, folders=True)
    opened = open_input(src)
    reference = None if base is None else open_input(base)
    try:
        source = request.prepared(opened, retrain)
        codings = request.codings_for(source)
        with atomic_file(dst, force=force) as stream:
            if restored is None:
                report = write_archive(source, reference, codings, stream, None, threads, progress, rename=rename)
            else:
                with write_checkpoint(
                    restored, source.specs, source.metadata, source.tree, force, source.read
                ) as writer:
                    keep = writer.write
                    report = write_archive(source, reference, codings, stream, keep, threads, progress, rename=rename)
                    # Neither file appears before the other is safe.
                    with naming_errors("write", dst if isinstance(dst, (str, os.PathLike)) else "output stream"):
                        stream.flush()
                        os.fsync(stream.fileno())
        _warn_of_another_archive(plan, source, reference, report)
        warn_of_lost_update(report.update_kept)
    finally:
        opened.close()
        if reference is not None:
            reference.close()
    return FileReport(source.n_bytes, report.n_bytes, report)


def decompress_file(
    src: Archive | bytes | Path | BinaryIO,
    dst: Output,
    base: Path | BinaryIO | None = None,
    limits: Limits | None = None,
    *,
    keep_going: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    ending: str | None = None,
) -> dict[str, Error]:
    """Restore an archive to a checkpoint file, tensor by tensor.

    Parameters
    ----------
    src : path, URL, bytes, binary stream or Archive
    dst : path or binary stream
        Its ending names the format; streams get .safetensors, or what `ending` says. What the format cannot hold is
        left out with a warning.
    keep_going : bool
        Tensors that cannot be read are left out and returned with their errors; without it the first of them is raised
        and nothing is written.
    ending : str
        The format, such as ".pt", whatever `dst` is called.

    Raises
    ------
    WrongBaseError, CorruptError, LimitError, NewerFormatError
        As `decompress`.
    UsageError
        `dst` exists and `force` is not given, is an input, or cannot hold the tensors.
    """
    check_outputs([dst], [src, base], force, folders=True)
    reference = None if base is None else open_input(base, limits)
    try:
        with open(src, reference, limits, threads=threads) as reader:
            damage: dict[str, Error] = dict(reader.damage()) if keep_going else {}
            # Without all of its tensors no file of another format and no folder can be made again.
            left_out = {*damage, *attached_names(reader.index.tree)} if damage else set()
            specs = {spec.name: spec for spec in reader.index.tensors if spec.name not in left_out}
            if damage and not specs:
                raise CorruptError(f"no tensor can be read; the first error: {next(iter(damage.values()))}")
            tree = None if damage else reader.index.tree
            read = keeping_last(reader.__getitem__)
            with write_checkpoint(dst, specs, reader.metadata(), tree, force, read, ending) as writer:
                for name, array in reader.stream(set(specs), progress):
                    writer.write(name, array)
            return damage
    finally:
        if reference is not None:
            reference.close()
