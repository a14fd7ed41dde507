"""Reading versions of a store, beside processes that re-encode and drop them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nearzip.checkpoints import check_writable, write_checkpoint
from nearzip.container import Index
from nearzip.digests import content_id, tensor_digest
from nearzip.errors import CorruptError, Error, NotFoundError
from nearzip.fileio import Output, check_outputs
from nearzip.limits import Limits
from nearzip.sources import is_url
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import Progress, open_part, restore, stream
from nearzip.store.log import Version, version_rows
from nearzip.store.manifest import Manifest, Part
from nearzip.store.patience import PATIENCE, patiently
from nearzip.store.selectors import Selector, needs_log, select
from nearzip.store.versions import Versions
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = ["VersionReader"]

T = TypeVar("T")


@dataclass(frozen=True)
class VersionReader:
    """Reads the versions of one store.

    Parameters
    ----------
    backend, versions
        Of the store.
    """

    backend: Backend
    versions: Versions
    limits: Limits | None = None
    threads: int | None = None

    @property
    def url(self) -> str:
        return self.backend.url

    # which version

    def resolve(self, selector: Selector) -> int:
        """The number of the version that a selector means. Raises UsageError, NotFoundError."""
        if needs_log(selector):
            self.versions.forget()
            number = select(selector, self.versions.summaries(), self.url)
            if self.versions.get(number).pruned is None:
                return number
            return select(selector, self.versions.all(), self.url)  # the summaries were out of date
        if str(selector) == "latest":
            return self._latest()
        number = int(selector)
        self.live(number)
        return number

    def _latest(self) -> int:
        latest = self.versions.latest()
        # A tombstone is the newest where `verify --repair` had to give a version up.
        while latest is not None and self.versions.get(latest).pruned is not None:
            latest = latest - 1 if latest else None
        if latest is None:
            raise NotFoundError(f"{self.url}: has no versions yet")
        return latest

    def live(self, number: int) -> Manifest:
        """The manifest of a version. Raises NotFoundError if it was dropped."""
        manifest = self.versions.get(number)
        if manifest.pruned is not None:
            raise NotFoundError(f"{self.url}: version {number} was pruned on {manifest.pruned}")
        return manifest

    def is_pruned(self, number: int) -> bool:
        """Whether a version is known to be dropped."""
        with contextlib.suppress(Error):
            return self.versions.get(number).pruned is not None
        return False

    # what is in it

    def read(self, selector: Selector, action: Callable[[int], T]) -> tuple[int, T]:
        """The version that a selector means, and what `action` makes of it: repeated while others change what it reads.

        `action` gets the version's number, and raises Error if something that it needs is missing or damaged.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            number = self.resolve(selector)

            def attempt(number: int = number) -> T:
                self.live(number)
                return action(number)

            try:
                return number, patiently(self.versions, number, attempt)
            except NotFoundError:
                # The version behind "latest" or "best:loss" may have been dropped meanwhile: then it means another one.
                dropped = not str(selector).isdecimal() and self.is_pruned(number)
                if not dropped or time.monotonic() >= deadline:
                    raise

    def arrays(
        self, selector: Selector, names: Sequence[str] | None = None, progress: Progress | None = None
    ) -> tuple[int, dict[str, Array]]:
        """The number of a version, and its arrays: all or some."""

        def decode(number: int) -> dict[str, Array]:
            return restore(self.backend, self.versions, number, names, self.limits, self.threads, progress)

        return self.read(selector, decode)

    def stream(self, number: int) -> contextlib.AbstractContextManager[Checkpoint]:
        """A version whose tensors are decoded when they are read; to be called within `read`."""
        return stream(self.backend, self.versions, number, self.limits, self.threads)

    def opened(self, number: int, stack: contextlib.ExitStack) -> Checkpoint:
        """As `stream`, for as long as `stack`."""
        return patiently(self.versions, number, lambda: stack.enter_context(self.stream(number)))

    def index(self, part: Part) -> Index:
        """The index of the object that holds a part of a version."""
        with open_part(self.backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
            return reader.index

    def write_file(
        self, selector: Selector, path: Output, force: bool = False, progress: Progress | None = None
    ) -> int:
        """Write a version to a checkpoint file or stream, tensor by tensor; returns its number."""
        return self.read(selector, lambda number: self._write_file(number, path, force, progress))[0]

    def _write_file(self, number: int, path: Output, force: bool, progress: Progress | None) -> None:
        manifest = self.live(number)
        with self.stream(number) as version:
            check_outputs([path], self.own_files, force)
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

    @property
    def own_files(self) -> list[str]:
        """Where the store is, if that is a folder here: no output may overwrite it."""
        return [] if is_url(self.url) else [self.url]

    def specs(self, selector: Selector) -> dict[str, TensorSpec]:
        """Names, dtypes and shapes of a version's tensors, read from its indexes only."""

        def read(number: int) -> dict[str, TensorSpec]:
            with self.stream(number) as version:
                return dict(version.specs)

        return self.read(selector, read)[1]

    # rows of the log

    def row(self, selector: Selector) -> Version:
        """What the log says of one version."""
        return self.read(selector, self._row)[1]

    def _row(self, number: int) -> Version:
        found = {manifest.number: manifest for manifest in self.versions.chain(number)}
        # Versions that may have the same objects: a version shares tensors with the one before.
        with contextlib.suppress(Error):
            for before in range(number - 1, -1, -1):
                manifest = found.setdefault(before, self.versions.get(before))
                if not set(manifest.objects) & set(found[number].objects):
                    break
        return next(row for row in version_rows(found.values()) if row.number == number)

    def rows(self) -> list[Version]:
        """The log, oldest version first, tombstones included."""
        self.versions.forget()
        found = self.versions.complete({manifest.number: manifest for manifest in self.versions.summaries()})
        return version_rows(found.values())

    def snapshot(self) -> dict[int, Manifest]:
        """Every manifest and tombstone as it is now."""
        self.versions.forget()
        return self.versions.snapshot()
