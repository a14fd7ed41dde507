"""The settings of a store that is opened or made."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from typing import Any

from nearzip.errors import CorruptError, Error, NotFoundError, UsageError
from nearzip.store.backends.backend import Backend
from nearzip.store.documents import MAX_DOCUMENT_BYTES
from nearzip.store.encoding import now
from nearzip.store.settings import PATH, StoreSettings, parse_settings, try_out

__all__ = ["open_settings", "read_settings"]


def open_settings(backend: Backend, create: bool, wanted: Mapping[str, Any]) -> StoreSettings:
    """The settings of the store; of a new one if there is none and `create`.

    Raises NotFoundError, and UsageError if the store's differ from those in `wanted`.
    """
    try:
        found = read_settings(backend)
    except NotFoundError:
        if not create:
            raise NotFoundError(f"{backend.url}: {_instead(backend)}") from None
        return _make(backend, wanted)
    for name, value in wanted.items():
        if getattr(found, name) != value:
            raise UsageError(
                f"{backend.url}: this store has {name} {getattr(found, name)}, not {value}; leave it out, or change "
                "the store's with 'nearzip store configure'"
            )
    return found


def read_settings(backend: Backend) -> StoreSettings:
    """The settings as they are now. Raises NotFoundError, CorruptError."""
    data = backend.read(PATH, MAX_DOCUMENT_BYTES)
    try:
        return parse_settings(data, f"{backend.url}/{PATH}")
    except CorruptError as error:
        raise CorruptError(f"{error}; run 'nearzip store verify --repair {backend.url}'") from None


def _instead(backend: Backend) -> str:
    """What is here in place of a store."""
    with contextlib.suppress(Error):
        backend.read(f"index/{PATH}", MAX_DOCUMENT_BYTES)
        return (
            "no store, but a folder that torch.distributed.checkpoint saves into: the store "
            f"{backend.url}/index lists its checkpoints, and 'nearzip store prune {backend.url}' drops some"
        )
    return f"no store here; make one with 'nearzip store init {backend.url}' (create=True)"


def _make(backend: Backend, wanted: Mapping[str, Any]) -> StoreSettings:
    if not backend.can_write:
        raise UsageError(f"{backend.url}: cannot be written to; make the store elsewhere")
    settings = StoreSettings(secrets.token_hex(16), now(), **wanted)
    try_out(settings)
    if hasattr(backend, "make"):
        backend.make()
    if settings.exclusive == "create" and hasattr(backend, "probe"):
        backend.probe()
    if not backend.create(PATH, settings.to_bytes()):
        return open_settings(backend, False, wanted)  # another process made it at the same time
    return settings
