"""Writing files: whole or not at all, through links, and never over an input. Devices and pipes get a stream."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from nearzip.errors import Error, LimitError, MissingFileError, UsageError

__all__ = [
    "NewFiles",
    "Output",
    "Path_",
    "atomic_file",
    "atomic_files",
    "atomic_folder",
    "check_folder",
    "check_free",
    "check_outputs",
    "is_stream",
    "memory_error",
    "naming_errors",
    "naming_memory",
    "refuse_terminal",
    "replace_file",
    "replace_folder",
    "size_on_disk",
    "spooled_input",
    "sync_folder",
    "system_error",
    "through_links",
]

Path_ = str | os.PathLike[str]
#: Where bytes can go: a file, a device or pipe by name, or an open binary stream.
Output = str | os.PathLike[str] | BinaryIO


@contextlib.contextmanager
def naming_memory(where: str) -> Iterator[None]:
    """Turn a MemoryError into a LimitError that says where."""
    try:
        yield
    except MemoryError as error:
        raise memory_error(where, error) from None


def memory_error(where: str, error: MemoryError) -> LimitError:
    """What to raise in place of a MemoryError."""
    said = f" ({str(error)[:200]})" if str(error) else ""
    return LimitError(f"{where}: too little memory{said}; give the process more, or use fewer threads")


@contextlib.contextmanager
def naming_errors(verb: str, path: Path_) -> Iterator[None]:
    """Turn the operating system's errors into ours, with the path and what was attempted."""
    try:
        yield
    except OSError as error:
        ours = system_error(verb, path, error)
        if ours is error:
            raise
        raise ours from None


def system_error(verb: str, path: Path_, error: OSError) -> Exception:
    """What to raise in place of an error of the operating system; the error itself if it is no fault of the path's.

    For what is called too often for a context manager.
    """
    if isinstance(error, (Error, BrokenPipeError)):
        return error  # ours already, or the reader of a pipe has gone away
    if isinstance(error, FileNotFoundError):
        return MissingFileError(f"{os.fspath(path)}: no such file or directory")
    if isinstance(error, IsADirectoryError):
        return UsageError(f"{os.fspath(path)}: is a directory, not a file")
    reason = error.strerror or str(error) or type(error).__name__
    return Error(f"{os.fspath(path)}: cannot {verb}: {reason}")


#: Errors of file systems that cannot sync folders (SMB, some FUSE); their renames are as durable as they get.
_UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EACCES, errno.EISDIR}


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable, where the file system can do that."""
    if os.name == "nt":  # Windows cannot open directories, and its renames are journaled
        return
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


# ---- what may be written ---------------------------------------------------------------------------------------


def is_stream(output: Output) -> bool:
    """Whether bytes are written to `output` as a stream: an open binary stream, a character device or a pipe."""
    if not isinstance(output, (str, os.PathLike)):
        return True
    try:
        mode = os.stat(output).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def check_free(path: Path_, force: bool, inputs: Iterable[Any] = (), folders: bool = False) -> Path:
    """The path to write to; with `folders`, perhaps an existing folder, of which no more is asked here.

    Raises
    ------
    UsageError
        Something is there already and `force` is not given; a folder, block device or socket is there; or it is one of
        `inputs`, under this name or another.
    NotFoundError
        There is no such folder.
    """
    target = Path(path)
    with naming_errors("write", path):
        inputs = list(inputs)
        if target.is_dir():
            if not folders:
                raise UsageError(f"{target}: is a directory; give a file name")
            _refuse_folder(target, inputs)
            return target
        _refuse_inputs(path, inputs)
        if is_stream(path):
            return target
        if target.exists() and not target.is_file():
            raise UsageError(f"{target}: is neither a file nor a pipe; give a file name")
        if not force and os.path.lexists(target):
            raise UsageError(f"{target}: exists already; choose another name or use --force (force=True)")
        # The parent of what a link points to, even if that is not there yet.
        real = through_links(target)
        if real.is_symlink():
            raise UsageError(f"{target}: is a symbolic link that leads back to itself")
        parent = real.parent
        if not parent.is_dir():
            raise MissingFileError(f"{parent}: no such directory")
    return target


def check_outputs(
    outputs: Iterable[Output | None], inputs: Iterable[Any] = (), force: bool = False, folders: bool = False
) -> None:
    """`check_free` for all outputs, which must also differ from each other. None: no output or input."""
    inputs, seen = list(inputs), set[str]()
    for output in outputs:
        if output is None:
            continue
        if not isinstance(output, (str, os.PathLike)):
            _refuse_inputs(output, inputs)
            continue
        check_free(output, force, inputs, folders)
        real = os.path.realpath(output)
        if real in seen and not is_stream(output):
            raise UsageError(f"{os.fspath(output)}: is given for two outputs; choose another name for one of them")
        seen.add(real)


def _refuse_inputs(output: Output, inputs: Iterable[Any]) -> None:
    """Raise UsageError if writing `output` would overwrite an input: the same file, whatever its name, or in a folder
    that is an input."""
    found = _status(output)
    if found is None or not stat.S_ISREG(found.st_mode):
        return
    for given in inputs:
        theirs = _status(given) if given is not None else None
        if theirs is None:
            continue
        name = os.fspath(output) if isinstance(output, (str, os.PathLike)) else "the output stream"
        if os.path.samestat(found, theirs):
            raise UsageError(
                f"{name}: is the input {_name_of(given)}; writing it would destroy it: choose another name"
            )
        if stat.S_ISDIR(theirs.st_mode) and isinstance(output, (str, os.PathLike)) and _is_below(output, given):
            raise UsageError(f"{name}: is part of the input {_name_of(given)}; choose a name outside it")


def _refuse_folder(target: Path, inputs: Iterable[Any]) -> None:
    """Raise UsageError if a folder to be replaced is an input, holds one, or is in one."""
    for given in inputs:
        if not isinstance(given, (str, os.PathLike)) or not os.path.exists(given):
            continue
        real = Path(os.path.realpath(target))
        if real == Path(os.path.realpath(given)) or _is_below(given, target) or _is_below(target, given):
            raise UsageError(f"{target}: is, holds or is part of the input {os.fspath(given)}; choose another name")


def _status(place: Any) -> os.stat_result | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.stat(place) if isinstance(place, (str, os.PathLike)) else os.fstat(place.fileno())
    return None


_STANDARD = {"<stdout>": "standard output", "<stdin>": "standard input"}


def _name_of(place: Any) -> str:
    name = str(os.fspath(place) if isinstance(place, (str, os.PathLike)) else getattr(place, "name", "stream"))
    return _STANDARD.get(name, name)


def _is_below(path: Path_, folder: Path_) -> bool:
    return Path(os.path.realpath(folder)) in Path(os.path.realpath(path)).parents


# ---- writing ---------------------------------------------------------------------------------------------------


class _NamingFile(io.FileIO):
    """A new file whose failures name `target`, whatever else is being written around it."""

    def __init__(self, temporary: Path, target: Path):
        super().__init__(temporary, "x+b")
        self._target = target

    def write(self, data: Any) -> int:
        with naming_errors("write", self._target):
            return super().write(data)


@contextlib.contextmanager
def atomic_file(path: Output, force: bool = False, text: bool = False) -> Iterator[BinaryIO]:
    """A file that appears under its name when the block ends without an error, complete and on disk; else nothing.

    What is overwritten keeps its permissions and, where that is allowed, its owner; a symbolic link stays one and the
    file that it points to is replaced. Open streams, pipes and character devices get the bytes when the block ends;
    a terminal gets `text` only.

    Raises
    ------
    UsageError
        `path` exists and `force` is not given (also if it appears meanwhile), or cannot be written as a file.
    Error
        The disk is full or fails; nothing is left behind.
    """
    if is_stream(path):
        with _spooled(path, text) as spool:
            yield spool
        return
    path = cast(Path_, path)
    named = check_free(path, force)
    target = through_links(named)
    # 40 characters are at most 160 bytes; a name may have 255.
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        with naming_errors("write", named):
            with io.BufferedRandom(_NamingFile(temporary, named)) as stream:
                yield stream
                stream.flush()
                _keep_mode(target, stream.fileno())
                os.fsync(stream.fileno())
            _put_in_place(temporary, target, force)
            sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class NewFiles:
    """Files that are being written under other names, until all of them are complete."""

    def __init__(self, target: Path):
        self._target = target
        self.open: list[tuple[BinaryIO, Path]] = []
        #: Their names, in the folder of the target: to be set before the block ends.
        self.names: list[str] = []

    def new(self) -> BinaryIO:
        """One more file."""
        temporary = self._target.with_name(f".{self._target.name[:40]}.{secrets.token_hex(6)}.part")
        stream = io.BufferedRandom(_NamingFile(temporary, self._target))
        self.open.append((stream, temporary))
        return stream


@contextlib.contextmanager
def atomic_files(path: Path_, force: bool = False) -> Iterator[NewFiles]:
    """Files in the folder of `path` that appear under their names when the block ends without an error, all of them.

    Without `force`, an error while they are put in place removes those that are; with it, files that were replaced by
    then stay replaced.

    Raises
    ------
    UsageError
        A name is taken, and `force` is not given.
    Error
        The disk is full or fails.
    """
    target = check_free(path, True)
    files, placed = NewFiles(target), list[Path]()
    try:
        with naming_errors("write", target):
            yield files
            places = [target.with_name(name) for name in files.names]
            for (stream, _), place in zip(files.open, places, strict=True):
                check_free(place, force)
                stream.flush()
                _keep_mode(through_links(place), stream.fileno())
                os.fsync(stream.fileno())
                stream.close()
            for (_, temporary), place in zip(files.open, places, strict=True):
                _put_in_place(temporary, through_links(place), force)
                placed.append(place)
            sync_folder(target.absolute().parent)
    except BaseException:
        for place in () if force else placed:
            with contextlib.suppress(OSError):
                place.unlink()
        raise
    finally:
        for stream, temporary in files.open:
            with contextlib.suppress(OSError):
                stream.close()
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def atomic_folder(
    path: Path_, files: Collection[str], force: bool = False, replaced: Callable[[str], bool] = lambda file: False
) -> Iterator[Path]:
    """A folder that appears under its name when the block ends without an error, with all files in it; else nothing.

    Parameters
    ----------
    path : path
        An empty folder may be there.
    files : collection of str
        What will be in the folder: relative paths.
    force : bool
        Replace a folder in which nothing but such files is.
    replaced : callable
        Whether another file may go with the folder: one whose content will be in files of other names.

    Raises
    ------
    UsageError
        Something is there already, and `force` is not given or other files would be lost.
    """
    target = through_links(path)
    check_folder(target, files, force, replaced)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.part")
    try:
        with naming_errors("write", path):
            temporary.mkdir()
            yield temporary
            for folder in (Path(each[0]) for each in os.walk(temporary)):
                sync_folder(folder)
            replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_folder(
    target: Path, files: Collection[str], force: bool, replaced: Callable[[str], bool] = lambda file: False
) -> None:
    """Raise UsageError if a folder of `files` cannot be put at `target` (see `atomic_folder`)."""
    if not target.absolute().parent.is_dir():
        raise MissingFileError(f"{target.parent}: no such directory")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{target}: is a file, and a folder is to be written; choose another name")
    present = {each.relative_to(target).as_posix() for each in target.rglob("*") if not each.is_dir()}
    if present and not force:
        raise UsageError(f"{target}: exists already; choose another name or use --force (force=True)")
    others = sorted(file for file in present - set(files) if not replaced(file))
    if others:
        raise UsageError(
            f"{target}: holds {others[0]!r}, which is not in the archive and would be lost; choose another name"
        )


def replace_folder(temporary: Path, target: Path) -> None:
    """Put a complete folder in the place of another, which is removed."""
    target = through_links(target)
    if target.is_dir():
        shutil.copymode(target, temporary)
        old = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.old")
        os.rename(target, old)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(temporary, target)
    sync_folder(target.absolute().parent)


@contextlib.contextmanager
def _spooled(output: Output, text: bool) -> Iterator[BinaryIO]:
    """A temporary file whose bytes go to a stream when the block ends: writers seek, and a failure writes nothing."""
    name = _name_of(output)
    with tempfile.TemporaryFile(prefix="nearzip-") as spool:
        with naming_errors(f"write to the temporary folder {tempfile.gettempdir()}", name):
            yield cast(BinaryIO, spool)
            spool.seek(0)
        with naming_errors("write", name), _opened(output) as stream:
            if not text:
                refuse_terminal(stream)
            shutil.copyfileobj(spool, stream, 1 << 20)
            stream.flush()


def spooled_input(stream: BinaryIO, stack: contextlib.ExitStack) -> str:
    """A temporary file with what is left of a stream; `stack` removes it."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="nearzip-"))
    path = os.path.join(folder, os.path.basename(_name_of(stream)) or "stream")
    with naming_errors("copy to a temporary file", _name_of(stream)), open(path, "xb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)
    return path


def size_on_disk(path: Path_) -> int | None:
    """Bytes of a file, or of all files in a folder; None for streams."""
    if is_stream(path):
        return None
    if os.path.isdir(path):
        return sum(each.stat().st_size for each in Path(path).rglob("*") if each.is_file())
    return os.stat(path).st_size


@contextlib.contextmanager
def _opened(output: Output) -> Iterator[BinaryIO]:
    if isinstance(output, (str, os.PathLike)):
        with open(output, "wb", buffering=0) as stream:
            yield cast(BinaryIO, stream)
    else:
        yield output


def through_links(path: Path_) -> Path:
    """The file to replace: what a symbolic link points to in the end, else the path itself."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def replace_file(temporary: Path, target: Path) -> None:
    """Put a complete file in the place of another, whose permissions, owner and links it takes over."""
    target = through_links(target)
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _keep_mode(target, handle)
    finally:
        os.close(handle)
    os.replace(temporary, target)
    sync_folder(target.absolute().parent)


def refuse_terminal(stream: BinaryIO) -> None:
    """Raise UsageError for a stream that ends on a screen: bytes of a file would garble it."""
    if hasattr(stream, "isatty") and stream.isatty():
        raise UsageError(f"{_name_of(stream)}: is a terminal; give a file name, or redirect the output")


def _keep_mode(target: Path, handle: int) -> None:
    """Give a new file the permissions, and if possible the owner, of the one that it replaces."""
    try:
        old = os.stat(target)
    except OSError:
        return
    if hasattr(os, "fchown"):
        new = os.fstat(handle)
        for user, group in ((old.st_uid, -1), (-1, old.st_gid)):
            if (user, group) not in ((new.st_uid, -1), (-1, new.st_gid)):
                with contextlib.suppress(OSError):
                    os.fchown(handle, user, group)
        os.fchmod(handle, stat.S_IMODE(old.st_mode))


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
