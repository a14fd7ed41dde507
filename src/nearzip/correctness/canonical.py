"""Canonical JSON (RFC 8785): one sequence of bytes for one document, so that its hash means something."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nearzip.errors import UsageError

__all__ = ["canonical", "sha256"]

#: Integers beyond it are not exact in JavaScript, whose numbers the RFC takes.
_MAX_INTEGER = 2**53


def sha256(data: bytes | memoryview) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical(document: Any) -> bytes:
    """The document's bytes: no white space, keys sorted by their UTF-16 code units, numbers as JavaScript prints them.

    Raises UsageError for what has no such form: NaN, infinity, integers beyond 2^53, keys that are no strings.

    Examples
    --------
    >>> canonical({"b": [1.0, 1e-7, 0.1], "a": None})
    b'{"a":null,"b":[1,1e-7,0.1]}'
    """
    return _text(document).encode()


def _text(value: Any) -> str:
    if value is None or isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError("canonical JSON has strings as keys")
        items = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_text(key)}:{_text(each)}" for key, each in items) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_text, value)) + "]"
    raise UsageError(f"canonical JSON has no {type(value).__name__}")


def _number(value: int | float) -> str:
    """As ECMAScript prints a number: the shortest digits that give it back, which are Python's, in its own notation."""
    if isinstance(value, int):
        if abs(value) > _MAX_INTEGER:
            raise UsageError(f"canonical JSON has no integer as large as {value}")
        return str(value)
    if not math.isfinite(value):
        raise UsageError("canonical JSON has no NaN and no infinity")
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times ten to the `point`.
    point = int(exponent or 0) + len(whole) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    return ("-" if value < 0 else "") + _notation(digits, point)


def _notation(digits: str, point: int) -> str:
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"0.{'0' * -point}{digits}"
    exponent = point - 1
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{digits[0]}{fraction}e{'+' if exponent > 0 else '-'}{abs(exponent)}"
