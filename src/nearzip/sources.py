"""Random access to the bytes of an archive: in memory, in a file, at a URL."""

from __future__ import annotations

import os
import threading
from typing import Any

from nearzip.errors import Error, MissingExtraError, TruncatedError, UsageError, missing_extra
from nearzip.fileio import Path_, is_stream, naming_errors, system_error

__all__ = [
    "BytesSource",
    "FileSource",
    "RemoteSource",
    "extra_for",
    "is_url",
    "open_source",
]

#: Extras that bring fsspec's driver for a URL's scheme.
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gcs", "gcs": "gcs"}


def is_url(place: Any) -> bool:
    """Whether fsspec, not the local file system, is to open it."""
    return isinstance(place, str) and "://" in place


def extra_for(scheme: str, url: str) -> MissingExtraError:
    """The error for a URL whose driver is not installed."""
    return missing_extra(f"fsspec's driver for {scheme}", _EXTRAS.get(scheme, "all"), url)


class BytesSource:
    """An archive in memory."""

    def __init__(self, data: bytes | bytearray | memoryview, name: str = "archive in memory"):
        self._data = memoryview(data).cast("B")
        self.name = name
        self.size = len(self._data)

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing to do."""


class FileSource:
    """An archive in a local file. Read, not mapped: a mapped file that is cut short under us would end the process."""

    def __init__(self, path: Path_):
        self.name = os.fspath(path)
        self._lock = threading.Lock()
        try:
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._stream.fileno()).st_size
        except OSError as error:
            raise system_error("read", path, error) from None

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises TruncatedError if the file has become shorter."""
        pieces = []
        while length:
            try:
                piece = self._read_some(offset, length)
            except OSError as error:
                raise system_error("read", self.name, error) from None
            if not piece:
                raise TruncatedError(f"{self.name}: ends early; it was cut short while it was being read")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_some(self, offset: int, length: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._stream.fileno(), length, offset)
        with self._lock:  # Windows has one place in a file for all threads
            self._stream.seek(offset)
            return self._stream.read(length)

    def close(self) -> None:
        self._stream.close()


class RemoteSource:
    """An archive at a URL that fsspec opens; only what is read is fetched."""

    def __init__(self, url: str):
        import fsspec  # here, because it takes a tenth of the time until a command begins

        self.name = url
        with naming_errors("read", url):
            try:
                self._fs, self._path = fsspec.core.url_to_fs(url)
                self.size = int(self._fs.info(self._path)["size"])
            except ImportError:
                raise extra_for(url.split("://")[0], url) from None
            except ValueError as error:
                raise UsageError(f"{url}: {error}") from None

    def read(self, offset: int, length: int) -> bytes:
        if not length:
            return b""
        with naming_errors("read", self.name):
            data: bytes = self._fs.cat_file(self._path, start=offset, end=offset + length)
        if len(data) != length:
            raise Error(f"{self.name}: cannot read: got {len(data)} bytes of {length}")
        return data

    def close(self) -> None:
        """Nothing to do."""


def open_source(place: Any) -> BytesSource | FileSource | RemoteSource:
    """Random access to bytes, a local path, a URL, or what a binary stream gives."""
    if isinstance(place, (bytes, bytearray, memoryview)):
        return BytesSource(place)
    if is_url(place):
        return RemoteSource(place)
    if isinstance(place, (str, os.PathLike)):
        return _read_whole(place) if is_stream(place) else FileSource(place)
    if hasattr(place, "read"):
        return BytesSource(place.read())
    raise UsageError(f"an archive is bytes, a path, a URL or a binary stream, not {type(place).__name__}")


def _read_whole(path: Path_) -> BytesSource:
    """What a pipe gives: an archive is read from its end."""
    with naming_errors("read", path), open(path, "rb") as stream:
        return BytesSource(stream.read(), os.fspath(path))
