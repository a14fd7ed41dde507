"""Restoring what is damaged: from a copy of the store, from files with the same content, or from what is still there.

Nothing that is readable is ever removed. What cannot be read any more is set aside under `lost/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.container import Index
from nearzip.digests import content_id, tensor_digest
from nearzip.errors import CorruptError, Error, NotFoundError, WrongBaseError
from nearzip.limits import Limits
from nearzip.recipes import recipe_types
from nearzip.store.backend import Backend
from nearzip.store.chain import open_part, restore
from nearzip.store.commit import Encoder, now, writer_name
from nearzip.store.documents import MOST_DOCUMENT_BYTES
from nearzip.store.exact import exactly
from nearzip.store.manifest import Manifest, Part, parse, path_of
from nearzip.store.settings import PATH, StoreSettings, parse_settings
from nearzip.store.verify import OF_THE_BYTES, wrong_with_object
from nearzip.store.versions import Versions
from nearzip.tensors import Checkpoint

__all__ = ["Repairer"]

_VERSION = "nearzip.version"


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
        manifest = self._from_copy(number) or self._from_objects(number, known)
        if manifest is None:
            return None
        self._set_aside(number)
        self.versions.replace(manifest)
        return manifest

    def _from_copy(self, number: int) -> Manifest | None:
        for copy in self.copies:
            try:
                manifest = parse(
                    copy.read(path_of(number), MOST_DOCUMENT_BYTES), number, f"{copy.url}: version {number}"
                )
                missing = {name: n for name, n in manifest.objects.items() if not self._is_sound(self.backend, name, n)}
                if not all(self._is_sound(copy, name, n) for name, n in missing.items()):
                    continue
            except Error as error:
                self._doubt(number, error)
                continue
            for name, n_bytes in missing.items():
                self._take(copy, name, n_bytes)
            self.repaired.append(f"{path_of(number)}: from {copy.url}")
            return manifest
        return None

    @staticmethod
    def _is_sound(backend: Backend, name: str, n_bytes: int) -> bool:
        try:
            return wrong_with_object(backend, name, n_bytes) is None
        except Error:
            return False

    def _doubt(self, number: int, error: Error) -> None:
        if not isinstance(error, (*OF_THE_BYTES, WrongBaseError)):
            self.doubtful.add(number)

    def _from_objects(self, number: int, known: Mapping[int, Manifest]) -> Manifest | None:
        """A version whose tensors stand in one object can be told from it, but for what was said of it."""
        if not self.backend.can_list:
            return None
        used = {name for manifest in known.values() for name in manifest.objects}
        for entry in self.backend.list("objects"):
            if entry.name in used:
                continue
            try:
                if wrong_with_object(self.backend, entry.name, entry.n_bytes) is not None:
                    continue
                part = Part(entry.name, entry.n_bytes)
                with open_part(self.backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                    index = reader.index
                if index.metadata.get(_VERSION) != str(number):
                    continue
                manifest = self._told(number, part, index, known)
                if manifest is not None:
                    self.repaired.append(
                        f"{path_of(number)}: rebuilt from objects/{entry.name}; message, metrics, tags and step are "
                        "lost"
                    )
                    return manifest
            except Error as error:
                self._doubt(number, error)
        return None

    def _told(self, number: int, part: Part, index: Index, known: Mapping[int, Manifest]) -> Manifest | None:
        bases = [None]
        if index.base_id is not None:
            bases = [n for n, manifest in known.items() if manifest.id == index.base_id]  # type: ignore[misc]
        for base in bases:
            manifest = Manifest(
                number=number, time=now(), id=index.id, n_tensors=len(index.tensors), n_bytes=index.n_bytes,
                parts=(dataclasses.replace(part, base=base),), tree=index.tree, message="(rebuilt by verify --repair)",
                metadata={k: v for k, v in index.metadata.items() if k != _VERSION}, writer=writer_name(),
            )  # fmt: skip
            if self._restores(manifest):
                return manifest
        return None

    def _restores(self, manifest: Manifest) -> bool:
        trial = Versions(self.backend)
        trial.assume(manifest)
        try:
            restore(self.backend, trial, manifest.number, None, self.limits, self.threads)
        except Error as error:
            self._doubt(manifest.number, error)
            return False
        return True

    def _set_aside(self, number: int) -> None:
        try:
            data = self.backend.read(path_of(number), MOST_DOCUMENT_BYTES)
        except NotFoundError:
            return
        self.backend.replace(f"lost/{number:08d}", data)
        self.backend.settle("lost")

    def give_up(self, number: int) -> None:
        """A tombstone in place of a manifest that nothing can restore, so that the store can go on."""
        self._set_aside(number)
        self.versions.replace(
            Manifest(number, now(), "0" * 32, 0, 0, (), message="(lost)", writer=writer_name(), pruned=now())
        )
        self.lost.append(
            f"{path_of(number)}: a tombstone stands in its place; what was left of it is lost/{number:08d}"
        )

    def from_files(self, numbers: Iterable[int]) -> None:
        """Code unreadable versions anew from files with the same content."""
        wanted = {number: self.versions.get(number) for number in numbers}
        for source in self.files:
            found = content_id((spec, tensor_digest(source.read(name))) for name, spec in source.specs.items())
            for number, manifest in wanted.items():
                if manifest.id != found:
                    continue
                draft = Encoder(self.backend, exactly({}), self.threads).version(source, number, None, None, hold=False)
                self.backend.settle("objects")
                order = tuple(source.specs)
                same_order = manifest.order is None or manifest.order == order
                self.versions.replace(
                    dataclasses.replace(
                        manifest, parts=tuple(draft.parts), order=None if same_order else manifest.order
                    )
                )
                self.repaired.append(f"{path_of(number)}: coded anew from a file with the same content")

    # the rest

    def settings(self, known: Mapping[int, Manifest]) -> StoreSettings:
        """Settings from a copy, or as the newest readable object was coded."""
        for copy in self.copies:
            with contextlib.suppress(Error):
                found = parse_settings(copy.read(PATH, MOST_DOCUMENT_BYTES), PATH)
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
                with contextlib.suppress(Error, KeyError, TypeError):
                    with open_part(self.backend, part, None, Limits(output_bytes=1 << 62), 1) as reader:
                        method, bound = reader.index.method, reader.index.bound
                    if method["name"] not in recipe_types():
                        continue
                    options = {k: v for k, v in method["options"].items() if v is not None}
                    return {"method": method["name"], "options": options, "bound": _spelled(bound)}
        return {}


def _spelled(bound: Mapping[str, object]) -> str | None:
    kind, value = bound.get("kind"), bound.get("value")
    return f"{kind}:{value!r}" if isinstance(value, float) else None
