"""Stores, as callers name them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nearzip.errors import UsageError
from nearzip.storage import is_url
from nearzip.store import Store

__all__ = ["StoreLike", "open_store", "prune_store"]

StoreLike = Store | str | os.PathLike[str]


def open_store(store: StoreLike, keep: str | None = None, **settings: Any) -> Store:
    """An open store as it is; a path or URL opened, and made if nothing is there, folders above it included.

    Raises UsageError if `keep` is given and the store cannot be pruned, and what `Store` raises.
    """
    if not isinstance(store, Store):
        if not is_url(store):
            Path(store).parent.mkdir(parents=True, exist_ok=True)
        store = Store(store, create=True, **settings)
    if keep is not None and not hasattr(store, "prune"):
        raise UsageError("keep: this release's stores cannot be pruned; leave it out")
    return store


def prune_store(store: Any, keep: str | None) -> None:
    """Drop what `keep` does not name, if it names anything."""
    if keep is not None:
        store.prune(keep=keep)
