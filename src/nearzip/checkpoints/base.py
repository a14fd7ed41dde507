"""What every format of checkpoint files offers, and what their readers share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Protocol

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = ["CheckpointWriter", "Format", "mapped", "naming_file"]


class CheckpointWriter(Protocol):
    """Takes the announced tensors in any order, each once."""

    def write(self, name: str, array: Array) -> None: ...


class Format(Protocol):
    """One kind of checkpoint file. Reading never runs code from a file.

    Attributes
    ----------
    name : str
        For messages, and in the documents of folders.
    endings : tuple of str
        The usual ones, lower case.
    """

    @property
    def name(self) -> str: ...

    @property
    def endings(self) -> tuple[str, ...]: ...

    def recognizes(self, path: str, head: bytes) -> bool:
        """Whether a file is of this format, by its first bytes (up to 64) and, if they leave doubt, by more of it."""

    def open(self, path: str) -> Checkpoint:
        """Its tensors, read when asked for. Raises CorruptError, UsageError."""

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        """Raise UsageError if a file of this format cannot hold these tensors."""

    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> contextlib.AbstractContextManager[CheckpointWriter]:
        """A writer; the file is complete when the block ends."""


@contextlib.contextmanager
def naming_file(path: str) -> Iterator[None]:
    """Put the file in front of what is wrong with one of its tensors."""
    try:
        yield
    except (UsageError, CorruptError) as error:
        raise type(error)(f"{path}: {error}") from None


def mapped(path: str) -> Array:
    """A file's bytes, read when they are looked at."""
    try:
        return np.memmap(path, np.uint8, "r")
    except ValueError:  # an empty file
        return np.empty(0, np.uint8)
