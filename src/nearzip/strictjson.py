"""Strict JSON from untrusted bytes, and checks of its fields. Each error says where, and what is wrong there.

`where` names the document, and the place in it if there are several of a kind: "index", "plan.json: trial 3".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from nearzip.errors import CorruptError

__all__ = [
    "Kinds",
    "as_dict",
    "as_list",
    "fields",
    "integer",
    "load",
    "number",
    "numbers",
    "pick",
    "picks",
    "text",
    "texts",
]

T = TypeVar("T")
Kinds = Mapping[str, type | tuple[type, ...]]

#: Of what a file says, so much is quoted.
_QUOTED = 80
#: What a bracket does to the depth, as a signed byte.
_DEPTHS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def load(data: bytes, where: str, depth: int = 16) -> Any:
    """What the JSON in `data` says.

    Raises
    ------
    CorruptError
        It is no JSON in UTF-8, has a key twice, NaN or infinity, text that is not Unicode, or is nested deeper than
        `depth`.
    """
    _check_depth(data, depth, where)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise CorruptError(f"{where}: duplicate key {next(k for k in keys if keys.count(k) > 1)[:_QUOTED]!r}")
        return found

    def no_constants(constant: str) -> Any:
        raise CorruptError(f"{where}: {constant} is not allowed")

    try:
        found = json.loads(data.decode(), object_pairs_hook=no_duplicates, parse_constant=no_constants)
        if b"\\u" in data:  # an escape can make half a surrogate pair, which is no text
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{where}: invalid JSON: {str(error)[:200]}") from None


def _check_depth(data: bytes, limit: int, where: str) -> None:
    """Refuse deep nesting before the parser recurses into it."""
    # A string that never ends is one token too: without `\Z` each of its quotes would be searched from again.
    bare = re.sub(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', b"", data, flags=re.DOTALL)
    marks = np.frombuffer(bare.translate(_DEPTHS, _NO_BRACKETS), np.int8)
    if marks.size and int(np.cumsum(marks, dtype=np.int32).max()) > limit:
        raise CorruptError(f"{where}: nested deeper than {limit}")


def fields(document: Any, where: str, kinds: Kinds) -> dict[str, Any]:
    """A dict with exactly these fields, of these types. Raises CorruptError."""
    if type(document) is not dict:
        raise CorruptError(f"{where}: is not an object")
    if document.keys() != kinds.keys():
        name = min(document.keys() ^ kinds.keys())
        raise CorruptError(f"{where}: field {name[:_QUOTED]!r} is {'unknown' if name in document else 'missing'}")
    for name, kind in kinds.items():
        found = type(document[name])
        if found is not kind and not (isinstance(kind, tuple) and found in kind):
            raise CorruptError(f"{where}: field {name!r} has the wrong type")
    return document


def as_dict(document: Any, where: str) -> dict[str, Any]:
    """A dict of anything. Raises CorruptError."""
    if type(document) is not dict:
        raise CorruptError(f"{where}: is not an object")
    return document


def as_list(document: Any, where: str, length: int | None = None) -> list[Any]:
    """A list of anything, of that length. Raises CorruptError."""
    if type(document) is not list:
        raise CorruptError(f"{where}: is not a list")
    if length is not None and len(document) != length:
        raise CorruptError(f"{where}: has {len(document)} items, not {length}")
    return document


def text(value: Any, where: str) -> str:
    """A string. Raises CorruptError."""
    if type(value) is not str:
        raise CorruptError(f"{where}: is not a text")
    return value


def texts(values: Any, where: str) -> None:
    """Raise CorruptError unless all values of an iterable are strings."""
    for value in values:
        text(value, where)


def integer(value: Any, where: str, low: int = -(1 << 63), high: int = (1 << 63) - 1) -> int:
    """An integer, `low` to `high`. Raises CorruptError."""
    if type(value) is not int or not low <= value <= high:
        raise CorruptError(f"{where}: is not an integer from {low} to {high}")
    return value


def number(value: Any, where: str) -> float:
    """A finite number. Raises CorruptError."""
    if type(value) in (int, float):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:  # an integer beyond the floats
            pass
    raise CorruptError(f"{where}: is not a finite number")


def numbers(document: Any, where: str) -> dict[str, float]:
    """Name to finite number, at least one. Raises CorruptError."""
    found = {name: number(value, f"{where}, {name[:_QUOTED]!r}") for name, value in as_dict(document, where).items()}
    if not found:
        raise CorruptError(f"{where}: is empty")
    return found


def picks(items: Sequence[T], indices: Iterable[Any], where: str) -> tuple[T, ...]:
    """`pick` for each of several."""
    return tuple(pick(items, index, where) for index in indices)


def pick(items: Sequence[T], index: Any, where: str) -> T:
    """`items[index]`. Raises CorruptError for what is no index of them."""
    if type(index) is not int or not 0 <= index < len(items):
        raise CorruptError(f"{where}: index {repr(index)[:_QUOTED]} is out of range (there are {len(items)})")
    return items[index]
