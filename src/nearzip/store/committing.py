"""Adding a version: it is encoded against the one before; the creation of its manifest is the commit."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from nearzip.changes import UpdateKept
from nearzip.coding import Codings
from nearzip.digests import fingerprint
from nearzip.errors import BusyError, CorruptError, Error, LimitError, NotFoundError
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import Progress
from nearzip.store.encoding import Draft, Encoder, Held
from nearzip.store.maintenance import Maintenance
from nearzip.store.manifest import Manifest
from nearzip.store.patience import patiently
from nearzip.store.policy import Policy
from nearzip.store.reading import VersionReader
from nearzip.store.steps import last_steps
from nearzip.store.summaries import BLOCK
from nearzip.store.versions import Versions
from nearzip.tensors import Checkpoint

__all__ = ["Committer"]

#: Larger versions are not kept in memory from one commit to the next.
_HOLD_BYTES = 4 << 30


class _UnreadableError(Exception):
    """The version before cannot be restored."""


class _AlteredError(Exception):
    """What was encoded against had another content than the version before."""


@dataclass
class Committer:
    """Commits the versions of one process to a store, and remembers what the next commit needs.

    Parameters
    ----------
    reader : VersionReader
        Of the store.
    hold : bool
        Keep the latest version's arrays in memory, so that the next commit need not decode them.
    held : Held or None
        Those arrays.
    update_kept : UpdateKept or None
        How much of the change of the latest version that was committed here is kept; None if there was none before.
    """

    reader: VersionReader
    hold: bool = True
    held: Held | None = None
    update_kept: UpdateKept | None = None
    #: The steps of quantization of the version with that id.
    _steps: tuple[str, dict[str, tuple[float, ...]]] | None = None
    #: Id of the version that was committed last, and fingerprints of the tensors as they were committed.
    _prints: tuple[str | None, dict[str, bytes]] = (None, {})

    @property
    def backend(self) -> Backend:
        return self.reader.backend

    @property
    def versions(self) -> Versions:
        return self.reader.versions

    def forget(self) -> None:
        """Drop what is remembered of the latest version."""
        self.held = self._steps = None

    def refresh(self) -> None:
        """Read manifests again if another process changed some; while a lock is held."""
        if self.backend.changed():
            self.versions.forget()

    # committing

    def commit(
        self,
        source: Checkpoint,
        codings: Codings,
        policy: Policy,
        description: dict[str, Any],
        timeout: float,
        progress: Progress | None = None,
        rename: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Add a version. Raises BusyError if others kept committing for longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        encoder = Encoder(self.backend, codings, self.reader.threads, progress, rename)
        while True:
            with self.backend.committing(max(0.0, deadline - time.monotonic())):
                self.refresh()
                manifest = self._try(encoder, source, policy, description)
            if manifest is not None:
                return manifest
            if time.monotonic() >= deadline:
                raise BusyError(f"{self.backend.url}: others kept committing for {timeout:g} s; try again")
            time.sleep(random.uniform(0, 0.05))  # noqa: S311 (not for secrets)

    def _try(
        self, encoder: Encoder, source: Checkpoint, policy: Policy, description: dict[str, Any]
    ) -> Manifest | None:
        """One attempt; None if the number was taken by another process."""
        latest = self.versions.latest()
        number = 0 if latest is None else latest + 1
        hold = self.hold and source.n_bytes <= _HOLD_BYTES
        began = time.time()
        draft = self._encode(encoder, source, policy, number, latest, hold)
        self.check_age(time.time() - began)
        manifest = draft.manifest(number, source, **description)
        self.backend.settle("objects")
        if not self.versions.create(manifest):
            self.versions.forget()
            return None
        self._steps = (manifest.id, draft.steps)
        self._note_change(source, manifest, draft, latest)
        if hold and draft.arrays is not None:
            self.held = Held(number, manifest.id, draft.arrays)
        return manifest

    def _note_change(self, source: Checkpoint, manifest: Manifest, draft: Draft, latest: int | None) -> None:
        """Remember what is kept of the change. Tensors that equal those of the commit before did not change, whatever
        rounding left between them and the base.
        """
        before_id, before = self._prints
        prints = {name: fingerprint(source.read(name)) for name, spec in source.specs.items() if spec.is_float}
        kept = draft.update_kept
        if kept is not None and latest is not None and before_id == self.versions.get(latest).id:
            kept = kept.knowing({name: before[name] != prints[name] for name in prints if name in before})
        self._prints = (manifest.id, prints)
        self.update_kept = kept

    def check_age(self, seconds: float) -> None:
        """Raise BusyError if objects that no manifest names yet may be deleted soon, where others sweep them by age."""
        if self.backend.grace and seconds > self.backend.grace / 2:
            raise BusyError(
                f"{self.backend.url}: took {seconds / 3600:.1f} h since the objects were written, so that 'store "
                "prune' may delete them before a version names them; nothing was committed: write them again"
            )

    # encoding

    def _encode(
        self, encoder: Encoder, source: Checkpoint, policy: Policy, number: int, latest: int | None, hold: bool
    ) -> Draft:
        if latest is not None:
            for _ in range(2):
                try:
                    return self._encode_after(encoder, source, policy, number, latest, hold)
                except _AlteredError:  # noqa: PERF203
                    self.held = None
                except _UnreadableError:
                    break
        # There is none before, or it cannot be read: a keyframe, and `verify` says what is wrong.
        return encoder.version(source, number, None, None, hold)

    def _encode_after(
        self, encoder: Encoder, source: Checkpoint, policy: Policy, number: int, latest: int, hold: bool
    ) -> Draft:
        """Encode what follows version `latest`. Raises _UnreadableError, _AlteredError."""
        with contextlib.ExitStack() as stack:
            checkpoint, held, manifest, depth = self._base(latest, stack, hold)
            checkpoint = dataclasses.replace(checkpoint, steps=self.steps_of(manifest))

            def version(base: Checkpoint | None) -> Draft:
                shared = None
                if held is not None and self.backend.commits_alone:
                    shared = encoder.shared(source, held, manifest, keyframes_only=base is None)
                draft = encoder.version(source, number, base, latest, hold, shared, before=checkpoint)
                self._check_base(draft, manifest, None if shared is None else held)
                return draft

            if policy.wants_keyframe(depth):
                return version(None)
            draft = version(checkpoint)
            if draft.n_stored <= policy.pays * self._keyframe_bytes(latest):
                return draft
            return self._smaller(draft, version(None))

    def _base(
        self, number: int, stack: contextlib.ExitStack, hold: bool
    ) -> tuple[Checkpoint, Held | None, Manifest, int]:
        """The version that the next one is coded against, as readers get it, its manifest and its depth.

        Raises _UnreadableError.
        """
        try:
            depth = self.versions.depth(number)
            manifest, held = self.versions.get(number), self.held
            if held is not None and held.number == number and held.id == manifest.id:
                return held.checkpoint, held, manifest, depth
            if hold and manifest.n_bytes <= _HOLD_BYTES:
                _, arrays = self.reader.arrays(number)
                manifest = self.versions.get(number)
                self.held = held = Held(number, manifest.id, arrays)
                return held.checkpoint, held, manifest, depth
            opened = self.reader.opened(number, stack)
            return opened, None, self.versions.get(number), depth
        except (CorruptError, LimitError, NotFoundError):
            raise _UnreadableError from None

    def _check_base(self, draft: Draft, manifest: Manifest, shared: Held | None) -> None:
        """Whether the base had the content of its version while it was used; `shared`: what tensors were taken from.

        Raises _AlteredError. The digest was taken while encoding, so that this costs no second pass.
        """
        if draft.base_id == manifest.id:
            return
        if draft.base_id is None and (shared is None or shared.intact()):
            return
        self._delete(draft)
        raise _AlteredError

    def steps_of(self, manifest: Manifest) -> dict[str, tuple[float, ...]]:
        """The steps by which a version's tensors were quantized; none if they cannot be read, as they only help."""
        if self._steps is not None and self._steps[0] == manifest.id:
            return self._steps[1]
        number = manifest.number

        def read() -> dict[str, tuple[float, ...]]:
            found: dict[str, tuple[float, ...]] = {}
            for part in self.versions.get(number).parts:
                steps = last_steps(self.reader.index(part))
                found.update({name: step for name, step in steps.items() if part.names is None or name in part.names})
            return found

        try:
            return patiently(self.versions, number, read)
        except Error:
            return {}

    def _keyframe_bytes(self, number: int) -> int:
        return max((m.n_stored for m in self.versions.chain(number) if not m.bases), default=0)

    def _smaller(self, one: Draft, other: Draft) -> Draft:
        kept, dropped = (one, other) if one.n_stored <= other.n_stored else (other, one)
        self._delete(dropped, {part.object for part in kept.parts})
        return kept

    def _delete(self, draft: Draft, kept: Collection[str] = ()) -> None:
        """Delete what was written for a draft."""
        for part in draft.parts:
            if part.names is None and part.object not in kept:
                self.backend.delete(f"objects/{part.object}")

    # afterwards

    def follow_up(self, manifest: Manifest, policy: Policy) -> None:
        """What saves space and time once a version is committed; the next process that maintains can do it as well."""
        self.versions.point_to(manifest.number)
        fills_block = manifest.number % BLOCK == BLOCK - 1
        turns_back = policy.kind == "backward" and manifest.number > 0
        if not fills_block and not turns_back:
            return
        with contextlib.suppress(Error), self.backend.maintaining(0):
            self.refresh()
            if turns_back:
                reader = self.reader
                with contextlib.suppress(Error):
                    Maintenance(reader.backend, reader.versions, policy, reader.limits, reader.threads).turn_back(
                        manifest.number - 1, self.held
                    )
            if fills_block:
                self.versions.sum_up([manifest.number // BLOCK])
