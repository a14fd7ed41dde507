"""`nearzip.Store`: versions of a network, each small, verified, and restored bit for bit. docs/store.md."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from nearzip.api import PlanLike, open_input, warn_of_lost_update
from nearzip.archive import write_archive
from nearzip.attached import attached_names, without_attached
from nearzip.changes import UpdateKept
from nearzip.checkpoints import check_writable, write_checkpoint
from nearzip.digests import content_id, fingerprint, tensor_digest
from nearzip.errors import BusyError, CorruptError, Error, LimitError, NotFoundError, UsageError
from nearzip.fileio import Output, atomic_file, check_outputs, naming_errors
from nearzip.frameworks import check_framework, to_framework
from nearzip.limits import Limits
from nearzip.recipes import recipe_type
from nearzip.recipes.settings import Settings
from nearzip.sources import is_url
from nearzip.store.backend import Backend
from nearzip.store.chain import Progress, open_part, restore, stream
from nearzip.store.commit import Draft, Encoder, Held, now
from nearzip.store.documents import MOST_DOCUMENT_BYTES
from nearzip.store.grid import last_steps, on_grid
from nearzip.store.hints import BLOCK
from nearzip.store.keep import parse_rules
from nearzip.store.labels import Label
from nearzip.store.log import Version, log_json, version_rows
from nearzip.store.maintenance import Maintenance, PruneReport
from nearzip.store.manifest import Manifest, Part, check_name, clean_metrics
from nearzip.store.patience import PATIENCE, patiently
from nearzip.store.place import open_backend
from nearzip.store.policy import Policy, parse_policy
from nearzip.store.repair import Repairer, repair_all, repair_settings, sort_sources
from nearzip.store.selectors import Selector, needs_log, select
from nearzip.store.settings import PATH, BoundLike, StoreSettings, parse_settings, settled_bound
from nearzip.store.staging import Ticket, check_session, clear_session, oldest_ticket, read_tickets, write_ticket
from nearzip.store.stat import Stat, stat_of
from nearzip.store.verify import Verifier, VerifyReport, parse_subset
from nearzip.store.versions import Versions
from nearzip.tensors import Array, Checkpoint, TensorSpec, check_text
from nearzip.texts import html_table
from nearzip.updates import without_updates

__all__ = ["Store"]

#: Larger versions are not kept in memory from one commit to the next.
_HOLD_BYTES = 4 << 30

T = TypeVar("T")


class _UnreadableError(Exception):
    """The version before cannot be restored."""


class _AlteredError(Exception):
    """What was encoded against had another content than the version before."""


class Store:
    """Versions of a network under a path or URL.

    Parameters
    ----------
    url : str or path
        A folder, or what fsspec opens: s3://bucket/name, memory://name, https://host/name (read only).
    create : bool
        Make a store if there is none.
    bound : Bound, str, or mapping of tensor name or pattern to Bound or str
        Promised for every element of every version, against what was committed. None: lossless for "nearzip". With
        `nearzip.Update(e)`, a share of the change since the version before, the first version is lossless.
    policy : Policy or str
        "forward", "backward", "hop" or "hop:8"; see docs/store.md. Default: hop, a keyframe every 10 versions.
    method, options : str, dict
        How versions are coded: one of `nearzip.methods()`.
    storage_options : dict
        For fsspec's driver.
    exclusive : {"create", "single-writer"}
        "single-writer" promises that only one process writes, for places that cannot create files exclusively.
    hold : bool
        Keep the latest version's arrays in memory, so that the next commit need not decode them.

    Raises
    ------
    NotFoundError
        No store there, and `create` was not given.
    UsageError
        Settings that differ from those of the store that is there (`configure` changes them).

    Examples
    --------
    >>> import numpy as np, nearzip as nz
    >>> store = nz.Store("memory://example", create=True, bound=nz.Absolute(1e-3))
    >>> store.commit({"w": np.zeros(4, np.float32)}, metrics={"loss": 0.5})
    0
    >>> store.checkout("min:loss")
    {'w': array([0., 0., 0., 0.], dtype=float32)}
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        create: bool = False,
        bound: BoundLike = None,
        policy: Policy | str | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        storage_options: Mapping[str, Any] | None = None,
        exclusive: str | None = None,
        hold: bool = True,
        limits: Limits | None = None,
        threads: int | None = None,
    ):
        self._backend: Backend = open_backend(url, storage_options)
        self._versions = Versions(self._backend)
        self._held: Held | None = None
        #: The last shard: its object, and what readers get of it.
        self._shard: tuple[str, dict[str, Array] | None] | None = None
        #: Of the version with that id.
        self._steps: tuple[str, dict[str, float]] | None = None
        #: Of the latest version that was committed here: how much of its change since the version before is kept. None
        #: if there is none before.
        self.update_kept: UpdateKept | None = None
        #: Id of that version, and fingerprints of the tensors as they were committed.
        self._prints: tuple[str | None, dict[str, bytes]] = (None, {})
        self._hold = hold
        self._limits = limits
        self._threads = threads
        wanted = _wanted(bound, policy, method, options, exclusive)
        self.settings = self._open(create, wanted)

    # opening

    def _open(self, create: bool, wanted: dict[str, Any]) -> StoreSettings:
        try:
            found = self._read_settings()
        except NotFoundError:
            if not create:
                raise NotFoundError(f"{self.url}: {self._instead()}") from None
            return self._make(wanted)
        for name, value in wanted.items():
            if getattr(found, name) != value:
                raise UsageError(
                    f"{self.url}: this store has {name} {getattr(found, name)}, not {value}; leave it out, or change "
                    f"the store's with 'nearzip store configure'"
                )
        return found

    def _instead(self) -> str:
        """What is here in place of a store."""
        with contextlib.suppress(Error):
            self._backend.read(f"index/{PATH}", MOST_DOCUMENT_BYTES)
            return (
                "no store, but a folder that torch.distributed.checkpoint saves into: the store "
                f"{self.url}/index lists its checkpoints, and 'nearzip store prune {self.url}' drops some"
            )
        return f"no store here; make one with 'nearzip store init {self.url}' (create=True)"

    def _read_settings(self) -> StoreSettings:
        data = self._backend.read(PATH, MOST_DOCUMENT_BYTES)
        try:
            return parse_settings(data, f"{self.url}/{PATH}")
        except CorruptError as error:
            raise CorruptError(f"{error}; run 'nearzip store verify --repair {self.url}'") from None

    def _make(self, wanted: dict[str, Any]) -> StoreSettings:
        if not self._backend.can_write:
            raise UsageError(f"{self.url}: cannot be written to; make the store elsewhere")
        settings = StoreSettings(secrets.token_hex(16), now(), **wanted)
        _try_out(settings)
        if hasattr(self._backend, "make"):
            self._backend.make()
        if settings.exclusive == "create" and hasattr(self._backend, "probe"):
            self._backend.probe()
        if not self._backend.create(PATH, settings.to_bytes()):
            return self._open(False, wanted)  # somebody else made it at the same time
        return settings

    @property
    def url(self) -> str:
        return self._backend.url

    @property
    def policy(self) -> Policy:
        return self.settings.policy

    @property
    def bound(self) -> str | Mapping[str, str] | None:
        """As the command line spells it."""
        return self.settings.bound

    def with_policy(self, policy: Policy | str) -> Store:
        """The same store, whose versions the returned object chains by another policy; the store's own stays."""
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, policy=parse_policy(policy))
        return other

    def __repr__(self) -> str:
        return f"<nearzip.Store {self.url}>"

    def _repr_html_(self) -> str:
        """What notebooks show: from what was read already, so that showing a store never fails."""
        settings = self.settings
        rows = [
            ("method", settings.method),
            ("bound", settings.bound or "the method's own"),
            ("policy", str(self.policy)),
        ]
        return html_table(f"nearzip.Store {self.url}", rows)

    def close(self) -> None:
        """Let go of the arrays that are held from one commit to the next. The store can still be used."""
        self._held = self._shard = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_writable(self) -> None:
        if not self._backend.can_write:
            raise UsageError(f"{self.url}: is read only")

    def configure(
        self,
        *,
        bound: BoundLike = None,
        policy: Policy | str | None = None,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Change the settings given, for versions yet to come. Versions that are there stay as they are."""
        self._check_writable()
        wanted = _wanted(bound, policy, method, options, None)
        with self._backend.maintaining(timeout):
            settings = dataclasses.replace(self._read_settings(), **wanted)
            _try_out(settings)
            self._backend.replace(PATH, settings.to_bytes())
            self._backend.settle("")
        self.settings = settings

    # committing

    def commit(
        self,
        tensors: Mapping[str, Any] | Checkpoint,
        message: str = "",
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        step: int | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        plan: PlanLike | None = None,
        timeout: float = 300.0,
        progress: Progress | None = None,
        warn: bool = True,
    ) -> int:
        """Add a version; it is there for good, or not at all.

        Parameters
        ----------
        tensors : mapping of str to array
            NumPy arrays or torch tensors.
        message, metrics, tags, step, metadata
            What `log` shows and `checkout` selects by. Metrics are numbers (NaN too), tags single words.
        plan
            Method and bound for each tensor, in place of the store's.
        timeout : float
            Seconds to wait for other writers.
        warn : bool
            False: no UpdateLostWarning; `update_kept` says what is kept.

        Returns
        -------
        int
            The version's number: 0, 1, 2, ..

        Warns
        -----
        UpdateLostWarning
            The bound is so coarse that nearly nothing of the change against the version before is kept.

        Raises
        ------
        BusyError
            Others kept committing for longer than `timeout`.
        NoSpaceError
            The disk is full. The store is as before.
        """
        self._check_writable()
        said = _said(message, metrics, tags, step, metadata)
        source = tensors if isinstance(tensors, Checkpoint) else Checkpoint.of(tensors)
        settings = self._codec(source, plan)
        deadline = time.monotonic() + timeout
        while True:
            with self._backend.committing(max(0.0, deadline - time.monotonic())):
                self._refresh()
                manifest = self._try_commit(source, settings, said, progress)
            if manifest is not None:
                break
            if time.monotonic() >= deadline:
                raise BusyError(f"{self.url}: others kept committing for {timeout:g} s; try again")
            time.sleep(random.uniform(0, 0.05))  # noqa: S311 (not for secrets)
        self._after_commit(manifest)
        if warn:
            warn_of_lost_update(self.update_kept)
        return manifest.number

    def commit_file(self, path: str | os.PathLike[str], message: str = "", **said: Any) -> int:
        """As `commit`, from a checkpoint file, tensor by tensor: memory does not grow with the file."""
        source = open_input(path)
        try:
            metadata = {**source.metadata, **(said.pop("metadata", None) or {})}
            return self.commit(source, message, metadata=metadata, **said)
        finally:
            source.close()

    def _refresh(self) -> None:
        """Forget what was read of versions if another process changed them; while a lock is held."""
        if self._backend.changed():
            self._versions.forget()

    def _codec(self, source: Checkpoint, plan: PlanLike | None) -> Settings:
        if plan is None:
            return self.settings.codec(without_attached(source).specs)
        names = list(without_attached(source).specs)
        return Settings.of_plan(plan.assignments(names), names)

    def _try_commit(
        self, source: Checkpoint, settings: Settings, said: dict[str, Any], progress: Progress | None
    ) -> Manifest | None:
        latest = self._versions.latest()
        number = 0 if latest is None else latest + 1
        encoder = Encoder(self._backend, settings, self._threads, progress)
        hold = self._hold and source.n_bytes <= _HOLD_BYTES
        began = time.time()
        draft = self._encode(encoder, source, number, latest, hold)
        self._check_age(time.time() - began)
        manifest = draft.manifest(number, source, **said)
        data = manifest.to_bytes()  # too long a description fails here
        del data
        self._backend.settle("objects")
        if not self._versions.create(manifest):
            self._versions.forget()
            return None
        self._steps = (manifest.id, draft.steps)
        self._note_change(source, manifest, draft, latest)
        if hold and draft.arrays is not None:
            self._held = Held(number, manifest.id, draft.arrays)
        return manifest

    def _note_change(self, source: Checkpoint, manifest: Manifest, draft: Draft, latest: int | None) -> None:
        """Remember what is kept of the change. Tensors that equal those of the commit before did not change, whatever
        rounding left between them and the base.
        """
        before_id, before = self._prints
        prints = {name: fingerprint(source.read(name)) for name, spec in source.specs.items() if spec.is_float}
        kept = draft.update_kept
        if kept is not None and latest is not None and before_id == self._versions.get(latest).id:
            kept = kept.knowing({name: before[name] != prints[name] for name in prints if name in before})
        self._prints = (manifest.id, prints)
        self.update_kept = kept

    def _check_age(self, seconds: float) -> None:
        """Raise BusyError if objects that no manifest names yet may be deleted soon, where others sweep them by age."""
        if self._backend.grace and seconds > self._backend.grace / 2:
            raise BusyError(
                f"{self.url}: took {seconds / 3600:.1f} h since the objects were written, so that 'store prune' may "
                "delete them before a version names them; nothing was committed: write them again"
            )

    def _encode(self, encoder: Encoder, source: Checkpoint, number: int, latest: int | None, hold: bool) -> Draft:
        if latest is not None:
            for _ in range(2):
                try:
                    return self._encode_after(encoder, source, number, latest, hold)
                except _AlteredError:  # noqa: PERF203
                    self._held = None
                except _UnreadableError:
                    break
        # There is none before, or it cannot be read: start anew, and let `verify` say what is wrong.
        return encoder.version(source, number, None, None, hold)

    def _encode_after(self, encoder: Encoder, source: Checkpoint, number: int, latest: int, hold: bool) -> Draft:
        """Encode what follows version `latest`. Raises _UnreadableError, _AlteredError."""
        policy = self.settings.policy
        with contextlib.ExitStack() as stack:
            checkpoint, held, depth = self._base(latest, stack, hold)
            manifest = self._versions.get(latest)
            encoder = dataclasses.replace(encoder, settings=on_grid(encoder.settings, self._steps_of(latest)))

            def version(base: Checkpoint | None) -> Draft:
                shared = None
                if held is not None and self._backend.commits_alone:
                    shared = encoder.shared(source, held, manifest, alone=base is None)
                draft = encoder.version(source, number, base, latest, hold, shared, before=checkpoint)
                self._check_base(draft, manifest, None if shared is None else held)
                return draft

            if policy.wants_keyframe(depth):
                return version(None)
            draft = version(checkpoint)
            if draft.n_stored <= policy.pays * self._keyframe_bytes(latest):
                return draft
            return self._smaller(draft, version(None))

    def _check_base(self, draft: Draft, manifest: Manifest, shared: Held | None) -> None:
        """Whether the base had the content of its version while it was used; `shared`: what tensors were taken from.

        Raises _AlteredError. The digest was taken while encoding, so that this costs no second pass.
        """
        if draft.base_id == manifest.id:
            return
        if draft.base_id is None and (shared is None or shared.intact()):
            return
        self._drop(draft)
        raise _AlteredError

    def _steps_of(self, number: int) -> dict[str, float]:
        """The steps by which a version's tensors were quantized; none if they cannot be read, as they only help."""
        if self._steps is not None and self._steps[0] == self._versions.get(number).id:
            return self._steps[1]

        def read() -> dict[str, float]:
            found: dict[str, float] = {}
            for part in self._versions.get(number).parts:
                with open_part(self._backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                    steps = last_steps(reader.index)
                found.update({name: step for name, step in steps.items() if part.names is None or name in part.names})
            return found

        try:
            return patiently(self._versions, number, read)
        except Error:
            return {}

    def _smaller(self, one: Draft, other: Draft) -> Draft:
        kept, dropped = (one, other) if one.n_stored <= other.n_stored else (other, one)
        self._drop(dropped, {part.object for part in kept.parts})
        return kept

    def _drop(self, draft: Draft, kept: Collection[str] = ()) -> None:
        """Delete what was written for a draft."""
        for part in draft.parts:
            if part.names is None and part.object not in kept:
                self._backend.delete(f"objects/{part.object}")

    def _keyframe_bytes(self, number: int) -> int:
        return max((m.n_stored for m in self._versions.chain(number) if not m.bases), default=0)

    def _base(self, number: int, stack: contextlib.ExitStack, hold: bool) -> tuple[Checkpoint, Held | None, int]:
        """The version that the next one is coded against, as readers get it, and its depth. Raises _UnreadableError."""
        try:
            depth = self._versions.depth(number)
            held = self._held
            if held is not None and held.number == number and held.id == self._versions.get(number).id:
                return held.checkpoint, held, depth
            if hold and self._versions.get(number).n_bytes <= _HOLD_BYTES:
                arrays = self._restore(number)
                self._held = Held(number, self._versions.get(number).id, arrays)
                return self._held.checkpoint, self._held, depth
            opened = patiently(self._versions, number, lambda: self._stream(number, stack))
            return opened, None, depth
        except (CorruptError, LimitError, NotFoundError):
            raise _UnreadableError from None

    def _stream(self, number: int, stack: contextlib.ExitStack) -> Checkpoint:
        return stack.enter_context(stream(self._backend, self._versions, number, self._limits, self._threads))

    def _after_commit(self, manifest: Manifest) -> None:
        self._versions.point_to(manifest.number)
        fills_block = manifest.number % BLOCK == BLOCK - 1
        turns_back = self.settings.policy.kind == "backward" and manifest.number > 0
        if not fills_block and not turns_back:
            return
        # The version is committed; the rest saves space and time, and the next process to maintain can do it as well.
        with contextlib.suppress(Error), self._backend.maintaining(0):
            self._refresh()
            if turns_back:
                with contextlib.suppress(Error):
                    self._maintenance().turn_back(manifest.number - 1, self._held)
            if fills_block:
                self._versions.sum_up([manifest.number // BLOCK])

    # shards

    def shard(
        self,
        tensors: Mapping[str, Any],
        session: str,
        rank: int,
        ranks: int,
        *,
        plan: PlanLike | None = None,
        timeout: float = 300.0,
        progress: Progress | None = None,
        warn: bool = True,
    ) -> None:
        """Write one process's tensors of the next version; `commit_shards` makes a version of them.

        A bound relative to the update (`nearzip.Update`) counts from the change of this process's tensors. `warn` as
        for `commit`.

        Parameters
        ----------
        tensors : mapping of str to array
            What no other process of the session writes.
        session : str
            A name for the version in the making, the same for all: letters, digits, - and _.
        rank, ranks : int
            Which process of how many. A shard that is written again takes the place of the first.
        """
        self._check_writable()
        check_session(session, rank, ranks)
        source = Checkpoint.of(tensors)
        settings = self._codec(source, plan)
        self._versions.forget()
        latest = self._versions.latest()
        number = 0 if latest is None else latest + 1
        with contextlib.ExitStack() as lock:
            base, steps = (None, {}) if latest is None else self._shard_base(source, latest)
            encoder = Encoder(self._backend, on_grid(settings, steps), self._threads, progress)
            label = Label(number, session=session, rank=rank, ranks=ranks, base=latest)
            with encoder.object(source, label, base, self._hold, staged=True) as done:
                lock.enter_context(self._backend.committing(timeout))
            assert done.report is not None
            assert done.stored is not None
            used = latest if done.report.index.base_id is not None else None
            part = Part(done.stored.name, done.stored.n_bytes, used, tuple(source.specs))
            contents = {name: (spec, done.report.contents[name]) for name, spec in source.specs.items()}
            self._backend.settle("objects")
            write_ticket(self._backend, session, Ticket(rank, ranks, latest, (part,), contents))
        self._shard = (part.object, done.arrays)
        self.update_kept = done.report.update_kept
        if warn:
            warn_of_lost_update(self.update_kept)

    def _shard_base(self, source: Checkpoint, latest: int) -> tuple[Checkpoint | None, dict[str, float]]:
        """What readers hold of a shard's tensors, and the steps that they were quantized by."""
        try:
            manifest = self._versions.get(latest)
            held: dict[str, Array] | None = None
            if self._shard is not None and self._shard[0] in manifest.objects and self._shard[1] is not None:
                # Checked against the digests in the file when it is used as a base.
                held = self._shard[1]
            steps = self._steps_of(latest)
            if self.settings.policy.wants_keyframe(self._versions.depth(latest)):
                return None, steps
            if held is None:
                there = self.specs(latest)
                names = [name for name in source.specs if name in there]
                held = self._restore(latest, names) if names else {}
            return Checkpoint.of(held), steps
        except (CorruptError, LimitError, NotFoundError):
            return None, {}

    def commit_shards(
        self,
        session: str,
        ranks: int,
        message: str = "",
        metrics: Mapping[str, float] | None = None,
        tags: Sequence[str] = (),
        step: int | None = None,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> int:
        """Make the next version of a session's shards, once all are written. One process does it.

        Raises
        ------
        NotFoundError
            A shard is missing.
        BusyError
            Somebody else committed since the shards were written, which follow another version now: write them again.
        """
        self._check_writable()
        said = _said(message, metrics, tags, step, metadata)
        check_session(session, 0, ranks)
        with self._backend.committing(timeout):
            tickets = read_tickets(self._backend, session, ranks)
            self._check_age(oldest_ticket(self._backend, session))
            self._versions.forget()
            latest = self._versions.latest()
            number = 0 if latest is None else latest + 1
            draft = Draft([part for ticket in tickets for part in ticket.parts])
            for ticket in tickets:
                draft.specs.update({name: spec for name, (spec, _) in ticket.tensors.items()})
                draft.contents.update({name: digest for name, (_, digest) in ticket.tensors.items()})
            manifest = draft.manifest(number, Checkpoint(draft.specs, _unread), **said)
            if tickets[0].latest != latest or not self._versions.create(manifest):
                raise BusyError(
                    f"{self.url}: a version was committed since the shards of session {session} were written; "
                    "write them again"
                )
            clear_session(self._backend, session, ranks)
        self._held = self._steps = None
        self._after_commit(manifest)
        return number

    # maintaining

    def prune(
        self,
        keep: str | Iterable[str],
        drop: Iterable[int] = (),
        *,
        dry_run: bool = False,
        timeout: float = 60.0,
        progress: Progress | None = None,
    ) -> PruneReport:
        """Drop versions that no rule keeps. Those that stay are restored bit for bit as before.

        Parameters
        ----------
        keep : str or several
            Rules: last:5, every:10 (numbers divisible by 10), best:METRIC, min:METRIC, tag:NAME, tagged, a number, all.
            The newest version is always kept.
        drop : numbers
            Versions to drop whatever the rules say.
        dry_run : bool
            Find out what would be done; change nothing.

        Raises
        ------
        UsageError, BusyError
            Rules that cannot be read; somebody else is pruning.
        CorruptError
            A manifest is damaged, so that nobody knows what is needed; nothing was dropped.
        """
        self._check_writable()
        rules = parse_rules(keep)
        unwanted = frozenset(drop)
        with self._backend.maintaining(timeout):
            return self._maintenance(dry_run).prune(rules, unwanted, progress)

    def verify(
        self,
        level: str = "full",
        subset: str | float | None = None,
        max_duration: float | None = None,
        *,
        repair: bool = False,
        sources: Iterable[str | os.PathLike[str]] = (),
        timeout: float = 60.0,
        progress: Progress | None = None,
    ) -> VerifyReport:
        """Look for damage: what it is, which versions it touches, which are readable, what to do.

        Parameters
        ----------
        level : {"quick", "full", "deep"}
            quick: manifests, and that every object is there and as long as it should be. full: the digest of every
            object, too. deep: every version decoded and compared with its digest, too.
        subset : str or float
            "5%" of the objects (deep: versions) at random, or "2/20", the second of twenty slices.
        max_duration : float
            Seconds after which nothing more is begun.
        repair : bool
            Restore what can be. `sources`: copies of this store, and checkpoint files that may hold lost versions.
        """
        share, part = parse_subset(subset)

        def look(depth: str) -> Verifier:
            verifier = Verifier(
                self._backend, self._versions, depth, share, part, max_duration, self._limits, self._threads, progress
            )
            verifier.run()
            return verifier

        first = look(level)
        if not repair:
            return first.report
        if first.report.ok:
            self._correct_hint()
            return first.report
        self._check_writable()
        with self._backend.maintaining(timeout), contextlib.ExitStack() as stack:
            self._refresh()
            repairer = Repairer(self._backend, self._versions, limits=self._limits, threads=self._threads)
            sort_sources(sources, repairer, stack)
            repair_all(first, repairer)
            self._backend.sweep_litter()
        self._versions.forget()
        self._held = None
        again = look("full" if level == "quick" else level).report
        again.repaired, again.lost = repairer.repaired, repairer.lost
        self._correct_hint()
        return again

    def _correct_hint(self) -> None:
        latest = self._versions.latest()
        if latest is not None:
            self._versions.point_to(latest)

    @staticmethod
    def repair(
        url: str | os.PathLike[str],
        sources: Iterable[str | os.PathLike[str]] = (),
        *,
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> VerifyReport:
        """`verify(repair=True)`, also for a store whose settings are damaged, so that it cannot be opened."""
        sources = list(sources)
        try:
            store = Store(url, storage_options=storage_options)
        except CorruptError:
            repaired = repair_settings(open_backend(url, storage_options), sources)
            report = Store(url, storage_options=storage_options).verify(repair=True, sources=sources, **options)
            report.repaired = repaired + report.repaired
            return report
        return store.verify(repair=True, sources=sources, **options)

    def _maintenance(self, dry_run: bool = False) -> Maintenance:
        return Maintenance(
            self._backend, self._versions, self.settings.policy, self._limits, self._threads, dry_run=dry_run
        )

    # reading

    def resolve(self, selector: Selector = "latest") -> int:
        """The number of the version that a selector means. Raises UsageError, NotFoundError."""
        if needs_log(selector):
            self._versions.forget()
            number = select(selector, self._versions.summaries(), self.url)
            if self._versions.get(number).pruned is None:
                return number
            return select(selector, self._versions.all(), self.url)  # the hints were out of date
        if str(selector) == "latest":
            latest = self._versions.latest()
            # A tombstone is the newest where `verify --repair` had to give a version up.
            while latest is not None and self._versions.get(latest).pruned is not None:
                latest = latest - 1 if latest else None
            if latest is None:
                raise NotFoundError(f"{self.url}: has no versions yet")
            return latest
        number = int(selector)
        self._checked(number)
        return number

    def _checked(self, number: int) -> Manifest:
        manifest = self._versions.get(number)
        if manifest.pruned is not None:
            raise NotFoundError(f"{self.url}: version {number} was pruned on {manifest.pruned}")
        return manifest

    def checkout(
        self,
        selector: Selector = "latest",
        names: Sequence[str] | None = None,
        *,
        framework: str = "np",
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The arrays of a version, bit for bit the same whenever it is asked for.

        Parameters
        ----------
        selector : int or str
            "latest", a number, "tag:best", "step=1200", "best:accuracy" (the largest), "min:loss".
        names : sequence of str
            Only these tensors.
        framework : {"np", "pt"}
            NumPy arrays, or PyTorch tensors on the CPU.

        Raises
        ------
        NotFoundError
            No such version or tensor.
        CorruptError
            Something that it needs is damaged; nothing wrong is ever returned.
        """
        check_framework(framework)
        number, arrays = self._reading(selector, lambda number: self._decode(number, names, progress))
        # Of a folder that was committed, the tensors; `checkout_file` also writes its other files.
        hidden = attached_names(self._checked(number).tree) if names is None else ()
        return {name: to_framework(array, framework) for name, array in arrays.items() if name not in hidden}

    def _reading(self, selector: Selector, read: Callable[[int], T]) -> tuple[int, T]:
        """The version that a selector means and what `read` makes of it, while others re-encode and drop versions."""
        deadline = time.monotonic() + PATIENCE
        while True:
            number = self.resolve(selector)

            def attempt(number: int = number) -> T:
                self._checked(number)
                return read(number)

            try:
                return number, patiently(self._versions, number, attempt)
            except NotFoundError:
                # What "latest" or "best:loss" meant may have been dropped meanwhile: then it means another version.
                dropped = not str(selector).isdecimal() and self._is_pruned(number)
                if not dropped or time.monotonic() >= deadline:
                    raise

    def _is_pruned(self, number: int) -> bool:
        with contextlib.suppress(Error):
            return self._versions.get(number).pruned is not None
        return False

    def _decode(
        self, number: int, names: Sequence[str] | None = None, progress: Progress | None = None
    ) -> dict[str, Array]:
        return restore(self._backend, self._versions, number, names, self._limits, self._threads, progress)

    def _restore(self, number: int, names: Sequence[str] | None = None) -> dict[str, Array]:
        return self._reading(number, lambda number: self._decode(number, names))[1]

    def checkout_file(
        self,
        selector: Selector,
        path: Output,
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Write a version to a checkpoint file or a binary stream, tensor by tensor; returns its number.

        The ending names the format. Raises UsageError for a path that is part of the store.
        """
        return self._reading(selector, lambda number: self._write_file(number, path, force, progress))[0]

    def _write_file(self, number: int, path: Output, force: bool, progress: Progress | None) -> None:
        manifest = self._checked(number)
        with stream(self._backend, self._versions, number, self._limits, self._threads) as version:
            check_outputs([path], self._own_files(), force)
            check_writable(path, version.specs, version.tree, version.read)
            contents, done = {}, 0
            with write_checkpoint(path, version.specs, version.metadata, version.tree, force, version.read) as writer:
                for name, array in version.arrays():
                    writer.write(name, array)
                    contents[name] = tensor_digest(array)
                    done += array.nbytes
                    if progress:
                        progress(done, manifest.n_bytes)
                if content_id((spec, contents[name]) for name, spec in version.specs.items()) != manifest.id:
                    raise CorruptError(
                        f"{self.url}: version {number}: what was decoded is not what was committed; "
                        f"run 'nearzip store verify {self.url}'"
                    )

    def _own_files(self) -> list[str]:
        """Where the store is, if that is a folder here: no output may overwrite it."""
        return [] if is_url(self.url) else [self.url]

    def specs(self, selector: Selector = "latest") -> dict[str, TensorSpec]:
        """Names, dtypes and shapes of a version's tensors, from its indexes alone. Raises as `checkout` does."""
        return self._reading(selector, self._specs_of)[1]

    def _specs_of(self, number: int) -> dict[str, TensorSpec]:
        with stream(self._backend, self._versions, number, self._limits, self._threads) as version:
            return dict(version.specs)

    def info(self, selector: Selector = "latest") -> Version:
        """What `log` says of one version."""
        return self._reading(selector, self._row)[1]

    def _row(self, number: int) -> Version:
        found = {manifest.number: manifest for manifest in self._versions.chain(number)}
        # Versions that may have the same objects: a version shares tensors with the one before.
        with contextlib.suppress(Error):
            for before in range(number - 1, -1, -1):
                manifest = found.setdefault(before, self._versions.get(before))
                if not set(manifest.objects) & set(found[number].objects):
                    break
        return next(row for row in version_rows(found.values()) if row.number == number)

    def log(self, pruned: bool = False) -> list[Version]:
        """All versions, oldest first; tombstones too if `pruned`."""
        self._versions.forget()
        found = self._versions.complete({manifest.number: manifest for manifest in self._versions.summaries()})
        return [row for row in version_rows(found.values()) if pruned or row.pruned is None]

    def stat(self) -> Stat:
        """How large the store is, and what takes the space. Raises UsageError for a place that cannot list files."""
        if not self._backend.can_list:
            raise UsageError(f"{self.url}: cannot list its files")
        self._versions.forget()
        return stat_of(self._backend, self._versions.snapshot())

    def export(
        self,
        folder: str | os.PathLike[str],
        selector: Selector | None = None,
        *,
        ending: str = ".safetensors",
        force: bool = False,
        progress: Progress | None = None,
    ) -> list[str]:
        """Write versions (None: all) as plain files version-00000012.safetensors, and log.json. Returns their names."""
        rows = self.log()
        if selector is not None:
            number = self.resolve(selector)
            rows = [row for row in rows if row.number == number]
        with naming_errors("create", folder):
            os.makedirs(folder, exist_ok=True)
        names, written = [], []
        for i, row in enumerate(rows):
            name = f"version-{row.number:08d}{ending}"
            try:
                self.checkout_file(row.number, os.path.join(folder, name), force=force)
            except NotFoundError:
                if selector is not None or not self._is_pruned(row.number):
                    raise
                continue  # dropped since the log was read
            names.append(name)
            written.append(row)
            if progress:
                progress(i + 1, len(rows))
        check_outputs([os.path.join(folder, "log.json")], self._own_files(), force)
        with atomic_file(os.path.join(folder, "log.json"), force=force) as stream:
            stream.write(log_json(written))
        return names

    def __len__(self) -> int:
        """How many versions were committed, pruned ones included."""
        latest = self._versions.latest()
        return 0 if latest is None else latest + 1

    def __iter__(self) -> Iterator[Version]:
        return iter(self.log())


def _wanted(
    bound: BoundLike,
    policy: Policy | str | None,
    method: str | None,
    options: Mapping[str, Any] | None,
    exclusive: str | None,
) -> dict[str, Any]:
    """The settings that a caller gave, checked."""
    wanted: dict[str, Any] = {}
    if bound is not None:
        wanted["bound"] = settled_bound(bound)
    if policy is not None:
        wanted["policy"] = parse_policy(policy)
    if method is not None or options is not None:
        recipe = recipe_type(method or StoreSettings.method).from_options(options)
        wanted["method"] = recipe.name
        wanted["options"] = {key: value for key, value in recipe.options().items() if value is not None}
    if exclusive is not None:
        if exclusive not in ("create", "single-writer"):
            raise UsageError(f"exclusive is 'create' or 'single-writer', not {exclusive!r}")
        wanted["exclusive"] = exclusive
    return wanted


def _unread(name: str) -> Array:
    raise NotFoundError(f"tensor {name!r} is in another process")


def _try_out(settings: StoreSettings) -> None:
    """Raise UsageError for a method that cannot do what is asked of it, before anything depends on it."""
    bounds = settings.bound.values() if isinstance(settings.bound, Mapping) else [settings.bound]
    probe = Checkpoint.of({"x": np.zeros(1, np.float32)})
    for bound in bounds:
        codec = without_updates(dataclasses.replace(settings, bound=bound).codec(["x"]))
        write_archive(probe, None, codec, io.BytesIO(), threads=1)


def _said(
    message: str,
    metrics: Mapping[str, float] | None,
    tags: Sequence[str],
    step: int | None,
    metadata: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What the committer says of a version, checked."""
    if isinstance(tags, str):
        raise UsageError(f"tags are a list of texts, not the text {tags!r}")
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__") or abs(int(step)) >= 1 << 62):
        raise UsageError(f"step is a whole number, not {step!r}")
    pairs = dict(metadata or {})
    for pair in pairs.items():
        for text in pair:
            check_text("metadata's keys and values", text)
    return {
        "message": check_text("messages", message),
        "metrics": clean_metrics(metrics),
        "tags": tuple(dict.fromkeys(check_name("tags", tag) for tag in tags)),
        "step": None if step is None else int(step),
        "metadata": pairs,
    }
