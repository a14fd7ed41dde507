"""What an index says: tensors, segments and their blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nearzip.caching import cached_property
from nearzip.digests import PIECE_BYTES
from nearzip.errors import CorruptError
from nearzip.stages import Pipeline
from nearzip.tensors import TensorSpec

__all__ = ["BlockEntry", "Index", "Segment", "check_blocks"]

_MAX_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class BlockEntry:
    """One block: its position in the file, its checksum, and the pipeline that decodes it."""

    offset: int
    length: int
    #: All of it, or its first bytes.
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
    #: Tensors whose base has another name or dtype, and the tensor of the base; None if there are none.
    matches: Mapping[str, TensorSpec] | None = None

    @cached_property
    def n_bytes(self) -> int:
        """Of all tensors as restored."""
        return sum(spec.n_bytes for spec in self.tensors)


def check_blocks(segment: Segment) -> None:
    """Raise CorruptError unless a segment's blocks are those that its tensors are cut into."""
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
