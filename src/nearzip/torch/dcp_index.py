"""What `torch.distributed.checkpoint` calls metadata, as plain JSON: written by one process, checked by all readers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from nearzip.errors import CorruptError, NewerFormatError, UsageError
from nearzip.strictjson import load
from nearzip.torch.trees import Json, pack, unpack

__all__ = ["Place", "index_from_json", "index_to_json"]

_FORMAT = 1
#: Planners nest what they keep as deeply as a state dict is nested.
_DEPTH = 256
_MAX_AXES = 32


class Place(NamedTuple):
    """Location of a chunk: a process's store, a version of it, a tensor."""

    slot: int
    version: int
    name: str


def index_to_json(metadata: Metadata, places: Mapping[MetadataIndex, Place]) -> Json:
    """Raises UsageError for a planner whose data are not plain values."""
    entries: dict[str, Json] = {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata):
            entries[name] = None
            continue
        if not isinstance(entry, TensorStorageMetadata):
            raise UsageError(f"{name!r}: a {type(entry).__name__} cannot be stored")
        entries[name] = {
            "dtype": str(entry.properties.dtype).removeprefix("torch."),
            "requires_grad": bool(entry.properties.requires_grad),
            "size": list(entry.size),
            "chunks": [[list(chunk.offsets), list(chunk.sizes)] for chunk in entry.chunks],
        }
    where = [
        [index.fqn, None if index.offset is None else list(index.offset), *place] for index, place in places.items()
    ]
    return {
        "kind": "nearzip.dcp",
        "format": _FORMAT,
        "entries": entries,
        "planner": pack(metadata.planner_data, "planner", {}),
        "places": where,
    }


def index_from_json(data: bytes, where: str) -> Metadata:
    """From untrusted bytes. Raises CorruptError, NewerFormatError."""
    document = load(data, where, _DEPTH)
    if not isinstance(document, dict) or document.get("kind") != "nearzip.dcp":
        raise CorruptError(f"{where}: the version is no index of shards")
    if document.get("format") != _FORMAT:
        raise NewerFormatError(f"{where}: index of format {str(document.get('format'))[:20]}; this release reads 1")
    try:
        entries = {_text(name): _entry(entry) for name, entry in document["entries"].items()}
        places = dict(_place(row) for row in document["places"])
        planner = unpack(document["planner"], {})
        _check_complete(entries, places)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise CorruptError(f"{where}: the index is damaged: {str(error)[:200]}") from None
    return Metadata(entries, planner, places, StorageMeta(), None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


def _sizes(value: Any) -> torch.Size:
    if not isinstance(value, list) or len(value) > _MAX_AXES:
        raise TypeError(f"{str(value)[:80]} is no shape")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in value):
        raise ValueError(f"{str(value)[:80]} is no shape")
    return torch.Size(value)


def _entry(entry: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if entry is None:
        return BytesStorageMetadata()
    dtype = getattr(torch, _text(entry["dtype"]), None)
    if not isinstance(dtype, torch.dtype) or type(entry["requires_grad"]) is not bool:
        raise ValueError(f"{str(entry)[:80]} describes no tensor")
    size = _sizes(entry["size"])
    chunks = [ChunkStorageMetadata(_sizes(offsets), _sizes(sizes)) for offsets, sizes in entry["chunks"]]
    for chunk in chunks:
        if not len(chunk.offsets) == len(chunk.sizes) == len(size) or any(
            start + length > n for start, length, n in zip(chunk.offsets, chunk.sizes, size, strict=True)
        ):
            raise ValueError(f"a chunk lies outside of its tensor of {list(size)}")
    properties = TensorProperties(dtype=dtype, requires_grad=entry["requires_grad"])
    return TensorStorageMetadata(properties, size, chunks)


def _place(row: Any) -> tuple[MetadataIndex, Place]:
    name, offset, slot, version, tensor = row
    if not all(type(n) is int and 0 <= n < 1 << 31 for n in (slot, version)):
        raise ValueError(f"{str(row)[:80]} is no place")
    index = MetadataIndex(_text(name), None if offset is None else _sizes(offset))
    return index, Place(slot, version, _text(tensor))


def _check_complete(entries: Mapping[str, Any], places: Mapping[MetadataIndex, Place]) -> None:
    for name, entry in entries.items():
        chunks = getattr(entry, "chunks", None)
        for index in [MetadataIndex(name)] if chunks is None else [MetadataIndex(name, c.offsets) for c in chunks]:
            if index not in places:
                raise ValueError(f"no location given for {name!r}")
