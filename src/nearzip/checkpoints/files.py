"""Opening and writing checkpoint files, whatever their format, tensor by tensor."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping

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


class _Plan:
    """What is written: in which format, which of the tensors, and what is lost."""

    def __init__(
        self,
        path: Output,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str],
        tree: str | None,
        read: Callable[[str], Array] | None,
        ending: str | None,
    ):
        self.name = os.fspath(path) if isinstance(path, (str, os.PathLike)) else getattr(path, "name", "stream")
        if read is not None:
            tree, long_name = full_tree(tree, read)
            specs = {name: spec for name, spec in specs.items() if name != long_name}
        self.format: Format
        self.lost: list[str]
        self.members: list[Member] | None = None
        members = members_of(tree, specs)
        if members is not None:
            if self._is_for_folder(path, ending):
                self.members, self.specs, self.tree, self.lost = members, dict(specs), tree, []
                check_members(members, self.specs, self.name)
                return
        elif os.path.isdir(self.name) and not is_stream(path):
            raise UsageError(f"{self.name}: is a directory; give a file name")
        kind = tree_kind(tree)
        if is_stream(path) and ending is None:
            ending = ".safetensors"
        self.format = format_for(self.name if ending is None else f"file{ending}", kind)
        if self.format.name == kind:  # which also holds what else was in the file
            self.format = BY_NAME["embedded"]
        self.lost = []
        if self.format.name not in (kind, "embedded"):
            attached = set(files_of(tree).get("attached", ()))
            self.lost += [f"the rest of the {kind} file"] if kind else _file_names(attached)
            specs = {name: spec for name, spec in specs.items() if name not in attached}
            tree = None if attached or files_of(tree) else tree
            if self.format.name != BY_NAME["PyTorch"].name:
                self.lost += other_values(load_tree(tree)) if tree else []
                tree = None
        if self.format.name != "safetensors":
            self.lost += [f"metadata {key!r}" for key in metadata if key != "format"]
        self.specs, self.tree = dict(specs), tree
        self.format.check(self.name, specs, tree)

    def _is_for_folder(self, path: Output, ending: str | None) -> bool:
        """Whether a name is that of a folder: one is there, or it does not end as files of tensors do."""
        if is_stream(path) or ending is not None:
            return False
        return os.path.isdir(self.name) or not formats_by_ending(self.name)

    def warn(self) -> None:
        """Say what the format cannot hold."""
        if self.lost:
            shown = ", ".join(map(str, self.lost[:4])) + (f" and {len(self.lost) - 4} more" if self.lost[4:] else "")
            noun = "value is" if len(self.lost) == 1 else "values are"
            message = f"{self.name}: this format holds tensors only; {len(self.lost)} other {noun} left out: {shown}"
            warnings.warn(message, stacklevel=4)


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
    _Plan(path, specs, {}, tree, read, ending)


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
    plan = _Plan(path, specs, metadata or {}, tree, read, ending)
    if plan.members is not None:
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
