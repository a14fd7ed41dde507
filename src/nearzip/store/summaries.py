"""What manifests say, many in one file, so that the log of ten thousand versions is read in a moment.

Only a help: a block of hints that is missing, damaged or out of date costs time, nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from nearzip.errors import Error, UsageError
from nearzip.store.backends.backend import Backend
from nearzip.store.documents import MAX_DOCUMENT_BYTES, seal, unseal
from nearzip.store.manifest import Manifest, from_document

__all__ = ["BLOCK", "forget_block", "read_block", "summary", "write_block"]

#: Versions in one file.
BLOCK = 256


def _path(block: int) -> str:
    return f"hints/{block:08d}"


def summary(manifest: Manifest) -> Manifest:
    """A manifest without what only restoring needs."""
    parts = tuple(dataclasses.replace(part, names=None) for part in manifest.parts)
    return dataclasses.replace(manifest, parts=parts, order=None, tree=None)


def write_block(backend: Backend, block: int, manifests: Iterable[Manifest]) -> None:
    """Sum up the versions of a block. Nothing depends on it, so nothing fails."""
    try:
        rows: list[dict[str, Any]] = [summary(manifest).to_document() for manifest in manifests]
        data = seal("hints", {"block": block, "versions": rows})
        if len(data) <= MAX_DOCUMENT_BYTES:
            backend.replace(_path(block), data, durable=False)
    except (Error, UsageError):
        return


def read_block(backend: Backend, block: int) -> list[Manifest] | None:
    """Summaries of a block's versions; None if there are none that can be read."""
    try:
        found = unseal("hints", backend.read(_path(block), MAX_DOCUMENT_BYTES), _path(block))
        rows = found.get("versions")
        if found.get("block") != block or type(rows) is not list or len(rows) != BLOCK:
            return None
        return [from_document(row, block * BLOCK + i) for i, row in enumerate(rows)]
    except Error:
        return None


def forget_block(backend: Backend, number: int) -> None:
    """Before the manifest of a version changes: its block's hints would be wrong."""
    if backend.delete(_path(number // BLOCK)):
        backend.settle("hints")
