"""Version rows as returned by `Store.log`: sizes, chains, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nearzip.store.graph import depths
from nearzip.store.manifest import Manifest

__all__ = ["Version", "log_json", "version_rows"]


@dataclass(frozen=True)
class Version:
    """A row of `Store.log`.

    Parameters
    ----------
    number, time, message, step, metrics, tags, metadata
        As given to `Store.commit`.
    id : str
        Digest of its content as it is restored.
    n_tensors, n_bytes : int
        Of the restored tensors.
    n_stored : int
        Bytes that the version added: of its objects that no version before it has. Over all versions, they add up to
        what the versions take.
    base : int or None
        The newest version that it is coded against; None for a keyframe.
    depth : int
        Deltas between it and its keyframe.
    pruned : str or None
        When it was dropped.
    """

    number: int
    time: str
    message: str
    step: int | None
    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    metadata: Mapping[str, str]
    id: str
    n_tensors: int
    n_bytes: int
    n_stored: int
    base: int | None
    depth: int
    pruned: str | None

    @property
    def ratio(self) -> float:
        """Bytes restored over bytes stored; infinite for a version that only points to objects of others."""
        if self.n_stored:
            return self.n_bytes / self.n_stored
        return math.inf if self.n_bytes else 0.0


def version_rows(manifests: Iterable[Manifest]) -> list[Version]:
    """The rows of the log for some manifests, in order of their numbers."""
    found = {manifest.number: manifest for manifest in manifests}
    deltas, added = depths(found), _added(found)
    return [_row(found[number], deltas[number], added[number]) for number in sorted(found)]


def _added(manifests: Mapping[int, Manifest]) -> dict[int, int]:
    """Bytes of the objects that no version before has. What dropped versions have counts as theirs last."""
    seen: set[str] = set()
    added = {}
    for number in sorted(manifests, key=lambda n: (manifests[n].pruned is not None, n)):
        added[number] = sum(n for name, n in manifests[number].objects.items() if name not in seen)
        seen |= set(manifests[number].objects)
    return added


def _row(m: Manifest, depth: int, n_stored: int) -> Version:
    return Version(
        number=m.number, time=m.time, message=m.message, step=m.step, metrics=m.metrics, tags=m.tags,
        metadata=m.metadata, id=m.id, n_tensors=m.n_tensors, n_bytes=m.n_bytes, n_stored=n_stored,
        base=max(m.bases, default=None), depth=depth, pruned=m.pruned,
    )  # fmt: skip


def log_json(rows: Iterable[Version]) -> bytes:
    """Rows as JSON; NaN and the infinities, which it lacks, as null."""
    documents = []
    for row in rows:
        metrics = {name: value if math.isfinite(value) else None for name, value in row.metrics.items()}
        documents.append({**vars(row), "metrics": metrics})
    return json.dumps(documents, indent=1, allow_nan=False).encode() + b"\n"
