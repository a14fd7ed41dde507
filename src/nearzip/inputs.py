"""What the public functions take: mappings, checkpoints, files and archives, opened as checkpoints and readers."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from nearzip.archive import Archive
from nearzip.attached import described
from nearzip.checkpoints import open_checkpoint
from nearzip.container import is_archive
from nearzip.errors import UsageError
from nearzip.fileio import is_stream, naming_errors, spooled_input
from nearzip.limits import Limits
from nearzip.reading import Reader
from nearzip.sources import open_source
from nearzip.tensors import Checkpoint, check_text, keeping_last

__all__ = ["checkpoint_of", "checkpoints_of", "open", "open_input"]

Path = str | os.PathLike[str]


def open(
    archive: Archive | bytes | Path | BinaryIO,
    base: Mapping[str, Any] | Checkpoint | Path | None = None,
    limits: Limits | None = None,
    *,
    framework: str = "np",
    threads: int | None = None,
) -> Reader:
    """Open an archive without decoding it: a mapping of lazy tensors.

    `archive` is bytes, a path, a binary stream, or a URL that fsspec reads. `base`: also the path of a checkpoint.
    `framework`: "np" for NumPy arrays, "pt" for PyTorch tensors on the CPU, "jax" for arrays of JAX.

    Raises CorruptError, NewerFormatError or LimitError if its index cannot be trusted, NotFoundError if it is not
    there. Use as a context manager.
    """
    source = open_source(archive.data if isinstance(archive, Archive) else archive)
    try:
        reference = None if base is None else checkpoint_of(base)
        reader = Reader(source, reference, limits, threads, framework, list_attached=False)
    except BaseException:
        source.close()
        raise
    if reference is not None and isinstance(base, (str, os.PathLike)):
        reader.closing(reference.close)
    return reader


def open_input(path: Path | BinaryIO, limits: Limits | None = None) -> Checkpoint:
    """A checkpoint of any format, or an archive that needs no base: a path, or an open binary stream.

    A stream is copied to a temporary file first: tensors are read in any order.
    """
    if not isinstance(path, (str, os.PathLike)):
        return _open_stream(path, limits)
    if is_stream(path):
        with naming_errors("read", path), builtins.open(path, "rb") as stream:
            return _open_stream(stream, limits)
    if not is_archive(path):
        return open_checkpoint(path)
    reader = open(path, limits=limits)
    specs = {spec.name: spec for spec in reader.index.tensors}
    if reader.index.base_id is not None:
        reader.close()
        raise UsageError(f"{os.fspath(path)}: is an update; decompress it with its base first")
    read = keeping_last(reader.__getitem__)
    return described(Checkpoint(specs, read, reader.metadata(), reader.index.tree, close=reader.close))


def _open_stream(stream: BinaryIO, limits: Limits | None) -> Checkpoint:
    with contextlib.ExitStack() as stack:
        name = spooled_input(stream, stack)
        opened = open_input(name, limits)
        stack.callback(opened.close)
        return dataclasses.replace(opened, close=stack.pop_all().close)


def checkpoint_of(tensors: Any, metadata: Mapping[str, str] | None = None) -> Checkpoint:
    """Tensors as they are given: a mapping, a checkpoint, or a file's path, which the caller closes."""
    if isinstance(tensors, Checkpoint):
        return tensors
    for pair in (metadata or {}).items():
        for text in pair:
            check_text("metadata's keys and values", text)
    if isinstance(tensors, (str, os.PathLike)):
        opened = open_input(tensors)
        return dataclasses.replace(opened, metadata={**opened.metadata, **(metadata or {})})
    return Checkpoint.of(tensors, metadata)


@contextlib.contextmanager
def checkpoints_of(
    tensors: Any, base: Any, metadata: Mapping[str, str] | None = None
) -> Iterator[tuple[Checkpoint, Checkpoint | None]]:
    """What is compressed and its base; files are closed at the end."""
    with contextlib.ExitStack() as stack:

        def opened(given: Any, own: Mapping[str, str] | None = None) -> Checkpoint:
            checkpoint = checkpoint_of(given, own)
            if isinstance(given, (str, os.PathLike)):
                stack.callback(checkpoint.close)
            return checkpoint

        yield opened(tensors, metadata), None if base is None else opened(base)
