"""Versions that several processes write together: each writes a shard, and one of them commits all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

from nearzip.changes import UpdateKept
from nearzip.coding import Codings
from nearzip.errors import BusyError, CorruptError, LimitError, NotFoundError
from nearzip.store.chain import Progress
from nearzip.store.committing import Committer
from nearzip.store.encoding import Draft, Encoder
from nearzip.store.labels import Label
from nearzip.store.manifest import Manifest, Part
from nearzip.store.policy import Policy
from nearzip.store.tickets import Ticket, clear_session, oldest_ticket, read_tickets, write_ticket
from nearzip.tensors import Array, Checkpoint

__all__ = ["ShardWriter"]


@dataclass
class ShardWriter:
    """Writes one process's shards, and makes versions of all processes' shards.

    Parameters
    ----------
    committer : Committer
        Of the store.
    """

    committer: Committer
    #: The last shard: its object, and what readers get of it.
    _last: tuple[str, dict[str, Array] | None] | None = None

    def forget(self) -> None:
        """Drop the arrays of the last shard."""
        self._last = None

    def write(
        self,
        source: Checkpoint,
        codings: Codings,
        policy: Policy,
        session: str,
        rank: int,
        ranks: int,
        timeout: float,
        progress: Progress | None,
    ) -> UpdateKept | None:
        """Encode and write a shard; how much of the change of its tensors is kept."""
        reader, backend = self.committer.reader, self.committer.backend
        reader.versions.forget()
        latest = reader.versions.latest()
        number = 0 if latest is None else latest + 1
        label = Label(number, session=session, rank=rank, ranks=ranks, base=latest)
        with contextlib.ExitStack() as lock:
            base, steps = (None, {}) if latest is None else self._base(source, policy, latest)
            encoder = Encoder(backend, codings, reader.threads, progress)
            # A keyframe has no base that could carry the steps.
            with encoder.object(
                dataclasses.replace(source, steps=steps), label, base, self.committer.hold, staged=True
            ) as done:
                lock.enter_context(backend.committing(timeout))
            assert done.report is not None
            assert done.stored is not None
            used = latest if done.report.index.base_id is not None else None
            part = Part(done.stored.name, done.stored.n_bytes, used, tuple(source.specs))
            contents = {name: (spec, done.report.contents[name]) for name, spec in source.specs.items()}
            backend.settle("objects")
            write_ticket(backend, session, Ticket(rank, ranks, latest, (part,), contents))
        self._last = (part.object, done.arrays)
        return done.report.update_kept

    def _base(
        self, source: Checkpoint, policy: Policy, latest: int
    ) -> tuple[Checkpoint | None, dict[str, tuple[float, ...]]]:
        """What readers get of a shard's tensors in the version before, and the steps that they were quantized by."""
        reader = self.committer.reader
        try:
            manifest = reader.versions.get(latest)
            steps = self.committer.steps_of(manifest)
            if policy.wants_keyframe(reader.versions.depth(latest)):
                return None, steps
            if self._last is not None and self._last[0] in manifest.objects and self._last[1] is not None:
                # Compared with the digests in the file when it is used as a base.
                return Checkpoint.of(self._last[1]), steps
            there = reader.specs(latest)
            names = [name for name in source.specs if name in there]
            return Checkpoint.of(reader.arrays(latest, names)[1] if names else {}), steps
        except (CorruptError, LimitError, NotFoundError):
            return None, {}

    def commit(self, session: str, ranks: int, description: dict[str, Any], timeout: float) -> Manifest:
        """Make a version of a session's shards. Raises NotFoundError, BusyError, UsageError."""
        backend, versions = self.committer.backend, self.committer.versions
        with backend.committing(timeout):
            tickets = read_tickets(backend, session, ranks)
            self.committer.check_age(oldest_ticket(backend, session))
            versions.forget()
            latest = versions.latest()
            draft = Draft([part for ticket in tickets for part in ticket.parts])
            for ticket in tickets:
                draft.specs.update({name: spec for name, (spec, _) in ticket.tensors.items()})
                draft.contents.update({name: digest for name, (_, digest) in ticket.tensors.items()})
            number = 0 if latest is None else latest + 1
            manifest = draft.manifest(number, Checkpoint(draft.specs, _unread), **description)
            if tickets[0].latest != latest or not versions.create(manifest):
                raise BusyError(
                    f"{backend.url}: a version was committed since the shards of session {session} were written; "
                    "write them again"
                )
            clear_session(backend, session, ranks)
        self.committer.forget()
        return manifest


def _unread(name: str) -> Array:
    raise NotFoundError(f"tensor {name!r} is in another process")
