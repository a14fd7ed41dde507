"""Uncompressed entries of zip files: offsets of their bytes and of their checksums."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

from nearzip.checkpoints.embedded import Checksum
from nearzip.errors import CorruptError
from nearzip.tensors import Array

__all__ = ["StoredEntry", "data_offset", "stored_entries"]

_CENTRAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x07\x08"
_CENTRAL_BYTES, _LOCAL_BYTES = 46, 30


@dataclass(frozen=True)
class StoredEntry:
    """Bytes `start` .. `start + n` of the file; `checksum` covers them."""

    start: int
    n: int
    checksum: Checksum


def data_offset(file: Array, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin. Raises CorruptError."""
    header = file[entry.header_offset : entry.header_offset + _LOCAL_BYTES].tobytes()
    if len(header) < _LOCAL_BYTES or header[:4] != b"PK\x03\x04":
        raise CorruptError(f"the entry {entry.filename[:80]!r} is damaged")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return entry.header_offset + _LOCAL_BYTES + names


def stored_entries(file: Array, zipped: zipfile.ZipFile, shift: int = 0) -> dict[str, StoredEntry]:
    """The uncompressed entries of a zip file whose bytes are `file`, by name.

    `shift` is added to all offsets: where the zip begins in a larger file. Raises CorruptError.
    """
    found = {}
    for entry, central in zip(zipped.infolist(), _central_offsets(file, zipped), strict=False):
        if entry.compress_type != zipfile.ZIP_STORED or entry.is_dir():
            continue
        start = data_offset(file, entry)
        end = start + entry.file_size
        if end > file.size:
            raise CorruptError(f"the entry {entry.filename[:80]!r} ends after the end of the file")
        crc = entry.CRC.to_bytes(4, "little")
        places = [central + 16]
        if file[entry.header_offset + 14 : entry.header_offset + 18].tobytes() == crc:
            places.append(entry.header_offset + 14)
        if entry.flag_bits & 8:  # the checksum follows the bytes
            behind = end + 4 if file[end : end + 4].tobytes() == _DESCRIPTOR else end
            if file[behind : behind + 4].tobytes() == crc:
                places.append(behind)
        checksum = Checksum(start + shift, entry.file_size, tuple(sorted(place + shift for place in places)))
        found[entry.filename] = StoredEntry(start + shift, entry.file_size, checksum)
    return found


def _central_offsets(file: Array, zipped: zipfile.ZipFile) -> Iterator[int]:
    """Where the entries of the central directory begin, in the order of `infolist`."""
    at: int = zipped.start_dir
    for _ in zipped.infolist():
        header = file[at : at + _CENTRAL_BYTES].tobytes()
        if len(header) < _CENTRAL_BYTES or header[:4] != _CENTRAL:
            raise CorruptError("the directory of the zip file is damaged")
        yield at
        at += _CENTRAL_BYTES + sum(int.from_bytes(header[i : i + 2], "little") for i in (28, 30, 32))
