"""Files of plans and trials, which others may have written: read strictly (`strictjson`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nearzip import strictjson
from nearzip.errors import CorruptError, LimitError, NewerFormatError, UnknownMethodError
from nearzip.fileio import Output, Path_, atomic_file, naming_errors

__all__ = ["load_document", "read_document", "save_document"]

T = TypeVar("T")

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


def load_document(path: Path_, parse: Callable[[Any], T]) -> T:
    """What `parse` makes of the JSON in a file; its errors name the file."""
    document = read_document(path)
    try:
        return parse(document)
    except (CorruptError, NewerFormatError, UnknownMethodError) as error:
        raise type(error)(f"{path}: {error}") from None


def save_document(path: Output, document: Any, force: bool) -> None:
    """Write JSON, whole or not at all. Raises UsageError if the file exists, unless `force`."""
    with atomic_file(path, force=force, text=True) as stream:
        stream.write(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")
