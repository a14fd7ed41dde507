"""Strict reading of untrusted JSON: every error names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nearzip.errors import CorruptError, LimitError
from nearzip.fileio import Path_, naming_errors

__all__ = ["Kinds", "as_dict", "fields", "number", "numbers", "read_document", "text"]

#: A plan of ten thousand tensors and a hundred trials takes some tens of megabytes.
_MAX_BYTES = 256 << 20

Kinds = Mapping[str, type | tuple[type, ...]]


def read_document(path: Path_) -> Any:
    """The JSON in a file. Raises CorruptError, LimitError, NotFoundError."""
    place = Path(path)
    with naming_errors("read", path):
        if place.stat().st_size > _MAX_BYTES:
            raise LimitError(f"{place}: takes {place.stat().st_size} bytes; the limit is {_MAX_BYTES}")
        data = place.read_bytes()
    try:
        found = json.loads(data.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return found
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{place}: is not the JSON of a plan or trial: {str(error)[:200]}") from None
    except CorruptError as error:
        raise CorruptError(f"{place}: {error}") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CorruptError("a key occurs twice")
    return found


def _no_constants(constant: str) -> Any:
    raise CorruptError(f"{constant} is not a number here")


def fields(document: Any, where: str, kinds: Kinds) -> dict[str, Any]:
    """A dict with exactly these fields of these types. Raises CorruptError."""
    if type(document) is not dict:
        raise CorruptError(f"{where}: is not an object")
    odd = sorted(set(document) ^ set(kinds))
    if odd:
        raise CorruptError(f"{where}: field {odd[0][:80]!r} is {'unknown' if odd[0] in document else 'missing'}")
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if type(document[name]) not in allowed:
            raise CorruptError(f"{where}: field {name!r} has the wrong type")
    return document


def as_dict(document: Any, where: str) -> dict[str, Any]:
    """A dict of anything. Raises CorruptError."""
    if type(document) is not dict:
        raise CorruptError(f"{where}: is not an object")
    return document


def text(value: Any, where: str) -> str:
    if type(value) is not str:
        raise CorruptError(f"{where}: is not a text")
    return value


def number(value: Any, where: str) -> float:
    """A finite number. Raises CorruptError."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise CorruptError(f"{where}: is not a finite number")
    return float(value)


def numbers(document: Any, where: str) -> dict[str, float]:
    """Name to finite number, at least one. Raises CorruptError."""
    found = {name: number(value, f"{where}, {name!r}") for name, value in as_dict(document, where).items()}
    if not found:
        raise CorruptError(f"{where}: is empty")
    return found
