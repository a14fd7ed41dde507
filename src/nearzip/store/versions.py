"""Finding and reading manifests. Numbers have no gaps, so that the newest is found without a list."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator

from nearzip.errors import CorruptError, Error, LimitError, NotFoundError
from nearzip.store.backends.backend import Backend
from nearzip.store.documents import MAX_DOCUMENT_BYTES, seal, unseal
from nearzip.store.manifest import MAX_VERSIONS, Manifest, parse, path_of
from nearzip.store.policy import MAX_DEPTH
from nearzip.store.summaries import BLOCK, forget_block, read_block, write_block

__all__ = ["Versions"]

_LATEST = "latest"
#: Manifests that one version may lead to: more are no chain of ours.
_MAX_REACHED = 32 * MAX_DEPTH
_PRUNED = ".pruned"


class Versions:
    """The manifests of one store, remembered once they were read."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self._known: dict[int, Manifest] = {}
        #: The newest that was seen; numbers only grow.
        self._newest: int | None = None
        #: Blocks whose hints are known to be gone.
        self._forgotten: set[int] = set()

    # reading

    def get(self, number: int, fresh: bool = False) -> Manifest:
        """The manifest of a version, or its tombstone.

        Raises NotFoundError, and CorruptError or NewerFormatError for one that cannot be read. `fresh`: read it again.
        """
        if fresh or number not in self._known:
            self._known[number] = self._read(number)
        return self._known[number]

    def forget(self) -> None:
        """Read everything again when it is asked for next: another process may have re-encoded it."""
        self._known.clear()
        self._forgotten.clear()

    def has_changed(self, number: int) -> bool:
        """Whether the version, or what it is coded against, was re-encoded or dropped since it was read."""
        before = self._reached(number, self._known.get)
        self.forget()
        return self._reached(number, self._readable) != before

    @staticmethod
    def _reached(number: int, get: Callable[[int], Manifest | None]) -> dict[int, Manifest | None]:
        """The manifests that a version leads to; None for those that `get` does not have."""
        found: dict[int, Manifest | None] = {}
        waiting = [number]
        while waiting and len(found) <= _MAX_REACHED:
            one = waiting.pop()
            if one not in found:
                found[one] = manifest = get(one)
                waiting += () if manifest is None else manifest.bases
        return found

    def _readable(self, number: int) -> Manifest | None:
        with contextlib.suppress(Error):
            return self.get(number)
        return None

    def snapshot(self) -> dict[int, Manifest]:
        """Every version and tombstone as of about now. Raises what `get` raises.

        Manifests are read one after the other. Under the policy backward, one that is read late may be coded against a
        version that was committed since the first was read: such versions belong to the snapshot, too.
        """
        return self.complete({manifest.number: manifest for manifest in self.all()})

    def complete(self, found: dict[int, Manifest]) -> dict[int, Manifest]:
        """Add the versions that were committed while the others were read, if those are coded against them."""
        while found:
            newest = max(found)
            bases = {base for manifest in found.values() for base in manifest.bases}
            if max(bases, default=0) <= newest or (manifest := self._next(newest)) is None:
                break
            found[newest + 1] = manifest
        return found

    def _next(self, newest: int) -> Manifest | None:
        try:
            return self.get(newest + 1)
        except NotFoundError:
            return None

    def assume(self, manifest: Manifest) -> None:
        """Take a manifest for a version's without reading it."""
        self._known[manifest.number] = manifest

    def _read(self, number: int) -> Manifest:
        where = f"{self._backend.url}: version {number}"
        data, renamed = self._bytes_of(number)
        manifest = parse(data, number, where)
        if renamed and manifest.pruned is None:
            return dataclasses.replace(manifest, pruned=manifest.time)
        return manifest

    def _bytes_of(self, number: int) -> tuple[bytes, bool]:
        path = path_of(number)
        try:
            return self._backend.read(path, MAX_DOCUMENT_BYTES), False
        except NotFoundError:
            if self._backend.renames:
                try:
                    return self._backend.read(path + _PRUNED, MAX_DOCUMENT_BYTES), True
                except NotFoundError:
                    pass
        raise NotFoundError(f"{self._backend.url}: no version {number}")

    def _exists(self, number: int) -> bool:
        try:
            self.get(number)
        except NotFoundError:
            return False
        except Error as error:
            if not isinstance(error, (CorruptError, LimitError)):
                raise
        return True

    # the newest

    def latest(self) -> int | None:
        """The number of the newest version, None for an empty store. One read if the hint is right, and one to see."""
        start = self.hint() if self._newest is None else self._newest
        if start is None or start < 0 or not self._exists(start):
            start = self._listed()
        if start is None:
            if not self._exists(0):
                return None
            start = 0
        # Doubling steps, then halving ones: a hint may be out of date.
        step = 1
        while start + step < MAX_VERSIONS and self._exists(start + step):
            start, step = start + step, 2 * step
        low, high = start, start + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._exists(middle) else (low, middle)
        self._newest = low
        return low

    def hint(self) -> int | None:
        """What the hint says is the newest version; -1 for one that is damaged, None if there is none."""
        try:
            found = unseal("latest", self._backend.read(_LATEST, 1 << 12), _LATEST).get("version")
        except NotFoundError:
            return None
        except Error:
            return -1
        return found if type(found) is int and 0 <= found < MAX_VERSIONS else -1

    def _listed(self) -> int | None:
        return max(self.numbers(), default=None) if self._backend.can_list else None

    def numbers(self) -> set[int]:
        """All numbers that a list of the files shows."""
        names = (entry.name.removesuffix(_PRUNED) for entry in self._backend.list("versions"))
        return {int(name) for name in names if name.isdecimal() and path_of(int(name)).endswith(f"/{name}")}

    # chains

    def chain(self, number: int) -> list[Manifest]:
        """The version and all that it is coded against, bases before what needs them.

        Raises CorruptError for a circle, LimitError for a chain that is too long, and what `get` raises.
        """
        done: dict[int, int] = {}
        ordered: list[Manifest] = []
        # Depth first, without recursion; an entry on the stack a second time means that its bases are done.
        stack = [(number, False)]
        open_: set[int] = set()
        while stack:
            one, ready = stack.pop()
            if ready:
                open_.discard(one)
                manifest = self.get(one)
                done[one] = 1 + max((done[base] for base in manifest.bases), default=-1)
                if done[one] > MAX_DEPTH:
                    raise LimitError(f"{self._backend.url}: version {number} is more than {MAX_DEPTH} deltas long")
                ordered.append(manifest)
            elif one not in done:
                if one in open_:
                    raise CorruptError(f"{self._backend.url}: version {one} is coded against itself in a circle")
                open_.add(one)
                stack.append((one, True))
                stack += [(base, False) for base in self._manifest_of(one, number).bases if base not in done]
                if len(open_) > 2 * MAX_DEPTH:
                    raise LimitError(f"{self._backend.url}: version {number} is more than {MAX_DEPTH} deltas long")
        return ordered

    def _manifest_of(self, number: int, wanted: int) -> Manifest:
        try:
            return self.get(number)
        except NotFoundError:
            if number == wanted:
                raise
            raise CorruptError(
                f"{self._backend.url}: version {number}, which version {wanted} is coded against, is missing; "
                "run 'nearzip store verify'"
            ) from None

    def depth(self, number: int) -> int:
        """Deltas between a version and its keyframe."""
        depths: dict[int, int] = {}
        for manifest in self.chain(number):
            depths[manifest.number] = 1 + max((depths[base] for base in manifest.bases), default=-1)
        return depths[number]

    # writing

    def create(self, manifest: Manifest) -> bool:
        """Create the manifest, which commits the version. Its objects must be durable (`Backend.settle`).

        Returns False if another writer created this number first.
        """
        created = self._backend.create(path_of(manifest.number), manifest.to_bytes())
        if created:
            self._known[manifest.number] = manifest
            self._newest = manifest.number
        return created

    def replace(self, manifest: Manifest) -> None:
        """The same version, coded otherwise."""
        self.forget_hints(manifest.number)
        self._backend.replace(path_of(manifest.number), manifest.to_bytes())
        self._backend.settle("versions")
        self._known[manifest.number] = manifest

    def retire(self, manifest: Manifest) -> None:
        """Leave a tombstone."""
        self.forget_hints(manifest.number)
        self._backend.retire(path_of(manifest.number), manifest.to_bytes())
        self._known[manifest.number] = manifest

    def forget_hints(self, number: int) -> None:
        """Before the manifest of a version changes: summaries of it would be wrong."""
        if number // BLOCK not in self._forgotten:
            forget_block(self._backend, number)
            self._forgotten.add(number // BLOCK)

    def sum_up(self, blocks: Iterable[int]) -> None:
        """Write hints of blocks that are full. Nothing depends on them, so nothing fails."""
        for block in blocks:
            with contextlib.suppress(Error):
                write_block(self._backend, block, [self.get(block * BLOCK + i) for i in range(BLOCK)])
                self._forgotten.discard(block)

    def point_to(self, number: int) -> None:
        """Move the hint. Nothing depends on it, so nothing fails."""
        try:
            self._backend.replace(_LATEST, seal("latest", {"version": number}), durable=False)
        except Error:
            return

    def correct_hint(self) -> None:
        """Let the hint name the newest version."""
        latest = self.latest()
        if latest is not None:
            self.point_to(latest)

    def all(self) -> Iterator[Manifest]:
        """Every version and tombstone, in order. Raises what `get` raises."""
        latest = self.latest()
        for number in range(0 if latest is None else latest + 1):
            yield self.get(number)

    def summaries(self) -> Iterator[Manifest]:
        """As `all`, in fewer reads, and perhaps out of date: without what only restoring needs."""
        latest = self.latest()
        n = 0 if latest is None else latest + 1
        for block in range(-(-n // BLOCK)):
            rows = read_block(self._backend, block) if (block + 1) * BLOCK <= n else None
            if rows is None:
                rows = [self.get(number) for number in range(block * BLOCK, min(n, (block + 1) * BLOCK))]
            yield from rows
