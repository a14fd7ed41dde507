"""The index in columns, in files of format 3: all names, all shapes, all lengths, each one after the other.

A JSON object for each tensor costs more bytes than a small update of it, and more time than decoding it. Columns are
decoded by NumPy, a hundred to a microsecond, and similar numbers side by side compress well.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from nearzip import strictjson
from nearzip.digests import DIGEST_BYTES, PIECE_BYTES
from nearzip.errors import CorruptError, LimitError, NewerFormatError
from nearzip.index.dictionary import DICTIONARY
from nearzip.index.document import aliases_from_json, matches_from_json
from nearzip.index.entries import BlockEntry, Index, Segment, check_blocks
from nearzip.limits import Limits
from nearzip.stages import Pipeline, pipeline_from_json
from nearzip.stages.base import get_varint, put_varint
from nearzip.stages.external import unpack_frame
from nearzip.strictjson import Kinds, fields, texts
from nearzip.tensors import DTYPES, Array, TensorSpec

__all__ = ["BLOCK_DIGEST_BYTES", "from_columns", "pack_columns", "stored_columns", "to_columns", "unpack_columns"]

#: So much of a block's digest is stored: its bytes are damaged, not forged, where they differ.
BLOCK_DIGEST_BYTES = 8
#: Numbers of dtypes in files. Only ever appended to.
_DTYPES = (
    "float32", "bfloat16", "float16", "float64", "int64", "int32", "uint8", "bool", "int8", "float8_e4m3fn",
    "float8_e5m2", "int16", "uint16", "uint32", "uint64", "complex64", "complex128", "complex32", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2",
)  # fmt: skip
_NUMBER_OF = {name: i for i, name in enumerate(_DTYPES)}
#: Besides their width: all values of a column are one.
_CONSTANT = 0x10
_MOST = 1 << 62
#: What every Zstandard frame begins with is not stored.
_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
#: What a tensor counts towards the limit of the index, besides its name.
_TENSOR_BYTES = 16
#: Of larger indices the highest level takes one byte in a hundred, and sixteen times as long.
_SMALL = 4 << 10


# ---- writing -----------------------------------------------------------------------------------------------------


def to_columns(index: Index) -> tuple[bytes, bytes]:
    """The index but for its digests, to be compressed, and those."""
    number = {spec.name: i for i, spec in enumerate(index.tensors)}
    pipelines: dict[Pipeline, int] = {}
    blocks = [block for segment in index.segments for block in segment.blocks]
    codes = [pipelines.setdefault(block.pipeline, len(pipelines)) for block in blocks]
    head: dict[str, Any] = {
        "writer": index.writer,
        "method": index.method,
        "bound": index.bound,
        "pipelines": [pipeline.to_json() for pipeline in pipelines],
    }
    aliases = {str(number[name]): number[target] for name, target in index.aliases.items()}
    more = {"metadata": index.metadata, "tree": index.tree, "gone": index.gone, "aliases": aliases}
    head.update({key: value for key, value in more.items() if value})
    if index.matches is not None:
        head["matches"] = {number[n]: [spec.name, spec.dtype, spec.shape] for n, spec in index.matches.items()}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    shared, rest = _front_coded([spec.name for spec in index.tensors])
    suffixes = "".join(rest).encode()
    order = np.array([number[spec.name] for segment in index.segments for spec in segment.tensors], np.int64)
    steps = np.diff(order, prepend=-1) - 1
    segments = index.segments
    content = b"".join((
        put_varint(len(text)), text,
        put_varint(len(index.tensors)),
        _column(shared), _column([len(part) for part in rest]), put_varint(len(suffixes)), suffixes,
        _column([_NUMBER_OF[spec.dtype] for spec in index.tensors]),
        _column([len(spec.shape) for spec in index.tensors]),
        _column([n for spec in index.tensors for n in spec.shape], constant=False),
        put_varint(len(segments)),
        _column([len(segment.tensors) for segment in segments]),
        _column(np.where(steps < 0, -2 * steps - 1, 2 * steps)),
        _column([segment.block_bytes // PIECE_BYTES - 1 for segment in segments]),
        _column([segment.base_digest is not None for segment in segments]),
        _column(codes), _column([block.length for block in blocks]),
    ))  # fmt: skip
    digests = b"".join((
        bytes.fromhex(index.id), b"" if index.base_id is None else bytes.fromhex(index.base_id),
        *(segment.digest for segment in segments),
        *(segment.base_digest for segment in segments if segment.base_digest is not None),
        *(block.digest[:BLOCK_DIGEST_BYTES] for block in blocks),
    ))  # fmt: skip
    return bytes([index.base_id is not None]) + content, digests


def _front_coded(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """How many characters each name shares with the one before, and its others."""
    shared, rest, last = [], [], ""
    for name in names:
        low, high = 0, min(len(last), len(name))
        if last[:high] == name[:high]:
            low = high
        while low < high:
            middle = (low + high + 1) // 2
            if last[low:middle] == name[low:middle]:
                low = middle
            else:
                high = middle - 1
        shared.append(low)
        rest.append(name[low:])
        last = name
    return shared, rest


def _column(values: Any, constant: bool = True) -> bytes:
    """Width, and the values in so many bytes each: the lowest bytes of all, then the next ones."""
    numbers = np.asarray(values, np.uint64)
    most = int(numbers.max()) if numbers.size else 0
    width = next(w for w in (0, 1, 2, 4, 8) if most < 1 << 8 * w)
    if constant and numbers.size and (numbers == most).all():
        return bytes([_CONSTANT | width]) + most.to_bytes(width, "little") if most else bytes(1)
    width = max(width, 0 if constant else 1)
    planes: bytes = numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].T.tobytes()
    return bytes([width]) + planes


def pack_columns(content: bytes) -> bytes:
    """The content compressed with the dictionary of the format; itself where that is no smaller."""
    level = 19 if len(content) <= _SMALL else 12
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(content), write_content_size=False, write_checksum=False, write_dict_id=False
    )
    frame: bytes = zstandard.ZstdCompressor(dict_data=_dictionary(), compression_params=parameters).compress(content)
    packed: bytes = frame[len(_FRAME_MAGIC) :]
    return packed if len(packed) < len(content) else content


def stored_columns(index: Index, n_before: int, n_after: int) -> tuple[bytes, int]:
    """The index as stored in a file with so many bytes before and after it, and the length of its content.

    Readers take no large index from a small file. One that packs so well that they would refuse it is padded.
    """
    content, digests = to_columns(index)
    packed = pack_columns(content)
    stored = put_varint(len(packed)) + packed + digests
    cost = _cost(len(content), len(index.tensors), sum(len(spec.name) for spec in index.tensors))
    n_file = n_before + len(stored) + n_after
    if cost > Limits().allowed_index(n_file):
        stored += bytes(max(0, min(cost, Limits.MAX_INDEX) // Limits.INDEX_EXPANSION + 1 - n_file))
    return stored, len(content)


def _cost(n_content: int, n_tensors: int, n_characters: int) -> int:
    """What an index counts towards its limit."""
    return n_content + _TENSOR_BYTES * n_tensors + n_characters


def _dictionary() -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


# ---- reading -----------------------------------------------------------------------------------------------------


def unpack_columns(stored: bytes, n_content: int) -> tuple[bytes, bytes]:
    """The content, which takes so many bytes, and what is stored behind it. Raises CorruptError."""
    n_packed, at = get_varint(stored, 0)
    packed, rest = stored[at : at + n_packed], stored[at + n_packed :]
    if len(packed) != n_packed or n_packed > n_content:
        raise CorruptError("index: is longer than the file says")
    if n_packed == n_content:
        return packed, rest
    try:
        return unpack_frame(_FRAME_MAGIC + packed, n_content, _dictionary()), rest
    except CorruptError as error:
        raise CorruptError(f"index: {error}") from None


class _Cursor:
    """Takes numbers, text and columns from untrusted bytes, one after the other. Raises CorruptError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise CorruptError("index: ends early")
        self._at += n
        return self._data[self._at - n : self._at]

    def varint(self) -> int:
        value, self._at = get_varint(self._data, self._at)
        return value

    def column(self, n: int, constant: bool = True) -> Array:
        """`n` numbers as int64. `constant`: whether they may take less memory here than there."""
        code = self.take(1)[0]
        width = code & ~_CONSTANT
        is_constant = code == 0 or code & _CONSTANT
        if width not in (0, 1, 2, 4, 8) or (is_constant and (code == _CONSTANT or not (constant or not n))):
            raise CorruptError("index: a column of unknown width")
        if is_constant:
            value = int.from_bytes(self.take(width), "little")
            if value >= _MOST:
                raise CorruptError("index: a number is out of range")
            return np.full(n, value, np.int64)
        raw = np.frombuffer(self.take(n * width), np.uint8)
        if width == 1:
            return raw.astype(np.int64)
        wide = np.zeros((n, 8), np.uint8)
        wide[:, :width] = raw.reshape(width, n).T
        numbers = wide.view("<i8").reshape(-1).astype(np.int64, copy=False)
        if width == 8 and n and not 0 <= int(numbers.min()) <= int(numbers.max()) < _MOST:
            raise CorruptError("index: a number is out of range")
        return numbers


_HEAD: Kinds = {"writer": str, "method": dict, "bound": dict, "pipelines": list}
_OPTIONAL: Kinds = {"metadata": dict, "tree": str, "gone": list, "aliases": dict, "matches": dict}


def from_columns(content: bytes, digests: bytes, limits: Limits, n_file: int, end_of_blocks: int, start: int) -> Index:
    """An index from its columns (untrusted). Raises CorruptError, LimitError, NewerFormatError.

    `start`, `end_of_blocks`: where blocks begin and end in the file.
    """
    cursor, theirs = _Cursor(content), _Cursor(digests)
    with_base = cursor.take(1)
    if with_base > b"\1":
        raise CorruptError("index: is neither with nor without a base")
    head = _head(strictjson.load(cursor.take(cursor.varint()), "index", limits.depth))
    tensors, sizes = _tensors(cursor, limits, limits.allowed_index(n_file) - len(content))
    pipelines = [pipeline_from_json(pipeline) for pipeline in head["pipelines"]]
    aliases = aliases_from_json(head.get("aliases", {}), tensors)
    number = {spec.name: i for i, spec in enumerate(tensors)} if aliases else {}
    identity = theirs.take(DIGEST_BYTES).hex()
    base_id = theirs.take(DIGEST_BYTES).hex() if with_base == b"\1" else None
    segments, order = _segments(cursor, theirs, tensors, sizes, pipelines, start)
    if cursor.left or theirs.take(theirs.left).strip(b"\0"):
        raise CorruptError("index: goes on after its end")
    end = segments[-1].blocks[-1].offset + segments[-1].blocks[-1].length if segments else start
    if end != end_of_blocks:
        raise CorruptError("index: blocks and file differ in length")
    held = np.bincount(np.concatenate([order, [number[name] for name in aliases]]).astype(np.int64),
                       minlength=len(tensors))  # fmt: skip
    if (held != 1).any() or set(aliases.values()) & set(aliases):
        raise CorruptError("index: a tensor is in no segment, or in two")
    if base_id is None and any(segment.base_digest is not None for segment in segments):
        raise CorruptError("index: segments have a base, the archive has none")
    matches = matches_from_json(head["matches"], tensors, limits) if "matches" in head else None
    return Index(
        tensors, tuple(segments), identity, base_id, aliases, tuple(head.get("gone", ())), head.get("metadata", {}),
        head.get("tree"), head["method"], head["bound"], head["writer"], matches,
    )  # fmt: skip


def _head(document: Any) -> dict[str, Any]:
    there = {key: kind for key, kind in _OPTIONAL.items() if isinstance(document, dict) and key in document}
    head = fields(document, "index", {**_HEAD, **there})
    texts(head.get("gone", ()), "index: gone")
    texts(head.get("metadata", {}).values(), "index: metadata")
    return head


def _tensors(cursor: _Cursor, limits: Limits, allowed: int) -> tuple[tuple[TensorSpec, ...], Array]:
    """Tensors, and their numbers of bytes. `allowed`: what they may count as."""
    n = cursor.varint()
    if n > limits.tensors:
        raise LimitError(f"{n} tensors; the limit is {limits.tensors}")
    if n > cursor.left + 1:  # each name but one differs from the one before in at least a byte
        raise CorruptError("index: has more tensors than bytes")
    names = _names(cursor, n, limits, allowed)
    codes, ranks = cursor.column(n), cursor.column(n)
    if n and int(codes.max()) >= len(_DTYPES):
        name = names[int(codes.argmax())]
        raise NewerFormatError(f"tensor {name!r} has dtype number {int(codes.max())}, which this release does not know")
    if n and int(ranks.max()) > limits.rank:
        raise LimitError(f"a tensor's rank is {int(ranks.max())}; the limit is {limits.rank}")
    dims = cursor.column(int(ranks.sum()), constant=False)
    counts = _counts(names, ranks, dims)
    widths = np.array([DTYPES[name].itemsize for name in _DTYPES])
    sizes = counts * widths[codes]
    if sizes.sum(dtype=np.float64) >= _MOST:
        raise LimitError("tensors take more bytes than can be counted")
    left = iter(dims.tolist())
    shapes = [tuple(itertools.islice(left, rank)) for rank in ranks.tolist()]
    dtypes = [_DTYPES[code] for code in codes.tolist()]
    return TensorSpec.known(names, dtypes, shapes, counts.tolist(), sizes.tolist()), sizes


def _names(cursor: _Cursor, n: int, limits: Limits, allowed: int) -> list[str]:
    shared, own = cursor.column(n), cursor.column(n)
    raw = cursor.take(cursor.varint())
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise CorruptError("index: a tensor's name is not valid Unicode") from None
    if n and max(int(shared.max()), int(own.max())) > limits.name_bytes:
        raise LimitError(f"a tensor's name has over {limits.name_bytes} characters; the limit is {limits.name_bytes}")
    lengths = shared + own
    if int(own.sum()) != len(text) or (n and (shared[0] or (shared[1:] > lengths[:-1]).any())):
        raise CorruptError("index: names and their lengths differ")
    cost = _cost(0, n, int(lengths.sum()))
    if cost > allowed:
        raise LimitError(
            f"the index takes {cost - allowed} bytes more than the limit. If you trust the file, raise "
            "Limits(index_bytes=...)"
        )
    names, last = [], ""
    ends = np.cumsum(own).tolist()
    for first, stop, keep in zip([0, *ends], ends, shared.tolist(), strict=False):
        last = last[:keep] + text[first:stop]
        names.append(last)
    longest = max(map(len, names), default=0) if len(raw) == len(text) else max(len(name.encode()) for name in names)
    if longest > limits.name_bytes:
        raise LimitError(f"a tensor's name takes {longest} bytes; the limit is {limits.name_bytes}")
    if len(set(names)) != n:
        raise CorruptError("index: two tensors have one name")
    return names


def _counts(names: list[str], ranks: Array, dims: Array) -> Array:
    """Numbers of elements. Raises CorruptError for shapes that no array can have."""
    counts = np.ones(len(names), np.int64)
    if not dims.size:
        return counts
    has = ranks > 0
    starts = (np.cumsum(ranks) - ranks)[has]
    # NumPy multiplies the dimensions of an empty array, too, and with the size of a value.
    about = np.multiply.reduceat(np.maximum(dims, 1).astype(np.float64), starts)
    if (about >= 1 << 58).any():
        name = names[int(np.flatnonzero(has)[int(about.argmax())])]
        raise CorruptError(f"index: tensor {name!r} has no possible shape")
    counts[has] = np.multiply.reduceat(dims, starts)
    return counts


def _segments(
    cursor: _Cursor, digests: _Cursor, tensors: tuple[TensorSpec, ...], sizes: Array, pipelines: list[Pipeline],
    start: int,
) -> tuple[list[Segment], Array]:  # fmt: skip
    """Segments, and the numbers of their tensors."""
    n = cursor.varint()
    if n > len(tensors):
        raise CorruptError("index: has more segments than tensors")
    members = cursor.column(n)
    if n and (int(members.min()) < 1 or int(members.max()) > len(tensors) or int(members.sum()) > len(tensors)):
        raise CorruptError("index: a segment holds no tensor, or too many")
    coded = cursor.column(int(members.sum()))
    order = np.cumsum(np.where(coded & 1, -(coded + 1) // 2, coded // 2) + 1) - 1
    if order.size and (int(coded.max()) > 2 * len(tensors) or int(order.min()) < 0 or int(order.max()) >= len(tensors)):
        raise CorruptError("index: a segment has a tensor that is not there")
    pieces, has_base = cursor.column(n), cursor.column(n)
    if n and (int(pieces.max()) >= 1 << 36 or int(has_base.max()) > 1):
        raise CorruptError("index: block size out of range")
    ends = np.cumsum(members)
    totals = np.add.reduceat(sizes[order], ends - members) if n else np.zeros(0, np.int64)
    block_bytes = (pieces + 1) * PIECE_BYTES
    n_blocks = np.maximum(1, -(-totals // block_bytes))
    all_blocks = int(n_blocks.sum(dtype=np.float64))
    own = [digests.take(DIGEST_BYTES) for _ in range(n)]
    bases = [digests.take(DIGEST_BYTES) if flag else None for flag in has_base.tolist()]
    if all_blocks * BLOCK_DIGEST_BYTES > digests.left:
        raise CorruptError("index: has more blocks than checksums")
    used, lengths = cursor.column(all_blocks).tolist(), cursor.column(all_blocks).tolist()
    if any(code >= len(pipelines) for code in used):
        raise CorruptError("index: a block has a pipeline that is not there")
    checks = digests.take(all_blocks * BLOCK_DIGEST_BYTES)
    blocks, offset = [], start
    for i, (code, length) in enumerate(zip(used, lengths, strict=True)):
        mark = checks[i * BLOCK_DIGEST_BYTES : (i + 1) * BLOCK_DIGEST_BYTES]
        blocks.append(BlockEntry(offset, length, mark, pipelines[code]))
        offset += length
    found, at, b = [], 0, 0
    numbers = order.tolist()
    for k, (end, count) in enumerate(zip(ends.tolist(), n_blocks.tolist(), strict=True)):
        specs = tuple([tensors[i] for i in numbers[at:end]])
        segment = Segment(specs, int(block_bytes[k]), tuple(blocks[b : b + count]), own[k], bases[k])
        if bases[k] is None and any(block.pipeline.needs_base for block in segment.blocks):
            raise CorruptError("index: a pipeline needs a base, its segment has none")
        check_blocks(segment)
        found.append(segment)
        at, b = end, b + count
    return found, order
