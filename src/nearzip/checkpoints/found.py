"""Formats that are read by finding where their tensors are, and written back from the frame around them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from nearzip.checkpoints.base import CheckpointWriter
from nearzip.checkpoints.embedded import Checksum, Embedded, EmbeddedFormat, open_embedded, tree_kind
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Checkpoint, TensorSpec

__all__ = ["Find", "FoundFormat"]

#: find(path): the tensors of a file, and checksums that cover them. Raises CorruptError, UsageError.
Find = Callable[[str], tuple[Sequence[Embedded], Sequence[Checksum]]]


@dataclass(frozen=True)
class FoundFormat:
    """A format with a function that finds its tensors."""

    name: str
    endings: tuple[str, ...]
    find: Find
    recognize: Callable[[str, bytes], bool]
    #: What the names of an optimizer's state begin with: exact, unless a bound names it.
    states: tuple[str, ...] = ()

    def recognizes(self, path: str, head: bytes) -> bool:
        return self.recognize(path, head)

    def open(self, path: str) -> Checkpoint:
        try:
            tensors, checksums = self.find(path)
        except (CorruptError, UsageError) as error:
            if str(error).startswith(path):
                raise
            what = f"not a readable {self.name} file: " if isinstance(error, CorruptError) else ""
            raise type(error)(f"{path}: {what}{error}") from None
        exact = [each.name for each in tensors if each.name.startswith(self.states)] if self.states else []
        return open_embedded(path, self.name, tensors, checksums, exact)

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        if tree_kind(tree) != self.name:
            raise UsageError(
                f"{path}: a {self.name} file can only be made from the archive of one; write .safetensors or .npz"
            )
        EmbeddedFormat().check(path, specs, tree)

    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> contextlib.AbstractContextManager[CheckpointWriter]:
        return EmbeddedFormat().writing(stream, specs, metadata, tree)
