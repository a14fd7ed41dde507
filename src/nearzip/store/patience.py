"""Reading beside processes that re-encode and drop versions.

Every change leaves each version readable: new objects first, then the manifest, then the old objects are deleted. So
what a reader misses was replaced after it read the manifest: it reads the manifests again, and tries again for as long
as they changed. What fails by unchanged manifests is damage.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from nearzip.errors import Error, NoSpaceError, UsageError
from nearzip.store.versions import Versions

__all__ = ["PATIENCE", "patiently"]

#: Seconds after which no attempt is begun: others re-encode the version faster than it can be read.
PATIENCE = 120.0

T = TypeVar("T")


def patiently(versions: Versions, number: int, attempt: Callable[[], T]) -> T:
    """What `attempt`, which reads version `number`, returns or raises once no concurrent change disturbs it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return attempt()
        except (UsageError, NoSpaceError):
            raise
        except Error:
            if not versions.has_changed(number) or time.monotonic() >= deadline:
                raise
        time.sleep(random.uniform(0, 0.02))  # noqa: S311 (not for secrets)
