"""Finding damage: what is damaged, which versions that touches, which are readable, and what to do."""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nearzip.errors import CorruptError, Error, LimitError, NotFoundError, UsageError
from nearzip.limits import Limits
from nearzip.parallel import number_of_threads, ordered_map
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import Progress, restore
from nearzip.store.damage import LEVELS, Damage, VerifyReport
from nearzip.store.documents import MAX_DOCUMENT_BYTES
from nearzip.store.graph import closure, decoding_order, unknown_bases
from nearzip.store.manifest import Manifest, path_of
from nearzip.store.patience import PATIENCE, patiently
from nearzip.store.settings import PATH, parse_settings
from nearzip.store.tickets import staged_objects
from nearzip.store.versions import Versions
from nearzip.tensors import Array

__all__ = ["OF_THE_BYTES", "Verifier", "wrong_with_object"]

_BLOCK = 4 << 20
#: A hint may name so many versions that no list shows; one that names more is wrong itself.
_MAX_LOST = 64
#: Damage in the bytes of a file itself: every reader sees it, at any time.
OF_THE_BYTES = (CorruptError, LimitError, NotFoundError)
_UNREAD = "nothing was changed: see to the place that holds it, or use a newer release, then verify again"
_FOR_MANIFESTS = (
    "'verify --repair' rebuilds it from the version's objects; with '--source OTHER' it takes it, with what was said "
    "of the version, from a copy of the store; what cannot be restored is given up, so that the store can go on"
)


def wrong_with_object(backend: Backend, name: str, n_bytes: int) -> str | None:
    """What is wrong with an object, read from end to end; None if nothing is. Raises Error if the place fails."""
    try:
        source = backend.source(f"objects/{name}", n_bytes)
    except NotFoundError:
        return "is missing"
    except CorruptError as error:
        return str(error)
    try:
        if source.size != n_bytes:
            return f"has {source.size} bytes instead of {n_bytes}"
        found = hashlib.sha256()
        for at in range(0, n_bytes, _BLOCK):
            found.update(source.read(at, min(_BLOCK, n_bytes - at)))
        return None if found.hexdigest() == name else "is damaged (SHA-256 differs)"
    finally:
        source.close()


@dataclass
class Verifier:
    """One look at a store.

    Parameters
    ----------
    backend, versions
        Of the store.
    level : {"quick", "full", "deep"}
        Structure and presence; every byte of every object, too; every version decoded, too.
    suspects : collection of str
        Objects whose bytes are read whatever the level.
    share, part
        As `parse_subset` gave them, of objects or, for deep, versions.
    max_duration : float or None
        Seconds after which nothing new is begun.
    """

    backend: Backend
    versions: Versions
    level: str = "full"
    share: float = 1.0
    part: tuple[int, int] | None = None
    max_duration: float | None = None
    limits: Limits | None = None
    threads: int | None = None
    progress: Progress | None = None
    suspects: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UsageError(f"verify looks {', '.join(LEVELS)}, not {self.level!r}")
        self.report = VerifyReport(self.level)
        self.manifests: dict[int, Manifest] = {}
        self._bad_objects: dict[str, str] = {}
        self._bad_versions: dict[int, str] = {}
        #: Versions whose manifests may be sound: the place that holds them failed, or a newer release wrote them.
        self._unread: set[int] = set()
        self._settings_are_bad = False
        #: Objects whose bytes were read.
        self._read: set[str] = set()
        self._spare: dict[str, int] = {}
        self._started = time.monotonic()

    def run(self) -> VerifyReport:
        """Run all checks and return the report."""
        self.versions.forget()
        self._look_at_settings()
        self._look_at_manifests()
        self._look_at_objects()
        undecodable = self._decode() if self.level == "deep" else {}
        self._conclude(undecodable)
        self.report.seconds = time.monotonic() - self._started
        return self.report

    @property
    def live(self) -> dict[int, Manifest]:
        return {number: m for number, m in self.manifests.items() if m.pruned is None}

    def _time_is_over(self) -> bool:
        over = self.max_duration is not None and time.monotonic() - self._started > self.max_duration
        if over:
            self.report.complete = False
        return over

    # what repairing asks for

    @property
    def bad_objects(self) -> dict[str, int]:
        """Objects that are damaged or missing, with the lengths that they should have."""
        wanted = self._wanted()
        return {name: wanted[name] for name in self._bad_objects}

    @property
    def bad_versions(self) -> list[int]:
        """Versions whose manifests are damaged or missing; not those that may be read another time."""
        return sorted(set(self._bad_versions) - set(self.manifests) - self._unread)

    @property
    def settings_are_bad(self) -> bool:
        """Damaged or missing."""
        return self._settings_are_bad

    # structure

    def _look_at_settings(self) -> None:
        try:
            parse_settings(self.backend.read(PATH, MAX_DOCUMENT_BYTES), PATH)
        except Error as error:
            self._settings_are_bad = isinstance(error, OF_THE_BYTES)
            advice = "no version is touched; 'verify --repair' writes default settings"
            self.report.damages.append(Damage(PATH, str(error), (), advice if self._settings_are_bad else _UNREAD))

    def _look_at_manifests(self) -> None:
        latest = self.versions.latest()
        numbers = self.versions.numbers() if self.backend.can_list else set()
        newest = max(numbers, default=-1) if latest is None else max(latest, max(numbers, default=latest))
        hint = self.versions.hint()
        if hint is not None and newest < hint <= newest + _MAX_LOST:
            newest = hint  # a version that existed is gone
        for number in range(newest + 1):
            self._look_at_manifest(number)
        newest = self._look_at_bases(newest)
        self.report.n_versions = len(self.live)
        if newest >= 0 and hint is not None and hint != newest:
            wrong = "is damaged" if hint < 0 else f"says {hint}, not {newest}"
            self.report.notes.append(f"latest: {wrong}; only a hint")

    def _look_at_bases(self, newest: int) -> int:
        """What versions are coded against, beyond the newest too: committed meanwhile, or lost. The newest of them."""
        while near := {
            base
            for base in unknown_bases(self.manifests) - set(self._bad_versions)
            if newest < base <= newest + _MAX_LOST
        }:
            for number in range(newest + 1, max(near) + 1):
                self._look_at_manifest(number)
            newest = max(near)
        for number in [n for n, m in self.manifests.items() if max(m.bases, default=0) > newest]:
            base = max(self.manifests.pop(number).bases)
            self._bad_versions[number] = f"is coded against version {base}, which there is not"
        lost = {number for number, m in self.manifests.items() if m.pruned is not None and not m.parts}
        for number in sorted(lost & {base for m in self.live.values() for base in m.bases}):
            self._bad_versions[number] = "was lost, and others are coded against it"
        return newest

    def _look_at_manifest(self, number: int, fresh: bool = False) -> None:
        self.manifests.pop(number, None)
        self._bad_versions.pop(number, None)
        self._unread.discard(number)
        try:
            self.manifests[number] = self.versions.get(number, fresh)
        except NotFoundError:
            self._bad_versions[number] = "is missing"
        except Error as error:
            self._bad_versions[number] = str(error)
            if not isinstance(error, OF_THE_BYTES):
                self._unread.add(number)

    # objects

    def _look_at_objects(self) -> None:
        """Presence and content. What another process replaced or dropped while this one looked is no damage."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._look_at_presence()
            self._look_at_content()
            if self._time_is_over() or time.monotonic() >= deadline or not self._changed_meanwhile():
                break
        if self._spare:
            self.report.notes.append(
                f"{len(self._spare)} objects ({sum(self._spare.values())} bytes) that no version needs; "
                "'prune --keep all' deletes them"
            )

    def _changed_meanwhile(self) -> bool:
        """Read the manifests again that lead to something damaged or missing; whether any is another than before."""
        suspects = closure(self.manifests, self._touched()) | set(self._bad_versions)
        before = {number: self.manifests.get(number) for number in suspects}
        for number in sorted(suspects):
            self._look_at_manifest(number, fresh=True)
        self._look_at_bases(max({*self.manifests, *self._bad_versions}, default=-1))
        return any(self.manifests.get(number) != manifest for number, manifest in before.items())

    def _look_at_presence(self) -> None:
        wanted = self._wanted()
        self._bad_objects = {
            name: problem for name, problem in self._bad_objects.items() if name in self._read & set(wanted)
        }
        if not self.backend.can_list:
            self.report.n_objects = len(wanted)
            if self.level == "quick":
                self.report.notes.append("this place does not list its files: whether all are there, 'full' tells")
            return
        there = {entry.name: entry.n_bytes for entry in self.backend.list("objects")}
        self.report.n_objects = len(there)
        for name, n_bytes in wanted.items():
            if name not in there:
                self._bad_objects[name] = "is missing"
            elif there[name] != n_bytes:
                self._bad_objects[name] = f"has {there[name]} bytes instead of {n_bytes}"
        spare = set(there) - set(wanted) - staged_objects(self.backend)
        self._spare = {name: there[name] for name in spare}

    def _wanted(self) -> dict[str, int]:
        """Objects that the versions that are there need, as far as their manifests can be read."""
        return {
            name: n_bytes
            for number in closure(self.manifests, self.live)
            for name, n_bytes in self.manifests[number].objects.items()
        }

    # content

    def _chosen(self, items: Sequence[str]) -> Iterator[str]:
        for i, item in enumerate(items):
            if self._time_is_over():
                return
            if self.part is not None and i % self.part[1] != self.part[0] - 1:
                continue
            yield item

    def _sampled(self, items: list[str]) -> list[str]:
        if not self._is_whole:
            self.report.complete = False
        if self.share < 1 and items:
            return random.sample(items, max(1, round(self.share * len(items))))
        return items

    def _look_at_content(self) -> None:
        wanted = self._wanted()
        unread = set(wanted) - set(self._bad_objects) - self._read
        if self.level == "quick":
            unread &= set(self.suspects)
        elif not self._read:
            unread = set(self._sampled(sorted(unread)))
        elif not self._is_whole:
            return
        # SHA-256 is slower than a disk, so several objects at once.
        found = ordered_map(
            lambda name: (name, self._wrong_with(name, wanted[name])),
            self._chosen(sorted(unread)),
            number_of_threads(self.threads),
        )
        total = sum(wanted.values())
        for name, problem in found:
            self._read.add(name)
            if problem is not None:
                self._bad_objects[name] = problem
            self.report.n_checked += 1
            self.report.n_bytes += wanted[name]
            if self.progress and self.level == "full":
                self.progress(min(self.report.n_bytes, total), total)

    @property
    def _is_whole(self) -> bool:
        """Whether everything is to be read, not a sample."""
        return self.share >= 1 and self.part is None

    def _wrong_with(self, name: str, n_bytes: int) -> str | None:
        try:
            return wrong_with_object(self.backend, name, n_bytes)
        except Error as error:  # a bad sector, for example: one object less, not the end of the look
            return str(error)

    # decoding

    def _decode(self) -> dict[int, str]:
        """Every version once, each from its base's arrays, which are held as long as another version needs them."""
        problems: dict[int, str] = {}
        numbers = self._sampled([str(number) for number in sorted(self.live)])
        needed = closure(self.manifests, {int(text) for text in self._chosen(numbers)})
        held: dict[int, dict[str, Array]] = {}
        waiting = dict.fromkeys(needed, 0)
        for base in (base for number in needed for base in self.manifests[number].bases & needed):
            waiting[base] += 1
        for done, number in enumerate(decoding_order(self.manifests, needed)):
            if self._time_is_over():
                break
            found = self._restored(number, held)
            if isinstance(found, str):
                problems[number] = found
            else:
                held[number] = found
            for base in self.manifests[number].bases & needed:
                waiting[base] -= 1
                if not waiting[base]:
                    held.pop(base, None)
            if not waiting[number]:
                held.pop(number, None)
            if self.progress:
                self.progress(done + 1, len(needed))
        return {number: problem for number, problem in problems.items() if number in self.live}

    def _restored(self, number: int, known: Mapping[int, Mapping[str, Array]]) -> dict[str, Array] | str:
        """A version's arrays, or why it cannot be restored; an empty text if it was dropped meanwhile."""
        try:
            return patiently(
                self.versions, number,
                lambda: restore(self.backend, self.versions, number, None, self.limits, self.threads, known=known),
            )  # fmt: skip
        except Error as error:
            return "" if self._was_dropped(number) else str(error)

    def _was_dropped(self, number: int) -> bool:
        """Whether the version is dropped, also since its manifest was read first."""
        with contextlib.suppress(Error):
            manifest = self.versions.get(number)
            if manifest.pruned is not None and number in self.live:
                self.manifests[number] = manifest
        return number in self.manifests and self.manifests[number].pruned is not None

    # conclusions

    def _conclude(self, undecodable: Mapping[int, str]) -> None:
        report = self.report
        suspects = self._touched()
        unreadable = {
            number: causes
            for number, causes in suspects.items()
            if not self.can_be_restored(number) and not self._was_dropped(number)
        }
        for number in undecodable:
            unreadable.setdefault(number, set())
        for name, problem in sorted(self._bad_objects.items()):
            hit = tuple(sorted(n for n, causes in unreadable.items() if f"objects/{name}" in causes))
            report.damages.append(Damage(f"objects/{name}", problem, hit, _advice(hit)))
        for number, problem in sorted(self._bad_versions.items()):
            touched = {n for n, causes in unreadable.items() if path_of(number) in causes}
            hit = tuple(sorted(touched if number in self.manifests else touched | {number}))
            advice = _UNREAD if number in self._unread else _FOR_MANIFESTS
            report.damages.append(Damage(path_of(number), problem, hit, advice))
        for number, problem in sorted(undecodable.items()):
            if not unreadable[number]:
                report.damages.append(Damage(path_of(number), problem, (number,), _advice((number,))))
        lost = set(unreadable) | set(self._bad_versions) - set(self.manifests)
        report.unreadable = tuple(sorted(lost))
        report.readable = tuple(sorted(set(self.live) - lost))

    def _touched(self) -> dict[int, set[str]]:
        """Versions in whose chains something is damaged, and what."""
        found: dict[int, set[str]] = {}
        bad_objects, bad_versions = set(self._bad_objects), set(self._bad_versions)
        if not bad_objects and not bad_versions:
            return {}
        for number in self.live:
            chain = closure(self.manifests, [number])
            reached = chain.union(*(self.manifests[one].bases for one in chain))
            causes = {path_of(one) for one in reached & bad_versions}
            causes |= {f"objects/{name}" for one in chain for name in bad_objects & set(self.manifests[one].objects)}
            if causes:
                found[number] = causes
        return found

    def can_be_restored(self, number: int) -> bool:
        """By trying: not every object of a chain is needed whole."""
        return not isinstance(self._restored(number, {}), str)


def _advice(versions: tuple[int, ...]) -> str:
    if not versions:
        return "no version is touched; 'prune --keep all' deletes unreferenced objects"
    return (
        "'verify --repair --source OTHER' restores it from a copy of the store, or from a file with the same content; "
        f"to give up: 'prune --keep all --drop {min(versions)}'"
    )
