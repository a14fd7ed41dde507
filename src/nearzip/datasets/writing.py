"""Writing a data set: learn from all samples, code them in groups, and put the file in place when it is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from nearzip.datasets.codecs.base import SampleCodec
from nearzip.datasets.codecs.registry import codec_of, default_codec
from nearzip.datasets.format import MAX_SAMPLES, Document, FileWriter, checked_names, pack_numbers, pieces_of
from nearzip.datasets.samples import Samples, Spec, chunks, samples_of
from nearzip.datasets.workers import ordered
from nearzip.errors import UsageError
from nearzip.fileio import Output, atomic_file
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
        Of the whole file.
    index_bytes : int
        Of it, everything but the samples' own bytes: header, index, checksums, tables, columns.
    raw_bytes : int
        Of the samples as arrays.
    codec : str
    """

    n_samples: int
    n_bytes: int
    index_bytes: int
    raw_bytes: int
    codec: str

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
    force: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Write samples as one `.nzd` file, whole or not at all.

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
    force : bool
        Replace an existing file.
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
    with atomic_file(output, force=force) as stream:
        return _Write(samples, spec, chosen, progress).into(FileWriter(stream), group)


@dataclass(frozen=True)
class _Write:
    samples: Samples
    spec: Spec
    codec: SampleCodec
    progress: Progress | None

    def into(self, file: FileWriter, group: int | None) -> Written:
        shared = self.codec.learn(_Chunks(self.samples, self.spec), self.spec)
        lengths: list[int] = []
        shapes: list[tuple[int, ...]] = []
        waiting: list[bytes] = []
        in_groups = self.codec.coder(shared, self.spec).in_groups
        size = group or (self._group_of_arrays() if in_groups else None)
        for coded, their_shapes in self._coded(shared, size if in_groups else None):
            shapes += their_shapes
            lengths += map(len, coded)
            waiting += coded
            if size is None:
                size = _group_size(lengths)
            while len(waiting) >= size:
                file.add_group(b"".join(waiting[:size]))
                del waiting[:size]
            if self.progress:
                self.progress(len(lengths), len(self.samples))
        assert size is not None
        if waiting:
            file.add_group(b"".join(waiting))
        return self._finished(file, lengths, shapes, shared, size)

    def _group_of_arrays(self) -> int:
        """Samples whose group is coded as one archive."""
        return max(1, min(256, (8 * _GROUP_BYTES) // max(1, self.samples[0].nbytes)))

    def _coded(self, shared: bytes, group: int | None) -> Iterator[tuple[list[bytes], list[tuple[int, ...]]]]:
        if group is None:
            ranges = list(chunks(self.samples))
        else:
            ranges = [(at, min(at + group, len(self.samples))) for at in range(0, len(self.samples), group)]
        jobs = ((self.codec, shared, self.spec, self.samples.part(*each), each[0]) for each in ranges)
        yield from ordered(_encode_part, jobs)

    def _finished(
        self, file: FileWriter, lengths: list[int], shapes: list[tuple[int, ...]], shared: bytes, group: int
    ) -> Written:
        unit = pieces_of(lengths)
        group_bytes = sum(lengths)
        file.add_groups_part()
        file.add_part("lengths", pack_numbers(np.array(lengths, np.int64) // unit))
        file.add_part("shared", shared)
        shape = shapes[0] if len(set(shapes)) == 1 else None
        if shape is None:
            file.add_part("shapes", pack_numbers(np.array(shapes)))
        columns = {}
        for name, values in self.samples.columns.items():
            described, data = _packed(values)
            columns[name] = described
            file.add_part(f"column/{name}", data)
        document = Document(
            len(lengths), group, self.spec, shape, unit, self.codec.to_json(), tuple(self.samples.classes),
            checked_names(self.samples.metadata), columns, file.parts, f"nearzip {__version__}",
        )  # fmt: skip
        n_bytes = file.finish(document)
        raw = sum(int(np.prod(each)) for each in shapes) * np.dtype(self.spec.dtype).itemsize
        return Written(len(lengths), n_bytes, n_bytes - group_bytes, raw, str(self.codec))


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
