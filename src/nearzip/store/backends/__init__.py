"""Where a store is: a folder, an object store, a web host. `open_backend` finds the backend for a path or URL."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from nearzip.errors import UsageError
from nearzip.storage import is_url
from nearzip.store.backends.backend import Backend
from nearzip.store.backends.http import HttpBackend, is_web
from nearzip.store.backends.local import LocalBackend
from nearzip.store.backends.remote import RemoteBackend

__all__ = ["open_backend"]


def open_backend(
    url: str | os.PathLike[str] | Backend, storage_options: Mapping[str, Any] | None = None
) -> LocalBackend | RemoteBackend | HttpBackend | Backend:
    """A folder (a path or file:// URL), a web host, or what fsspec opens. Raises UsageError, MissingExtraError."""
    if not isinstance(url, (str, os.PathLike)):
        if hasattr(url, "new_object"):
            return url
        raise UsageError(f"a store is a path or a URL, not {type(url).__name__}")
    text = os.fspath(url)
    if not text:
        raise UsageError("a store is a path or a URL, not an empty text")
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not is_url(text):
        return LocalBackend(text)
    if is_web(text):
        return HttpBackend(text, storage_options)
    return RemoteBackend(text, dict(storage_options or {}))
