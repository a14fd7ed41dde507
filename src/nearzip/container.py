"""The bytes of one archive: header, blocks, index, footer. docs/format.md is the specification.

Reading goes from the outside in: header, footer, index, each with its checksum verified before it is used. Blocks
follow each other without gaps, so their offsets are sums of lengths and cannot overlap.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Sequence
from typing import Protocol

from nearzip import strictjson
from nearzip.digests import DIGEST_BYTES, digest
from nearzip.errors import CorruptError, LimitError, NewerFormatError, TruncatedError, UsageError
from nearzip.index.columns import from_columns, stored_columns, unpack_columns
from nearzip.index.document import from_document
from nearzip.index.entries import BlockEntry, Index, Segment
from nearzip.limits import Limits
from nearzip.stages import Pipeline
from nearzip.stages.external import unpack_zstd

__all__ = ["BlockEntry", "Index", "Segment", "Source", "Writable", "Writer", "is_archive", "read_index"]

MAGIC = b"\x89NZIP\r\n\x1a"
CLOSING = b"\x1a\nNZEND\x89"
#: The newest format that this release reads, and the one that it writes: its index is in columns.
FORMAT_VERSION = 3
#: Earlier ones, with an index of JSON: without and with the field that says which tensors of the base are used under
#: another name or in another dtype.
PLAIN_FORMAT, MATCHED_FORMAT = 1, 2
_HEADER = struct.Struct("<8sHHI")  # magic, version of the writer, oldest reader that will do, reserved (0)
HEADER_BYTES = _HEADER.size + 8
_FOOTER = struct.Struct("<II")  # length of the index as stored, length of its columns
FOOTER_BYTES = _FOOTER.size + DIGEST_BYTES + len(CLOSING)
#: Of the earlier formats: length of the file, length of the index as stored, as JSON.
_OLD_FOOTER = struct.Struct("<QQQ")
OLD_FOOTER_BYTES = _OLD_FOOTER.size + DIGEST_BYTES + len(CLOSING)


# ---- sources ---------------------------------------------------------------------------------------


class Source(Protocol):
    """Random access to an archive's bytes."""

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes | memoryview: ...

    def close(self) -> None: ...


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


@functools.cache
def header_bytes(version: int = FORMAT_VERSION) -> bytes:
    head = _HEADER.pack(MAGIC, version, version, 0)
    return head + digest(head)[:8]


class Writable(Protocol):
    """Where an archive goes."""

    def write(self, data: bytes, /) -> object: ...


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
        stored, n_content = stored_columns(index, self._offset, FOOTER_BYTES)
        if len(stored) >= 1 << 32:
            raise UsageError(f"{len(index.tensors)} tensors are too many for one archive")
        lengths = _FOOTER.pack(len(stored), n_content)
        self._write(stored + lengths + digest(self._header, stored, lengths) + CLOSING)
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
    header = _read_header(source)
    _, version, _, _ = _HEADER.unpack(header[: _HEADER.size])
    stored, n_content, end_of_blocks = _read_footer(source, header, version >= FORMAT_VERSION, limits)
    try:
        if version >= FORMAT_VERSION:
            content, digests = unpack_columns(stored, n_content)
            return from_columns(content, digests, limits, source.size, end_of_blocks, HEADER_BYTES)
        text = unpack_zstd(stored, n_content)
        if len(text) != n_content:
            raise CorruptError("index: has another length than the footer says")
        document = strictjson.load(text, "index", limits.depth)
        return from_document(document, limits, end_of_blocks, HEADER_BYTES, version >= MATCHED_FORMAT)
    except (CorruptError, LimitError, NewerFormatError) as error:
        raise type(error)(f"{source.name}: {error}") from None


def _read_header(source: Source) -> bytes:
    name = source.name
    header = bytes(source.read(0, min(source.size, HEADER_BYTES)))
    if not header:
        raise TruncatedError(f"{name}: the file is empty")
    if not header.startswith(MAGIC[: len(header)]):
        if header.startswith(b"version https://git-lfs"):
            raise UsageError(f"{name}: is a git-lfs pointer, not the file itself; fetch it: git lfs pull")
        raise CorruptError(f"{name}: not a nearzip archive")
    if source.size < HEADER_BYTES + FOOTER_BYTES:
        raise TruncatedError(f"{name}: ends after {source.size} bytes, shorter than any archive")
    _, version, oldest_reader, reserved = _HEADER.unpack(header[: _HEADER.size])
    if digest(header[: _HEADER.size])[:8] != header[_HEADER.size :]:
        raise CorruptError(f"{name}: the header is damaged")
    if oldest_reader > FORMAT_VERSION:
        raise NewerFormatError(
            f"{name}: needs a reader of format {oldest_reader} (written as {version}); this release reads up to "
            f"{FORMAT_VERSION}: upgrade nearzip"
        )
    if reserved or version < oldest_reader or oldest_reader < 1:
        raise CorruptError(f"{name}: the header is invalid")
    return header


def _read_footer(source: Source, header: bytes, in_columns: bool, limits: Limits) -> tuple[bytes, int, int]:
    """The index as stored, the length of its content, and where it begins."""
    name, size = source.name, source.size
    kind, n_footer = (_FOOTER, FOOTER_BYTES) if in_columns else (_OLD_FOOTER, OLD_FOOTER_BYTES)
    if size < HEADER_BYTES + n_footer:
        raise TruncatedError(f"{name}: ends after {size} bytes, shorter than any archive")
    footer = bytes(source.read(size - n_footer, n_footer))
    if not footer.endswith(CLOSING):
        raise TruncatedError(f"{name}: does not end as an archive does; cut short, or its end is damaged")
    lengths, expected = footer[: kind.size], footer[kind.size : -len(CLOSING)]
    total, n_stored, n_content = (size, *kind.unpack(lengths)) if in_columns else kind.unpack(lengths)
    if total != size or n_stored > size - HEADER_BYTES - n_footer:
        raise CorruptError(f"{name}: the file is not as long as its footer says")
    allowed = limits.allowed_index(size)
    # In columns, digests follow what is compressed; they are as long in memory as in the file.
    if n_content > allowed or (n_stored > allowed and not in_columns):
        raise LimitError(
            f"{name}: the index takes {max(n_content, n_stored)} bytes; the limit is {allowed}. "
            "If you trust the file, raise Limits(index_bytes=...)"
        )
    start = size - n_footer - n_stored
    stored = bytes(source.read(start, n_stored))
    if digest(header, stored, lengths) != expected:
        raise CorruptError(f"{name}: the index is damaged")
    return stored, n_content, start
