"""Archives with valid checksums around any content, as a hostile writer would make them; for tests."""

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
from nearzip.digests import digest, join_pieces, piece_digests
from nearzip.errors import Error
from nearzip.framing import CLOSING, FOOTER, FOOTER_BYTES, HEADER_BYTES
from nearzip.stages import pipeline_from_json
from nearzip.tensors import Checkpoint, TensorSpec

__all__ = ["seal", "true_digests", "unseal"]


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


def unseal(archive: bytes) -> tuple[dict[str, Any], bytes]:
    """The index of a good archive as JSON, and its blocks: `seal(*unseal(archive))` reads like `archive`."""
    _, n_stored, _ = FOOTER.unpack(archive[-FOOTER_BYTES:][: FOOTER.size])
    end = len(archive) - FOOTER_BYTES - n_stored
    document: dict[str, Any] = json.loads(zstandard.ZstdDecompressor().decompress(archive[end : end + n_stored]))
    return document, archive[HEADER_BYTES:end]


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
