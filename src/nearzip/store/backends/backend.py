"""What a store asks of the place that holds it. `local` and `remote` give it.

Paths are relative, with slashes, made only by this package: never from a tensor's name or from what a document says.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from nearzip.framing import Source

__all__ = ["Backend", "Entry", "ObjectSink", "Stored"]


class Entry(NamedTuple):
    """One file of a folder. `modified` is in seconds since 1970, by the clock of the place."""

    name: str
    n_bytes: int
    modified: float


class Stored(NamedTuple):
    """An object that was written: its name, the SHA-256 of its bytes in hexadecimal, and its length."""

    name: str
    n_bytes: int


class ObjectSink(Protocol):
    """Takes the bytes of an object that is being written. `stored` is set once the object is in its place."""

    stored: Stored | None

    def write(self, data: bytes) -> int: ...


class Backend(Protocol):
    """Files of one store.

    Every method raises only errors of `nearzip.errors`: NotFoundError for what is not there, Error for a place that
    fails, NoSpaceError for a full one.
    """

    url: str
    can_write: bool
    can_list: bool
    #: Whether `committing` keeps everybody else out.
    commits_alone: bool
    #: Whether `retire` may rename.
    renames: bool
    #: Objects that no version names are in the making for at most so many seconds.
    grace: float

    def read(self, path: str, most: int) -> bytes:
        """The whole file. Raises LimitError if it is longer than `most`."""

    def source(self, path: str, n_bytes: int) -> Source:
        """Random access to a file that is `n_bytes` long."""

    def create(self, path: str, data: bytes) -> bool:
        """Write a file, whole and durable, unless there is one: compare and create. False if there was one."""

    def claim(self, path: str, data: bytes) -> bool:
        """As `create`, for lock files: exclusive on every file system, but neither durable nor seen whole at once."""

    def replace(self, path: str, data: bytes, durable: bool = True) -> None:
        """Write a file, whole, in place of what is there; durable after `settle`, if it is to be."""

    def retire(self, path: str, data: bytes) -> None:
        """As `replace`, durable, for a tombstone; if the disk is full, rename to `path` + '.pruned' instead."""

    def new_object(self, staged: bool = False) -> AbstractContextManager[ObjectSink]:
        """A sink; when the block ends without an error, the object is complete under its name."""

    def delete(self, path: str) -> bool:
        """Remove a file; False if there was none."""

    def list(self, folder: str) -> list[Entry]:
        """The files of a folder. Empty if there is no such folder."""

    def settle(self, folder: str) -> None:
        """Make what was written to the folder durable."""

    def committing(self, timeout: float) -> AbstractContextManager[None]:
        """Held while a version is committed. Raises BusyError after `timeout` seconds."""

    def maintaining(self, timeout: float) -> AbstractContextManager[None]:
        """Exclusive lock, held while versions are re-encoded or dropped. Raises BusyError.

        Where the lock is a lease that was lost meanwhile, whatever would change a file raises BusyError.
        """

    def changed(self) -> bool:
        """Whether another process maintained the store since this was last asked; asked while a lock is held."""

    def now(self) -> float:
        """Seconds since 1970 by the clock that sets `Entry.modified`, as far as it is known."""

    def sweep_litter(self) -> int:
        """Remove files that interrupted writers left, while `maintaining`. Returns how many."""
