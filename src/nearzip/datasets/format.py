"""The bytes of a data set's file (`.nzd`): docs/dataset-format.md is the specification.

Reading goes from the outside in: header, footer, index, the parts that the index names; each is checked before it is
used. Groups follow each other without gaps, so that their offsets are sums of lengths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

import nearzip._core as _core
from nearzip import strictjson
from nearzip.datasets.samples import DTYPES, Spec
from nearzip.datasets.shard_names import MAX_SHARDS
from nearzip.digests import DIGEST_BYTES, digest
from nearzip.errors import CorruptError, LimitError, UsageError
from nearzip.framing import FOOTER_BYTES, HEADER_BYTES, Frame, Source
from nearzip.limits import Limits
from nearzip.strictjson import Kinds, as_list, fields, integer, text
from nearzip.tensors import Array

__all__ = [
    "Document",
    "FileWriter",
    "Layout",
    "Shard",
    "is_dataset",
    "pack_numbers",
    "read_layout",
    "unpack_numbers",
]

MAGIC = b"\x89NZDS\r\n\x1a"
#: Of a data set in one file, and of one in several.
ONE_FILE, SHARDED = 1, 2
_FRAME = Frame(MAGIC, SHARDED, "data set", "a data set of nearzip (.nzd)")
#: Samples of a file: their lengths are held in memory.
MAX_SAMPLES = 1 << 28
_MAX_COLUMNS = 256
_MAX_NAME = 4096


def is_dataset(data: bytes) -> bool:
    """Whether bytes begin as a file of this format does."""
    return data.startswith(MAGIC)


# ---- numbers ---------------------------------------------------------------------------------------------------


def pack_numbers(numbers: Array) -> bytes:
    """Non-negative integers below 2^32 in few bytes."""
    values = np.ascontiguousarray(numbers, np.uint32).reshape(-1)
    return _core.encode_symbols(values, [values.size], False)


def unpack_numbers(data: bytes, n: int) -> Array:
    """The inverse. Raises CorruptError."""
    out = np.empty(n, np.uint32)
    try:
        _core.decode_symbols(np.frombuffer(data, np.uint8), [n], out)
    except ValueError as error:
        raise CorruptError(f"numbers: {error}") from None
    return out


# ---- the index -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """Which part of a data set in several files a file is.

    Parameters
    ----------
    set_id : bytes
        The same in all files of the data set, and in no others: a digest of all their samples.
    number : int
        From 0.
    samples : tuple of int
        Numbers of samples of all files, in their order.
    """

    set_id: bytes
    number: int
    samples: tuple[int, ...]

    @property
    def of(self) -> int:
        """Number of files."""
        return len(self.samples)

    @property
    def first(self) -> int:
        """The number that the first sample of the file has in the whole data set."""
        return sum(self.samples[: self.number])

    def to_json(self) -> dict[str, Any]:
        return {"id": self.set_id.hex(), "number": self.number, "samples": self.samples}

    @staticmethod
    def from_json(value: Any, n_samples: int) -> Shard:
        """From an untrusted index. Raises CorruptError."""
        where = "index, set"
        d = fields(value, where, {"id": str, "number": int, "samples": list})
        samples = tuple(integer(n, f"{where}, samples", 1, MAX_SAMPLES) for n in d["samples"])
        if not samples or len(samples) > MAX_SHARDS or sum(samples) > MAX_SAMPLES:
            raise CorruptError(f"{where}: has no valid number of files and samples")
        number = integer(d["number"], f"{where}, number", 0, len(samples) - 1)
        if samples[number] != n_samples:
            raise CorruptError(f"{where}: says {samples[number]} samples of this file, which has {n_samples}")
        return Shard(_digest_in(d["id"], f"{where}, id"), number, samples)


@dataclass(frozen=True)
class Document:
    """The index as JSON has it.

    Parameters
    ----------
    n_samples, group_samples : int
        Samples of the file, and of every group but the last.
    spec : Spec
    shape : tuple of int or None
        Of every sample; None: a part of the file has all of them.
    unit : int
        Lengths of samples are multiples of it.
    codec : dict
        Name and parameters.
    classes : tuple of str
    metadata : dict of str to str
    columns : dict of str to dict
        Of each: its dtype and the shape of one value; or "texts".
    parts : dict of str to (length, digest)
        Parts behind the groups, in the order of the file: "groups", "lengths", "shared", "shapes", "column/NAME".
    shard : Shard or None
        Of a data set in several files.
    """

    n_samples: int
    group_samples: int
    spec: Spec
    shape: tuple[int, ...] | None
    unit: int
    codec: Mapping[str, Any]
    classes: tuple[str, ...]
    metadata: Mapping[str, str]
    columns: Mapping[str, Mapping[str, Any]]
    parts: Mapping[str, tuple[int, bytes]]
    writer: str
    shard: Shard | None = None

    @property
    def version(self) -> int:
        return ONE_FILE if self.shard is None else SHARDED

    @property
    def n_groups(self) -> int:
        return -(-self.n_samples // self.group_samples)

    def to_json(self) -> bytes:
        document = {
            "writer": self.writer,
            "samples": self.n_samples,
            "group": self.group_samples,
            "dtype": self.spec.dtype,
            "rank": self.spec.rank,
            "channels": self.spec.channels,
            "shape": self.shape,
            "unit": self.unit,
            "codec": self.codec,
            "classes": self.classes,
            "metadata": self.metadata,
            "columns": self.columns,
            "parts": {name: [length, found.hex()] for name, (length, found) in self.parts.items()},
            **({} if self.shard is None else {"set": self.shard.to_json()}),
        }
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


_NONE = type(None)
_KINDS: Kinds = {
    "writer": str, "samples": int, "group": int, "dtype": str, "rank": int, "channels": (int, _NONE),
    "shape": (list, _NONE), "unit": int, "codec": dict, "classes": list, "metadata": dict, "columns": dict,
    "parts": dict,
}  # fmt: skip


def _document(data: bytes, limits: Limits, version: int) -> Document:
    """The index from untrusted JSON. Raises CorruptError, LimitError."""
    kinds: Kinds = _KINDS if version == ONE_FILE else {**_KINDS, "set": dict}
    d = fields(strictjson.load(data, "index", limits.depth), "index", kinds)
    n = integer(d["samples"], "index, samples", 1, MAX_SAMPLES)
    spec = Spec(d["dtype"], integer(d["rank"], "index, rank", 0, 8), d["channels"])
    if spec.dtype not in DTYPES or (spec.channels is not None and (spec.dtype, spec.rank) != ("uint8", 3)):
        raise CorruptError("index: samples of an unknown kind")
    if spec.channels is not None:
        integer(spec.channels, "index, channels", 1, 4)
    shape = None if d["shape"] is None else _shape(d["shape"], spec)
    columns = {name: _column(c, f"index, column {name[:80]!r}") for name, c in d["columns"].items()}
    if len(columns) > _MAX_COLUMNS or any(len(name) > _MAX_NAME for name in columns):
        raise LimitError("index: too many columns, or names too long")
    parts = {name: _part(p, f"index, part {name[:80]!r}") for name, p in d["parts"].items()}
    expected = {
        "groups",
        "lengths",
        "shared",
        *(["shapes"] if shape is None else []),
        *(f"column/{c}" for c in columns),
    }
    if set(parts) != expected:
        raise CorruptError("index: parts are missing or unknown")
    for value in (*d["classes"], *d["metadata"].values()):
        text(value, "index, classes and metadata")
    return Document(
        n, integer(d["group"], "index, group", 1, MAX_SAMPLES), spec, shape, integer(d["unit"], "index, unit", 1, 256),
        d["codec"], tuple(d["classes"]), d["metadata"], columns, parts, d["writer"],
        Shard.from_json(d["set"], n) if "set" in d else None,
    )  # fmt: skip


def _shape(value: Any, spec: Spec) -> tuple[int, ...]:
    shape = tuple(integer(x, "index, shape", 0, (1 << 31) - 1) for x in as_list(value, "index, shape", spec.rank))
    if spec.channels is not None and (shape[2] != spec.channels or not shape[0] or not shape[1]):
        raise CorruptError("index: shape and channels contradict each other")
    return shape


def _column(value: Any, where: str) -> dict[str, Any]:
    d = fields(value, where, {"dtype": str, "shape": list})
    if d["dtype"] != "texts" and d["dtype"] not in (*(f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)),
                                                    "float16", "float32", "float64"):  # fmt: skip
        raise CorruptError(f"{where}: dtype {d['dtype'][:80]!r} is unknown")
    for x in d["shape"]:
        integer(x, where, 0, (1 << 31) - 1)
    return d


def _part(value: Any, where: str) -> tuple[int, bytes]:
    length, found = as_list(value, where, 2)
    return integer(length, where, 0), _digest_in(found, where)


def _digest_in(value: Any, where: str) -> bytes:
    try:
        raw = bytes.fromhex(text(value, where))
    except ValueError:
        raw = b""
    if len(raw) != DIGEST_BYTES:
        raise CorruptError(f"{where}: has no checksum")
    return raw


# ---- writing ---------------------------------------------------------------------------------------------------


class FileWriter:
    """Writes a file front to back: groups, parts, index."""

    def __init__(self, stream: BinaryIO, version: int = ONE_FILE):
        self._stream = stream
        self._offset = 0
        self._header = _FRAME.header(version)
        self._groups: list[bytes] = []
        self.parts: dict[str, tuple[int, bytes]] = {}
        self._write(self._header)

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._offset += len(data)

    def add_group(self, data: bytes) -> None:
        self._groups.append(digest(data))
        self._write(data)

    def add_part(self, name: str, data: bytes) -> None:
        self.parts[name] = (len(data), digest(data))
        self._write(data)

    @property
    def group_digests(self) -> bytes:
        return b"".join(self._groups)

    def add_groups_part(self) -> None:
        """The checksums of the groups."""
        self.add_part("groups", self.group_digests)

    def finish(self, document: Document) -> int:
        """Write index and footer; the length of the file."""
        self._write(_FRAME.end(self._header, self._offset, document.to_json()))
        return self._offset


# ---- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What is known of a file when it has been opened.

    Parameters
    ----------
    document : Document
    offsets : (n_samples + 1,) uint64
        Where samples begin in the file.
    digests : (n_groups, 16) uint8
    part_at : dict of str to int
        Where parts begin.
    index_bytes : int
        Of everything but groups.
    """

    document: Document
    offsets: Array
    digests: Array
    part_at: Mapping[str, int]
    index_bytes: int

    def part(self, source: Source, name: str) -> bytes:
        """A part, checked. Raises CorruptError."""
        return _checked_part(source, name, self.part_at[name], *self.document.parts[name])


def _checked_part(source: Source, name: str, at: int, length: int, expected: bytes) -> bytes:
    data = bytes(source.read(at, length))
    if digest(data) != expected:
        raise CorruptError(f"{source.name}: part {name[:80]!r} is damaged")
    return data


def read_layout(source: Source, limits: Limits) -> Layout:
    """Check and read everything but groups and columns.

    Raises
    ------
    TruncatedError, CorruptError
        The file ends early, or its bytes are not what a writer wrote.
    NewerFormatError
        It needs a newer reader.
    LimitError
        It declares more than `limits` allow.
    """
    version, raw, stored_bytes = _FRAME.read(source, limits)
    try:
        document = _document(raw, limits, version)
        at = source.size - FOOTER_BYTES - stored_bytes
        part_at = {}
        for name, (length, _) in reversed(list(document.parts.items())):
            at -= length
            part_at[name] = at
        if at < HEADER_BYTES:
            raise CorruptError("parts are longer than the file")
        found = _groups(source, document, part_at, at)
    except (CorruptError, LimitError) as error:
        raise type(error)(f"{source.name}: {error}".replace(f"{source.name}: {source.name}", source.name)) from None
    return Layout(document, *found, part_at, source.size - at + HEADER_BYTES)


def _groups(source: Source, document: Document, part_at: Mapping[str, int], end: int) -> tuple[Array, Array]:
    """Offsets of samples and digests of groups."""
    length, expected = document.parts["groups"]
    if length != document.n_groups * DIGEST_BYTES:
        raise CorruptError("there is not one checksum for every group")
    # Lengths in a stream take a bit for eight of them at least, but those that are all alike.
    digests = np.frombuffer(_checked_part(source, "groups", part_at["groups"], length, expected), np.uint8)
    packed = _checked_part(source, "lengths", part_at["lengths"], *document.parts["lengths"])
    if document.n_samples > max(1 << 22, 64 * source.size):
        raise LimitError(f"{document.n_samples} samples in {source.size} bytes are too many")
    lengths = unpack_numbers(packed, document.n_samples).astype(np.uint64) * np.uint64(document.unit)
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(lengths)]) + np.uint64(HEADER_BYTES)
    if int(offsets[-1]) != end:
        raise CorruptError("samples do not fill the file")
    return offsets, digests.reshape(-1, DIGEST_BYTES)


def checked_names(values: Mapping[str, str]) -> dict[str, str]:
    """Metadata to be written. Raises UsageError unless all are texts."""
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"metadata maps texts to texts; {key!r} is {type(value).__name__}")
    return dict(values)


def pieces_of(values: Sequence[int]) -> int:
    """The largest number, at most 256, that all values are multiples of."""
    unit = int(np.gcd.reduce(np.asarray(values, np.int64))) if len(values) else 1
    return next(u for u in range(min(256, max(1, unit)), 0, -1) if unit % u == 0)
