"""The document of a training state: what a reader finds in it without PyTorch, and the optimizer's moments from it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zstandard

from nearzip.errors import CorruptError, NewerFormatError
from nearzip.moments.expand import expand_moments
from nearzip.tensors import Array

__all__ = ["DOCUMENT", "FORMAT", "expand", "optimizer_prefix", "read_document", "unpack_parts"]

#: The tensor that holds the document: JSON, compressed with zstd.
DOCUMENT = "training.json"
FORMAT = 1
#: A document says little of each tensor; more than this is not one of ours.
_MAX_BYTES = 64 << 20
#: Nodes of moments: in levels, left out, by rows and columns, in steps of Adam's quotient, in steps of their own size.
_KINDS = ("v", "z", "r", "m", "s")
#: What levels, predictions and patches of a moment are called in its node.
_PARTS = ("levels", "rows", "columns", "places", "exact")


def expand(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The tensors of a training state with the optimizer's moments as arrays. Needs no PyTorch.

    Parameters
    ----------
    tensors : mapping of str to array
        As `nearzip.torch.Saver` stores them: what `Store.checkout` or `decompress` gives of one of its versions.

    Returns
    -------
    dict of str to array
        `model/NAME`, `optimizer/PARAMETER/KEY` and all others; levels and what belongs to them are left out. A state
        whose moments are exact comes back as it is, without its document.

    Raises
    ------
    CorruptError, NewerFormatError
        No training state, a damaged one, or one of a later release.
    """
    if DOCUMENT not in tensors:
        raise CorruptError(f"no tensor {DOCUMENT!r}: this is not a training state but plain tensors")
    found = {name: array for name, array in tensors.items() if name != DOCUMENT}
    for i, part in enumerate(unpack_parts(read_document(tensors[DOCUMENT]))):
        for parameter, nodes in part["state"]:
            restored = {k: v for k, v in expand_moments(nodes, tensors).items() if isinstance(v, np.ndarray)}
            for name in _parts_of(nodes):
                found.pop(name, None)
            found.update({f"{optimizer_prefix(i)}/{parameter}/{key}": array for key, array in restored.items()})
    return found


def _parts_of(nodes: Mapping[str, Any]) -> Iterator[str]:
    """Names of the tensors that moments are restored from."""
    for node in nodes.values():
        for kind, content in node.items() if isinstance(node, dict) else ():
            if kind in _KINDS and isinstance(content, dict):
                yield from (str(content[key]) for key in _PARTS if key in content)


def optimizer_prefix(i: int) -> str:
    """What the names of the i-th optimizer's tensors begin with."""
    return f"optimizer{i}" if i else "optimizer"


def read_document(array: Array) -> dict[str, Any]:
    """The document, from an untrusted source. Raises CorruptError, NewerFormatError."""
    try:
        data = array.tobytes()
        if array.dtype != np.uint8 or not 0 < zstandard.frame_content_size(data) <= _MAX_BYTES:
            raise ValueError
        document = json.loads(zstandard.ZstdDecompressor().decompress(data))
    except (zstandard.ZstdError, ValueError, RecursionError):
        raise CorruptError("training state: the document is damaged") from None
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise CorruptError("training state: the document is damaged")
    if document["format"] > FORMAT:
        raise NewerFormatError(f"training state: format {document['format']}; this release reads up to {FORMAT}")
    names = document.get("parameters")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorruptError("training state: the document is damaged")
    if type(document.get("step")) is not int:
        raise CorruptError("training state: the document is damaged")
    return document


def unpack_parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The optimizers' parts of a document: class, groups of names and options, nodes by parameter and key."""
    try:
        return [
            {
                "class": saved["class"],
                "groups": [{"names": [str(n) for n in g["names"]], "options": g["options"]} for g in saved["groups"]],
                "state": [(str(name), dict(nodes)) for name, nodes in saved["state"]],
            }
            for saved in document.get("optimizers", [])
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CorruptError("training state: the optimizer's part is damaged") from None
