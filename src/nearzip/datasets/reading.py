"""Reading a data set: any single sample, checked; in memory, in a file, behind a URL."""

from __future__ import annotations

import math
import os
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nearzip.caching import cached_property
from nearzip.datasets.codecs.base import Pieces, SampleCodec, Shape
from nearzip.datasets.codecs.cosine import CosineCoder
from nearzip.datasets.codecs.registry import codec_from_json
from nearzip.datasets.cosines import coefficients
from nearzip.datasets.format import Layout, Shard, read_layout, unpack_numbers
from nearzip.datasets.samples import Samples, Spec
from nearzip.digests import digest
from nearzip.errors import CorruptError, Error, LimitError, NotFoundError, UsageError
from nearzip.limits import Limits
from nearzip.parallel import ForkSafeLock
from nearzip.sources import open_source
from nearzip.stages.external import unpack_zstd
from nearzip.strictjson import as_list, load, texts
from nearzip.tensors import Array

__all__ = ["FileReader", "Reader", "places_of"]

#: Groups whose bytes were checked are kept, up to so many bytes: neighbours are often asked for next.
_KEPT_BYTES = 4 << 20
_KEPT_OFFSETS = 1024
#: Samples that are decoded at once: so many, or so many bytes of them.
_TOGETHER, _TOGETHER_BYTES = 1024, 16 << 20
#: Largest sample, unless the caller's limits say otherwise.
_MAX_SAMPLE = 256 << 20
#: Largest column: so much, or so many times the file.
_FREE_COLUMN, _EXPANSION = 64 << 20, 1024
_ZSTD_COLUMN, _NUMBERS_COLUMN = 0, 1


class Reader(Samples):
    """An open data set: a sequence of arrays, in one file (`FileReader`) or in several (`ShardedReader`).

    Threads may share it. It can be pickled where its files have names; a forked process reopens them.

    Attributes
    ----------
    name : str
        Path or URL.
    codec : SampleCodec
    spec : Spec
    classes : tuple of str
    metadata : dict of str to str
    columns : mapping of str to array or list of str
        Read when asked for: `reader.columns["label"]`.
    n_bytes : int
        Of all files.
    index_bytes : int
        Of them, everything but the samples themselves: headers, indexes, checksums, tables, columns.
    groups, group_samples : int
        Number of groups; samples of a group.
    same_shape : tuple of int or None
        The shape that all samples share; None if they differ.
    files : int
        Number of files.
    shard : Shard or None
        Which part of a data set in several files this one is, where it was opened alone.
    """

    name: str
    codec: SampleCodec
    spec: Spec
    n_bytes: int
    index_bytes: int
    groups: int
    group_samples: int
    same_shape: Shape | None
    files: int
    shard: Shard | None = None

    @abstractmethod
    def shape(self, i: int) -> Shape:
        """The shape of sample `i`."""

    @property
    @abstractmethod
    def raw_bytes(self) -> int:
        """Bytes of all samples as uncompressed arrays."""

    @abstractmethod
    def many(self, indices: Sequence[int]) -> list[Array]:
        """The samples `indices`, in that order, each an array of its own. Each group of samples is read only once.

        Images of `nearzip` and `lossless` are decoded several times as fast in batches of 16 and more.
        """

    @abstractmethod
    def coefficients(self, indices: Sequence[int]) -> list[Array]:
        """8x8 cosine coefficients of images: (rows, columns, channels, 8, 8) float32 in grey levels.

        Of files of our codec they are read from the file, without decoding pixels.
        """

    @abstractmethod
    def verify(self) -> list[str]:
        """Read and check everything. Returns one line for each fault; an empty list if there is none."""

    @property
    def unreadable(self) -> list[str]:
        """One line for each of several files that could not be opened; sizes do not count them."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Close all files."""

    def __getitem__(self, i: int) -> Array:
        """One sample. Raises IndexError, CorruptError, LimitError."""
        return self.many([i])[0]

    def some(self, begin: int, end: int) -> list[Array]:
        return self.many(range(begin, end))

    @abstractmethod
    def __iter__(self) -> Iterator[Array]: ...

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<nearzip data set {self.name}: {len(self)} samples, {self.codec}, {self.n_bytes} bytes>"


def places_of(indices: Sequence[int], n: int) -> list[int]:
    """Numbers of samples from 0, negative ones from the end. Raises IndexError."""
    numbers = [int(i) for i in indices]
    for k, i in enumerate(numbers):
        if not -n <= i < n:
            raise IndexError(f"sample {i} of {n}")
        numbers[k] = i + n if i < 0 else i
    return numbers


class FileReader(Reader):
    """One open file."""

    files = 1

    def __init__(self, place: Any, limits: Limits | None = None):
        self._place, self._limits = place, limits or Limits()
        self._open()

    def _open(self) -> None:
        self._source = open_source(self._place)
        self._process = os.getpid()
        try:
            self._layout: Layout = read_layout(self._source, self._limits)
            document = self._layout.document
            self.codec: SampleCodec = codec_from_json(document.codec, f"{self._source.name}: index, codec")
            self._shapes = self._read_shapes()
        except BaseException:
            self._source.close()
            raise
        self.spec, self.classes, self.metadata = document.spec, document.classes, document.metadata
        self.shard = document.shard
        #: What files of one data set have in common.
        self.described = (dict(document.columns), document.classes, dict(document.metadata))
        self.columns: Mapping[str, Any] = _Columns(self)
        self.n_bytes = self._source.size
        self._kept: OrderedDict[int, memoryview] = OrderedDict()
        self._kept_bytes = 0
        self._known_offsets: dict[int, list[int]] = {}
        self._lock = ForkSafeLock()
        self._local = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self._place, (str, os.PathLike, bytes)):
            raise UsageError(
                "a data set that was opened from a stream cannot be sent to another process; give its path"
            )
        return {"_place": self._place, "_limits": self._limits}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def close(self) -> None:
        self._source.close()

    def __del__(self) -> None:
        # Data loaders never close their data sets.
        source = self.__dict__.get("_source")
        if source is not None:
            source.close()

    def __len__(self) -> int:
        return self._layout.document.n_samples

    @property
    def name(self) -> str:  # type: ignore[override]
        return self._source.name

    @property
    def index_bytes(self) -> int:  # type: ignore[override]
        return self._layout.index_bytes

    @cached_property
    def raw_bytes(self) -> int:
        values = sum(int(np.prod(self.shape(i))) for i in range(len(self))) if self._shapes is not None else (
            len(self) * int(np.prod(self._layout.document.shape or ())))  # fmt: skip
        return values * np.dtype(self.spec.dtype).itemsize

    @property
    def groups(self) -> int:  # type: ignore[override]
        return self._layout.document.n_groups

    @property
    def group_samples(self) -> int:  # type: ignore[override]
        return self._layout.document.group_samples

    def shape(self, i: int) -> Shape:
        if self._shapes is None:
            shape = self._layout.document.shape
            assert shape is not None
            return shape
        return tuple(int(x) for x in self._shapes[i])

    @property
    def same_shape(self) -> Shape | None:  # type: ignore[override]
        return self._layout.document.shape

    def _read_shapes(self) -> Array | None:
        document = self._layout.document
        if document.shape is not None:
            return None
        data = self._layout.part(self._source, "shapes")
        found = unpack_numbers(data, document.n_samples * document.spec.rank).reshape(document.n_samples, -1)
        channels = document.spec.channels
        if channels is not None and ((found[:, 2] != channels).any() or (found[:, :2] == 0).any()):
            raise CorruptError(f"{self._source.name}: shapes and channels contradict each other")
        return found

    # ---- samples -----------------------------------------------------------------------------------------------

    def many(self, indices: Sequence[int]) -> list[Array]:
        return self._each(indices, "decode")

    def coefficients(self, indices: Sequence[int]) -> list[Array]:
        if not self.spec.is_image:
            raise UsageError(f"{self.name}: holds {self.spec}; only images have cosine coefficients")
        if isinstance(self._coder, CosineCoder):
            return self._each(indices, "coefficients")
        return [coefficients(image[None], image.shape[2] >= 3)[0] for image in self.many(indices)]

    def __iter__(self) -> Iterator[Array]:
        for begin in range(0, len(self), self.group_samples):
            yield from self.some(begin, min(begin + self.group_samples, len(self)))

    @property
    def _coder(self) -> Any:
        """A decoder of this thread: threads must not wait for each other."""
        coder = getattr(self._local, "coder", None)
        if coder is None:
            shared = self._layout.part(self._source, "shared")
            try:
                coder = self.codec.coder(shared, self.spec)
            except CorruptError as error:
                raise CorruptError(f"{self.name}: {error}") from None
            self._local.coder = coder
        return coder

    def _each(self, indices: Sequence[int], action: str) -> list[Array]:
        if self._process != os.getpid():
            self._open()  # a fork shares the place in the file with its parent on some systems
        numbers = places_of(indices, len(self))
        if self._coder.in_groups:
            return self._whole_groups(numbers, action)
        most = self._together
        if len(numbers) <= most:
            return self._singly(numbers, action) if numbers else []
        found: list[Any] = [None] * len(numbers)
        order = sorted(range(len(numbers)), key=numbers.__getitem__)  # so that each group is read once
        for at in range(0, len(order), most):
            chosen = order[at : at + most]
            for k, sample in zip(chosen, self._singly([numbers[k] for k in chosen], action), strict=True):
                found[k] = sample
        return found

    @cached_property
    def _together(self) -> int:
        """How many samples are decoded at once: many, as coders work on several side by side, but of a few MiB."""
        shape = self._layout.document.shape
        if shape is not None:
            values = math.prod(shape)
        else:
            assert self._shapes is not None
            values = int(self._shapes.prod(1).max(initial=1))
        return max(1, min(_TOGETHER, _TOGETHER_BYTES // max(1, values * np.dtype(self.spec.dtype).itemsize)))

    def _singly(self, numbers: list[int], action: str) -> list[Array]:
        """Samples of any groups, each coded on its own."""
        size, same = self.group_samples, self._layout.document.shape
        shapes = [self.shape(i) for i in numbers] if same is None else [same] * len(numbers)
        self._check_sizes(shapes, numbers[0])
        groups: list[int] = []
        whole, starts, stops = bytearray(), [0] * len(numbers), [0] * len(numbers)
        # Group by group, of which no more is kept than the samples' bytes: few may be wanted of many groups.
        for k in sorted(range(len(numbers)), key=numbers.__getitem__):
            group, place = divmod(numbers[k], size)
            if not groups or group != groups[-1]:
                groups.append(group)
                data, offsets = self._group(group), self._offsets(group)
            starts[k] = len(whole)
            whole += data[offsets[place] : offsets[place + 1]]
            stops[k] = len(whole)
        try:
            samples: list[Array] = getattr(self._coder, action)(Pieces(memoryview(whole), starts, stops, shapes))
        except CorruptError as error:
            if len(groups) == 1:
                raise CorruptError(f"{self.name}: group {groups[0]}: {error}") from None
            # Which of the groups it is.
            for group in groups:
                self._singly([i for i in numbers if i // size == group], action)
            raise
        return samples

    def _whole_groups(self, numbers: list[int], action: str) -> list[Array]:
        """Samples whose group is coded as one."""
        groups: dict[int, list[int]] = {}
        for k, i in enumerate(numbers):
            groups.setdefault(i // self.group_samples, []).append(k)
        found: list[Any] = [None] * len(numbers)
        for group, places in groups.items():
            first = group * self.group_samples
            samples = self._of_group(group, action)
            for k in places:
                # Copies: a sample that is asked for twice comes twice, and one does not keep its group in memory.
                found[k] = samples[numbers[k] - first].copy()
        return found

    def _of_group(self, group: int, action: str) -> list[Array]:
        data, offsets, first = self._group(group), self._offsets(group), group * self.group_samples
        same, n = self._layout.document.shape, len(offsets) - 1
        shapes = [self.shape(first + k) for k in range(n)] if same is None else [same] * n
        self._check_sizes(shapes, first)
        try:
            samples: list[Array] = getattr(self._coder, action)(Pieces(data, offsets[:-1], offsets[1:], shapes))
        except CorruptError as error:
            raise CorruptError(f"{self.name}: group {group}: {error}") from None
        return samples

    def _offsets(self, group: int) -> list[int]:
        """Where the samples of a group begin in it, and where the last one ends."""
        found = self._known_offsets.get(group)
        if found is None:
            if len(self._known_offsets) > _KEPT_OFFSETS:
                self._known_offsets.clear()
            first = group * self.group_samples
            offsets = self._layout.offsets[first : min(first + self.group_samples, len(self)) + 1]
            found = self._known_offsets[group] = (offsets - offsets[0]).tolist()
        return found

    def _check_sizes(self, shapes: list[Shape], number: int) -> None:
        allowed = _MAX_SAMPLE if self._limits.output_bytes is None else self._limits.output_bytes
        largest = max(math.prod(shape) for shape in set(shapes)) * np.dtype(self.spec.dtype).itemsize
        if largest > allowed or (len(shapes) > 1 and largest * len(shapes) > 64 * allowed):
            raise LimitError(
                f"{self.name}: sample {number} takes {largest} bytes; the limit is {allowed}. If you trust the file, "
                "raise Limits(output_bytes=...)"
            )

    def _group(self, group: int) -> memoryview:
        """The bytes of a group, checked."""
        with self._lock:
            if group in self._kept:
                self._kept.move_to_end(group)
                return self._kept[group]
        layout = self._layout
        size = layout.document.group_samples
        begin = int(layout.offsets[group * size])
        end = int(layout.offsets[min((group + 1) * size, len(self))])
        data = memoryview(self._source.read(begin, end - begin))
        if digest(data) != layout.digests[group].tobytes():
            raise CorruptError(
                f"{self.name}: group {group} (samples {group * size} to {min((group + 1) * size, len(self)) - 1}) is "
                "damaged; other samples can be read"
            )
        with self._lock:
            if group not in self._kept:
                self._kept[group] = data
                self._kept_bytes += len(data)
            while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return data

    def verify(self) -> list[str]:
        size = self.group_samples
        columns = (_failure(self.columns.__getitem__, name) for name in self.columns)
        groups = (_failure(self.some, at, min(at + size, len(self))) for at in range(0, len(self), size))
        return [said for said in (*columns, *groups) if said is not None]


def _failure(read: Callable[..., Any], *arguments: Any) -> str | None:
    try:
        read(*arguments)
    except Error as error:
        return str(error)
    return None


class _Columns(Mapping[str, Any]):
    """Columns by name. Each is read at its first access."""

    def __init__(self, reader: FileReader):
        self._reader = reader
        self._read: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._reader._layout.document.columns)

    def __len__(self) -> int:
        return len(self._reader._layout.document.columns)

    def __getitem__(self, name: str) -> Any:
        if name not in self._read:
            reader = self._reader
            described = reader._layout.document.columns.get(name)
            if described is None:
                known = ", ".join(self) or "none"
                raise NotFoundError(f"{reader.name}: has no column {name!r}; it has {known}")
            data = reader._layout.part(reader._source, f"column/{name}")
            try:
                self._read[name] = _unpacked(described, data, len(reader), reader.n_bytes)
            except CorruptError as error:
                raise CorruptError(f"{reader.name}: column {name[:80]!r}: {error}") from None
        return self._read[name]


def _unpacked(described: Mapping[str, Any], data: bytes, n: int, file_bytes: int) -> Any:
    """A column from untrusted bytes."""
    most = max(_FREE_COLUMN, file_bytes * _EXPANSION)
    if described["dtype"] == "texts":
        found = as_list(load(unpack_zstd(data, most), "texts", 2), "texts", n)
        texts(found, "texts")
        return found
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    if not data or data[0] > _NUMBERS_COLUMN or (data[0] == _NUMBERS_COLUMN and (shape or dtype.kind not in "iu")):
        raise CorruptError("its kind is unknown")
    if data[0] == _NUMBERS_COLUMN:
        values = unpack_numbers(data[1:], n)
        if int(values.max()) > np.iinfo(dtype).max:
            raise CorruptError("a value is out of range")
        return values.astype(dtype)
    count = n
    for x in shape:
        count *= x
    if count * dtype.itemsize > most:
        raise LimitError(f"takes {count * dtype.itemsize} bytes; the limit is {most}")
    raw = unpack_zstd(data[1:], most)
    if len(raw) != count * dtype.itemsize:
        raise CorruptError("it has another length than the index says")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(n, *shape)
