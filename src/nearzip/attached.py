"""What else an archive carries for files: bytes of other files, stored as tensors that mappings do not show.

A tree (`Checkpoint.tree`) that begins with `PREFIX` is a document {"files": {"attached": [names], ..}}. The names are
those of uint8 tensors that hold bytes, not numbers of a network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nearzip.errors import CorruptError
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = [
    "attached_names",
    "attached_tree",
    "described",
    "files_of",
    "full_tree",
    "with_long_tree",
    "without_attached",
]

PREFIX = '{"files":'
#: Longer documents are stored as a tensor: the index of an archive must stay small.
_LONG = 32 << 10


def attached_tree(attached: list[str], rest: Mapping[str, Any]) -> str:
    """The document that names attached tensors and says what they are for."""
    return json.dumps({"files": {"attached": attached, **rest}}, separators=(",", ":"))


def files_of(tree: str | None) -> dict[str, Any]:
    """The content of such a document; empty for other trees. Raises CorruptError."""
    if tree is None or not tree.startswith(PREFIX):
        return {}
    try:
        content = json.loads(tree)["files"]
        names = content["attached"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptError("the description of the files is damaged") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CorruptError("the description of the files is damaged")
    return dict(content)


def attached_names(tree: str | None) -> frozenset[str]:
    """Tensors that are bytes of files. Raises CorruptError."""
    return frozenset(files_of(tree).get("attached", ()))


def without_attached(checkpoint: Checkpoint) -> Checkpoint:
    """Only the tensors of the network. Raises CorruptError."""
    names = checkpoint.attached
    if not names:
        return checkpoint
    specs = {name: spec for name, spec in checkpoint.specs.items() if name not in names}
    return replace(checkpoint, specs=specs, tree=None, attached=frozenset())


def described(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, with what its tree says of its tensors. Raises CorruptError."""
    content = files_of(checkpoint.tree)
    if not content:
        return checkpoint
    exact = content.get("exact", ())
    if not isinstance(exact, (list, tuple)) or not all(isinstance(name, str) for name in exact):
        raise CorruptError("the description of the files is damaged")
    return replace(checkpoint, attached=frozenset(content["attached"]), exact=frozenset(exact))


def with_long_tree(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint, described; a tree that is too long for an index becomes an attached tensor."""
    checkpoint = described(checkpoint)
    tree = checkpoint.tree
    if tree is None or len(tree) <= _LONG:
        return checkpoint
    raw = np.frombuffer(tree.encode("utf-8", "surrogatepass"), np.uint8)
    name = "nearzip:tree"
    while name in checkpoint.specs:
        name += "_"
    specs = {**checkpoint.specs, name: TensorSpec(name, "uint8", raw.shape)}

    def read(wanted: str) -> Array:
        return raw if wanted == name else checkpoint.read(wanted)

    exact = {"exact": sorted(checkpoint.exact)} if checkpoint.exact else {}
    short = attached_tree([*sorted(checkpoint.attached), name], {"tree": name, **exact})
    return described(replace(checkpoint, specs=specs, read=read, tree=short))


def full_tree(tree: str | None, read: Callable[[str], Array]) -> tuple[str | None, str | None]:
    """The tree that `with_long_tree` shortened, and the name of the tensor that holds it; the tree as it is, and None,
    otherwise."""
    name = files_of(tree).get("tree")
    if not isinstance(name, str):
        return tree, None
    try:
        return bytes(np.asarray(read(name)).tobytes()).decode("utf-8", "surrogatepass"), name
    except UnicodeDecodeError:
        raise CorruptError("the description of the files is damaged") from None
