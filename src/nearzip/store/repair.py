"""Restoring what is damaged: from a copy of the store, from files with the same content, or from what is still there.

Nothing that is readable is ever removed. What cannot be read any more is set aside under `lost/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.bounds import bound_spelling
from nearzip.container import Index
from nearzip.digests import checkpoint_id, content_id, tensor_digest
from nearzip.errors import CorruptError, Error, LimitError, NotFoundError, WrongBaseError
from nearzip.inputs import open_input
from nearzip.limits import Limits
from nearzip.store.backends import open_backend
from nearzip.store.backends.backend import Backend
from nearzip.store.chain import open_part, stream
from nearzip.store.documents import MAX_DOCUMENT_BYTES
from nearzip.store.encoding import Encoder, now, writer_name
from nearzip.store.graph import closure
from nearzip.store.labels import Label, label_of
from nearzip.store.manifest import Manifest, Part, path_of
from nearzip.store.recode import EXACTLY
from nearzip.store.settings import PATH, StoreSettings, parse_settings
from nearzip.store.verify import OF_THE_BYTES, Verifier, wrong_with_object
from nearzip.store.versions import Versions
from nearzip.tensors import Checkpoint

__all__ = ["Repairer", "repair_all", "repair_settings", "sort_sources"]

#: The digest of no content.
_UNKNOWN_ID = "0" * 32


@dataclass
class Repairer:
    """One repair, while the store's lock is held.

    Parameters
    ----------
    backend, versions
        Of the store.
    copies : list of Backend
        Other stores that may hold the same objects and manifests.
    files : list of Checkpoint
        Networks that may be versions of this store.
    """

    backend: Backend
    versions: Versions
    copies: list[Backend] = field(default_factory=list)
    files: list[Checkpoint] = field(default_factory=list)
    limits: Limits | None = None
    threads: int | None = None
    #: Versions of which more could perhaps be found at another time: the place failed while it was looked for.
    doubtful: set[int] = field(default_factory=set)
    #: Objects that were written for versions that cannot be rebuilt from them.
    partial: dict[int, list[str]] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    # objects

    def put_back(self, name: str, n_bytes: int) -> bool:
        """Put an object back from a copy of the store."""
        for copy in self.copies:
            with contextlib.suppress(Error):
                if wrong_with_object(copy, name, n_bytes) is None:
                    self._take(copy, name, n_bytes)
                    self.repaired.append(f"objects/{name}: from {copy.url}")
                    return True
        return False

    def _take(self, copy: Backend, name: str, n_bytes: int) -> None:
        source = copy.source(f"objects/{name}", n_bytes)
        try:
            with self.backend.new_object() as sink:
                for at in range(0, n_bytes, 16 << 20):
                    sink.write(bytes(source.read(at, min(16 << 20, n_bytes - at))))
        finally:
            source.close()
        if sink.stored is None or sink.stored.name != name:
            raise CorruptError(f"{copy.url}: objects/{name} changed while it was read")

    # versions

    def version(self, number: int, known: Mapping[int, Manifest]) -> Manifest | None:
        """Put a manifest back: from a copy, or rebuilt from the objects that are there."""
        seen = self._bytes(number)
        manifest, how = self._from_copy(number, known) or self._from_objects(number, known) or (None, "")
        if manifest is None or not self._put(manifest, seen):
            return None
        self.repaired.append(f"{path_of(number)}: {how}")
        return manifest

    def _bytes(self, number: int) -> bytes | None:
        """A manifest's file as it is, None if there is none."""
        try:
            return self.backend.read(path_of(number), MAX_DOCUMENT_BYTES)
        except NotFoundError:
            return None
        except LimitError:
            return b"longer than a manifest can be"

    def _put(self, manifest: Manifest, seen: bytes | None) -> bool:
        """Write a manifest in place of the bytes that were seen; False if there are others meanwhile."""
        number = manifest.number
        unchanged = self._bytes(number) == seen
        if unchanged and seen is None:
            # Where commits hold no lock, a version of that number may be committed at this moment.
            self.versions.forget_hints(number)
            unchanged = self.versions.create(manifest)
        elif unchanged and seen is not None:
            self.backend.replace(f"lost/{number:08d}", seen)
            self.backend.settle("lost")
            self.versions.replace(manifest)
        if not unchanged:
            self.doubtful.add(number)
        return unchanged

    def _from_copy(self, number: int, known: Mapping[int, Manifest]) -> tuple[Manifest, str] | None:
        for copy in self.copies:
            try:
                manifest = Versions(copy).get(number)
                if manifest.pruned is not None:
                    return self._tombstone(manifest, known), f"from {copy.url}"
                missing = {name: n for name, n in manifest.objects.items() if not self._is_sound(self.backend, name, n)}
                if not all(self._is_sound(copy, name, n) for name, n in missing.items()):
                    continue
            except Error as error:
                self._doubt(number, error)
                continue
            for name, n_bytes in missing.items():
                self._take(copy, name, n_bytes)
            return manifest, f"from {copy.url}"
        return None

    def _tombstone(self, manifest: Manifest, known: Mapping[int, Manifest]) -> Manifest:
        """What a copy says of a version that it dropped; its objects are needed only as far as others need them.

        If all of them are here, more than others need, the version was not dropped here: then it stays.
        """
        needed = {name for number in closure(known, known) for name in known[number].objects}
        objects = manifest.objects
        here = objects and all(self._is_sound(self.backend, name, n) for name, n in objects.items())
        if here and not set(objects) <= needed:
            return self._checked(dataclasses.replace(manifest, pruned=None)) or manifest
        return manifest

    @staticmethod
    def _is_sound(backend: Backend, name: str, n_bytes: int) -> bool:
        try:
            return wrong_with_object(backend, name, n_bytes) is None
        except Error:
            return False

    def _doubt(self, number: int, error: Error) -> None:
        if not isinstance(error, (*OF_THE_BYTES, WrongBaseError)):
            self.doubtful.add(number)

    def _from_objects(self, number: int, known: Mapping[int, Manifest]) -> tuple[Manifest, str] | None:
        """A version can be rebuilt from its objects, except for its message, tags and metrics."""
        found = self._labelled(number, known)
        for manifest in self._told(number, found, known):
            checked = self._checked(manifest)
            if checked is not None:
                names = ", ".join(f"objects/{part.object}" for part in checked.parts if part.object in found)
                return checked, f"rebuilt from {names}; message, metrics, tags and step are lost"
        if found:
            self.partial[number] = sorted(found)
        return None

    def _labelled(self, number: int, known: Mapping[int, Manifest]) -> dict[str, tuple[Part, Index, Label]]:
        """Sound objects that were written for a version; later versions may have taken tensors from them."""
        if not self.backend.can_list:
            return {}
        found: dict[str, tuple[Part, Index, Label]] = {}
        # An object that a version takes whole was written for that version.
        others = {part.object for manifest in known.values() for part in manifest.parts if part.names is None}
        for entry in self.backend.list("objects"):
            if entry.name in others:
                continue
            try:
                part = Part(entry.name, entry.n_bytes)
                with open_part(self.backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                    label = label_of(reader.index)
                if label is None or label.number != number:
                    continue
                if wrong_with_object(self.backend, entry.name, entry.n_bytes) is None:
                    found[entry.name] = part, reader.index, label
            except Error as error:
                self._doubt(number, error)
        return found

    def _told(
        self, number: int, found: Mapping[str, tuple[Part, Index, Label]], known: Mapping[int, Manifest]
    ) -> Iterator[Manifest]:
        """What the manifest of a version may have been."""
        for part, index, label in found.values():
            if label.session or not (label.complete or self._holds_all(number, index, known)):
                continue
            for base in _bases(index, known):
                own = dataclasses.replace(part, base=base)
                identity = _UNKNOWN_ID if label.shared else index.id
                yield _rebuilt(number, (*label.shared, own), identity, label.order, label.tree or index.tree)
        yield from _of_shards(number, found.values())

    @staticmethod
    def _holds_all(number: int, index: Index, known: Mapping[int, Manifest]) -> bool:
        """Whether an object that does not name other parts can be all of its version: it has not less than others."""
        near = [known[n] for n in (number - 1, number + 1) if n in known and known[n].n_tensors]
        return all(len(index.tensors) >= manifest.n_tensors for manifest in near) and (number == 0 or bool(near))

    def _checked(self, manifest: Manifest) -> Manifest | None:
        """The manifest, completed by what restoring the version gives; None if it cannot be restored as it says."""
        trial = Versions(self.backend)
        trial.assume(manifest)
        try:
            with stream(self.backend, trial, manifest.number, self.limits, self.threads) as version:
                found = checkpoint_id(version)
                n_tensors, n_bytes = len(version.specs), version.n_bytes
        except Error as error:
            self._doubt(manifest.number, error)
            return None
        if manifest.id not in (found, _UNKNOWN_ID):
            return None
        return dataclasses.replace(manifest, id=found, n_tensors=n_tensors, n_bytes=n_bytes)

    def give_up(self, number: int) -> None:
        """A tombstone in place of a manifest that nothing can restore, so that the store can go on."""
        seen = self._bytes(number)
        tombstone = Manifest(number, now(), _UNKNOWN_ID, 0, 0, (), message="(lost)", writer=writer_name(), pruned=now())
        if not self._put(tombstone, seen):
            return
        aside = f"; what was left of it is lost/{number:08d}" if seen is not None else ""
        objects = ", ".join(f"objects/{name}" for name in self.partial.get(number, ()))
        parts = f"; a part of it may be in {objects} until the next prune" if objects else ""
        self.lost.append(f"{path_of(number)}: a tombstone takes its place{aside}{parts}")

    def from_files(self, numbers: Iterable[int]) -> None:
        """Re-encode unreadable versions from files with the same content."""
        wanted = {number: self.versions.get(number) for number in numbers}
        for source in self.files:
            found = content_id((spec, tensor_digest(source.read(name))) for name, spec in source.specs.items())
            for number, manifest in wanted.items():
                if manifest.id != found:
                    continue
                draft = Encoder(self.backend, EXACTLY, self.threads).version(source, number, None, None, hold=False)
                self.backend.settle("objects")
                order = tuple(source.specs)
                same_order = manifest.order is None or manifest.order == order
                self.versions.replace(
                    dataclasses.replace(
                        manifest, parts=tuple(draft.parts), order=None if same_order else manifest.order
                    )
                )
                self.repaired.append(f"{path_of(number)}: re-encoded from a file with the same content")

    # the rest

    def settings(self, known: Mapping[int, Manifest]) -> StoreSettings:
        """Settings from a copy, or as the newest readable object was coded."""
        for copy in self.copies:
            with contextlib.suppress(Error):
                found = parse_settings(copy.read(PATH, MAX_DOCUMENT_BYTES), PATH)
                self.repaired.append(f"{PATH}: from {copy.url}")
                return self._write(found)
        found = StoreSettings(secrets.token_hex(16), now(), **self._coded(known))
        self.repaired.append(f"{PATH}: from the newest version that can be read; the policy is {found.policy}")
        return self._write(found)

    def _write(self, settings: StoreSettings) -> StoreSettings:
        self.backend.replace(PATH, settings.to_bytes())
        self.backend.settle("")
        return settings

    def _coded(self, known: Mapping[int, Manifest]) -> dict[str, Any]:
        for number in sorted(known, reverse=True):
            for part in known[number].parts:
                with contextlib.suppress(Error):
                    with open_part(self.backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                        coding = reader.codings.default
                    options = {k: v for k, v in coding.options.items() if v is not None}
                    own = coding.recipe.resolve_bound(None) == coding.promise
                    bound = None if own else bound_spelling(coding.promise)
                    return {"method": coding.method, "options": options, "bound": bound}
        return {}


def _bases(index: Index, known: Mapping[int, Manifest]) -> list[int | None]:
    """Versions that an object may be coded against."""
    if index.base_id is None:
        return [None]
    return [n for n, manifest in known.items() if manifest.id == index.base_id]


def _rebuilt(
    number: int, parts: tuple[Part, ...], identity: str, order: tuple[str, ...] | None, tree: str | None
) -> Manifest:
    return Manifest(
        number=number, time=now(), id=identity, n_tensors=0, n_bytes=0, parts=parts, order=order, tree=tree,
        message="(rebuilt by verify --repair)", writer=writer_name(),
    )  # fmt: skip


def _of_shards(number: int, found: Iterable[tuple[Part, Index, Label]]) -> Iterator[Manifest]:
    """The version that several processes wrote together, for each session of which all shards are there."""
    sessions: dict[tuple[str, int], dict[int, Part]] = {}
    for part, index, label in found:
        if label.session:
            base = label.base if index.base_id is not None else None
            names = tuple(spec.name for spec in index.tensors)
            whole = dataclasses.replace(part, base=base, names=names)
            sessions.setdefault((label.session, label.ranks), {})[label.rank] = whole
    for (_, ranks), parts in sessions.items():
        if sorted(parts) == list(range(ranks)):
            order = tuple(name for rank in range(ranks) for name in parts[rank].names or ())
            yield _rebuilt(number, tuple(parts[rank] for rank in range(ranks)), _UNKNOWN_ID, order, None)


# ---- the whole -------------------------------------------------------------------------------------------------


def sort_sources(sources: Iterable[str | os.PathLike[str]], repairer: Repairer, stack: contextlib.ExitStack) -> None:
    """Sort a repairer's sources into copies of a store and checkpoint files, by their content."""
    for source in sources:
        backend = open_backend(source)
        try:
            backend.read(PATH, MAX_DOCUMENT_BYTES)
            repairer.copies.append(backend)
        except NotFoundError:
            checkpoint = open_input(source)
            stack.callback(checkpoint.close)
            repairer.files.append(checkpoint)


def repair_all(before: Verifier, repairer: Repairer) -> None:
    """Restore what can be: objects first, then manifests, then what only files can restore.

    `before` is what was found without the lock. Other processes may have repaired and dropped versions since, so that
    only what is found again under the lock is changed.
    """
    found = Verifier(
        before.backend, repairer.versions, "quick", limits=before.limits, threads=before.threads,
        suspects=before.bad_objects,
    )  # fmt: skip
    found.run()
    if found.settings_are_bad:
        repairer.settings(found.live)
    for name, n_bytes in found.bad_objects.items():
        repairer.put_back(name, n_bytes)
    for number in found.bad_versions:
        manifest = repairer.version(number, found.manifests)
        if manifest is not None:
            found.manifests[number] = manifest
        elif number not in repairer.doubtful:
            repairer.give_up(number)
    if repairer.files:
        suspects = sorted({*before.report.unreadable, *found.report.unreadable} & set(found.live))
        repairer.from_files(number for number in suspects if not found.can_be_restored(number))


def repair_settings(backend: Backend, sources: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Rewrite a store's settings if they are damaged. Returns what was done."""
    versions = Versions(backend)
    with backend.maintaining(60.0), contextlib.ExitStack() as stack:
        verifier = Verifier(backend, versions, "quick")
        verifier.run()
        if not verifier.settings_are_bad:
            return []  # another process was faster
        repairer = Repairer(backend, versions)
        sort_sources(sources, repairer, stack)
        repairer.settings(verifier.live)
    return repairer.repaired
