"""The wire form of a federated update: an archive whose index follows from what both sides hold.

Names, shapes and dtypes are those of the base, so they are not sent. One checksum covers every byte and the identity of
the base: an update for another base is refused before anything is decoded. docs/federated.md lays out the bytes.

::

    "NU", version          3 bytes
    base tag               2 bytes    first bytes of the base's identity, to tell a wrong base from damage
    content tag            4 bytes    first bytes of the digest of all decoded arrays
    pipelines              count, then each: number of stages, each stage compactly (`_put_stage`)
    groups                 count, then each: 4 * pipeline + 2 (one block, however large) + 1 (exact values)
    tensors                the group of every tensor, in the order of their names
    lengths                of every block but the last, as varints, group by group
    blocks
    checksum               16 bytes   XXH3-128 of the base's identity and everything before
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.blocks import Block, block_context, block_values, in_own_memory, segment_blocks
from nearzip.bounds import EXACT, Tolerance
from nearzip.codec import decode_block, encode_block, exact_pipeline
from nearzip.digests import DIGEST_BYTES, digest, join_pieces, part_digests, tensor_digest
from nearzip.errors import CorruptError, LimitError, NewerFormatError, TruncatedError, WrongBaseError
from nearzip.stages import Pipeline, pipeline_from_json
from nearzip.stages.base import get_varint, put_varint
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = ["BLOCK_BYTES", "Group", "Message", "as_update", "pack", "pack_into", "read_message", "whole_block"]

MAGIC = b"NU"
#: Both sides split one large tensor at the same indices. Several tensors of a group share one block.
BLOCK_BYTES = 4 << 20
VERSION = 1
_TAG, _CONTENT = 2, 4
_HEAD = len(MAGIC) + 1 + _TAG + _CONTENT

#: Stages and parameters that take one byte. Only ever appended to: their order is part of the format.
_STAGES = (
    "uniform-step", "rans", "context-delta", "ordered-bits", "subtract-base", "e8-step", "sparse", "prune", "codebook",
    "raw-bytes", "pack-integers", "symbol-bytes", "run-lengths", "huffman", "gzip", "zstd", "lzma", "range-quantize",
    "exponent-buckets", "smallest-of", "ordered-delta", "log-step", "top-mean", "golomb", "stochastic-levels",
    "quantile-buckets", "fixed-bits", "adaptive-prefix", "key-huffman", "bloom-index", "fit-curve",
    "min-max-sketch",
)  # fmt: skip
_PARAMETERS = (
    "step", "mode", "gain", "values", "gaps", "gap_bits", "fill", "keep", "bits", "delta", "choices", "eps", "level",
    "scale", "zero", "codes", "split", "sides", "levels", "bucket", "seed",
    "buckets", "policy", "curve", "segments", "keys", "tables", "groups", "columns",
)  # fmt: skip
#: A number of a stage or parameter that is spelled out, and a count of parameters that follows in a byte of its own.
_OTHER_STAGE, _OTHER_PARAMETER, _MANY = 63, 31, 3
_MAX_STAGES, _MAX_DEPTH, _MAX_WORD, _MAX_PIPELINES = 16, 4, 255, 4096


@dataclass(frozen=True)
class Group:
    """Tensors that are coded in the same blocks.

    `exact`: the block holds the tensors' values in their own dtype, coded against the base; otherwise a float32 update
    that is added to the base.
    """

    tensors: tuple[TensorSpec, ...]
    pipeline: Pipeline
    tolerances: tuple[Tolerance, ...]
    block_bytes: int
    exact: bool

    @property
    def blocks(self) -> list[Block]:
        return segment_blocks(self.tensors, self.block_bytes)

    @property
    def whole(self) -> bool:
        """Whether all is in one block although it is larger than usual."""
        return self.block_bytes != BLOCK_BYTES


# ---- writing -----------------------------------------------------------------------------------------------------


#: Takes the name of a tensor, and what a reader decodes for it.
Take = Callable[[str, Array], None]


def pack(
    groups: Sequence[Group], update: Checkpoint, values: Checkpoint, base: Checkpoint, base_id: bytes
) -> tuple[bytes, dict[str, Array]]:
    """The message, and what a reader decodes: float32 updates, and exact values, by name. Else as `pack_into`."""
    decoded: dict[str, Array] = {}
    return pack_into(decoded.__setitem__, groups, update, values, base, base_id), decoded


def pack_into(
    take: Take, groups: Sequence[Group], update: Checkpoint, values: Checkpoint, base: Checkpoint, base_id: bytes
) -> bytes:
    """The message; `take` gets every tensor as a reader decodes it, once its group is encoded.

    Of all that is decoded, one group is in memory at a time. No tensor is read once `take` got it.

    Parameters
    ----------
    take : callable
        Of a name, and a float32 update or exact values, which may be a view of a larger array.
    groups : sequence of Group
        Together they hold every tensor of the base once.
    update : Checkpoint
        float32 updates of the tensors in groups that are not exact.
    values : Checkpoint
        Tensors of the exact groups, in the base's dtypes.
    base : Checkpoint
    base_id : bytes
        Identity of the base, 16 bytes.
    """
    payloads: list[bytes] = []
    digests: dict[str, bytes] = {}
    pipelines: dict[Pipeline, int] = {}
    heads = b""
    for group in groups:
        source = values if group.exact else update
        encoded = [_encoded(group, block, source, base) for block in group.blocks]
        pipeline = encoded[0][2]
        if any(one[2] != pipeline for one in encoded):  # a block with many patches was coded exactly
            encoded = [_encoded(_exactly(group), block, source, base) for block in group.blocks]
            pipeline = encoded[0][2]
        number_of = pipelines.setdefault(pipeline, len(pipelines))
        heads += put_varint(4 * number_of + 2 * group.whole + group.exact)
        payloads += [payload for payload, _, _ in encoded]
        for name, array in _split(group.tensors, [array for _, array, _ in encoded]):
            digests[name] = tensor_digest(np.ascontiguousarray(array))
            take(name, array)
        del encoded
    number = {spec.name: i for i, group in enumerate(groups) for spec in group.tensors}
    pieces = [
        MAGIC, bytes([VERSION]), base_id[:_TAG], _tag_of(digests[name] for name in sorted(base.specs)),
        put_varint(len(pipelines)), *map(_put_pipeline, pipelines), put_varint(len(groups)), heads,
        b"".join(put_varint(number[name]) for name in sorted(base.specs)),
        b"".join(put_varint(len(payload)) for payload in payloads[:-1]),
        *payloads,
    ]  # fmt: skip
    return b"".join((*pieces, digest(base_id, *pieces)))


def _exactly(group: Group) -> Group:
    tolerances = (EXACT,) * len(group.tensors)
    return Group(group.tensors, exact_pipeline(group.pipeline.needs_base), tolerances, group.block_bytes, group.exact)


def _encoded(group: Group, block: Block, source: Checkpoint, base: Checkpoint) -> tuple[bytes, Array, Pipeline]:
    with_base = base if group.pipeline.needs_base else None
    with contextlib.ExitStack() as stack:
        context, values = block_context(block, with_base, stack), block_values(source, block, stack)
        encoded = encode_block(values, context, group.pipeline, group.tolerances)
        return encoded.payload, in_own_memory(encoded.restored, values, context.base), encoded.pipeline


def _split(tensors: Sequence[TensorSpec], blocks: Sequence[Array]) -> Iterator[tuple[str, Array]]:
    whole = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    at = 0
    for spec in tensors:
        yield spec.name, whole[at : at + spec.n_elements].reshape(spec.shape)
        at += spec.n_elements


def _tag_of(digests: Iterable[bytes]) -> bytes:
    return digest(*digests)[:_CONTENT]


def _put_pipeline(pipeline: Pipeline) -> bytes:
    return _put_stages(pipeline.to_json())


def _put_stages(stages: Sequence[Mapping[str, Any]]) -> bytes:
    return bytes([len(stages)]) + b"".join(_put_stage(stage) for stage in stages)


def _put_stage(stage: Mapping[str, Any]) -> bytes:
    """4 * number + count of parameters, then each parameter: 8 * number + type, and the value."""
    parameters = {name: value for name, value in stage.items() if name != "id"}
    number, spelled = _numbered(_STAGES, stage["id"], _OTHER_STAGE)
    n = len(parameters)
    found = bytes([4 * number + min(n, _MANY)]) + spelled + (bytes([n]) if n >= _MANY else b"")
    return found + b"".join(_put_parameter(name, value) for name, value in parameters.items())


def _put_parameter(name: str, value: Any) -> bytes:
    number, spelled = _numbered(_PARAMETERS, name, _OTHER_PARAMETER)
    kind, content = _typed(value)
    return bytes([8 * number + kind]) + spelled + content


def _numbered(table: tuple[str, ...], word: str, other: int) -> tuple[int, bytes]:
    return (table.index(word), b"") if word in table else (other, _put_text(word))


def _put_text(text: str) -> bytes:
    raw = text.encode()
    return put_varint(len(raw)) + raw


def _typed(value: Any) -> tuple[int, bytes]:
    """Type and bytes: false, true, integer, float32 where that is exact, float64, text, chain of stages."""
    if isinstance(value, bool):
        return int(value), b""
    if isinstance(value, int):
        return 2, put_varint(value << 1 if value >= 0 else (-value << 1) - 1)
    if isinstance(value, float):
        with np.errstate(over="ignore"):
            short = float(np.float32(value)) == value
        return (3, struct.pack("<f", value)) if short else (4, struct.pack("<d", value))
    return (5, _put_text(value)) if isinstance(value, str) else (6, _put_stages(value))


# ---- reading -----------------------------------------------------------------------------------------------------


class Message:
    """An update that was checked and not yet decoded.

    Parameters
    ----------
    groups : tuple of Group
    blocks : list of (offset, length), group by group
    """

    def __init__(
        self, data: memoryview, groups: tuple[Group, ...], blocks: list[tuple[int, int]], base: Checkpoint, tag: bytes
    ) -> None:
        self._data, self._base, self._tag = data, base, tag
        self.groups = groups
        self._blocks = blocks

    def work(self) -> Iterator[tuple[Group, Block, memoryview]]:
        """Every block with its bytes, in order."""
        places = iter(self._blocks)
        for group in self.groups:
            for block in group.blocks:
                start, length = next(places)
                yield group, block, self._data[start : start + length]

    def work_by_tensor(self) -> dict[str, list[tuple[Group, Block, memoryview]]]:
        """The same by the name of each group's first tensor."""
        found: dict[str, list[tuple[Group, Block, memoryview]]] = {}
        for group, block, payload in self.work():
            found.setdefault(group.tensors[0].name, []).append((group, block, payload))
        return found

    def decode_block(self, group: Group, block: Block, payload: memoryview) -> Array:
        """Values of one block, shape (n,), perhaps read-only: a float32 update, or exact. Raises CorruptError."""
        with contextlib.ExitStack() as stack:
            context = block_context(block, self._base if group.pipeline.needs_base else None, stack)
            return in_own_memory(decode_block(payload, context, group.pipeline), context.base)

    def decoded(self) -> Iterator[tuple[Group, Block, Array]]:
        """The values of every block, in order, and then a comparison of their digest with the sender's.

        Raises CorruptError.
        """
        pieces: dict[str, list[bytes]] = {name: [] for name in self._base.specs}
        for group, block, payload in self.work():
            values = self.decode_block(group, block, payload)
            for spec, more in zip(group.tensors, part_digests(values, block.parts), strict=True):
                pieces[spec.name] += more
            yield group, block, values
        if _tag_of(join_pieces(pieces[name]) for name in sorted(pieces)) != self._tag:
            raise CorruptError("update: decoded values differ from what was sent")

    def arrays(self) -> dict[str, Array]:
        """All tensors: float32 updates, and exact values. Raises CorruptError as `decoded` does."""
        blocks: dict[str, list[Array]] = {}
        for group, _, values in self.decoded():
            blocks.setdefault(group.tensors[0].name, []).append(values)
        found: dict[str, Array] = {}
        for group in self.groups:
            found.update(_split(group.tensors, blocks[group.tensors[0].name]))
        return {name: found[name] for name in self._base.specs}


def read_message(data: bytes | memoryview, base: Checkpoint, base_id: bytes) -> Message:
    """Check a message from anybody, and read its index.

    Raises
    ------
    TruncatedError, CorruptError
        It ends early, or is not what a sender wrote.
    NewerFormatError
        Written by a later release.
    WrongBaseError
        Made against another base.
    LimitError
        More pipelines than any sender uses.
    """
    view = memoryview(data)
    if len(view) < _HEAD + DIGEST_BYTES:
        raise TruncatedError(f"update: ends after {len(view)} bytes, shorter than any")
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise CorruptError("update: not a federated update of nearzip")
    if view[2] > VERSION:
        raise NewerFormatError(f"update: has format {view[2]}; this release reads up to {VERSION}: upgrade nearzip")
    body, checksum = view[:-DIGEST_BYTES], bytes(view[-DIGEST_BYTES:])
    if digest(base_id, body) != checksum:
        if bytes(view[3 : 3 + _TAG]) != base_id[:_TAG]:
            raise WrongBaseError("update: was made against another base than the one held; ask for a keyframe")
        raise CorruptError("update: the bytes are damaged (checksum differs)")
    return _Parser(body, base).message(bytes(view[3 + _TAG : _HEAD]))


class _Parser:
    """From bytes to groups, believing nothing."""

    def __init__(self, view: memoryview, base: Checkpoint):
        self._view, self._at, self._base = view, _HEAD, base

    def message(self, tag: bytes) -> Message:
        pipelines = [self._pipeline() for _ in range(self._count("pipelines", _MAX_PIPELINES))]
        n_groups = self._count("groups", len(self._base.specs))
        kinds = [self._varint() for _ in range(n_groups)]
        members: list[list[TensorSpec]] = [[] for _ in range(n_groups)]
        for _, spec in sorted(self._base.specs.items()):
            group = self._varint()
            if group >= n_groups:
                raise CorruptError("update: a tensor is in no group")
            members[group].append(spec)
        if not all(members):
            raise CorruptError("update: a group has no tensor")
        groups = tuple(self._group(kind, tuple(own), pipelines) for kind, own in zip(kinds, members, strict=True))
        n_blocks = sum(len(group.blocks) for group in groups)
        lengths = [self._varint() for _ in range(n_blocks - 1)]
        lengths.append(len(self._view) - self._at - sum(lengths))
        if lengths[-1] < 0:
            raise CorruptError("update: blocks and message differ in length")
        blocks, at = [], self._at
        for length in lengths:
            blocks.append((at, length))
            at += length
        return Message(self._view, groups, blocks, self._base, tag)

    def _group(self, kind: int, members: tuple[TensorSpec, ...], pipelines: Sequence[Pipeline]) -> Group:
        number, whole, exact = kind >> 2, kind >> 1 & 1, kind & 1
        if number >= len(pipelines):
            raise CorruptError("update: a group has no pipeline")
        if not exact and not all(spec.is_float for spec in members):
            raise CorruptError("update: an integer tensor has an update in floats")
        tensors = members if exact else tuple(as_update(spec) for spec in members)
        if len({spec.dtype for spec in tensors}) > 1:
            raise CorruptError("update: a group mixes dtypes")
        pipeline = pipelines[number]
        if pipeline.needs_base and not exact:
            raise CorruptError("update: a pipeline needs a base where there is none")
        n_bytes = sum(spec.n_bytes for spec in tensors)
        return Group(tensors, pipeline, (), whole_block(n_bytes) if whole else BLOCK_BYTES, bool(exact))

    def _varint(self) -> int:
        value, self._at = get_varint(self._view, self._at)
        return value

    def _byte(self) -> int:
        if self._at >= len(self._view):
            raise CorruptError("update: ends early")
        self._at += 1
        return self._view[self._at - 1]

    def _take(self, n: int) -> bytes:
        if n > len(self._view) - self._at:
            raise CorruptError("update: ends early")
        self._at += n
        return bytes(self._view[self._at - n : self._at])

    def _count(self, what: str, largest: int) -> int:
        n = self._varint()
        if not 0 < n <= largest:
            raise LimitError(f"update: {n} {what}; the limit is {largest}")
        return n

    def _pipeline(self) -> Pipeline:
        return pipeline_from_json(self._stages(0))

    def _stages(self, depth: int) -> list[dict[str, Any]]:
        n = self._byte()
        if n > _MAX_STAGES or depth > _MAX_DEPTH:
            raise LimitError("update: a pipeline is longer or deeper than any sender's")
        return [self._stage(depth) for _ in range(n)]

    def _stage(self, depth: int) -> dict[str, Any]:
        number, n = divmod(self._byte(), 4)
        found: dict[str, Any] = {"id": self._word(_STAGES, number, _OTHER_STAGE)}
        for _ in range(self._byte() if n == _MANY else n):
            number, kind = divmod(self._byte(), 8)
            name = self._word(_PARAMETERS, number, _OTHER_PARAMETER)
            if name in found:
                raise CorruptError(f"update: a stage has parameter {name!r} twice")
            found[name] = self._value(kind, depth)
        return found

    def _word(self, table: tuple[str, ...], number: int, other: int) -> str:
        if number == other:
            return self._text()
        if number >= len(table):
            raise NewerFormatError(f"update: uses word {number}, which this release does not know; upgrade nearzip")
        return table[number]

    def _text(self) -> str:
        n = self._varint()
        if n > _MAX_WORD:
            raise LimitError(f"update: a word of {n} bytes; the limit is {_MAX_WORD}")
        try:
            return self._take(n).decode()
        except UnicodeDecodeError:
            raise CorruptError("update: a word is not valid Unicode") from None

    def _value(self, kind: int, depth: int) -> Any:
        if kind < 2:
            return bool(kind)
        if kind == 2:
            value = self._varint()
            return value >> 1 if value % 2 == 0 else -((value + 1) >> 1)
        if kind == 3:
            return float(struct.unpack("<f", self._take(4))[0])
        if kind == 4:
            return float(struct.unpack("<d", self._take(8))[0])
        if kind == 5:
            return self._text()
        if kind == 6:
            return self._stages(depth + 1)
        raise CorruptError("update: a parameter has no known type")


def as_update(spec: TensorSpec) -> TensorSpec:
    """The tensor's update: the same shape, float32."""
    return TensorSpec(spec.name, "float32", spec.shape)


def whole_block(n_bytes: int) -> int:
    """The size of a block that holds so much and is told from the usual size."""
    return BLOCK_BYTES * (2 + n_bytes // BLOCK_BYTES)
