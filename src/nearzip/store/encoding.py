"""From arrays to the objects of a version, and the draft of its manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import numpy as np

from nearzip.archive import WriteReport
from nearzip.caching import cached_property
from nearzip.changes import UpdateKept
from nearzip.coding import Codings
from nearzip.digests import checkpoint_id, content_id, tensor_digest
from nearzip.store.backends.backend import Backend, Stored
from nearzip.store.chain import Progress, open_part
from nearzip.store.labels import Label
from nearzip.store.manifest import Manifest, Part
from nearzip.store.steps import last_steps
from nearzip.tensors import Array, Checkpoint, TensorSpec
from nearzip.updates import without_updates
from nearzip.version import __version__
from nearzip.writing import write_archive

__all__ = ["SHARED_BYTES", "Draft", "Encoder", "Held", "now", "subset", "writer_name"]

#: Smaller tensors cost less to store again than to point at.
SHARED_BYTES = 64 << 10


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def writer_name() -> str:
    """Program, version, and a word that no other writer has."""
    return f"nearzip {__version__} {secrets.token_hex(8)}"


@dataclass
class Held:
    """A version whose restored arrays are in memory."""

    number: int
    id: str
    arrays: dict[str, Array]

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint.of(self.arrays)

    def intact(self) -> bool:
        """Whether the arrays are unchanged."""
        return checkpoint_id(self.checkpoint) == self.id


@dataclass
class Draft:
    """What was encoded for a version: its parts, and what a reader will get."""

    parts: list[Part] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    #: Restored arrays, if they were kept.
    arrays: dict[str, Array] | None = None
    #: By which steps tensors were quantized.
    steps: dict[str, tuple[float, ...]] = field(default_factory=dict)
    #: Digest of the base as it was when it was used; None if none was.
    base_id: str | None = None
    #: How much of the change against the base is kept; None for a version without a base.
    update_kept: UpdateKept | None = None

    @property
    def n_stored(self) -> int:
        """Bytes of the objects that were written."""
        return sum(part.n_bytes for part in self.parts if part.names is None)

    @cached_property
    def id(self) -> str:
        """Digest of the content as it will be restored; asked for when all parts are there."""
        return content_id((self.specs[name], digest) for name, digest in self.contents.items())

    def manifest(self, number: int, source: Checkpoint, **said: Any) -> Manifest:
        """The description of the version."""
        order = tuple(source.specs)
        one_part = len(self.parts) == 1 and self.parts[0].names is None
        return Manifest(
            number=number,
            time=now(),
            id=self.id,
            n_tensors=len(order),
            n_bytes=source.n_bytes,
            parts=tuple(self.parts),
            order=None if one_part else order,
            tree=source.tree,
            writer=writer_name(),
            **said,
        )


def subset(source: Checkpoint, names: Mapping[str, Any] | set[str]) -> Checkpoint:
    """Some of a checkpoint's tensors, in its order."""
    specs = {name: spec for name, spec in source.specs.items() if name in names}
    return Checkpoint(specs, source.read, attached=source.attached, exact=source.exact, steps=source.steps)


def _unchanged(source: Checkpoint, base: Held) -> set[str]:
    """Tensors worth pointing at that the base holds bit for bit."""
    found = set()
    for name, spec in source.specs.items():
        if spec.n_bytes < SHARED_BYTES or name not in base.arrays:
            continue
        theirs = base.arrays[name]
        ours = source.read(name)
        if theirs.dtype == ours.dtype and theirs.shape == ours.shape and _same_bits(ours, theirs):
            found.add(name)
    return found


def _same_bits(one: Array, other: Array) -> bool:
    mine, theirs = one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)
    # Cheap first: few tensors that differ share their first bytes.
    return np.array_equal(mine[:2048], theirs[:2048]) and np.array_equal(mine, theirs)


@dataclass(frozen=True)
class Encoder:
    """Turns arrays into objects of one store, as `codings` say."""

    backend: Backend
    codings: Codings
    threads: int | None = None
    progress: Progress | None = None
    #: What tensors of the base are called now, where their names changed.
    rename: Mapping[str, str] | None = None

    def version(
        self,
        source: Checkpoint,
        number: int,
        base: Checkpoint | None,
        base_number: int | None,
        hold: bool,
        shared: Draft | None = None,
        bounds: Mapping[str, str] | None = None,
        before: Checkpoint | None = None,
    ) -> Draft:
        """Encode `source` as version `number`, against `base`; `shared` holds what needs no encoding.

        `bounds`: what a version that is re-encoded was committed under. `before`: the version before, for one that is
        coded without it.
        """
        rest = source if shared is None else subset(source, set(source.specs) - set(shared.contents))
        if shared is not None and not rest.specs:
            return dataclasses.replace(shared, specs=dict(source.specs))
        label = Label(number, bounds=bounds)
        if shared is not None:
            label = Label(number, shared=tuple(shared.parts), order=tuple(source.specs), tree=source.tree)
        with self.object(rest, label, base, hold, before=before) as done:
            pass
        report, stored, arrays = done.report, done.stored, done.arrays
        assert report is not None
        assert stored is not None
        used = base_number if report.index.base_id is not None else None
        draft = Draft([Part(stored.name, stored.n_bytes, used)], dict(report.contents), dict(source.specs), arrays)
        draft.steps = last_steps(report.index)
        draft.base_id = report.index.base_id
        draft.update_kept = report.update_kept
        if shared is None:
            draft.id = report.index.id
        else:
            draft.parts = shared.parts + draft.parts
            draft.contents.update(shared.contents)
            if arrays is not None and shared.arrays is not None:
                draft.arrays = {**arrays, **shared.arrays}
        return draft

    @contextlib.contextmanager
    def object(
        self,
        source: Checkpoint,
        label: Label,
        base: Checkpoint | None,
        hold: bool,
        staged: bool = False,
        before: Checkpoint | None = None,
    ) -> Iterator[_Written]:
        """Write one object. The block runs when it is encoded and before it is in its place."""
        # The number makes objects of different versions differ, so that no prune deletes what another process is
        # writing. Where writers hold no lock, those of different processes differ, too.
        if not self.backend.commits_alone:
            label = dataclasses.replace(label, writer=secrets.token_hex(8))
        labelled = dataclasses.replace(source, metadata=label.to_metadata())
        arrays: dict[str, Array] | None = {} if hold else None
        keep: Callable[[str, Array], None] | None = None if arrays is None else arrays.__setitem__
        written = _Written(arrays)
        with self.backend.new_object(staged) as sink:
            stream = cast(BinaryIO, sink)
            # Without a version before there is no update that a bound could be a share of.
            codings = without_updates(self.codings) if base is None and before is None else self.codings
            written.report = write_archive(
                labelled, base, codings, stream, keep, self.threads, self.progress, before=before,
                rename=None if base is None else self.rename,
            )  # fmt: skip
            yield written
        written.stored = sink.stored

    def shared(self, source: Checkpoint, base: Held, manifest: Manifest, keyframes_only: bool) -> Draft | None:
        """What `source` has unchanged from the version before: the same parts, without the rest.

        `keyframes_only`: only parts that need no base, for a keyframe.
        """
        same = _unchanged(source, base)
        if not same:
            return None
        where = _places(manifest, self.backend)
        same = {name for name in same if not keyframes_only or where(name).base is None}
        if not same:
            return None
        draft = Draft(arrays={name: base.arrays[name] for name in same})
        draft.contents = {name: tensor_digest(base.arrays[name]) for name in source.specs if name in same}
        groups: dict[tuple[str, int, int | None], list[str]] = {}
        for name in draft.contents:
            part = where(name)
            groups.setdefault((part.object, part.n_bytes, part.base), []).append(name)
        draft.parts = [Part(*key, names=tuple(names)) for key, names in groups.items()]
        draft.specs = dict(source.specs)
        return draft


@dataclass
class _Written:
    arrays: dict[str, Array] | None
    report: WriteReport | None = None
    stored: Stored | None = None


def _places(manifest: Manifest, backend: Backend) -> Callable[[str], Part]:
    """The part of a version that holds a tensor."""
    named = {name: part for part in manifest.parts for name in part.names or ()}
    whole = [part for part in manifest.parts if part.names is None]
    if len(whole) == 1:
        return lambda name: named.get(name, whole[0])
    for part in whole:
        with open_part(backend, part, None, None, 1) as reader:
            named.update(dict.fromkeys(reader, part))
    return named.__getitem__
