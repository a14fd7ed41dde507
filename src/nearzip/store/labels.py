"""What an object says of the version that it was written for, so that a lost manifest can be rebuilt from it.

A label is metadata of the object's archive. An object whose label says nothing of other parts (written before labels
named them) may hold a part of its version only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nearzip.container import Index
from nearzip.errors import CorruptError, Error
from nearzip.store.manifest import Part, parse_part

__all__ = ["Label", "label_of"]

_VERSION = "nearzip.version"
_PARTS = "nearzip.parts"
_BOUNDS = "nearzip.bounds"
_WRITER = "nearzip.writer"
#: Longer lists of parts or bounds are left out.
_MAX_CHARACTERS = 1 << 15


@dataclass(frozen=True)
class Label:
    """What is written of an object's version.

    Parameters
    ----------
    number : int
        The version.
    complete : bool
        Whether the label names all other parts of the version.
    shared : tuple of Part
        Parts that the version takes from objects of other versions.
    order, tree
        As in the manifest, for a version of several parts.
    session, rank, ranks, base : str, int, int, int or None
        For a shard: whose session, which of how many, and the version that it may be coded against. Empty for a version
        that one process wrote.
    bounds : dict of str to str, or None
        For an object that was re-encoded exactly: the bounds that the version was committed under, by tensor; "*"
        stands for the others.
    writer : str
        A random word where objects of several processes must differ.
    """

    number: int
    complete: bool = True
    shared: tuple[Part, ...] = ()
    order: tuple[str, ...] | None = None
    tree: str | None = None
    session: str = ""
    rank: int = 0
    ranks: int = 1
    base: int | None = None
    bounds: Mapping[str, str] | None = None
    writer: str = ""

    def to_metadata(self) -> dict[str, str]:
        """The form stored in the object."""
        said: dict[str, Any] = {}
        if self.shared:
            said = {"shared": [vars(part) for part in self.shared], "order": self.order, "tree": self.tree}
        if self.session:
            said = {"session": self.session, "rank": self.rank, "ranks": self.ranks, "base": self.base}
        parts, bounds = _json(said), _json(self.bounds or {})
        # Small objects may have small indexes only; see `Limits.index_bytes`.
        found = {_VERSION: str(self.number), _PARTS: parts if len(parts) <= _MAX_CHARACTERS else _json({"more": True})}
        if self.bounds and len(bounds) <= _MAX_CHARACTERS:
            found[_BOUNDS] = bounds
        return found | ({_WRITER: self.writer} if self.writer else {})


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def label_of(index: Index) -> Label | None:
    """The label of an object (untrusted); None if it has none that can be read."""
    number = index.metadata.get(_VERSION, "")
    if not number.isdecimal() or len(number) > 9:
        return None
    try:
        return _read(int(number), index.metadata)
    except (KeyError, TypeError, ValueError, RecursionError, Error):
        return None


def _read(number: int, metadata: Mapping[str, str]) -> Label:
    bounds = json.loads(metadata.get(_BOUNDS, "null"))
    if bounds is not None and not _are_texts([*bounds.keys(), *bounds.values()]):
        raise CorruptError("bounds are texts")
    if _PARTS not in metadata:
        return Label(number, complete=False, bounds=bounds)
    said = json.loads(metadata[_PARTS])
    order, tree = said.get("order"), said.get("tree")
    if not (order is None or _are_texts(order)) or not isinstance(tree, (str, type(None))):
        raise CorruptError("order and tree are texts")
    return Label(
        number,
        complete=not said.get("more", False),
        shared=tuple(parse_part(part, number) for part in said.get("shared", ())),
        order=None if order is None else tuple(order),
        tree=tree,
        session=str(said.get("session", "")),
        rank=int(said.get("rank", 0)),
        ranks=int(said.get("ranks", 1)),
        base=None if said.get("base") is None else int(said["base"]),
        bounds=bounds,
    )


def _are_texts(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)
