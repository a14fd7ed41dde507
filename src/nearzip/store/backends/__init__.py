"""Where a store is: a folder, an object store, a web host. `open_backend` finds the backend for a path or URL.

A plug-in provides the backend for a scheme of its own through an entry point in the group `nearzip.backends`, named as
the scheme: a callable that takes the URL and the storage options.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from nearzip.errors import UsageError
from nearzip.plugins import Plugins
from nearzip.sources import is_url
from nearzip.store.backends.backend import Backend
from nearzip.store.backends.http import HttpBackend, is_web
from nearzip.store.backends.local import LocalBackend
from nearzip.store.backends.remote import RemoteBackend

__all__ = ["PLUGINS", "open_backend"]

BackendFactory = Callable[[str, Mapping[str, Any]], Backend]


def _check_factory(name: str, found: Any) -> BackendFactory:
    if not callable(found):
        raise TypeError("it is no callable of a URL and storage options")
    factory: BackendFactory = found
    return factory


#: By scheme. Paths, file:// and web hosts are ours; of the rest a plug-in comes before fsspec.
PLUGINS: Plugins[BackendFactory] = Plugins("nearzip.backends", "store backend", _check_factory)


def open_backend(
    url: str | os.PathLike[str] | Backend, storage_options: Mapping[str, Any] | None = None
) -> LocalBackend | RemoteBackend | HttpBackend | Backend:
    """A folder (a path or file:// URL), a web host, a plug-in's place, or what fsspec opens.

    Raises UsageError, MissingExtraError, PluginError.
    """
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
    factory = PLUGINS.load(text.split("://")[0])
    if factory is not None:
        return factory(text, dict(storage_options or {}))
    return RemoteBackend(text, dict(storage_options or {}))
