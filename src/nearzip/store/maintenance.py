"""Dropping versions, re-encoding others, and deleting objects that are no longer referenced.

The order keeps every version readable at every moment: new objects, then the manifest that names them, then the old
objects. It also works on a full disk: what can be removed without writing anything is removed first.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from nearzip.container import Index
from nearzip.errors import CorruptError, Error, NoSpaceError, StoreError, UsageError
from nearzip.limits import Limits
from nearzip.store.backends.backend import Backend, Stored
from nearzip.store.chain import Progress, open_part, restore, stream
from nearzip.store.encoding import Encoder, Held, now
from nearzip.store.graph import behind, closure, depth, height, is_sound, needed_objects
from nearzip.store.keep import Rule, kept
from nearzip.store.manifest import Manifest, Part
from nearzip.store.policy import MAX_DEPTH, Policy
from nearzip.store.promises import committed_bounds, folded
from nearzip.store.recode import EXACTLY
from nearzip.store.steps import steps_of
from nearzip.store.summaries import BLOCK
from nearzip.store.tickets import staged_objects
from nearzip.store.versions import Versions
from nearzip.tensors import Checkpoint

__all__ = ["Maintenance", "PruneReport"]

#: Larger versions are re-encoded tensor by tensor.
_IN_MEMORY = 4 << 30
#: Steps of quantization that are tried for a tensor.
_MAX_STEPS = 3
#: Indexes of objects that are remembered.
_MAX_INDEXES = 8


@dataclass(frozen=True)
class PruneReport:
    """What `prune` did, or would do.

    Parameters
    ----------
    kept : dict of int to list of str
        Versions that stay, and the rules that say so.
    dropped : tuple of int
        Versions that were dropped.
    recoded : tuple of int
        Versions that were re-encoded so that others could be deleted. They restore the same values as before.
    retained : tuple of int
        Dropped versions whose bytes stay, because others are coded against them and re-encoding those would take more.
    n_objects, n_freed : int
        Objects removed, and their bytes, less those of new objects.
    skipped : tuple of str
        What could not be done now, and why.
    dry_run : bool
    """

    kept: Mapping[int, list[str]]
    dropped: tuple[int, ...]
    recoded: tuple[int, ...]
    retained: tuple[int, ...]
    n_objects: int
    n_freed: int
    skipped: tuple[str, ...] = ()
    dry_run: bool = False


class _Measuring:
    """In place of a backend: objects are measured, not kept."""

    def __init__(self, backend: Backend):
        self._backend = backend

    def __getattr__(self, name: str) -> object:
        return getattr(self._backend, name)

    @contextlib.contextmanager
    def new_object(self, staged: bool = False) -> Iterator[_Measured]:
        sink = _Measured()
        yield sink
        sink.stored = Stored("0" * 64, sink.n_bytes)


@dataclass
class _Measured:
    n_bytes: int = 0
    stored: Stored | None = None

    def write(self, data: bytes) -> int:
        self.n_bytes += len(data)
        return len(data)


@dataclass
class Maintenance:
    """One run over a store, whose lock is held.

    Parameters
    ----------
    backend, versions, policy
        Of the store.
    dry_run : bool
        Find out what would be done; write nothing.
    """

    backend: Backend
    versions: Versions
    policy: Policy
    limits: Limits | None = None
    threads: int | None = None
    dry_run: bool = False
    #: Every manifest, as it is or would be.
    manifests: dict[int, Manifest] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    #: When reading the manifests began, by the clock of the store's files.
    _as_of: float = 0.0
    _held: Held | None = None
    _n_objects: int = 0
    _n_freed: int = 0
    _counted: set[str] = field(default_factory=set)
    _indexes: dict[str, Index] = field(default_factory=dict)

    def read(self) -> None:
        """Read all manifests again. Raises CorruptError: with a damaged one, it is unknown what is needed."""
        self.versions.forget()
        self._as_of = self.backend.now()
        try:
            self.manifests = self.versions.snapshot()
            needed_objects(self.manifests)
            self._check_sound()
        except Error as error:
            if isinstance(error, StoreError):
                raise
            raise type(error)(
                f"{error}; nothing was dropped, run 'nearzip store verify --repair {self.backend.url}' first"
            ) from None

    def _check_sound(self) -> None:
        if not self._is_sound({}):
            raise CorruptError("versions are coded against each other in a circle, or in too long a chain")

    @property
    def live(self) -> dict[int, Manifest]:
        """Versions that are not dropped."""
        return {number: m for number, m in self.manifests.items() if m.pruned is None}

    def _is_live(self, number: int) -> bool:
        return self.manifests[number].pruned is None

    def _live_after(self, number: int) -> int | None:
        """The next version that is not dropped."""
        last = max(self.manifests, default=-1)
        return next((n for n in range(number + 1, last + 1) if n in self.manifests and self._is_live(n)), None)

    def _live_before(self, number: int) -> int | None:
        """The nearest version before that is not dropped and is not coded against this one."""
        for n in range(number - 1, -1, -1):
            if n in self.manifests and self._is_live(n) and number not in behind(self.manifests, n):
                return n
        return None

    # the whole

    def prune(
        self, rules: Iterable[Rule], unwanted: frozenset[int] = frozenset(), progress: Progress | None = None
    ) -> PruneReport:
        """Drop versions no rule keeps, re-encode dependants where that saves space, delete unreferenced objects."""
        self.read()
        newest = max(self.live, default=None)
        if unwanted - set(self.live) or newest in unwanted:
            wrong = min(unwanted - set(self.live), default=newest)
            raise UsageError(f"version {wrong} cannot be dropped: it is the newest, or there is no such version")
        keep = {number: why for number, why in kept(rules, self.live).items() if number not in unwanted}
        dropped = tuple(sorted(set(self.live) - set(keep)))
        self._sweep()
        for number in dropped:
            self._drop(number)
        self._sweep()
        recoded = self.recode(progress=progress)
        self._sweep()
        if not self.dry_run:
            self.versions.sum_up(sorted({number // BLOCK for number in self.manifests if number % BLOCK == BLOCK - 1}))
        _, retained = needed_objects(self.manifests)
        return PruneReport(
            keep, dropped, tuple(recoded), tuple(sorted(retained)), self._n_objects, self._n_freed,
            tuple(self.skipped), self.dry_run,
        )  # fmt: skip

    def _drop(self, number: int) -> None:
        tombstone = dataclasses.replace(self.manifests[number], pruned=now())
        if not self.dry_run:
            self.versions.retire(tombstone)
        self.manifests[number] = tombstone

    # re-encoding

    def recode(self, numbers: Iterable[int] | None = None, progress: Progress | None = None) -> list[int]:
        """Re-encode what depends on dropped versions or no longer fits the policy, where that saves bytes."""
        before = dict(self.manifests)
        work = sorted(self.live) if numbers is None else list(numbers)
        found: dict[int, Manifest] = {}
        for i, number in enumerate(work):
            candidate = self._candidate(number)
            if candidate is not None:
                # What comes next may be coded against it.
                self.manifests[number] = found[number] = candidate
            if progress:
                progress(i + 1, len(work))
        self.manifests = before
        done = self._apply(self._worthwhile(found))
        for number in set(found) - set(done):
            self._discard(found[number].parts[0])
        return sorted(done)

    def _candidate(self, number: int) -> Manifest | None:
        base = self._wanted_base(number)
        if base is _AS_IT_IS:
            return None
        assert base is None or isinstance(base, int)
        try:
            part = self._encode(number, base)
        except NoSpaceError as error:
            self.skipped.append(f"version {number} was not re-encoded: {error}")
        except (CorruptError, StoreError) as error:
            self.skipped.append(f"version {number} was left as it is: {error}")
        else:
            return dataclasses.replace(self.manifests[number], parts=(part,), order=None)
        return None

    def _worthwhile(self, found: Mapping[int, Manifest]) -> dict[int, Manifest]:
        """Those that together need fewest bytes: one by one from none, or all but those that do not pay."""

        def total(chosen: Mapping[int, Manifest]) -> int:
            return sum(needed_objects({**self.manifests, **chosen})[0].values())

        few: dict[int, Manifest] = {}
        for number, manifest in found.items():
            if total({**few, number: manifest}) < total(few):
                few[number] = manifest
        many = dict(found)
        for number in found:
            fewer = {n: m for n, m in many.items() if n != number}
            if total(fewer) <= total(many):
                many = fewer
        return many if total(many) < total(few) else few

    def _apply(self, chosen: Mapping[int, Manifest]) -> list[int]:
        """Replace manifests, in an order that keeps every version readable all the time."""
        waiting = dict(chosen)
        done: list[int] = []
        if waiting and not self.dry_run:
            self.backend.settle("objects")
        while waiting:
            ready = [number for number, manifest in waiting.items() if self._is_sound({number: manifest})]
            if not ready:
                break
            number = ready[0]
            manifest = waiting.pop(number)
            try:
                if not self.dry_run:
                    self.versions.replace(manifest)
            except NoSpaceError as error:
                self.skipped.append(f"version {number} was not re-encoded: {error}")
                continue
            self.manifests[number] = manifest
            self._n_freed -= manifest.n_stored
            done.append(number)
        return done

    def _is_sound(self, changed: Mapping[int, Manifest]) -> bool:
        """Whether no chain would be a circle or too long."""
        return is_sound({**self.manifests, **changed})

    def turn_back(self, number: int, held: Held | None) -> bool:
        """For the policy backward: code a version against the next one, which was just committed.

        The manifests that were read before must be those that are there, as the caller found out under the lock.
        """
        self._held = held
        self._read_around(number)
        self._check_sound()
        if number not in self.live or number + 1 not in self.live or self._wanted_base(number) is _AS_IT_IS:
            return False
        own = {part.object for part in self.manifests[number].parts if part.names is None}
        if not self.recode([number]):
            return False
        if self.backend.commits_alone:
            for name in own - self._named_after(number):
                self.backend.delete(f"objects/{name}")
        return True

    def _named_after(self, number: int) -> set[str]:
        """Objects that later versions name: what was written for a version, only those may have taken tensors from."""
        latest = self.versions.latest()
        assert latest is not None
        return {name for later in range(number, latest + 1) for name in self.versions.get(later).objects}

    def _read_around(self, number: int) -> None:
        """The manifests of a version, the next, those that may be coded against it, and all that they need."""
        wanted = list(range(max(0, number - MAX_DEPTH), number + 2))
        while wanted:
            one = wanted.pop()
            if one not in self.manifests:
                self.manifests[one] = self.versions.get(one)
                wanted += self.manifests[one].bases

    def _wanted_base(self, number: int) -> int | object | None:
        """What a version would better be coded against: another, None for a keyframe, or `_AS_IT_IS`."""
        manifest = self.manifests[number]
        if self.policy.kind == "backward":
            return self._wanted_later(manifest)
        if not self._stands_on_dropped(manifest):
            return _AS_IT_IS
        chain = [n for n in behind(self.manifests, number) if self._is_live(n) and n < number]
        earlier = max(chain) if chain else self._live_before(number)
        return earlier if earlier is not None and self._fits(number, earlier) else None

    def _wanted_later(self, manifest: Manifest) -> int | object | None:
        number = manifest.number
        on_dropped = self._stands_on_dropped(manifest)
        if manifest.bases and not on_dropped:
            return _AS_IT_IS
        later = self._live_after(number)
        if later is not None and self._fits(number, later):
            return later
        return None if on_dropped else _AS_IT_IS

    def _stands_on_dropped(self, manifest: Manifest) -> bool:
        return any(self.manifests[base].pruned is not None for base in manifest.bases)

    def _fits(self, number: int, base: int) -> bool:
        """Whether coding it against `base` makes no circle and no chain that is too long."""
        if number == base or number in behind(self.manifests, base):
            return False
        deltas = depth(self.manifests, base) + 1
        newest = max(self.manifests)
        if number in closure(self.manifests, [newest]) and deltas > depth(self.manifests, number):
            # Commits that are under way rely on the newest version's depth; on object stores, they hold no lock.
            return False
        return deltas + height(self.manifests, number) <= min(self.policy.depth, MAX_DEPTH)

    def _discard(self, part: Part) -> None:
        if not self.dry_run and part.object not in needed_objects(self.manifests)[0]:
            self.backend.delete(f"objects/{part.object}")

    def _encode(self, number: int, base: int | None) -> Part:
        with contextlib.ExitStack() as stack:
            source = self._open(number, stack)
            against = None if base is None else self._open(base, stack)
            source = dataclasses.replace(source, steps=self._steps(number, base))
            backend = self.backend if not self.dry_run else _Measuring(self.backend)
            encoder = Encoder(backend, EXACTLY, self.threads)  # type: ignore[arg-type]
            bounds = folded(committed_bounds(self.manifests[number], self._index))
            draft = encoder.version(source, number, against, base, hold=False, bounds=bounds)
        if draft.id != self.manifests[number].id:
            self._discard(draft.parts[0])
            raise StoreError(f"version {number} would not be restored as before; please report this as a fault")
        return draft.parts[0]

    def _open(self, number: int, stack: contextlib.ExitStack) -> Checkpoint:
        if self.manifests[number].n_bytes > _IN_MEMORY:
            return stack.enter_context(stream(self.backend, self.versions, number, self.limits, self.threads))
        if self._held is not None and self._held.number == number and self._held.intact():
            return self._held.checkpoint
        return Checkpoint.of(restore(self.backend, self.versions, number, None, self.limits, self.threads))

    def _steps(self, number: int, base: int | None) -> dict[str, tuple[float, ...]]:
        """The steps that the version and what lies between it and its new base were quantized by, nearest first."""
        nearest = [number, *([] if base is None else [base])]
        between = closure(self.manifests, nearest)
        found: dict[str, dict[float, None]] = {}
        for one in [*nearest, *sorted(between - set(nearest), reverse=True)]:
            for part in self.versions.get(one).parts:
                for name, steps in steps_of(self._index(part)).items():
                    found.setdefault(name, {}).update(dict.fromkeys(steps))
        return {name: tuple(steps)[:_MAX_STEPS] for name, steps in found.items()}

    def _index(self, part: Part) -> Index:
        """The index of an object; the last ones are remembered, as several versions need them one after the other."""
        if part.object not in self._indexes:
            with open_part(self.backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                if len(self._indexes) >= _MAX_INDEXES:
                    self._indexes.pop(next(iter(self._indexes)))
                self._indexes[part.object] = reader.index
        return self._indexes[part.object]

    # removing

    def _sweep(self) -> None:
        """Delete unreferenced objects, and what interrupted writers left."""
        needed = set(needed_objects(self.manifests)[0]) | staged_objects(self.backend, clear=not self.dry_run)
        if not self.dry_run:
            self.backend.sweep_litter()
        # Versions may have been committed since the manifests were read. Counted from now, their objects would be
        # old enough to go once a run takes longer than the grace period.
        oldest = self._as_of - self.backend.grace
        for entry in self.backend.list("objects"):
            if entry.name in needed or (self.backend.grace and entry.modified > oldest):
                continue
            if self.dry_run:
                if entry.name in self._counted:
                    continue
                self._counted.add(entry.name)
            else:
                self.backend.delete(f"objects/{entry.name}")
            self._n_objects += 1
            self._n_freed += entry.n_bytes


_AS_IT_IS: object = object()
