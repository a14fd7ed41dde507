"""What a process says of the shard that it wrote, until one of the processes commits all shards of a version."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from nearzip.errors import BusyError, CorruptError, Error, NotFoundError, UsageError
from nearzip.store.backends.backend import Backend
from nearzip.store.documents import MAX_DOCUMENT_BYTES, seal, unseal
from nearzip.store.manifest import Part, parse_part
from nearzip.tensors import DTYPES, TensorSpec

__all__ = [
    "Ticket",
    "check_session",
    "clear_session",
    "oldest_ticket",
    "read_tickets",
    "staged_objects",
    "write_ticket",
]

_SESSION = re.compile(r"[\w-]{1,100}")
#: Shards that stay uncommitted for a day are dropped.
_LONGEST = 86400.0


def check_session(session: str, rank: int, ranks: int) -> str:
    """The name of the shards of one version. Raises UsageError."""
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        raise UsageError(f"a session's name consists of up to 100 letters, digits, - and _, unlike {session!r}")
    if not 0 <= rank < ranks <= 1 << 20:
        raise UsageError(f"invalid rank {rank} of {ranks}; ranks count from 0")
    return session


@dataclass(frozen=True)
class Ticket:
    """What one process wrote.

    Parameters
    ----------
    rank, ranks : int
        Which shard of how many.
    latest : int or None
        The version that was the newest.
    parts : tuple of Part
    tensors : dict of str to (TensorSpec, bytes)
        What it holds, with digests.
    """

    rank: int
    ranks: int
    latest: int | None
    parts: tuple[Part, ...]
    tensors: Mapping[str, tuple[TensorSpec, bytes]]

    def to_bytes(self) -> bytes:
        tensors = [[spec.name, spec.dtype, list(spec.shape), digest.hex()] for spec, digest in self.tensors.values()]
        return seal("shard", {
            "rank": self.rank, "ranks": self.ranks, "latest": self.latest,
            "parts": [dataclasses.asdict(part) for part in self.parts], "tensors": tensors,
        })  # fmt: skip


def _path(session: str, rank: int) -> str:
    return f"staged/{session}.{rank}"


def write_ticket(backend: Backend, session: str, ticket: Ticket) -> None:
    """Say what was written; a shard that is written again takes the place of the first."""
    data = ticket.to_bytes()
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UsageError(f"the description of a shard takes {len(data)} bytes; up to {MAX_DOCUMENT_BYTES} fit")
    backend.replace(_path(session, ticket.rank), data)
    backend.settle("staged")


def _parse(data: bytes, where: str) -> Ticket:
    d = unseal("shard", data, where)
    try:
        tensors = {}
        for name, dtype, shape, digest in d["tensors"]:
            if dtype not in DTYPES or type(name) is not str or not all(type(n) is int and n >= 0 for n in shape):
                raise CorruptError(f"{where}: a tensor makes no sense")
            tensors[name] = (TensorSpec(name, dtype, tuple(shape)), bytes.fromhex(digest))
        parts = tuple(parse_part(item, -1) for item in d["parts"])
        return Ticket(int(d["rank"]), int(d["ranks"]), d["latest"], parts, tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptError(f"{where}: {error}") from None


def read_tickets(backend: Backend, session: str, ranks: int) -> list[Ticket]:
    """All shards of a session.

    Raises
    ------
    NotFoundError
        A shard is not there yet.
    BusyError
        The shards were written against different versions.
    UsageError
        They do not make one version.
    """
    tickets = []
    for rank in range(ranks):
        where = f"{backend.url}: shard {rank} of session {session}"
        try:
            tickets.append(_parse(backend.read(_path(session, rank), MAX_DOCUMENT_BYTES), where))
        except NotFoundError:
            raise NotFoundError(f"{where} was not written") from None
    if len({ticket.latest for ticket in tickets}) > 1:
        raise BusyError(f"{backend.url}: the shards of session {session} follow different versions; write them again")
    names = [name for ticket in tickets for name in ticket.tensors]
    if len(set(names)) != len(names) or any(ticket.ranks != ranks for ticket in tickets):
        raise UsageError(f"session {session}: two shards hold a tensor of one name, or count other ranks")
    return tickets


def oldest_ticket(backend: Backend, session: str) -> float:
    """Seconds since the first shard of a session was written; 0 where shards do not age."""
    if not backend.grace:
        return 0.0
    written = [entry.modified for entry in backend.list("staged") if entry.name.rpartition(".")[0] == session]
    return backend.now() - min(written, default=backend.now())


def clear_session(backend: Backend, session: str, ranks: int) -> None:
    """Forget the tickets. Nothing depends on it."""
    with contextlib.suppress(Error):
        for rank in range(ranks):
            backend.delete(_path(session, rank))


def staged_objects(backend: Backend, clear: bool = False) -> set[str]:
    """Objects of shards that are yet to be committed. `clear`: remove tickets that were never used."""
    found: set[str] = set()
    for entry in backend.list("staged"):
        path = f"staged/{entry.name}"
        if entry.modified < backend.now() - _LONGEST:
            if clear:
                backend.delete(path)
            continue
        try:
            found |= {part.object for part in _parse(backend.read(path, MAX_DOCUMENT_BYTES), path).parts}
        except (CorruptError, NotFoundError):
            continue  # torn when the power failed, or taken since
    return found
