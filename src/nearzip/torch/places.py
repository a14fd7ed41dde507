"""Stores, as callers name them."""

from __future__ import annotations

import os
from typing import Any

from nearzip.store import Store

__all__ = ["StoreLike", "open_store", "prune_store"]

StoreLike = Store | str | os.PathLike[str]


def open_store(store: StoreLike, **settings: Any) -> Store:
    """An open store as it is; a path or URL opened, and made if nothing is there. Raises what `Store` raises."""
    return store if isinstance(store, Store) else Store(store, create=True, **settings)


def prune_store(store: Store, keep: str | None) -> None:
    """Drop what `keep` does not name, if it names anything."""
    if keep is not None:
        store.prune(keep=keep)
