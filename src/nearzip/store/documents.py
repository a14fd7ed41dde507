"""The small files of a store: one line that names kind, format and SHA-256, then strict JSON.

The digest covers everything after the first line. Data that cannot be one of our documents is refused before parsing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nearzip.errors import CorruptError, NewerFormatError, TruncatedError
from nearzip.strictjson import as_dict, load

__all__ = ["FORMAT_VERSION", "MAX_DOCUMENT_BYTES", "seal", "unseal"]

#: What this release writes, and the newest that it reads.
FORMAT_VERSION = 1
#: Longer documents are refused, and not written.
MAX_DOCUMENT_BYTES = 16 << 20
_DEPTH = 16


def seal(kind: str, document: Mapping[str, Any]) -> bytes:
    """The bytes of a document.

    Examples
    --------
    >>> seal("version", {"version": 3}).decode().splitlines()[1]
    '{"version":3}'
    """
    body = json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    head = f"nearzip-{kind} {FORMAT_VERSION} {hashlib.sha256(body).hexdigest()}\n"
    return head.encode() + body


def unseal(kind: str, data: bytes, where: str) -> dict[str, Any]:
    """The document in `data` (untrusted). `where` is put in front of what is wrong.

    Raises
    ------
    CorruptError, TruncatedError
        Not a document of this kind, damaged, or cut short.
    NewerFormatError
        Intact, and of a newer format.
    """
    head, newline, body = data.partition(b"\n")
    words = head.split(b" ")
    if len(words) != 3 or words[0] != f"nearzip-{kind}".encode():
        problem = TruncatedError if not newline and len(data) < 100 else CorruptError
        raise problem(f"{where}: not the {kind} document of a nearzip store")
    if hashlib.sha256(body).hexdigest().encode() != words[2]:
        problem = CorruptError if body.endswith(b"}\n") else TruncatedError
        raise problem(f"{where}: damaged (checksum differs)")
    if not words[1].isdigit() or len(words[1]) > 9:
        raise CorruptError(f"{where}: no format number")
    if int(words[1]) > FORMAT_VERSION:
        raise NewerFormatError(
            f"{where}: has format {int(words[1])}; this release reads up to {FORMAT_VERSION}: upgrade nearzip"
        )
    return as_dict(load(body, where, _DEPTH), where)
