"""The frame of a file of ours, an archive or a data set: header, contents, index, footer.

Reading goes from the outside in: header, footer, index, each with its checksum verified before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import zstandard

from nearzip.digests import DIGEST_BYTES, digest
from nearzip.errors import CorruptError, LimitError, NewerFormatError, TruncatedError, UsageError
from nearzip.limits import Limits
from nearzip.stages.external import unpack_zstd

__all__ = [
    "CLOSING",
    "FOOTER",
    "FOOTER_BYTES",
    "HEADER_BYTES",
    "SHORT_FOOTER",
    "SHORT_FOOTER_BYTES",
    "Frame",
    "Source",
    "Writable",
    "unpacked",
]

CLOSING = b"\x1a\nNZEND\x89"
_HEADER = struct.Struct("<8sHHI")  # magic, version of the writer, oldest reader that will do, reserved (0)
HEADER_BYTES = _HEADER.size + 8
FOOTER = struct.Struct("<QQQ")  # length of the file, length of the index as stored, as JSON
FOOTER_BYTES = FOOTER.size + DIGEST_BYTES + len(CLOSING)
#: Of archives whose index is in columns: length of the index as stored, length of its content.
SHORT_FOOTER = struct.Struct("<II")
SHORT_FOOTER_BYTES = SHORT_FOOTER.size + DIGEST_BYTES + len(CLOSING)
_INDEX_LEVEL = 12


class Source(Protocol):
    """Random access to a file's bytes."""

    name: str
    size: int

    def read(self, offset: int, length: int) -> bytes | memoryview: ...

    def close(self) -> None: ...


class Writable(Protocol):
    """Where a file goes."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True)
class Frame:
    """What one kind of file has in its header, and what errors call it.

    Parameters
    ----------
    magic : bytes
        The first eight bytes.
    newest : int
        The newest format that this release reads.
    noun, name : str
        "archive", "a nearzip archive".
    """

    magic: bytes
    newest: int
    noun: str
    name: str

    def header(self, version: int) -> bytes:
        return _header(self.magic, version)

    @staticmethod
    def end(header: bytes, offset: int, document: bytes) -> bytes:
        """An index of JSON and the footer of a file that has `offset` bytes before them."""
        stored = zstandard.ZstdCompressor(level=_INDEX_LEVEL).compress(document)
        lengths = FOOTER.pack(offset + len(stored) + FOOTER_BYTES, len(stored), len(document))
        return stored + lengths + digest(header, stored, lengths) + CLOSING

    @staticmethod
    def short_end(header: bytes, stored: bytes, n_content: int) -> bytes:
        """An index as stored, and the short footer."""
        lengths = SHORT_FOOTER.pack(len(stored), n_content)
        return stored + lengths + digest(header, stored, lengths) + CLOSING

    def read(self, source: Source, limits: Limits) -> tuple[int, bytes, int]:
        """The format of a file with an index of JSON, the index, and the bytes that it takes as stored.

        Raises TruncatedError, CorruptError, NewerFormatError, LimitError.
        """
        header, version = self.read_header(source)
        stored, n_document = self.read_end(source, header, limits)
        return version, unpacked(source.name, stored, n_document), len(stored)

    def read_header(self, source: Source) -> tuple[bytes, int]:
        """The header, and the format of the file."""
        name = source.name
        header = bytes(source.read(0, min(source.size, HEADER_BYTES)))
        if not header:
            raise TruncatedError(f"{name}: the file is empty")
        if not header.startswith(self.magic[: len(header)]):
            if header.startswith(b"version https://git-lfs"[: len(header)]):
                raise UsageError(f"{name}: is a git-lfs pointer, not the file itself; fetch it: git lfs pull")
            raise CorruptError(f"{name}: not {self.name}")
        if source.size < HEADER_BYTES + SHORT_FOOTER_BYTES:
            raise TruncatedError(f"{name}: ends after {source.size} bytes, shorter than any {self.noun}")
        _, version, oldest_reader, reserved = _HEADER.unpack(header[: _HEADER.size])
        if digest(header[: _HEADER.size])[:8] != header[_HEADER.size :]:
            raise CorruptError(f"{name}: the header is damaged")
        if oldest_reader > self.newest:
            raise NewerFormatError(
                f"{name}: needs a reader of format {oldest_reader} (written as {version}); this release reads up to "
                f"{self.newest}: upgrade nearzip"
            )
        if reserved or version < oldest_reader or oldest_reader < 1:
            raise CorruptError(f"{name}: the header is invalid")
        return header, version

    def read_end(self, source: Source, header: bytes, limits: Limits, short: bool = False) -> tuple[bytes, int]:
        """The index as stored, and the length of its content."""
        name, size = source.name, source.size
        kind, n_footer = (SHORT_FOOTER, SHORT_FOOTER_BYTES) if short else (FOOTER, FOOTER_BYTES)
        if size < HEADER_BYTES + n_footer:
            raise TruncatedError(f"{name}: ends after {size} bytes, shorter than any {self.noun}")
        footer = bytes(source.read(size - n_footer, n_footer))
        if not footer.endswith(CLOSING):
            raise TruncatedError(f"{name}: does not end as {self.noun}s do; cut short, or its end is damaged")
        lengths, expected = footer[: kind.size], footer[kind.size : -len(CLOSING)]
        total, n_stored, n_content = (size, *kind.unpack(lengths)) if short else kind.unpack(lengths)
        if total != size or n_stored > size - HEADER_BYTES - n_footer:
            raise CorruptError(f"{name}: the file is not as long as its footer says")
        allowed = limits.allowed_index(size)
        # In columns, digests follow what is compressed; they are as long in memory as in the file.
        if n_content > allowed or (n_stored > allowed and not short):
            raise LimitError(
                f"{name}: the index takes {max(n_content, n_stored)} bytes; the limit is {allowed}. "
                "If you trust the file, raise Limits(index_bytes=...)"
            )
        stored = bytes(source.read(size - n_footer - n_stored, n_stored))
        if digest(header, stored, lengths) != expected:
            raise CorruptError(f"{name}: the index is damaged")
        return stored, n_content


def unpacked(name: str, stored: bytes, n_document: int) -> bytes:
    """An index of JSON. Raises CorruptError."""
    try:
        document = unpack_zstd(stored, n_document)
    except CorruptError as error:
        raise CorruptError(f"{name}: index: {error}") from None
    if len(document) != n_document:
        raise CorruptError(f"{name}: index has another length than the footer says")
    return document


@cache
def _header(magic: bytes, version: int) -> bytes:
    head = _HEADER.pack(magic, version, version, 0)
    return head + digest(head)[:8]
