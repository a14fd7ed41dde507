"""The index as a JSON object, in files of formats 1 and 2."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Any

from nearzip.digests import DIGEST_BYTES
from nearzip.errors import CorruptError, LimitError, NewerFormatError
from nearzip.index.entries import BlockEntry, Index, Segment, check_blocks
from nearzip.limits import Limits
from nearzip.matching import can_serve
from nearzip.stages import Pipeline, pipeline_from_json
from nearzip.strictjson import Kinds, fields, pick, texts
from nearzip.tensors import DTYPES, TensorSpec

__all__ = ["aliases_from_json", "from_document", "matches_from_json", "to_document"]


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def to_document(index: Index) -> dict[str, Any]:
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
    return document


def from_document(document: Any, limits: Limits, end_of_blocks: int, start: int, has_matches: bool) -> Index:
    """An index from its JSON (untrusted). Raises CorruptError, LimitError, NewerFormatError.

    `start`, `end_of_blocks`: where blocks begin and end in the file.
    """
    d = fields(document, "index", {**_INDEX_FIELDS, "matches": dict} if has_matches else _INDEX_FIELDS)
    tensors = _tensors(d["tensors"], limits)
    pipelines = [pipeline_from_json(p) for p in d["pipelines"]]
    aliases = aliases_from_json(d["aliases"], tensors)
    segments, end = _segments(d["segments"], tensors, pipelines, start)
    if end != end_of_blocks:
        raise CorruptError("index: blocks and file differ in length")
    named = [spec.name for segment in segments for spec in segment.tensors] + list(aliases)
    if sorted(named) != sorted(spec.name for spec in tensors) or set(aliases.values()) & set(aliases):
        raise CorruptError("index: a tensor is in no segment, or in two")
    texts(d["gone"], "index: gone")
    texts(d["metadata"].values(), "index: metadata")
    base_id = d["base"]
    if base_id is None and any(s.base_digest is not None for s in segments):
        raise CorruptError("index: segments have a base, the archive has none")
    return Index(
        tensors, tuple(segments), d["id"], base_id, aliases, tuple(d["gone"]), d["metadata"], d["tree"],
        d["method"], d["bound"], d["writer"], matches_from_json(d["matches"], tensors, limits) if has_matches else None,
    )  # fmt: skip


def _tensors(items: Any, limits: Limits) -> tuple[TensorSpec, ...]:
    if len(items) > limits.tensors:
        raise LimitError(f"{len(items)} tensors; the limit is {limits.tensors}")
    specs = tuple(_tensor(item, limits) for item in items)
    if len({spec.name for spec in specs}) != len(specs):
        raise CorruptError("index: two tensors have one name")
    return specs


def _tensor(item: Any, limits: Limits) -> TensorSpec:
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


def matches_from_json(document: Any, tensors: Sequence[TensorSpec], limits: Limits) -> dict[str, TensorSpec]:
    """Field `matches` (untrusted): tensors whose base is another, and that. Raises CorruptError, LimitError."""
    matches = {}
    for key, item in document.items():
        spec = pick(tensors, _number(key), "index: matches")
        base = _tensor(item, limits)
        if base == spec or not can_serve(base, spec):
            raise CorruptError(f"index: tensor {spec.name!r} cannot come from {base.name!r} of the base")
        matches[spec.name] = base
    return matches


def aliases_from_json(document: Any, tensors: Sequence[TensorSpec]) -> dict[str, str]:
    """Field `aliases` (untrusted): names of tensors, each with that of its equal. Raises CorruptError."""
    aliases = {}
    for key, target in document.items():
        one, other = pick(tensors, _number(key), "index: aliases"), pick(tensors, target, "index: aliases")
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            raise CorruptError("index: an alias differs from its tensor in dtype or shape")
        aliases[one.name] = other.name
    return aliases


def _segments(
    items: Any, tensors: tuple[TensorSpec, ...], pipelines: list[Pipeline], offset: int
) -> tuple[list[Segment], int]:
    segments = []
    for number, item in enumerate(items):
        where = f"index: segment {number}"
        d = fields(item, where, _SEGMENT_FIELDS)
        specs = tuple(pick(tensors, i, f"{where}: tensors") for i in d["tensors"])
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
        check_blocks(segment)
        segments.append(segment)
    return segments, offset


def _number(key: str) -> int:
    """A tensor's number that is a key of an object. Raises CorruptError."""
    if not key.isdecimal() or str(int(key[:20])) != key:
        raise CorruptError("index: a key is not a tensor's number")
    return int(key)


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
