"""The bytes of one archive: header, blocks, index, footer. docs/format.md is the specification.

Reading goes from the outside in: header, footer, index, each with its checksum verified before it is used. Blocks
follow each other without gaps, so their offsets are sums of lengths and cannot overlap.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearzip import strictjson
from nearzip.digests import DIGEST_BYTES, PIECE_BYTES, digest
from nearzip.errors import CorruptError, LimitError, NewerFormatError
from nearzip.framing import FOOTER_BYTES, HEADER_BYTES, Frame, Source, Writable
from nearzip.limits import Limits
from nearzip.matching import can_serve
from nearzip.stages import Pipeline, pipeline_from_json
from nearzip.strictjson import Kinds, fields, pick, picks, texts
from nearzip.tensors import DTYPES, TensorSpec

__all__ = ["BlockEntry", "Index", "Segment", "Writer", "is_archive", "read_index"]

MAGIC = b"\x89NZIP\r\n\x1a"
#: The newest format that this release reads. It writes each file in the oldest that can express it.
FORMAT_VERSION = 2
#: The format of archives that need no field of a later one, and of those whose index says which tensors of the base are
#: used under another name or in another dtype.
PLAIN_FORMAT, MATCHED_FORMAT = 1, 2
_FRAME = Frame(MAGIC, FORMAT_VERSION, "archive", "a nearzip archive")
_MAX_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class BlockEntry:
    """One block: its position in the file, its checksum, and the pipeline that decodes it."""

    offset: int
    length: int
    digest: bytes
    pipeline: Pipeline


@dataclass(frozen=True)
class Segment:
    """What is decoded independently: one tensor in blocks of `block_bytes`, or several tensors in one block.

    `base_digest` is None for a segment without a base. Digests cover the digests of the segment's tensors, in order.
    """

    tensors: tuple[TensorSpec, ...]
    block_bytes: int
    blocks: tuple[BlockEntry, ...]
    digest: bytes
    base_digest: bytes | None

    @property
    def label(self) -> str:
        """For messages: the tensors' names, shortened."""
        names = [repr(spec.name) for spec in self.tensors]
        return ", ".join(names) if len(names) < 5 else f"{', '.join(names[:3])} and {len(names) - 3} more"


@dataclass(frozen=True)
class Index:
    """Everything about an archive but the blocks."""

    tensors: tuple[TensorSpec, ...]
    segments: tuple[Segment, ...]
    id: str
    base_id: str | None
    aliases: Mapping[str, str] = field(default_factory=dict)
    gone: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    tree: str | None = None
    method: Mapping[str, Any] = field(default_factory=dict)
    bound: Mapping[str, Any] = field(default_factory=dict)
    writer: str = ""
    #: Tensors whose base has another name or dtype, and the tensor of the base; None in archives of format 1.
    matches: Mapping[str, TensorSpec] | None = None

    @property
    def n_bytes(self) -> int:
        """Digest of all tensors as restored."""
        return sum(spec.n_bytes for spec in self.tensors)


# ---- writing ---------------------------------------------------------------------------------------------------


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def _to_json(index: Index) -> bytes:
    number = {spec.name: i for i, spec in enumerate(index.tensors)}
    pipelines: dict[Pipeline, int] = {}
    segments = [
        {
            "tensors": [number[spec.name] for spec in segment.tensors],
            "block_bytes": segment.block_bytes,
            "digest": _b64(segment.digest),
            "base": None if segment.base_digest is None else _b64(segment.base_digest),
            "blocks": [
                [pipelines.setdefault(block.pipeline, len(pipelines)), block.length, _b64(block.digest)]
                for block in segment.blocks
            ],
        }
        for segment in index.segments
    ]
    document: dict[str, Any] = {
        "writer": index.writer,
        "method": index.method,
        "bound": index.bound,
        "id": index.id,
        "base": index.base_id,
        "metadata": index.metadata,
        "tree": index.tree,
        "gone": index.gone,
        "tensors": [[spec.name, spec.dtype, spec.shape] for spec in index.tensors],
        "aliases": {number[name]: number[target] for name, target in index.aliases.items()},
        "pipelines": [pipeline.to_json() for pipeline in pipelines],
        "segments": segments,
    }
    if index.matches is not None:
        document["matches"] = {
            number[name]: [spec.name, spec.dtype, spec.shape] for name, spec in index.matches.items()
        }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path or URL is meant to be an archive: by its first bytes, or by its name if it cannot be read here."""
    if str(path).lower().endswith(".nz"):
        return True
    try:
        with open(path, "rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def header_bytes(version: int = PLAIN_FORMAT) -> bytes:
    return _FRAME.header(version)


class Writer:
    """Writes an archive front to back."""

    def __init__(self, stream: Writable, version: int = PLAIN_FORMAT):
        self._stream = stream
        self._header = header_bytes(version)
        self._offset = 0
        self._write(self._header)

    @property
    def n_bytes(self) -> int:
        """Length of what was written so far."""
        return self._offset

    def _write(self, data: bytes) -> None:
        self._stream.write(data)
        self._offset += len(data)

    def add_block(self, pieces: Sequence[bytes], pipeline: Pipeline) -> BlockEntry:
        """Append a block, whose bytes come in pieces. Returns its entry in the index."""
        entry = BlockEntry(self._offset, sum(map(len, pieces)), digest(*pieces), pipeline)
        for piece in pieces:
            self._write(piece)
        return entry

    def finish(self, index: Index) -> int:
        """Write index and footer; returns the length of the archive in bytes."""
        self._write(_FRAME.end(self._header, self._offset, _to_json(index)))
        return self._offset


# ---- reading ---------------------------------------------------------------------------------------------------


def read_index(source: Source, limits: Limits) -> Index:
    """Check everything but the blocks, and read the index.

    Raises
    ------
    TruncatedError, CorruptError
        The file ends early, or its bytes are not what a writer wrote.
    NewerFormatError
        It needs a newer reader.
    LimitError
        It declares more than `limits` allow.
    """
    version, document, n_stored = _FRAME.read(source, limits)
    try:
        return _Parser(limits, version).index(
            strictjson.load(document, "index", limits.depth), source.size - FOOTER_BYTES - n_stored
        )
    except (CorruptError, LimitError, NewerFormatError) as error:
        raise type(error)(f"{source.name}: {error}") from None


class _Parser:
    """From JSON (untrusted) to an Index."""

    def __init__(self, limits: Limits, version: int):
        self._limits = limits
        self._version = version

    def index(self, document: Any, end_of_blocks: int) -> Index:
        has_matches = self._version >= MATCHED_FORMAT
        d = fields(document, "index", {**_INDEX_FIELDS, "matches": dict} if has_matches else _INDEX_FIELDS)
        tensors = self._tensors(d["tensors"])
        pipelines = [pipeline_from_json(p) for p in d["pipelines"]]
        aliases = self._aliases(d["aliases"], tensors)
        segments, end = self._segments(d["segments"], tensors, pipelines)
        if end != end_of_blocks:
            raise CorruptError("index: blocks and file differ in length")
        named = [spec.name for segment in segments for spec in segment.tensors] + list(aliases)
        if sorted(named) != sorted(spec.name for spec in tensors) or set(aliases.values()) & set(aliases):
            raise CorruptError("index: a tensor is in no segment, or in two")
        texts([*d["gone"], *d["metadata"].values()], "index: gone and metadata")
        base_id = d["base"]
        if base_id is None and any(s.base_digest is not None for s in segments):
            raise CorruptError("index: segments have a base, the archive has none")
        return Index(
            tensors, tuple(segments), d["id"], base_id, aliases, tuple(d["gone"]), d["metadata"], d["tree"],
            d["method"], d["bound"], d["writer"], self._matches(d["matches"], tensors) if has_matches else None,
        )  # fmt: skip

    def _tensors(self, items: Any) -> tuple[TensorSpec, ...]:
        limits = self._limits
        if len(items) > limits.tensors:
            raise LimitError(f"{len(items)} tensors; the limit is {limits.tensors}")
        specs = tuple(self._tensor(item) for item in items)
        if len({spec.name for spec in specs}) != len(specs):
            raise CorruptError("index: two tensors have one name")
        return specs

    def _tensor(self, item: Any) -> TensorSpec:
        limits = self._limits
        if type(item) is not list or len(item) != 3:
            raise CorruptError("index: a tensor is not name, dtype and shape")
        name, dtype, shape = item
        if type(name) is not str or type(dtype) is not str or type(shape) is not list:
            raise CorruptError("index: a tensor is not name, dtype and shape")
        if dtype not in DTYPES:
            raise NewerFormatError(f"tensor {name!r} has dtype {dtype[:80]!r}, which this release does not know")
        try:
            n_name = len(name.encode())
        except UnicodeEncodeError:
            raise CorruptError("index: a tensor's name is not valid Unicode") from None
        if n_name > limits.name_bytes or len(shape) > limits.rank:
            raise LimitError(f"a tensor's name takes {n_name} bytes, its rank is {len(shape)}; the limits are "
                             f"{limits.name_bytes} and {limits.rank}")  # fmt: skip
        # NumPy multiplies the dimensions of an empty array, too, and with the size of a value.
        if not all(type(n) is int and 0 <= n < 1 << 58 for n in shape) or math.prod(n or 1 for n in shape) >= 1 << 58:
            raise CorruptError(f"index: tensor {name!r} has no possible shape")
        return TensorSpec(name, dtype, tuple(shape))

    def _matches(self, document: Any, tensors: tuple[TensorSpec, ...]) -> dict[str, TensorSpec]:
        matches = {}
        for key, item in document.items():
            spec = pick(tensors, _number(key), "index: matches")
            base = self._tensor(item)
            if base == spec or not can_serve(base, spec):
                raise CorruptError(f"index: tensor {spec.name!r} cannot come from {base.name!r} of the base")
            matches[spec.name] = base
        return matches

    def _aliases(self, document: Any, tensors: tuple[TensorSpec, ...]) -> dict[str, str]:
        aliases = {}
        for key, target in document.items():
            one, other = pick(tensors, _number(key), "index: aliases"), pick(tensors, target, "index: aliases")
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                raise CorruptError("index: an alias differs from its tensor in dtype or shape")
            aliases[one.name] = other.name
        return aliases

    def _segments(
        self, items: Any, tensors: tuple[TensorSpec, ...], pipelines: list[Pipeline]
    ) -> tuple[list[Segment], int]:
        segments = []
        offset = HEADER_BYTES
        for number, item in enumerate(items):
            where = f"index: segment {number}"
            d = fields(item, where, _SEGMENT_FIELDS)
            specs = picks(tensors, d["tensors"], f"{where}: tensors")
            blocks = []
            for block in d["blocks"]:
                if type(block) is not list or len(block) != 3 or type(block[1]) is not int or block[1] < 0:
                    raise CorruptError("index: a block is not pipeline, length and digest")
                pipeline = pick(pipelines, block[0], f"{where}: pipelines")
                if pipeline.needs_base and d["base"] is None:
                    raise CorruptError("index: a pipeline needs a base, its segment has none")
                blocks.append(BlockEntry(offset, block[1], _digest(block[2]), pipeline))
                offset += block[1]
            base = None if d["base"] is None else _digest(d["base"])
            segment = Segment(specs, d["block_bytes"], tuple(blocks), _digest(d["digest"]), base)
            _check_blocks(segment)
            segments.append(segment)
        return segments, offset


def _number(key: str) -> int:
    """A tensor's number that is a key of an object. Raises CorruptError."""
    if not key.isdecimal() or str(int(key[:20])) != key:
        raise CorruptError("index: a key is not a tensor's number")
    return int(key)


def _check_blocks(segment: Segment) -> None:
    total = sum(spec.n_bytes for spec in segment.tensors)
    # A tensor that is never cut is one block of its own size, however large.
    most = max(_MAX_BLOCK_BYTES, -(-total // PIECE_BYTES) * PIECE_BYTES)
    if not 0 < segment.block_bytes <= most or segment.block_bytes % PIECE_BYTES:
        raise CorruptError("index: block size out of range")
    expected = max(1, -(-total // segment.block_bytes))
    if not segment.tensors or len({spec.dtype for spec in segment.tensors}) != 1:
        raise CorruptError("index: a segment holds no tensor, or several dtypes")
    if len(segment.blocks) != expected or (expected > 1 and len(segment.tensors) > 1):
        raise CorruptError("index: blocks and tensors of a segment do not match")


_INDEX_FIELDS: Kinds = {
    "writer": str,
    "method": dict,
    "bound": dict,
    "id": str,
    "base": (str, type(None)),
    "metadata": dict,
    "tree": (str, type(None)),
    "gone": list,
    "tensors": list,
    "aliases": dict,
    "pipelines": list,
    "segments": list,
}
_SEGMENT_FIELDS: Kinds = {
    "tensors": list,
    "block_bytes": int,
    "digest": str,
    "base": (str, type(None)),
    "blocks": list,
}


def _digest(text: Any) -> bytes:
    try:
        raw = base64.b64decode(text + "==", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise CorruptError("index: a digest is not base64") from None
    if len(raw) != DIGEST_BYTES or _b64(raw) != text:
        raise CorruptError("index: a digest has another length")
    return raw
