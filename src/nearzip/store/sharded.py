"""A folder of stores that `nearzip.torch.dcp.NearzipWriter` writes: one for each process's shards, one of indexes.

A version of the store `index` says which versions of the stores `shards/00000`, .. belong together.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nearzip import strictjson
from nearzip.errors import CorruptError, NotFoundError
from nearzip.sources import is_url
from nearzip.store.backends import open_backend
from nearzip.store.documents import MAX_DOCUMENT_BYTES
from nearzip.store.maintenance import PruneReport
from nearzip.store.repository import Store
from nearzip.store.settings import PATH

__all__ = ["INDEX", "INDEX_TENSOR", "below", "is_sharded", "prune_sharded", "shard_path"]

INDEX = "index"
#: The tensor of an index version: a JSON document.
INDEX_TENSOR = "index.json"
_DEPTH = 64

StorageOptions = Mapping[str, Any] | None


def below(place: str | os.PathLike[str], *names: str) -> str | Path:
    """A path or URL inside another."""
    return posixpath.join(str(place), *names) if is_url(place) else Path(place).joinpath(*names)


def shard_path(place: str | os.PathLike[str], slot: int) -> str | Path:
    """Where the store of one process's shards is."""
    return below(place, "shards", f"{slot:05d}")


def is_sharded(place: str | os.PathLike[str], storage_options: StorageOptions = None) -> bool:
    """Whether there is a folder of stores."""
    try:
        open_backend(below(place, INDEX), storage_options).read(PATH, MAX_DOCUMENT_BYTES)
    except NotFoundError:
        return False
    return True


def prune_sharded(
    place: str | os.PathLike[str],
    keep: str | Iterable[str],
    drop: Iterable[int] = (),
    *,
    dry_run: bool = False,
    timeout: float = 60.0,
    storage_options: StorageOptions = None,
    threads: int | None = None,
) -> dict[str, PruneReport]:
    """Drop checkpoints that no rule keeps, as `Store.prune` does, and the shards that only those use.

    Returns the report of each store by its path below `place`, the index first. Shards of a checkpoint that is being
    saved are newer than all that an index names, and stay.
    """
    index = Store(below(place, INDEX), storage_options=storage_options, threads=threads)
    report = index.prune(keep, drop, dry_run=dry_run, timeout=timeout)
    used: dict[int, set[int]] = {}
    for number in report.kept:
        for slot, version in _shards_of(index, number):
            used.setdefault(slot, set()).add(version)
    reports = {INDEX: report}
    for slot in range(1 << 20):
        path = shard_path(place, slot)
        try:
            store = Store(path, storage_options=storage_options, threads=threads)
        except NotFoundError:
            if slot > max(used, default=-1):
                break
            continue
        wanted = used.get(slot, set())
        live = [row.number for row in store.log()]
        unwanted = [number for number in live[:-1] if number not in wanted and number < max(wanted, default=live[-1])]
        reports[f"shards/{slot:05d}"] = store.prune("all", unwanted, dry_run=dry_run, timeout=timeout)
    return reports


def _shards_of(index: Store, number: int) -> set[tuple[int, int]]:
    """The stores and their versions that a version of the index needs. Raises CorruptError."""
    where = f"{index.url}: version {number}"
    data = index.checkout(number, [INDEX_TENSOR])[INDEX_TENSOR].tobytes()
    document = strictjson.load(data, where, _DEPTH)
    try:
        found = {(row[2], row[3]) for row in document["places"]}
    except (KeyError, TypeError, IndexError):
        raise CorruptError(f"{where}: is no index of shards") from None
    if not all(type(slot) is int and type(version) is int for slot, version in found):
        raise CorruptError(f"{where}: is no index of shards")
    return found
