"""Names of the files of a data set in several files: `train-00000-of-00004.nzd`, as data sets on hubs are called."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from nearzip.errors import Error, MissingFileError, UsageError
from nearzip.fileio import Path_, naming_errors
from nearzip.sources import is_url

__all__ = ["MAX_SHARDS", "expanded", "present", "shard_names"]

#: Files of a data set: all are open at once.
MAX_SHARDS = 512
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shard_names(name: str, n: int) -> list[str]:
    """The names of `n` files.

    Examples
    --------
    >>> shard_names("train.nzd", 2)
    ['train-00000-of-00002.nzd', 'train-00001-of-00002.nzd']
    """
    stem, suffix = os.path.splitext(name)
    return [f"{stem}-{k:05d}-of-{n:05d}{suffix}" for k in range(n)]


def present(path: Path_) -> list[Path]:
    """The files of a data set in several files at `path`, of any number, in the order of their names."""
    whole = Path(path)
    with naming_errors("read", path):
        try:
            names = os.listdir(whole.parent)
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [whole.parent / name for name in sorted(names) if _total(name, whole.name) is not None]


def _total(name: str, whole: str) -> int | None:
    """Of how many files `name` is one, if it is one of the data set `whole`."""
    stem, suffix = os.path.splitext(whole)
    if not (name.startswith(stem) and name.endswith(suffix)):
        return None
    found = _NUMBERED.fullmatch(name[len(stem) : len(name) - len(suffix)])
    return int(found[2]) if found and int(found[1]) < int(found[2]) else None


def expanded(place: Any) -> list[Any] | None:
    """The files that a place stands for; None: it is one file.

    ===================================  ==========================================
    place                                files
    ===================================  ==========================================
    `train.nzd`, if it is not there      `train-00000-of-00004.nzd` and the others
    `train-*.nzd`                        what matches
    `train-{00000..00003}-of-00004.nzd`  these, without listing any: for HTTP
    a list                               its paths and URLs
    ===================================  ==========================================

    Raises
    ------
    MissingFileError
        Nothing matches, or some of the files are not there.
    UsageError
        Files of two data sets have this name.
    """
    if isinstance(place, (list, tuple)):
        return list(place)
    if not isinstance(place, (str, os.PathLike)):
        return None
    name = os.fspath(place)
    if not isinstance(name, str) or (not is_url(name) and os.path.exists(name)):
        return None
    if not is_url(name):
        found = _complete(name, os.path.basename(name), _local(_of_any_number(name)))
        if found is not None:
            return found
    if _BRACES.search(name):
        return _counted(name)
    listed = _remote(name) if is_url(name) else _local
    if listed is None:
        return None
    if glob.has_magic(name):
        found = listed(name)
        if not found:
            raise MissingFileError(f"{name}: no such file")
        return found
    return _complete(name, PurePosixPath(name).name, listed(_of_any_number(name))) if is_url(name) else None


def _of_any_number(name: str) -> str:
    """The pattern of the files of a data set."""
    stem, suffix = os.path.splitext(name)
    return f"{glob.escape(stem)}-*-of-*{glob.escape(suffix)}"


def _counted(name: str) -> list[str]:
    match = _BRACES.search(name)
    assert match is not None
    begin, end = int(match[1]), int(match[2])
    if not 0 <= end - begin < MAX_SHARDS:
        raise UsageError(f"{name}: stands for {end - begin + 1} files; a data set has 1 to {MAX_SHARDS}")
    digits = len(match[1])
    return [f"{name[: match.start()]}{k:0{digits}d}{name[match.end() :]}" for k in range(begin, end + 1)]


def _local(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern))


def _remote(url: str) -> Callable[[str], list[str]] | None:
    """What lists files at a URL; None where nothing can (HTTP), or the URL itself is there."""
    import fsspec

    with naming_errors("read", url):
        try:
            fs, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError):
            return None  # what opens it says why
        if not glob.has_magic(url) and ((isinstance(fs.protocol, tuple) and "http" in fs.protocol) or fs.exists(path)):
            return None

    def listed(pattern: str) -> list[str]:
        with naming_errors("read", url):
            return sorted(fs.unstrip_protocol(each) for each in fs.glob(fs._strip_protocol(pattern)))

    return listed


def _complete(place: str, whole: str, found: Iterable[str]) -> list[str] | None:
    """All files of a data set. None: there is none of it."""
    totals: dict[int, list[str]] = {}
    for each in found:
        total = _total(PurePosixPath(each.replace(os.sep, "/")).name, whole)
        if total is not None:
            totals.setdefault(total, []).append(each)
    if not totals:
        return None
    if len(totals) > 1:
        said = " and ".join(str(n) for n in sorted(totals))
        raise UsageError(f"{place}: files of {said} are there; remove one data set, or give a pattern of the other")
    ((total, files),) = totals.items()
    if total > MAX_SHARDS:
        raise UsageError(f"{place}: consists of {total} files; a data set has at most {MAX_SHARDS}")
    there = {PurePosixPath(each.replace(os.sep, "/")).name for each in files}
    missing = [name for name in shard_names(whole, total) if name not in there]
    if missing:
        raise missing_shard(place, missing[0], len(missing), total)
    return sorted(files)


def missing_shard(place: str, name: str, n_missing: int, total: int) -> Error:
    """The error for a data set that is not complete."""
    others = f" and {n_missing - 1} more" if n_missing > 1 else ""
    return MissingFileError(f"{place}: {name}{others} of its {total} files is missing; the others can be opened alone")
