"""Stores, as callers name them."""

from __future__ import annotations

import os
from typing import Any

from nearzip.errors import NotFoundError
from nearzip.store import Store
from nearzip.store.policy import parse_policy

__all__ = ["StoreLike", "open_store", "prune_store"]

StoreLike = Store | str | os.PathLike[str]


def open_store(store: StoreLike, policy: str | None = None, **options: Any) -> Store:
    """An open store as it is; a path or URL opened, and made if nothing is there. Raises what `Store` raises.

    `policy`: of a store that is made. One that is there keeps its own, and another is followed by what is returned.
    """
    if not isinstance(store, Store):
        try:
            opened = Store(store, **options)
        except NotFoundError:
            opened = Store(store, create=True, policy=policy, **options)
        return open_store(opened, policy)
    return store if policy is None or store.policy == parse_policy(policy) else store.with_policy(policy)


def prune_store(store: Store, keep: str | None) -> None:
    """Drop what `keep` does not name, if it names anything."""
    if keep is not None:
        store.prune(keep=keep)
