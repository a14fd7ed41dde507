"""Archives with valid checksums around any content, as a hostile writer would make them; for tests.

An index is changed as JSON, the form of formats 1 and 2: `seal` writes these. `seal_columns` writes format 3.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import zstandard

from nearzip import container
from nearzip.blocks import block_context, segment_blocks
from nearzip.codec import decode_block
from nearzip.container import read_index
from nearzip.digests import digest, join_pieces, piece_digests
from nearzip.errors import Error
from nearzip.framing import CLOSING, FOOTER, FOOTER_BYTES, HEADER_BYTES, SHORT_FOOTER, SHORT_FOOTER_BYTES
from nearzip.index.columns import pack_columns, unpack_columns
from nearzip.index.document import to_document
from nearzip.limits import Limits
from nearzip.sources import BytesSource
from nearzip.stages import pipeline_from_json
from nearzip.stages.base import put_varint
from nearzip.tensors import Checkpoint, TensorSpec

__all__ = ["seal", "seal_columns", "true_digests", "unseal", "unseal_columns"]


def seal(
    document: Any,
    blocks: bytes = b"",
    *,
    header: bytes | None = None,
    stored: bytes | None = None,
    total: int | None = None,
    n_stored: int | None = None,
    n_document: int | None = None,
) -> bytes:
    """An archive with valid checksums around any index.

    Parameters
    ----------
    document : anything JSON can say, or bytes
        The index; bytes are used as they are.
    blocks : bytes
        All blocks, one after the other.
    header : bytes
        The header without its checksum (16 bytes) instead of a proper one.
    stored : bytes
        The index as stored in the file, instead of the zstd frame of `document`.
    total, n_stored, n_document : int
        What the footer claims instead of the truth.
    """
    text = document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode()
    if stored is None:
        stored = zstandard.ZstdCompressor(level=3).compress(text)
    has_matches = isinstance(document, dict) and "matches" in document
    version = container.MATCHED_FORMAT if has_matches else container.PLAIN_FORMAT
    head = container.header_bytes(version) if header is None else header + digest(header)[:8]
    length = len(head) + len(blocks) + len(stored) + FOOTER_BYTES
    lengths = FOOTER.pack(
        length if total is None else total,
        len(stored) if n_stored is None else n_stored,
        len(text) if n_document is None else n_document,
    )
    return head + blocks + stored + lengths + digest(head, stored, lengths) + CLOSING


def seal_columns(content: bytes, digests: bytes = b"", blocks: bytes = b"", stored: bytes | None = None) -> bytes:
    """An archive of format 3 with a valid checksum around any index: its columns, and the digests behind them.

    `stored`: the index as stored in the file, instead of these two.
    """
    if stored is None:
        packed = pack_columns(content)
        stored = put_varint(len(packed)) + packed + digests
    head = container.header_bytes()
    lengths = SHORT_FOOTER.pack(len(stored), len(content))
    return head + blocks + stored + lengths + digest(head, stored, lengths) + CLOSING


def unseal_columns(archive: bytes) -> tuple[bytes, bytes, bytes]:
    """Columns, digests and blocks of a good archive of format 3: `seal_columns` of these is `archive`."""
    n_stored, n_content = SHORT_FOOTER.unpack(archive[-SHORT_FOOTER_BYTES:][: SHORT_FOOTER.size])
    start = len(archive) - SHORT_FOOTER_BYTES - n_stored
    return *unpack_columns(archive[start : start + n_stored], n_content), archive[HEADER_BYTES:start]


def unseal(archive: bytes) -> tuple[dict[str, Any], bytes]:
    """The index of a good archive as JSON, and its blocks: `seal(*unseal(archive))` reads like `archive`."""
    index = read_index(BytesSource(archive, "archive"), Limits(index_bytes=1 << 30))
    n_blocks = sum(block.length for segment in index.segments for block in segment.blocks)
    blocks = archive[HEADER_BYTES : HEADER_BYTES + n_blocks]
    document: dict[str, Any] = json.loads(json.dumps(to_document(index)))
    entries = [block for segment in document["segments"] for block in segment["blocks"]]
    at = 0
    for entry in entries:  # format 3 has the first bytes of these
        entry[2] = _text(digest(blocks[at : at + entry[1]]))
        at += entry[1]
    return document, blocks


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def true_digests(document: Any, blocks: bytes, base: Mapping[str, Any] | None = None) -> None:
    """Replace the digests in an index by those of the blocks and of what they decode to, where that can be said.

    What makes no sense is left as it is. Decoding may raise whatever a decoder raises that is no named error.
    """
    reference = None if base is None else Checkpoint.of(base)
    at = 0
    for segment in document["segments"]:
        payloads = []
        for block in segment["blocks"]:
            payload = blocks[at : at + block[1]]
            at += block[1]
            block[2] = _text(digest(payload))
            payloads.append((block[0], payload))
        try:
            segment["digest"] = _segment_digest(document, segment, payloads, reference)
        except Error:
            continue


def _segment_digest(document: Any, segment: Any, payloads: list[tuple[int, bytes]], base: Checkpoint | None) -> str:
    members = [document["tensors"][i] for i in segment["tensors"]]
    specs = tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in members)
    if sum(spec.n_bytes for spec in specs) > 1 << 20:
        return str(segment["digest"])
    pieces: list[list[bytes]] = [[] for _ in specs]
    for block, (number, payload) in zip(segment_blocks(specs, segment["block_bytes"]), payloads, strict=True):
        with contextlib.ExitStack() as stack:
            context = block_context(block, base if segment["base"] is not None else None, stack)
            values = decode_block(payload, context, pipeline_from_json(document["pipelines"][number]))
        for mine, part in zip(pieces, np.split(values, np.cumsum(block.parts)[:-1]), strict=True):
            mine.extend(piece_digests(part))
    return _text(digest(b"".join(join_pieces(p) for p in pieces)))
