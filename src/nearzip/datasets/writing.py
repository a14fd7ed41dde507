"""Writing a data set: learn from all samples, code them in groups, and put the file in place when it is complete."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import zstandard

from nearzip.datasets.codecs.base import SampleCodec
from nearzip.datasets.codecs.registry import codec_of, default_codec
from nearzip.datasets.format import (
    MAX_SAMPLES,
    ONE_FILE,
    SHARDED,
    Document,
    FileWriter,
    Shard,
    checked_names,
    pack_numbers,
    pieces_of,
)
from nearzip.datasets.samples import Samples, Spec, chunks, samples_of
from nearzip.datasets.shard_names import MAX_SHARDS, present, shard_names
from nearzip.datasets.workers import ordered
from nearzip.digests import digest
from nearzip.errors import UsageError
from nearzip.fileio import Output, Path_, atomic_file, atomic_files, check_free, is_stream, naming_errors
from nearzip.tensors import Array
from nearzip.version import __version__

__all__ = ["Written", "write"]

#: Called with samples done and samples in all.
Progress = Callable[[int, int], None]
#: Groups are about this long: what one sample takes to read where only ranges can be fetched.
_GROUP_BYTES = 32 << 10
_MAX_GROUP = 4096


@dataclass(frozen=True)
class Written:
    """What was written.

    Parameters
    ----------
    n_samples, n_bytes : int
        Of the file, or of all files together.
    index_bytes : int
        Of it, everything but the samples' own bytes: header, index, checksums, tables, columns.
    raw_bytes : int
        Of the samples as arrays.
    codec : str
    files : tuple of str
        Paths; empty for a stream.
    """

    n_samples: int
    n_bytes: int
    index_bytes: int
    raw_bytes: int
    codec: str
    files: tuple[str, ...] = ()

    @property
    def bytes_per_sample(self) -> float:
        """Bytes for each sample, index and checksums included."""
        return self.n_bytes / self.n_samples

    def shares(self) -> dict[str, float]:
        """The file's size over that of the raw values: as uint8, float32 and float64 for images, else as they are."""
        if self.codec.split(":")[0] == "bounded":
            return {"raw": self.n_bytes / self.raw_bytes}
        return {name: self.n_bytes / (self.raw_bytes * k) for name, k in (("uint8", 1), ("float32", 4), ("float64", 8))}


def write(
    output: Output,
    images: Any,
    labels: Any = None,
    *,
    codec: Any = None,
    plan: Any = None,
    columns: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    group: int | None = None,
    shards: int | None = None,
    shard_size: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write samples as one `.nzd` file or several, whole or not at all.

    Chunks of samples are coded through joblib: `with joblib.parallel_config(...)` around the call spreads them over
    processes, Dask or Ray.

    Parameters
    ----------
    output : path or binary stream
    images : array, sequence or Samples
        uint8 images (n, height, width[, channels]), arrays of other dtypes, a list of arrays of any shapes, or what
        `datasets.load` gives.
    labels : sequence
        One for each sample; the column "label".
    codec : str or SampleCodec
        "nearzip:20", "jpeg:75,chroma=4:4:4", "bounded:abs:0.01", ..; see `datasets.CODECS`. Default: without loss.
    plan : datasets.Plan
        What `datasets.tune` found, in place of a codec.
    columns : mapping of str to sequence
        More columns: numbers, arrays of one shape, or texts.
    classes : sequence of str
        Names of the labels 0, 1, ..
    metadata : mapping of str to str
    group : int
        Samples of a group, which has one checksum. Default: about 32 KiB.
    shards : int
        So many files, of about equally many samples: `train.nzd` becomes `train-00000-of-00004.nzd` and so on. Each can
        be opened alone, and all of them as "train.nzd".
    shard_size : int
        As many files as needed for none to have more bytes of samples than these, unless one sample (of `bounded`: one
        group) has more.
    force : bool
        Replace what exists under this name, in one file or in several.
    progress : callable
        Called with samples done and samples in all.

    Raises
    ------
    UsageError
        Samples of different kinds, columns of other lengths, a codec that cannot code them, an existing file.

    Examples
    --------
    >>> import numpy as np
    >>> from nearzip import datasets
    >>> images = np.zeros((10, 8, 8, 3), np.uint8)
    >>> written = datasets.write("zeros.nzd", images, range(10), codec="nearzip:16", force=True)
    >>> written.n_samples, written.codec
    (10, 'nearzip:16')
    """
    if plan is not None and codec is not None:
        raise UsageError("a plan says the codec; give one of plan and codec")
    samples = samples_of(images, labels, columns, classes, metadata)
    if len(samples) > MAX_SAMPLES:
        raise UsageError(f"{len(samples)} samples are more than a file holds; write several files")
    spec = Spec.of(samples[0])
    chosen = codec_of(plan.codec if plan is not None else codec) if (plan or codec) is not None else default_codec(spec)
    chosen.check(spec)
    if group is not None and (type(group) is not int or not 1 <= group <= _MAX_GROUP):
        raise UsageError(f"group is a number of samples from 1 to {_MAX_GROUP}, not {group!r}")
    split = _Split.of(len(samples), shards, shard_size)
    job = _Write(samples, spec, chosen, progress)
    if shards is None and shard_size is None:
        return _one_file(output, job, split, group, force)
    return _several_files(output, job, split, group, force)


def _one_file(output: Output, job: _Write, split: _Split, group: int | None, force: bool) -> Written:
    old = _replaced(output, force)
    with atomic_file(output, force=force) as stream:
        written = job.into(lambda: _File(stream, ONE_FILE), split, group, sharded=False)
    if is_stream(output):
        return written
    _remove(old)
    return replace(written, files=(os.fspath(cast(Path_, output)),))


def _several_files(output: Output, job: _Write, split: _Split, group: int | None, force: bool) -> Written:
    if is_stream(output):
        raise UsageError("a stream takes one file; give a path to write several")
    path = Path(cast(Path_, output))
    old = _replaced(path, force)
    check_free(path, force)
    with atomic_files(path, force=force) as files:
        written = job.into(lambda: _File(files.new(), SHARDED), split, group, sharded=True)
        files.names = shard_names(path.name, len(files.open))
    names = [path.with_name(name) for name in files.names]
    _remove([each for each in (path, *old) if each not in names])
    return replace(written, files=tuple(map(str, names)))


def _replaced(output: Output, force: bool) -> list[Path]:
    """Files of a data set in several files that has this name. Raises UsageError unless they may be replaced."""
    old = [] if is_stream(output) else present(cast(Path_, output))
    if old and not force:
        raise UsageError(f"{old[0]}: exists already; choose another name or use --force (force=True)")
    return old


def _remove(old: Sequence[Path]) -> None:
    """Remove files that were replaced by files of other names."""
    for path in old:
        with naming_errors("remove", path):
            path.unlink(missing_ok=True)


class _File:
    """A file that is being written, and what its index will say of the samples in it."""

    def __init__(self, stream: BinaryIO, version: int):
        self.file = FileWriter(stream, version)
        self.lengths: list[int] = []
        self.shapes: list[tuple[int, ...]] = []
        self.n_bytes = 0

    def add(self, coded: list[bytes], shapes: list[tuple[int, ...]]) -> None:
        """A group."""
        data = b"".join(coded)
        self.file.add_group(data)
        self.lengths += map(len, coded)
        self.shapes += shapes
        self.n_bytes += len(data)


@dataclass(frozen=True)
class _Split:
    """Where a file of a data set ends and the next one begins.

    Parameters
    ----------
    ends : tuple of int
        After these numbers of samples, the last of which is that of all; or
    n_bytes : int or None
        before it has more bytes than these.
    """

    ends: tuple[int, ...]
    n_bytes: int | None = None

    @staticmethod
    def of(n_samples: int, shards: int | None, shard_size: int | None) -> _Split:
        """Raises UsageError."""
        if shards is not None and shard_size is not None:
            raise UsageError("shards says how many files, shard_size how large; give one of them")
        for name, value in (("shards", shards), ("shard_size", shard_size)):
            if value is not None and (type(value) is not int or value < 1):
                raise UsageError(f"{name} is a positive whole number, not {value!r}")
        n = shards or 1
        if n > min(MAX_SHARDS, n_samples):
            raise UsageError(f"{n_samples} samples go into 1 to {min(MAX_SHARDS, n_samples)} files, not into {n}")
        return _Split(tuple(n_samples * (k + 1) // n for k in range(n)), shard_size)


class _Sink:
    """Coded samples, put into groups and files."""

    def __init__(self, new: Callable[[], _File], split: _Split, group: int | None, whole_groups: bool):
        self._new, self._split, self.group, self._whole_groups = new, split, group, whole_groups
        self.files = [new()]
        self.done = 0
        self._coded: list[bytes] = []
        self._shapes: list[tuple[int, ...]] = []

    def add(self, coded: list[bytes], shapes: list[tuple[int, ...]]) -> None:
        self._coded += coded
        self._shapes += shapes
        if self.group is None:
            self.group = _group_size([len(each) for each in coded])
        while len(self._coded) >= (n := min(self.group, self._left())) > 0:
            self._flush(n)

    def _left(self) -> int:
        """Samples until the file ends."""
        return self._split.ends[min(len(self.files), len(self._split.ends)) - 1] - self.done

    def _flush(self, n: int) -> None:
        coded, most = self._coded[:n], self._split.n_bytes
        own = self.files[-1]
        if most is not None and own.n_bytes + sum(map(len, coded)) > most:
            if own.lengths:
                self._next()
            if not self._whole_groups:
                n = max(1, int(np.searchsorted(np.cumsum([len(each) for each in coded]), most, "right")))
                coded = coded[:n]
        self.files[-1].add(coded, self._shapes[:n])
        self.done += n
        del self._coded[:n], self._shapes[:n]
        if most is None and not self._left() and self.done < self._split.ends[-1]:
            self._next()

    def _next(self) -> None:
        if len(self.files) == MAX_SHARDS:
            raise UsageError(f"a data set has at most {MAX_SHARDS} files; give a larger shard_size")
        self.files.append(self._new())


@dataclass(frozen=True)
class _Write:
    samples: Samples
    spec: Spec
    codec: SampleCodec
    progress: Progress | None

    def into(self, new: Callable[[], _File], split: _Split, group: int | None, sharded: bool) -> Written:
        """Write all files, which `new` opens."""
        shared = self.codec.learn(_Chunks(self.samples, self.spec), self.spec)
        in_groups = self.codec.coder(shared, self.spec).in_groups
        sink = _Sink(new, split, group or (self._group_of_arrays() if in_groups else None), in_groups)
        for coded, shapes in self._coded(shared, split, sink.group if in_groups else None):
            sink.add(coded, shapes)
            if self.progress:
                self.progress(sink.done, len(self.samples))
        assert sink.group is not None
        counts = tuple(len(each.lengths) for each in sink.files)
        set_id = self._set_id(sink.files, shared) if sharded else b""
        index_bytes = n_bytes = raw = 0
        for number, (own, first) in enumerate(zip(sink.files, np.cumsum((0, *counts)).tolist(), strict=False)):
            shard = Shard(set_id, number, counts) if sharded else None
            length = self._finished(own, first, shared, sink.group, shard)
            n_bytes += length
            index_bytes += length - own.n_bytes
            raw += sum(int(np.prod(each)) for each in own.shapes) * np.dtype(self.spec.dtype).itemsize
        return Written(len(self.samples), n_bytes, index_bytes, raw, str(self.codec))

    def _group_of_arrays(self) -> int:
        """Samples whose group is coded as one archive."""
        return max(1, min(256, (8 * _GROUP_BYTES) // max(1, self.samples[0].nbytes)))

    def _coded(
        self, shared: bytes, split: _Split, group: int | None
    ) -> Iterator[tuple[list[bytes], list[tuple[int, ...]]]]:
        if group is None:
            ranges = list(chunks(self.samples))
        else:
            starts = (0, *split.ends[:-1])
            ranges = [
                (at, min(at + group, end))
                for begin, end in zip(starts, split.ends, strict=True)
                for at in range(begin, end, group)
            ]
        jobs = ((self.codec, shared, self.spec, self.samples.part(*each), each[0]) for each in ranges)
        yield from ordered(_encode_part, jobs)

    def _set_id(self, files: list[_File], shared: bytes) -> bytes:
        said = json.dumps(self.codec.to_json(), sort_keys=True).encode()
        lengths = np.concatenate([np.array(each.lengths, "<u8") for each in files])
        # Labels, too: files of two writes of the same images are of two data sets.
        columns = [part for name in sorted(self.samples.columns) for part in (name.encode(), self._content(name))]
        return digest(said, shared, lengths.tobytes(), *columns, *(each.file.group_digests for each in files))

    def _content(self, name: str) -> bytes:
        values = self.samples.columns[name]
        return json.dumps(values).encode() if isinstance(values, list) else np.asarray(values).tobytes()

    def _finished(self, own: _File, first: int, shared: bytes, group: int, shard: Shard | None) -> int:
        file, lengths, shapes = own.file, own.lengths, own.shapes
        unit = pieces_of(lengths)
        file.add_groups_part()
        file.add_part("lengths", pack_numbers(np.array(lengths, np.int64) // unit))
        file.add_part("shared", shared)
        shape = shapes[0] if len(set(shapes)) == 1 else None
        if shape is None:
            file.add_part("shapes", pack_numbers(np.array(shapes)))
        columns = {}
        for name, values in self.samples.columns.items():
            described, data = _packed(values[first : first + len(lengths)])
            columns[name] = described
            file.add_part(f"column/{name}", data)
        document = Document(
            len(lengths), group, self.spec, shape, unit, self.codec.to_json(), tuple(self.samples.classes),
            checked_names(self.samples.metadata), columns, file.parts, f"nearzip {__version__}", shard,
        )  # fmt: skip
        return file.finish(document)


def _group_size(lengths: list[int]) -> int:
    mean = max(1, sum(lengths) // len(lengths))
    return max(1, min(_MAX_GROUP, _GROUP_BYTES // mean))


def _encode_part(
    codec: SampleCodec, shared: bytes, spec: Spec, part: Samples, first: int
) -> tuple[list[bytes], list[tuple[int, ...]]]:
    """Code some samples in a worker: their bytes and shapes."""
    arrays = part.some(0, len(part))
    for i, array in enumerate(arrays):
        spec.check(array, first + i)
    little = [np.ascontiguousarray(a, np.dtype(spec.dtype).newbyteorder("<")) for a in arrays]
    return codec.coder(shared, spec).encode(little), [array.shape for array in arrays]


@dataclass(frozen=True)
class _Chunks:
    """All samples, chunk by chunk, as often as they are asked for."""

    samples: Samples
    spec: Spec

    def __iter__(self) -> Iterator[Sequence[Array]]:
        for begin, end in chunks(self.samples):
            found = self.samples.some(begin, end)
            for i, array in enumerate(found):
                self.spec.check(array, begin + i)
            yield found


def _packed(values: Any) -> tuple[dict[str, Any], bytes]:
    """A column's description and bytes."""
    if isinstance(values, list):
        raw = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
        return {"dtype": "texts", "shape": []}, zstandard.ZstdCompressor(level=19).compress(raw)
    array = np.asarray(values)
    dtype = array.dtype
    if dtype.kind in "iu" and array.size and int(array.min()) >= 0 and int(array.max()) < 1 << 32 and array.ndim == 1:
        # Labels above all: entropy coded, in the dtype that they had.
        return {"dtype": dtype.name, "shape": []}, b"\1" + pack_numbers(array)
    little = np.ascontiguousarray(array, dtype.newbyteorder("<"))
    return {"dtype": dtype.name, "shape": list(array.shape[1:])}, b"\0" + zstandard.ZstdCompressor(level=19).compress(
        little.tobytes()
    )
