"""How large a store is, and what takes the space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nearzip.store.backends.backend import Backend
from nearzip.store.graph import needed_objects
from nearzip.store.log import version_rows
from nearzip.store.manifest import Manifest
from nearzip.store.tickets import staged_objects

__all__ = ["Usage", "usage_of"]


@dataclass(frozen=True)
class Usage:
    """Counts and bytes of one store.

    Parameters
    ----------
    n_versions, n_keyframes, n_pruned : int
        Versions that are there, those among them that need no other, and tombstones.
    n_bytes : int
        Of all versions' tensors, restored.
    n_objects, n_stored, n_manifests : int
        Objects, their bytes, and those of manifests.
    n_retained : int
        Bytes of pruned versions that others are coded against.
    n_garbage : int
        Bytes of unreferenced objects: what interrupted writers left.
    depth : int
        Deltas of the longest chain.
    """

    n_versions: int
    n_keyframes: int
    n_pruned: int
    n_bytes: int
    n_objects: int
    n_stored: int
    n_manifests: int
    n_retained: int
    n_garbage: int
    depth: int


def usage_of(backend: Backend, manifests: Mapping[int, Manifest]) -> Usage:
    """From a list of the files and all manifests. Raises CorruptError if a version that is needed is missing."""
    live = {number: m for number, m in manifests.items() if m.pruned is None}
    needed, retained = needed_objects(manifests)
    own = {name for manifest in live.values() for name in manifest.objects}
    there = {entry.name: entry.n_bytes for entry in backend.list("objects")}
    kept = set(needed) | staged_objects(backend)
    return Usage(
        n_versions=len(live),
        n_keyframes=sum(not m.bases for m in live.values()),
        n_pruned=len(manifests) - len(live),
        n_bytes=sum(m.n_bytes for m in live.values()),
        n_objects=len(there),
        n_stored=sum(there.values()),
        n_manifests=sum(entry.n_bytes for entry in backend.list("versions")),
        n_retained=sum(n for number in retained for name, n in manifests[number].objects.items() if name not in own),
        n_garbage=sum(n for name, n in there.items() if name not in kept),
        depth=max((row.depth for row in version_rows(manifests.values()) if row.pruned is None), default=0),
    )
