"""`nearzip.Store`: versions of a network, each small, verified, and restored bit for bit. docs/store.md.

One class in one file, though a long one: what users call, half of it documentation. The work is done by the modules
that it imports.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from nearzip.api import warn_of_lost_update
from nearzip.attached import attached_names, without_attached
from nearzip.changes import UpdateKept
from nearzip.coding import Codings, PlanLike, codings_of_plan
from nearzip.display import html_table
from nearzip.errors import CorruptError, UsageError
from nearzip.fileio import Output
from nearzip.frameworks import check_framework, to_framework
from nearzip.inputs import open_input
from nearzip.limits import Limits
from nearzip.store.backends import open_backend
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import Progress
from nearzip.store.committing import Committer
from nearzip.store.damage import VerifyReport, parse_subset
from nearzip.store.exporting import export
from nearzip.store.keep import parse_rules
from nearzip.store.log import Version
from nearzip.store.maintenance import Maintenance, PruneReport
from nearzip.store.manifest import described
from nearzip.store.opening import open_settings, read_settings
from nearzip.store.policy import Policy, parse_policy
from nearzip.store.reading import VersionReader
from nearzip.store.repair import Repairer, repair_all, repair_settings, sort_sources
from nearzip.store.selectors import Selector
from nearzip.store.settings import PATH, BoundLike, requested, try_out
from nearzip.store.shards import ShardWriter
from nearzip.store.tickets import check_session
from nearzip.store.usage import Usage, usage_of
from nearzip.store.verify import Verifier
from nearzip.store.versions import Versions
from nearzip.tensors import Checkpoint, TensorSpec

__all__ = ["Store"]


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
        "single-writer" promises that only one process writes, for storage that cannot create files exclusively.
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
        #: For tools that need more than the methods below, such as reports.
        self.reader = VersionReader(self._backend, self._versions, limits, threads)
        self._committer = Committer(self.reader, hold)
        self._shards = ShardWriter(self._committer)
        wanted = requested(bound, policy, method, options, exclusive)
        self.settings = open_settings(self._backend, create, wanted)

    @property
    def url(self) -> str:
        return self._backend.url

    @property
    def policy(self) -> Policy:
        return self.settings.policy

    @property
    def bound(self) -> str | Mapping[str, str] | None:
        """The bound as the command line spells it."""
        return self.settings.bound

    def with_policy(self, policy: Policy | str) -> Store:
        """The same store, with another policy for commits through the returned object. The stored policy stays."""
        other = copy.copy(self)
        other.settings = dataclasses.replace(self.settings, policy=parse_policy(policy))
        return other

    @property
    def update_kept(self) -> UpdateKept | None:
        """The share of the update that the latest version committed by this object keeps; None for a first version."""
        return self._committer.update_kept

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
        self._committer.held = None
        self._shards.forget()

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
        """Change the given settings for versions committed from now on. Existing versions are unchanged."""
        self._check_writable()
        wanted = requested(bound, policy, method, options, None)
        with self._backend.maintaining(timeout):
            settings = dataclasses.replace(read_settings(self._backend), **wanted)
            try_out(settings)
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
        rename: Mapping[str, str] | None = None,
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
        rename : mapping of str to str
            For tensors of the version before that are called otherwise now: as for `nearzip.compress`.
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
        description = described(message, metrics, tags, step, metadata)
        source = tensors if isinstance(tensors, Checkpoint) else Checkpoint.of(tensors)
        manifest = self._committer.commit(
            source, self._codings(source, plan), self.policy, description, timeout, progress, rename
        )
        self._committer.follow_up(manifest, self.policy)
        if warn:
            warn_of_lost_update(self.update_kept)
        return manifest.number

    def commit_file(self, path: str | os.PathLike[str], message: str = "", **said: Any) -> int:
        """Commit a checkpoint file, read tensor by tensor. Otherwise as `commit`.

        Memory grows with the file only while `hold` keeps versions of up to 4 GiB: the one before and this one, both as
        readers get them, are there at once.
        """
        source = open_input(path)
        try:
            metadata = {**source.metadata, **(said.pop("metadata", None) or {})}
            return self.commit(source, message, metadata=metadata, **said)
        finally:
            source.close()

    def _codings(self, source: Checkpoint, plan: PlanLike | None) -> Codings:
        if plan is not None:
            return codings_of_plan(plan, list(without_attached(source).specs))
        codings = self.settings.codings()
        # Most settings name no tensors.
        return codings.for_tensors(list(without_attached(source).specs)) if codings.by_pattern else codings

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
        kept = self._shards.write(
            source, self._codings(source, plan), self.policy, session, rank, ranks, timeout, progress
        )
        self._committer.update_kept = kept
        if warn:
            warn_of_lost_update(kept)

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
        """Commit a session's shards as the next version, after all are written. Called by one process.

        Raises
        ------
        NotFoundError
            A shard is missing.
        BusyError
            Another process committed since the shards were written, so their base is out of date: write them again.
        """
        self._check_writable()
        description = described(message, metrics, tags, step, metadata)
        check_session(session, 0, ranks)
        manifest = self._shards.commit(session, ranks, description, timeout)
        self._committer.follow_up(manifest, self.policy)
        return manifest.number

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
        """Drop versions that no rule keeps. The others are still restored bit for bit.

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
            A rule that cannot be parsed; another process is pruning.
        CorruptError
            A manifest is damaged, so that the versions it needs are unknown; nothing was dropped.
        """
        self._check_writable()
        rules = parse_rules(keep)
        unwanted = frozenset(drop)
        with self._backend.maintaining(timeout):
            reader = self.reader
            maintenance = Maintenance(
                reader.backend, reader.versions, self.policy, reader.limits, reader.threads, dry_run=dry_run
            )
            return maintenance.prune(rules, unwanted, progress)

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
        reader = self.reader

        def look(depth: str) -> Verifier:
            verifier = Verifier(
                reader.backend,
                reader.versions,
                depth,
                share,
                part,
                max_duration,
                reader.limits,
                reader.threads,
                progress,
            )
            verifier.run()
            return verifier

        first = look(level)
        if not repair:
            return first.report
        if first.report.ok:
            self._versions.correct_hint()
            return first.report
        self._check_writable()
        with self._backend.maintaining(timeout), contextlib.ExitStack() as stack:
            self._committer.refresh()
            repairer = Repairer(reader.backend, reader.versions, limits=reader.limits, threads=reader.threads)
            sort_sources(sources, repairer, stack)
            repair_all(first, repairer)
            self._backend.sweep_litter()
        self._versions.forget()
        self._committer.held = None
        again = look("full" if level == "quick" else level).report
        again.repaired, again.lost = repairer.repaired, repairer.lost
        self._versions.correct_hint()
        return again

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

    # reading

    def resolve(self, selector: Selector = "latest") -> int:
        """The number of the version that a selector means. Raises UsageError, NotFoundError."""
        return self.reader.resolve(selector)

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
        framework : {"np", "pt", "jax"}
            NumPy arrays, PyTorch tensors on the CPU, or arrays of JAX on its default device.

        Raises
        ------
        NotFoundError
            No such version or tensor.
        CorruptError
            Something that it needs is damaged; nothing wrong is ever returned.
        """
        check_framework(framework)
        number, arrays = self.reader.arrays(selector, names, progress)
        # Of a folder that was committed, the tensors; `checkout_file` also writes its other files.
        hidden = attached_names(self.reader.live(number).tree) if names is None else ()
        return {name: to_framework(array, framework) for name, array in arrays.items() if name not in hidden}

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
        return self.reader.write_file(selector, path, force, progress)

    def specs(self, selector: Selector = "latest") -> dict[str, TensorSpec]:
        """Names, dtypes and shapes of a version's tensors, read from its indexes only. Raises as `checkout` does."""
        return self.reader.specs(selector)

    def info(self, selector: Selector = "latest") -> Version:
        """What `log` says of one version."""
        return self.reader.row(selector)

    def log(self, pruned: bool = False) -> list[Version]:
        """All versions, oldest first; tombstones too if `pruned`."""
        return [row for row in self.reader.rows() if pruned or row.pruned is None]

    def stat(self) -> Usage:
        """How large the store is, and what takes the space. Raises UsageError for a place that cannot list files."""
        if not self._backend.can_list:
            raise UsageError(f"{self.url}: cannot list its files")
        return usage_of(self._backend, self.reader.snapshot())

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
        return export(self.reader, folder, selector, ending, force, progress)

    def __len__(self) -> int:
        """How many versions were committed, pruned ones included."""
        latest = self._versions.latest()
        return 0 if latest is None else latest + 1

    def __iter__(self) -> Iterator[Version]:
        return iter(self.log())
