"""What is told of versions: sizes, chains, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nearzip.store.manifest import Manifest

__all__ = ["Version", "log_json", "version_rows"]


@dataclass(frozen=True)
class Version:
    """A row of `Store.log`.

    Parameters
    ----------
    number, time, message, step, metrics, tags, metadata
        What was said when it was committed.
    id : str
        Digest of its content as it is restored.
    n_tensors, n_bytes : int
        Of the restored tensors.
    n_stored : int
        Bytes of its objects, shared ones included.
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
        """Bytes restored over bytes stored."""
        return self.n_bytes / self.n_stored if self.n_stored else 0.0


def _depths(manifests: Mapping[int, Manifest]) -> dict[int, int]:
    """Deltas to the keyframe, for each; -1 where a chain leads nowhere or in a circle."""
    depths: dict[int, int] = {}
    for start in manifests:
        stack = [start]
        entered: set[int] = set()
        while stack:
            number = stack[-1]
            if number in depths:
                stack.pop()
                continue
            bases = manifests[number].bases
            open_ = [base for base in bases if base in manifests and base not in depths and base not in entered]
            entered.add(number)
            if open_:
                stack += open_
                continue
            below = [depths.get(base, -1) for base in bases]
            depths[number] = -1 if -1 in below else 1 + max(below, default=-1)
            stack.pop()
    return depths


def version_rows(manifests: Iterable[Manifest]) -> list[Version]:
    """Rows in order of number."""
    found = {manifest.number: manifest for manifest in manifests}
    depths = _depths(found)
    return [_row(found[number], depths[number]) for number in sorted(found)]


def _row(m: Manifest, depth: int) -> Version:
    return Version(
        number=m.number, time=m.time, message=m.message, step=m.step, metrics=m.metrics, tags=m.tags,
        metadata=m.metadata, id=m.id, n_tensors=m.n_tensors, n_bytes=m.n_bytes, n_stored=m.n_stored,
        base=max(m.bases, default=None), depth=depth, pruned=m.pruned,
    )  # fmt: skip


def log_json(rows: Iterable[Version]) -> bytes:
    """Rows as JSON; NaN and the infinities, which it lacks, as null."""
    documents = []
    for row in rows:
        metrics = {name: value if math.isfinite(value) else None for name, value in row.metrics.items()}
        documents.append({**vars(row), "metrics": metrics})
    return json.dumps(documents, indent=1, allow_nan=False).encode() + b"\n"
