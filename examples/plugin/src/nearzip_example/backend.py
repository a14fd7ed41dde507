from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearzip.errors import UsageError
from nearzip.store.backends.local import LocalBackend


def open_drawer(url: str, storage_options: Mapping[str, Any]) -> LocalBackend:
    """`drawer://NAME` is the folder NAME below the storage option `cabinet`."""
    if "cabinet" not in storage_options:
        raise UsageError(f"{url}: give the storage option 'cabinet', the folder that has the drawers")
    name = url.removeprefix("drawer://")
    if not name or Path(name).name != name:
        raise UsageError(f"{url}: a drawer is one name")
    return LocalBackend(Path(storage_options["cabinet"]) / name)
