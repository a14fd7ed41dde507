"""The bytes of one archive: header, blocks, index, footer. docs/format.md is the specification.

Reading goes from the outside in: header, footer, index, each with its checksum verified before it is used. Blocks
follow each other without gaps, so their offsets are sums of lengths and cannot overlap.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from nearzip import strictjson
from nearzip.digests import digest
from nearzip.errors import CorruptError, LimitError, NewerFormatError, UsageError
from nearzip.framing import FOOTER_BYTES, HEADER_BYTES, SHORT_FOOTER_BYTES, Frame, Source, Writable, unpacked
from nearzip.index.columns import from_columns, stored_columns, unpack_columns
from nearzip.index.document import from_document
from nearzip.index.entries import BlockEntry, Index, Segment
from nearzip.limits import Limits
from nearzip.stages import Pipeline

__all__ = ["BlockEntry", "Index", "Segment", "Writer", "is_archive", "read_index"]

MAGIC = b"\x89NZIP\r\n\x1a"
#: The newest format that this release reads, and the one that it writes: its index is in columns.
FORMAT_VERSION = 3
#: Earlier ones, with an index of JSON: without and with the field that says which tensors of the base are used under
#: another name or in another dtype.
PLAIN_FORMAT, MATCHED_FORMAT = 1, 2
_FRAME = Frame(MAGIC, FORMAT_VERSION, "archive", "a nearzip archive")


# ---- writing ---------------------------------------------------------------------------------------------------


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URL is meant to be an archive: by its first bytes, or by its name if it cannot be read here."""
    if str(path).lower().endswith(".nz"):
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def header_bytes(version: int = FORMAT_VERSION) -> bytes:
    return _FRAME.header(version)


class Writer:
    """Writes an archive front to back."""

    def __init__(self, stream: Writable):
        self._stream = stream
        self._header = header_bytes()
        self._offset = 0
        self._write(self._header)

    @property
    def n_bytes(self) -> int:
        """Length of what was written so far."""
        return self._offset

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._offset += len(data)

    def add_block(self, pieces: Sequence[bytes], pipeline: Pipeline) -> BlockEntry:
        """Append a block, whose bytes come in pieces. Returns its entry in the index."""
        entry = BlockEntry(self._offset, sum(map(len, pieces)), digest(*pieces), pipeline)
        for piece in pieces:
            self._write(piece)
        return entry

    def finish(self, index: Index) -> int:
        """Write index and footer; returns the length of the archive in bytes."""
        stored, n_content = stored_columns(index, self._offset, SHORT_FOOTER_BYTES)
        if len(stored) >= 1 << 32:
            raise UsageError(f"{len(index.tensors)} tensors are too many for one archive")
        self._write(_FRAME.short_end(self._header, stored, n_content))
        return self._offset


# ---- reading ---------------------------------------------------------------------------------------------------


def read_index(source: Source, limits: Limits) -> Index:
    """Check everything but the blocks, and read the index.

    Raises
    ------
    TruncatedError, CorruptError
        The file ends early, or its bytes are not what a writer wrote.
    NewerFormatError
        It needs a newer reader.
    LimitError
        It declares more than `limits` allow.
    """
    header, version = _FRAME.read_header(source)
    in_columns = version >= FORMAT_VERSION
    stored, n_content = _FRAME.read_end(source, header, limits, in_columns)
    end_of_blocks = source.size - (SHORT_FOOTER_BYTES if in_columns else FOOTER_BYTES) - len(stored)
    document = b"" if in_columns else unpacked(source.name, stored, n_content)
    try:
        if in_columns:
            content, digests = unpack_columns(stored, n_content)
            return from_columns(content, digests, limits, source.size, end_of_blocks, HEADER_BYTES)
        parsed = strictjson.load(document, "index", limits.depth)
        return from_document(parsed, limits, end_of_blocks, HEADER_BYTES, version >= MATCHED_FORMAT)
    except (CorruptError, LimitError, NewerFormatError) as error:
        raise type(error)(f"{source.name}: {error}") from None
