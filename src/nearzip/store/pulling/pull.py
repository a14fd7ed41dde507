"""Bringing a client's file to another version: the deltas that lead there from what it holds, or all of it.

Hu et al., ICPP 2020, section 4.1, with any host of files in place of a server.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearzip.attached import files_of
from nearzip.checkpoints import check_writable, files_in, is_chunk_file, open_checkpoint, write_checkpoint
from nearzip.digests import checkpoint_id, content_id, tensor_digest
from nearzip.errors import CorruptError, Error, LimitError, NotFoundError, UsageError
from nearzip.fileio import check_folder, naming_errors, replace_file, replace_folder, through_links
from nearzip.limits import Limits
from nearzip.store.backends.backend import Backend
from nearzip.store.backends.http import HttpBackend
from nearzip.store.backends.local import LocalBackend
from nearzip.store.chain import Progress
from nearzip.store.pulling.download import Cache, Tally
from nearzip.store.pulling.route import Held, Route, find_held, plan_route, updated
from nearzip.store.repository import Store
from nearzip.store.selectors import Selector
from nearzip.tensors import Checkpoint

__all__ = ["BANDWIDTHS", "PullReport", "pull"]

#: Megabits per second: the world's averages that the paper takes (section 5.3): wired up, wired down, wireless down.
BANDWIDTHS = (40.83, 74.32, 31.95)
#: How often the way is looked for again because others re-encode the store meanwhile.
_ATTEMPTS = 20
#: Bytes of manifests and other small files that one pull reads of a web host.
_DOCUMENT_BYTES = 256 << 20


@dataclass(frozen=True)
class PullReport:
    """What a pull did, or would do.

    Parameters
    ----------
    url, path : str
    version : int
        What the file holds now.
    held : int or None
        The version it held before; None: no version of this store.
    route : tuple of int
        The versions whose objects are decoded, in that order.
    n_objects, n_needed : int
        Objects of the route, and their bytes.
    n_moved, n_resumed : int
        Bytes of objects that were fetched by this pull, and that an earlier one had left.
    n_described : int
        Bytes of manifests and other small files that were read from a web host.
    n_full : int
        Bytes of the version's tensors: what a client without nearzip downloads.
    done : bool
        False after a dry run.
    """

    url: str
    path: str
    version: int
    held: int | None
    route: tuple[int, ...]
    n_objects: int
    n_needed: int
    n_moved: int
    n_resumed: int
    n_described: int
    n_full: int
    done: bool = True

    @property
    def ratio(self) -> float:
        """Bytes of the tensors over bytes of the objects needed; infinite if there is nothing to fetch."""
        return self.n_full / self.n_needed if self.n_needed else float("inf")

    def seconds(self, megabits: float) -> tuple[float, float]:
        """Seconds to fetch the objects, and to fetch the uncompressed tensors, at so many megabits per second.

        Raises UsageError for a bandwidth that is not positive.
        """
        if not megabits > 0:
            raise UsageError(f"a bandwidth is a positive number of megabits per second, not {megabits!r}")
        # One division, so that the quotient is the nearest number to it.
        rate = megabits * 1e6
        return 8 * self.n_needed / rate, 8 * self.n_full / rate


def pull(
    url: str | os.PathLike[str],
    to: str | os.PathLike[str],
    selector: Selector = "latest",
    *,
    force: bool = False,
    dry_run: bool = False,
    connections: int = 4,
    max_download: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PullReport:
    """Update the file `to` to a version of the store at `url`, fetching as few bytes as possible.

    The version that the file holds is recognized by its content. Objects are fetched into a folder beside the file, so
    that an interrupted pull continues where it stopped. The file is replaced in one step after all digests have been
    checked; until then it is unchanged.

    Parameters
    ----------
    url : str
        A web host that holds the files of a store, or any other place that `Store` reads.
    to : path
        A checkpoint file, or the folder if one was committed; need not exist.
    selector : int or str
        As for `Store.checkout`.
    force : bool
        Replace a file that holds no version of the store (compared with the versions on the route and 64 around it).
    dry_run : bool
        Report what would be fetched; fetch no objects.
    connections : int
        Number of objects fetched in parallel.
    max_download : int
        Largest number of bytes to fetch.

    Raises
    ------
    UsageError
        The file holds something else, and `force` was not given.
    LimitError, NoSpaceError
        The update needs more than `max_download`, `limits` or the disk allow.
    CorruptError
        The host's bytes differ from what was committed. The file is unchanged.
    BusyError
        Another pull to this file is under way.
    Error
        The connection failed; pull again to go on.

    Examples
    --------
    >>> report = pull("https://example.org/store", "model.safetensors")       # doctest: +SKIP
    >>> report.held, report.version, report.n_moved                           # doctest: +SKIP
    (3, 5, 18342)
    """
    if type(connections) is not int or not 1 <= connections <= 64:
        raise UsageError(f"connections is a number from 1 to 64, not {connections!r}")
    target = through_links(to)
    store = Store(url, storage_options=storage_options, limits=limits, threads=threads)
    backend = store.reader.backend
    if isinstance(backend, HttpBackend):
        backend.document_bytes = _DOCUMENT_BYTES
    job = _Pull(store, target, force, connections, max_download, progress)
    with contextlib.closing(_open_held(target, force)) as present:
        for left in reversed(range(_ATTEMPTS)):
            try:
                return job.run(selector, present, dry_run)
            except (NotFoundError, CorruptError):  # noqa: PERF203
                # What is read may have been re-encoded or dropped meanwhile, and the old objects deleted.
                if left == 0 or not job.starts_over():
                    raise
    raise AssertionError


def _open_held(target: Path, force: bool) -> Checkpoint:
    """What the file holds; without tensors if there is none, or one that cannot be read and may be replaced."""
    empty = Checkpoint.of({})
    if not os.path.lexists(target):
        if not target.absolute().parent.is_dir():
            raise NotFoundError(f"{target.parent}: no such directory")
        return empty
    try:
        return open_checkpoint(target)
    except Error as error:
        if force and not target.is_dir():
            return empty
        raise UsageError(f"{error}; --force (force=True) replaces it") from None


class _Pull:
    """One call of `pull`."""

    def __init__(
        self,
        store: Store,
        target: Path,
        force: bool,
        connections: int,
        max_download: int | None,
        progress: Progress | None,
    ):
        self._store = store
        self._backend: Backend = store.reader.backend
        self._versions = store.reader.versions
        self._target = target
        self._force = force
        self._connections = connections
        self._max_download = max_download
        self._progress = progress
        self._cache = Cache(target.with_name(f".{target.name}.nearzip-pull"))
        #: The version that is wanted, once it is known.
        self._wanted: int | None = None
        self._before = 0

    def starts_over(self) -> bool:
        """Whether the wanted version was re-encoded or dropped since it was read: then it is worth another attempt."""
        self._before = self._received()
        return self._wanted is not None and self._versions.has_changed(self._wanted)

    def run(self, selector: Selector, present: Checkpoint, dry_run: bool) -> PullReport:
        self._wanted = self._store.resolve(selector)
        route = self._route(self._wanted, present)
        n_described = self._received() - self._before
        objects = route.objects
        _check_target(self._target, route.target.tree)
        self._check_size(sum(objects.values()))
        if dry_run:
            return self._report(route, Tally(0), n_described, False)
        if not route.steps:
            self._cache.discard()
            return self._report(route, Tally(0), n_described, True)
        with self._cache.locked():
            self._cache.sweep(objects)
            tally = Tally(sum(objects.values()), self._progress)
            self._cache.check_room(sum(objects.values()) - self._cache.n_held(objects) + route.target.n_bytes)
            self._cache.fetch(self._backend, objects, self._connections, tally)
            self._write(route)
            self._cache.remove()
        return self._report(route, tally, n_described, True)

    def _received(self) -> int:
        return self._backend.n_received if isinstance(self._backend, HttpBackend) else 0

    def _route(self, number: int, present: Checkpoint) -> Route:
        held = None
        if present.specs or os.path.lexists(self._target):
            manifest = find_held(self._versions, number, checkpoint_id(present))
            held = None if manifest is None else Held(manifest, present)
            if held is None and not self._force:
                raise UsageError(
                    f"{self._target}: holds neither version {number} of {self._store.url} nor one near it; "
                    "--force (force=True) replaces it"
                )
        return plan_route(self._versions, number, held, self._store.url)

    def _check_size(self, n_bytes: int) -> None:
        if self._max_download is not None and n_bytes > self._max_download:
            raise LimitError(
                f"{self._store.url}: the update takes {n_bytes} bytes; allowed are {self._max_download} "
                "(--max-download, max_download=)"
            )

    def _write(self, route: Route) -> None:
        """The new file, complete and on disk, in place of the old one."""
        # In the folder, so that nothing is left beside the file if this process ends.
        made = self._cache.folder / f"new{self._target.suffix}"
        backend = LocalBackend(str(self._cache.folder))
        try:
            with updated(backend, route, self._store.reader.limits, self._store.reader.threads) as version:
                _write_checked(made, version, route)
        except Error as error:
            # What was fetched has the digests that the host names; it can only be the host that is wrong.
            raise type(error)(f"{self._store.url}: version {route.target.number} cannot be restored: {error}") from None
        with naming_errors("write", self._target):
            if made.is_dir():
                files = {each.relative_to(made).as_posix() for each in made.rglob("*") if each.is_file()}
                held = set() if route.held is None else files_in(route.held.checkpoint)
                known = files | held
                check_folder(self._target, known, True, lambda file: is_chunk_file(file, known))
                replace_folder(made, self._target)
            else:
                replace_file(made, self._target)

    def _report(self, route: Route, tally: Tally, n_described: int, done: bool) -> PullReport:
        objects = route.objects
        return PullReport(
            url=self._store.url,
            path=os.fspath(self._target),
            version=route.target.number,
            held=None if route.held is None else route.held.manifest.number,
            route=tuple(step.number for step in route.steps),
            n_objects=len(objects),
            n_needed=sum(objects.values()),
            n_moved=tally.n_moved,
            n_resumed=tally.n_resumed,
            n_described=n_described,
            n_full=route.target.n_bytes,
            done=done,
        )


def _check_target(target: Path, tree: str | None) -> None:
    """Raise UsageError for a name that says of no format what to write."""
    if not files_of(tree):  # of a folder, perhaps
        check_writable(target, {})


def _write_checked(path: Path, version: Checkpoint, route: Route) -> None:
    check_writable(path, version.specs, version.tree, version.read)
    contents = {}
    with write_checkpoint(
        path, version.specs, version.metadata, version.tree, True, version.read, quiet=True
    ) as writer:
        for name, array in version.arrays():
            writer.write(name, array)
            contents[name] = tensor_digest(array)
        if content_id((spec, contents[name]) for name, spec in version.specs.items()) != route.target.id:
            raise CorruptError("what was decoded is not what was committed (digests differ)")
