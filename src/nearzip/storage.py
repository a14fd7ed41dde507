"""Bytes on disk and elsewhere: files written whole or not at all, and random access for readers."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from nearzip.errors import Error, MissingExtraError, MissingFileError, TruncatedError, UsageError, missing_extra

__all__ = [
    "BytesSource",
    "FileSource",
    "RemoteSource",
    "atomic_file",
    "extra_for",
    "is_url",
    "naming_errors",
    "open_source",
]

#: Extras that bring fsspec's driver for a URL's scheme.
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "gs": "gcs", "gcs": "gcs"}

Path_ = str | os.PathLike[str]


def is_url(place: Any) -> bool:
    """Whether fsspec, not the local file system, is to open it."""
    return isinstance(place, str) and "://" in place


def extra_for(scheme: str, url: str) -> MissingExtraError:
    """The error for a URL whose driver is not installed."""
    return missing_extra(f"fsspec's driver for {scheme}", _EXTRAS.get(scheme, "all"), url)


@contextlib.contextmanager
def naming_errors(verb: str, path: Path_) -> Iterator[None]:
    """Turn the operating system's errors into ours, with the path and what was attempted."""
    try:
        yield
    except Error:
        raise
    except FileNotFoundError:
        raise MissingFileError(f"{os.fspath(path)}: no such file or directory") from None
    except IsADirectoryError:
        raise UsageError(f"{os.fspath(path)}: is a directory, not a file") from None
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise Error(f"{os.fspath(path)}: cannot {verb}: {reason}") from None


def _sync_directory(path: Path) -> None:
    if os.name == "nt":  # Windows cannot open directories, and its renames are journaled
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_free(path: Path_, force: bool) -> Path:
    """The path to write to. Raises UsageError if something is there already, unless `force`."""
    target = Path(path)
    with naming_errors("write", path):
        if target.is_dir():
            raise UsageError(f"{target}: is a directory; give a file name")
        if not force and os.path.lexists(target):
            raise UsageError(f"{target}: exists already; choose another name or use --force (force=True)")
        if not target.parent.is_dir():
            raise MissingFileError(f"{target.parent}: no such directory")
    return target


class _NamingFile(io.FileIO):
    """A new file whose failures name `target`, whatever else is being written around it."""

    def __init__(self, temporary: Path, target: Path):
        super().__init__(temporary, "xb")
        self._target = target

    def write(self, data: Any) -> int:
        with naming_errors("write", self._target):
            return super().write(data)


@contextlib.contextmanager
def atomic_file(path: Path_, force: bool = False) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends without an error, complete and on disk; else nothing.

    Raises
    ------
    UsageError
        `path` exists and `force` is not given (also if it appears meanwhile).
    Error
        The disk is full or fails; nothing is left behind.
    """
    target = check_free(path, force)
    # 40 characters are at most 160 bytes; a name may have 255.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        with naming_errors("write", target):
            with io.BufferedWriter(_NamingFile(temporary, target)) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            _put_in_place(temporary, target, force)
            _sync_directory(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _put_in_place(temporary: Path, target: Path, force: bool) -> None:
    if force:
        os.replace(temporary, target)
        return
    try:
        os.link(temporary, target)  # fails if the name was taken meanwhile, unlike a rename
    except FileExistsError:
        raise UsageError(f"{target}: exists already; choose another name or use --force (force=True)") from None
    except OSError:  # a file system without links
        check_free(target, force)
        os.replace(temporary, target)


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
        with naming_errors("read", path):
            self._stream = open(path, "rb", buffering=0)  # noqa: SIM115
            self.size = os.fstat(self._stream.fileno()).st_size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises TruncatedError if the file has become shorter."""
        pieces = []
        with naming_errors("read", self.name):
            while length:
                piece = self._read_some(offset, length)
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
    """An archive behind a URL that fsspec opens; only what is read is fetched."""

    def __init__(self, url: str):
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
    """Random access to bytes, a local path or a URL."""
    if isinstance(place, (bytes, bytearray, memoryview)):
        return BytesSource(place)
    if isinstance(place, io.BytesIO):
        return BytesSource(place.getvalue())
    if is_url(place):
        return RemoteSource(place)
    if isinstance(place, (str, os.PathLike)):
        return FileSource(place)
    raise UsageError(f"an archive is bytes, a BytesIO, a path or a URL, not {type(place).__name__}")
