"""Writing a folder: each file as its tensors arrive, the whole folder at once in the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from nearzip.checkpoints.base import CheckpointWriter
from nearzip.checkpoints.chunked import ChunkedFormat, Library, is_chunk_file
from nearzip.checkpoints.folder import Member
from nearzip.checkpoints.registry import BY_NAME
from nearzip.errors import CorruptError
from nearzip.fileio import atomic_folder, naming_errors
from nearzip.tensors import Array, TensorSpec

__all__ = ["check_members", "writing_folder"]


def check_members(members: Sequence[Member], specs: dict[str, TensorSpec], path: str) -> None:
    """Raise UsageError or CorruptError for files that could not be written, before any work is done."""
    for member in members:
        if member.format == "bytes":
            if [specs[name].dtype for name in member.tensors] != ["uint8"]:
                raise CorruptError("the description of the folder is damaged: a file is not bytes")
        elif member.format not in BY_NAME:
            raise CorruptError(
                f"the description of the folder names the format {member.format[:40]!r}: upgrade nearzip"
            )
        else:
            BY_NAME[member.format].check(os.path.join(path, member.path), _own(member, specs), member.tree)


def _own(member: Member, specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The tensors of a file under the names that they have in it."""
    own = {}
    for name, theirs in member.tensors.items():
        own[theirs] = TensorSpec(theirs, specs[name].dtype, specs[name].shape)
    if len(own) != len(member.tensors):
        raise CorruptError("the description of the folder is damaged: two tensors of a file have one name")
    return own


@contextlib.contextmanager
def writing_folder(
    path: str, members: Sequence[Member], specs: dict[str, TensorSpec], force: bool
) -> Iterator[CheckpointWriter]:
    """A writer for all files of a folder, which appears when the block ends, whole or not at all."""
    files = {member.path for member in members}
    with (
        atomic_folder(path, files, force, lambda file: is_chunk_file(file, files)) as folder,
        contextlib.ExitStack() as stack,
    ):
        writer = _FolderWriter(folder, members, specs, stack)
        yield writer
        writer.finish()


class _FolderWriter:
    def __init__(
        self, folder: Path, members: Sequence[Member], specs: dict[str, TensorSpec], stack: contextlib.ExitStack
    ):
        self._folder = folder
        self._specs = specs
        self._stack = stack
        self._library = Library()
        stack.callback(self._library.close)
        self._member_of = {name: member for member in members for name in member.tensors}
        self._left = {member.path: len(member.tensors) for member in members}
        self._open: dict[str, tuple[CheckpointWriter, contextlib.ExitStack]] = {}
        self._empty = [member for member in members if not member.tensors]

    def write(self, name: str, array: Array) -> None:
        member = self._member_of[name]
        if member.format == "bytes":
            with self._created(member) as stream:
                stream.write(np.ascontiguousarray(array).data)
            return
        if member.path not in self._open:
            self._start(member)
        writer, closing = self._open[member.path]
        writer.write(member.tensors[name], array)
        self._left[member.path] -= 1
        if not self._left[member.path]:
            del self._open[member.path]
            closing.close()

    def finish(self) -> None:
        """Files without any tensor."""
        for member in self._empty:
            self._start(member)
            self._open.pop(member.path)[1].close()

    def _start(self, member: Member) -> None:
        closing = self._stack.enter_context(contextlib.ExitStack())
        form = BY_NAME[member.format]
        own = _own(member, self._specs)
        if isinstance(form, ChunkedFormat):
            place = self._folder / member.path
            place.parent.mkdir(parents=True, exist_ok=True)
            chunks = closing.enter_context(form.writing_folder(self._library, place, own, member.tree))
            self._open[member.path] = chunks, closing
            return
        stream = closing.enter_context(self._created(member))
        writer = closing.enter_context(form.writing(stream, own, member.metadata, member.tree))
        self._open[member.path] = writer, closing

    @contextlib.contextmanager
    def _created(self, member: Member) -> Iterator[BinaryIO]:
        path = self._folder / member.path
        with naming_errors("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "x+b") as stream:
                yield cast(BinaryIO, stream)
                stream.flush()
                os.fsync(stream.fileno())
