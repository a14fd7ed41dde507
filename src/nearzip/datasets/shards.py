"""Reading a data set in several files: one sequence of samples; where one file is damaged, the others can be read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from nearzip.caching import cached_property
from nearzip.datasets.codecs.base import Shape
from nearzip.datasets.format import Shard
from nearzip.datasets.reading import FileReader, Reader, places_of
from nearzip.datasets.shard_names import MAX_SHARDS, expanded, missing_shard, shard_names
from nearzip.errors import CorruptError, LimitError, UsageError
from nearzip.limits import Limits
from nearzip.parallel import ordered_map
from nearzip.sources import is_url
from nearzip.tensors import Array

__all__ = ["ShardedReader", "open_dataset"]

#: Files at URLs whose indexes are fetched at once.
_TOGETHER = 8
#: What is known of a file that is damaged where it is read first.
Unopened = CorruptError | LimitError


def open_dataset(place: Any, limits: Limits | None = None) -> Reader:
    """Open a data set.

    Parameters
    ----------
    place : path, URL, bytes, binary stream or list
        A file; of URLs that fsspec knows, only the index and the groups asked for are fetched. A data set in several
        files: the name that it was written under ("train.nzd"), a pattern ("train-*.nzd"), numbers in braces
        ("https://../train-{00000..00003}-of-00004.nzd", where nothing can be listed), or a list of its files. The path
        of one of its files opens that file alone.
    limits : Limits
        What reading may take; `output_bytes` counts for one sample here (256 MiB).

    Raises
    ------
    CorruptError, TruncatedError
        Not a data set, damaged, or cut short; or a file is of another data set than the others.
    MissingFileError
        No such file, or one of several is missing.
    UsageError
        Files that are no shards, or of which one is given twice.
    NewerFormatError, LimitError
    """
    places = expanded(place)
    if places is None:
        return FileReader(place, limits)
    return ShardedReader(places, limits, place if isinstance(place, str) else None)


class ShardedReader(Reader):
    """The files of one data set, in the order in which they were written, whatever the order of `places`.

    A file whose index is damaged is known by what the others say of it: its samples raise a CorruptError, the others
    can be read.
    """

    def __init__(self, places: Sequence[Any], limits: Limits | None = None, name: str | None = None):
        self._places, self._limits, self._given = list(places), limits, name
        self._open()

    def _open(self) -> None:
        if not 1 <= len(self._places) <= MAX_SHARDS:
            raise UsageError(f"a data set has 1 to {MAX_SHARDS} files, not {len(self._places)}")
        threads = _TOGETHER if all(map(is_url, self._places)) else 1
        opened = list(ordered_map(self._open_one, self._places, threads))
        try:
            self._shards = _in_order(opened, self._places, self._given or _said(self._places[0]))
        except BaseException:
            _close(opened)
            raise
        first = self._first
        assert first.shard is not None
        self.name = self._given or f"{first.name} and {len(self._shards) - 1} more"
        self.codec, self.spec, self.group_samples = first.codec, first.spec, first.group_samples
        self.classes, self.metadata, self.files = first.classes, first.metadata, len(self._shards)
        self._starts = np.cumsum((0, *first.shard.samples))
        self.columns: Mapping[str, Any] = _Columns(self)

    def _open_one(self, place: Any) -> FileReader | Unopened:
        try:
            return FileReader(place, self._limits)
        except (CorruptError, LimitError) as error:
            return error

    @property
    def _readable(self) -> list[FileReader]:
        return [each for each in self._shards if isinstance(each, FileReader)]

    @property
    def _first(self) -> FileReader:
        return self._readable[0]

    @property
    def unreadable(self) -> list[str]:
        return [str(each) for each in self._shards if not isinstance(each, FileReader)]

    def __getstate__(self) -> dict[str, Any]:
        for each in self._readable:
            each.__getstate__()  # says why it cannot be sent
        return {"_places": self._places, "_limits": self._limits, "_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def close(self) -> None:
        _close(self._shards)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_bytes(self) -> int:  # type: ignore[override]
        return sum(each.n_bytes for each in self._readable)

    @property
    def index_bytes(self) -> int:  # type: ignore[override]
        return sum(each.index_bytes for each in self._readable)

    @cached_property
    def raw_bytes(self) -> int:
        return sum(each.raw_bytes for each in self._readable)

    @property
    def groups(self) -> int:  # type: ignore[override]
        return sum(each.groups for each in self._readable)

    @property
    def same_shape(self) -> Shape | None:  # type: ignore[override]
        found = {each.same_shape for each in self._readable}
        return found.pop() if len(found) == 1 else None

    def shape(self, i: int) -> Shape:
        (i,) = places_of([i], len(self))
        k = self._shard_of(i)
        return self._shard(k).shape(i - int(self._starts[k]))

    def _shard_of(self, i: int) -> int:
        return int(np.searchsorted(self._starts, i, "right")) - 1

    def _shard(self, k: int) -> FileReader:
        """A file. Raises CorruptError if it could not be opened."""
        found = self._shards[k]
        if isinstance(found, FileReader):
            return found
        raise type(found)(f"{found}; other files of the data set can be read")

    def many(self, indices: Sequence[int]) -> list[Array]:
        return self._each(indices, FileReader.many)

    def coefficients(self, indices: Sequence[int]) -> list[Array]:
        return self._each(indices, FileReader.coefficients)

    def _each(self, indices: Sequence[int], read: Callable[[FileReader, Sequence[int]], list[Array]]) -> list[Array]:
        numbers = places_of(indices, len(self))
        by_shard: dict[int, list[int]] = {}
        for place, i in enumerate(numbers):
            by_shard.setdefault(self._shard_of(i), []).append(place)
        found: list[Any] = [None] * len(numbers)
        for k, places in by_shard.items():
            first = int(self._starts[k])
            samples = read(self._shard(k), [numbers[place] - first for place in places])
            for place, sample in zip(places, samples, strict=True):
                found[place] = sample
        return found

    def __iter__(self) -> Iterator[Array]:
        for k in range(len(self._shards)):
            yield from self._shard(k)

    def verify(self) -> list[str]:
        found: list[str] = []
        for each in self._shards:
            found += each.verify() if isinstance(each, FileReader) else [str(each)]
        return found


def _close(opened: Sequence[FileReader | Unopened]) -> None:
    for each in opened:
        if isinstance(each, FileReader):
            each.close()


def _said(place: Any) -> str:
    return str(place) if isinstance(place, (str, PurePath)) else "data set"


def _in_order(opened: Sequence[FileReader | Unopened], places: Sequence[Any], name: str) -> list[FileReader | Unopened]:
    """The files by their numbers; damaged ones, in their order, where a number is free. Raises what opening raises."""
    damaged = [each for each in opened if not isinstance(each, FileReader)]
    readable = [each for each in opened if isinstance(each, FileReader)]
    if not readable:
        raise damaged[0]
    shards: dict[int, Any] = {}
    model = readable[0]
    for each in readable:
        own = _checked(each, model)
        if own.number in shards:
            raise UsageError(f"{each.name}: is the same part of the data set as {shards[own.number].name}")
        shards[own.number] = each
    assert model.shard is not None
    total = model.shard.of
    free = [k for k in range(total) if k not in shards]
    if len(damaged) > len(free):
        raise UsageError(f"{name}: {len(places)} files are given of a data set of {total}")
    if len(damaged) < len(free):
        number = free[0] if not damaged else free[len(damaged)]
        raise missing_shard(name, shard_names("x.nzd", total)[number][2:-4], len(free) - len(damaged), total)
    shards.update(zip(free, damaged, strict=True))
    return [shards[k] for k in range(total)]


def _checked(each: FileReader, model: FileReader) -> Shard:
    """Which part a file is. Raises CorruptError unless it is of the same data set as `model`."""
    if each.shard is None:
        raise CorruptError(f"{each.name}: is a data set of its own, no part of one in several files")
    if model.shard is None or each.shard.set_id != model.shard.set_id:
        raise CorruptError(f"{each.name}: is of another data set than {model.name}")
    own, theirs = ((r.shard.samples, r.spec, r.codec, r.group_samples, r.described) for r in (each, model) if r.shard)
    if own != theirs:
        raise CorruptError(f"{each.name}: contradicts {model.name}, which is of the same data set")
    return each.shard


class _Columns(Mapping[str, Any]):
    """Columns of all files, one behind the other."""

    def __init__(self, reader: ShardedReader):
        self._reader = reader
        self._read: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader._first.columns)

    def __len__(self) -> int:
        return len(self._reader._first.columns)

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            parts = [self._reader._shard(k).columns[name] for k in range(self._reader.files)]
            self._read[name] = (
                list(itertools.chain.from_iterable(parts)) if isinstance(parts[0], list) else np.concatenate(parts)
            )
        return self._read[name]
