"""Opening and writing checkpoint files, whatever their format, tensor by tensor."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from nearzip.attached import files_of, full_tree, with_long_tree
from nearzip.checkpoints.base import CheckpointWriter, Format
from nearzip.checkpoints.embedded import tree_kind
from nearzip.checkpoints.folder import Member, is_folder, members_of, open_folder
from nearzip.checkpoints.registry import BY_NAME, format_for, format_of, formats_by_ending
from nearzip.checkpoints.values import load_tree, other_values
from nearzip.checkpoints.writing import check_members, writing_folder
from nearzip.errors import UsageError
from nearzip.fileio import Output, Path_, atomic_file, is_stream, naming_errors
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = ["check_writable", "open_checkpoint", "write_checkpoint"]


def open_checkpoint(path: Path_) -> Checkpoint:
    """Open a checkpoint by its content; tensors are read when asked for, from mapped memory where the format allows.

    Raises
    ------
    NotFoundError, UsageError
        No such file; content that is not supported.
    CorruptError
        The file is damaged, truncated or empty.
    """
    with naming_errors("read", path):
        name = os.fspath(path)
        return with_long_tree(open_folder(name) if is_folder(name) else format_of(name).open(name))


@dataclass
class _Plan:
    """What is written: in which format or as which files, which of the tensors, and what is lost."""

    name: str
    specs: dict[str, TensorSpec]
    tree: str | None
    format: Format | None = None
    members: list[Member] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def warn(self) -> None:
        """Say what the format cannot hold."""
        if self.lost:
            shown = ", ".join(self.lost[:4]) + (f" and {len(self.lost) - 4} more" if self.lost[4:] else "")
            noun = "value is" if len(self.lost) == 1 else "values are"
            message = f"{self.name}: this format holds tensors only; {len(self.lost)} other {noun} left out: {shown}"
            warnings.warn(message, stacklevel=4)


def _planned(
    path: Output,
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    tree: str | None,
    read: Callable[[str], Array] | None,
    ending: str | None,
) -> _Plan:
    """Raises UsageError for a name without a format, or one that cannot hold the tensors."""
    name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else str(getattr(path, "name", "stream"))
    if read is not None:
        tree, long_name = full_tree(tree, read)
        specs = {each: spec for each, spec in specs.items() if each != long_name}
    if is_stream(path) and ending is None:
        ending = ".safetensors"
    plan = _Plan(name, dict(specs), tree)
    members = members_of(tree, specs)
    if members is not None and ending is None and _is_for_folder(name):
        check_members(members, plan.specs, name)
        plan.members = members
    elif members is None and ending is None and os.path.isdir(name):
        raise UsageError(f"{name}: is a directory; give a file name")
    else:
        _choose_format(plan, name if ending is None else f"file{ending}", metadata)
    return plan


def _is_for_folder(name: str) -> bool:
    """Whether a name is that of a folder: one is there, or it does not end as files of tensors do."""
    return os.path.isdir(name) or not formats_by_ending(name)


def _choose_format(plan: _Plan, name: str, metadata: Mapping[str, str]) -> None:
    """The format that a name asks for, and what it cannot hold."""
    kind = tree_kind(plan.tree)
    form = format_for(name, kind)
    if form.name in (kind, "embedded"):
        form = BY_NAME["embedded"]  # which also holds what else was in the file
    else:
        _leave_out_files(plan, kind)
        if form.name != "PyTorch" and plan.tree is not None:
            plan.lost += other_values(load_tree(plan.tree))
            plan.tree = None
    if form.name != "safetensors":
        plan.lost += [f"metadata {key!r}" for key in metadata if key != "format"]
    form.check(plan.name, plan.specs, plan.tree)
    plan.format = form


def _leave_out_files(plan: _Plan, kind: str | None) -> None:
    """Keep only the network's tensors."""
    content = files_of(plan.tree)
    if content:
        attached = set(content["attached"])
        plan.lost += [f"the rest of the {kind} file"] if kind else _file_names(attached)
        plan.specs = {name: spec for name, spec in plan.specs.items() if name not in attached}
        plan.tree = None


def _file_names(attached: Collection[str]) -> list[str]:
    """Files of a folder, but for those that only say which shard a tensor is in."""
    names = sorted(name.removeprefix("nearzip:file/") for name in attached)
    return [name for name in names if not name.endswith(".index.json")]


class _Some:
    """Passes on the tensors that are announced."""

    def __init__(self, writer: CheckpointWriter, names: Mapping[str, TensorSpec]):
        self._writer, self._names = writer, names

    def write(self, name: str, array: Array) -> None:
        if name in self._names:
            self._writer.write(name, array)


def check_writable(
    path: Output,
    specs: Mapping[str, TensorSpec],
    tree: str | None = None,
    read: Callable[[str], Array] | None = None,
    ending: str | None = None,
) -> None:
    """Raise UsageError if the format of `path` cannot hold these tensors, before any work is done."""
    _planned(path, specs, {}, tree, read, ending)


@contextlib.contextmanager
def write_checkpoint(
    path: Output,
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str] | None = None,
    tree: str | None = None,
    force: bool = False,
    read: Callable[[str], Array] | None = None,
    ending: str | None = None,
    quiet: bool = False,
) -> Iterator[CheckpointWriter]:
    """A writer for the format that the ending names. The file appears when the block ends, whole or not at all.

    Parameters
    ----------
    path : path or binary stream
    specs : mapping
        All tensors that will come, attached ones too.
    metadata, tree
        As of `Checkpoint`. Warns of values that the format cannot hold.
    read : callable
        Gives attached tensors before their turn; needed where `tree` may be stored as one.
    ending : str
        Of the format, in place of the path's own. For streams: .safetensors by default.
    quiet : bool
        Do not warn.

    Raises
    ------
    UsageError
        The ending is not known, the format cannot hold the tensors, or the file exists.
    """
    plan = _planned(path, specs, metadata or {}, tree, read, ending)
    if plan.format is None:
        with writing_folder(plan.name, plan.members, plan.specs, force) as folder_writer:
            yield _Some(folder_writer, plan.specs)
        return
    with (
        atomic_file(path, force=force) as stream,
        plan.format.writing(stream, plan.specs, metadata or {}, plan.tree) as writer,
    ):
        yield _Some(writer, plan.specs)
    if not quiet:
        plan.warn()
