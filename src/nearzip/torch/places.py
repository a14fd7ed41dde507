"""Stores, as callers name them."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from typing import Any

from nearzip.errors import NotFoundError
from nearzip.store import Store
from nearzip.store.policy import parse_policy

__all__ = ["StoreLike", "commit_quietly", "open_store", "prune_store"]

_LOG = logging.getLogger("nearzip")
_TOLD: weakref.WeakSet[Store] = weakref.WeakSet()

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


def commit_quietly(store: Store, arrays: Mapping[str, Any], **said: Any) -> int:
    """Commit. A lost update is logged, once for each store, and never warned of: a training may run for days, and one
    that turns warnings into errors must not end for it.
    """
    version = store.commit(arrays, warn=False, **said)
    text = None if store.update_kept is None else store.update_kept.warning()
    if text and store not in _TOLD:
        _TOLD.add(store)
        _LOG.warning("%s: version %d: %s", store.url, version, text)
    return version


def prune_store(store: Store, keep: str | None) -> None:
    """Drop what `keep` does not name, if it names anything."""
    if keep is not None:
        store.prune(keep=keep)
