"""What the bench keeps outside the repository: unpacked data, the peers' environments, predictions already compared."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """NEARZIP_CACHE or ~/.cache/nearzip-bench."""
    folder = Path(os.environ.get("NEARZIP_CACHE") or Path.home() / ".cache" / "nearzip-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
