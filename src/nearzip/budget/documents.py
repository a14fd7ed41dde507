"""Files of plans and trials, which others may have written: read strictly (`strictjson`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nearzip import strictjson
from nearzip.errors import LimitError
from nearzip.fileio import Path_, naming_errors

__all__ = ["read_document"]

#: A plan of ten thousand tensors and a hundred trials takes some tens of megabytes.
_MAX_BYTES = 256 << 20
_DEPTH = 32


def read_document(path: Path_) -> Any:
    """The JSON in a file. Raises CorruptError, LimitError, NotFoundError."""
    place = Path(path)
    with naming_errors("read", path):
        n_bytes = place.stat().st_size
        if n_bytes > _MAX_BYTES:
            raise LimitError(f"{place}: takes {n_bytes} bytes; the limit is {_MAX_BYTES}")
        data = place.read_bytes()
    return strictjson.load(data, str(place), _DEPTH)
