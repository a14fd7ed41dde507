"""One version: what it is, and where its bytes are. docs/store.md is the specification.

Manifests are untrusted: every field is checked, paths are made only from checked numbers and names.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearzip.errors import CorruptError, UsageError
from nearzip.store.documents import MAX_DOCUMENT_BYTES, seal, unseal
from nearzip.tensors import check_text

__all__ = [
    "MAX_VERSIONS",
    "Manifest",
    "Part",
    "check_name",
    "described",
    "from_document",
    "parse",
    "parse_part",
    "path_of",
]

MAX_VERSIONS = 10**8
_OBJECT = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{32}")
#: Tags and names of metrics, so that selectors and command lines can say them.
_NAME = re.compile(r"[\w.+/-]{1,200}")


def path_of(number: int) -> str:
    """Path of a version's manifest.

    Examples
    --------
    >>> path_of(12)
    'versions/00000012'
    """
    return f"versions/{number:08d}"


@dataclass(frozen=True)
class Part:
    """Some tensors of a version, in one object.

    Parameters
    ----------
    object, n_bytes : str, int
        SHA-256 of the object in hexadecimal, and its length.
    base : int or None
        The version that the object was coded against.
    names : tuple of str or None
        The tensors that this version takes from the object; None: all of them.
    """

    object: str
    n_bytes: int
    base: int | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """A version of a store.

    Parameters
    ----------
    number : int
    time : str
        When it was committed, UTC, ISO 8601.
    id : str
        Digest of names, dtypes, shapes and values as they are restored (docs/format.md, "Digests").
    n_tensors, n_bytes : int
        How many tensors, and their bytes once restored.
    parts : tuple of Part
    order : tuple of str or None
        The tensors' names in their order, where the parts' order is another.
    tree : str or None
        JSON text that restores nested .pt structures.
    message, step, metrics, tags, metadata
        As given to `Store.commit`.
    writer : str
        Program and version, and a random word that tells two writers apart.
    pruned : str or None
        When it was dropped. Its parts may still be there because other versions are coded against it.
    """

    number: int
    time: str
    id: str
    n_tensors: int
    n_bytes: int
    parts: tuple[Part, ...]
    order: tuple[str, ...] | None = None
    tree: str | None = None
    message: str = ""
    step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    writer: str = ""
    pruned: str | None = None

    def __post_init__(self) -> None:
        bases = frozenset(part.base for part in self.parts if part.base is not None)
        #: The versions that this one is coded against. Each walk over the versions asks for them, often more than once.
        self.bases: frozenset[int]
        self.__dict__["bases"] = bases

    @property
    def objects(self) -> dict[str, int]:
        """Name and length of every object that this version takes tensors from."""
        return {part.object: part.n_bytes for part in self.parts}

    @property
    def n_stored(self) -> int:
        """Bytes of its objects, shared ones included."""
        return sum(self.objects.values())

    def to_document(self) -> dict[str, Any]:
        """The JSON form."""
        document = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "number"}
        document["version"] = self.number
        document["parts"] = [vars(part) for part in self.parts]
        document["metrics"] = {name: _put_number(value) for name, value in self.metrics.items()}
        return document

    def to_bytes(self) -> bytes:
        """The sealed document. Raises UsageError if it is too long to be read again."""
        data = seal("version", self.to_document())
        if len(data) > MAX_DOCUMENT_BYTES:
            raise UsageError(f"the description of a version takes {len(data)} bytes; up to {MAX_DOCUMENT_BYTES} fit")
        return data


def _put_number(value: float) -> float | str:
    """JSON has no NaN, and a network that diverged has metrics all the same."""
    return value if math.isfinite(value) else repr(value)


def check_name(what: str, name: object) -> str:
    """A tag or the name of a metric. Raises UsageError."""
    text = check_text(what, name)
    if not _NAME.fullmatch(text):
        raise UsageError(f"{what} consist of up to 200 letters, digits, and . _ - + /, unlike {text!r}")
    return text


def _clean_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as they are stored; NumPy's and torch's numbers become floats. Raises UsageError."""
    found = {}
    for name, value in (metrics or {}).items():
        check_name("names of metrics", name)
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise UsageError(f"metric {name!r} is a number, not {value!r}") from None
    return found


def described(
    message: str,
    metrics: Mapping[str, Any] | None,
    tags: Sequence[str],
    step: int | None,
    metadata: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What a committer says of a version, as fields of its manifest. Raises UsageError."""
    if isinstance(tags, str):
        raise UsageError(f"tags are a list of texts, not the text {tags!r}")
    if step is not None and (isinstance(step, bool) or not hasattr(step, "__index__") or abs(int(step)) >= 1 << 62):
        raise UsageError(f"step is a whole number, not {step!r}")
    pairs = dict(metadata or {})
    for pair in pairs.items():
        for text in pair:
            check_text("metadata's keys and values", text)
    return {
        "message": check_text("messages", message),
        "metrics": _clean_metrics(metrics),
        "tags": tuple(dict.fromkeys(check_name("tags", tag) for tag in tags)),
        "step": None if step is None else int(step),
        "metadata": pairs,
    }


# ---- reading ---------------------------------------------------------------------------------------------------


def parse(data: bytes, number: int, where: str) -> Manifest:
    """A manifest from untrusted bytes. Raises CorruptError, TruncatedError, NewerFormatError with `where`."""
    d = unseal("version", data, where)
    try:
        return from_document(d, number)
    except CorruptError as error:
        raise CorruptError(f"{where}: {error}") from None


def from_document(d: Any, number: int) -> Manifest:
    """The manifest of version `number` from untrusted JSON. Raises CorruptError."""
    if type(d) is not dict or set(d) != _FIELDS:
        raise CorruptError("fields are missing or unknown")
    if type(d["version"]) is not int or d["version"] != number:
        raise CorruptError("is the manifest of another version")
    order = None if d["order"] is None else tuple(_list("order", d["order"], _text))
    metrics = _dict("metrics", d["metrics"])
    return Manifest(
        number=number,
        time=_text("time", d["time"]),
        id=_matching("id", d["id"], _ID),
        n_tensors=_count("n_tensors", d["n_tensors"]),
        n_bytes=_count("n_bytes", d["n_bytes"]),
        parts=tuple(parse_part(item, number) for item in _list("parts", d["parts"])),
        order=order,
        tree=None if d["tree"] is None else _text("tree", d["tree"]),
        message=_text("message", d["message"]),
        step=None if d["step"] is None else _integer("step", d["step"]),
        metrics={_matching("metric", name, _NAME): _get_number(value) for name, value in metrics.items()},
        tags=tuple(_matching("tag", tag, _NAME) for tag in _list("tags", d["tags"])),
        metadata={name: _text("metadata", text) for name, text in _dict("metadata", d["metadata"]).items()},
        writer=_text("writer", d["writer"]),
        pruned=None if d["pruned"] is None else _text("pruned", d["pruned"]),
    )


_FIELDS = {f.name for f in dataclasses.fields(Manifest)} - {"number"} | {"version"}
_PART_FIELDS = {f.name for f in dataclasses.fields(Part)}


def parse_part(item: Any, number: int) -> Part:
    """A part of version `number` from untrusted JSON. Raises CorruptError."""
    d = _dict("part", item)
    if set(d) != _PART_FIELDS:
        raise CorruptError("fields of a part are missing or unknown")
    base = d["base"]
    if base is not None and _count("base", base) == number:
        raise CorruptError("is coded against itself")
    names = None if d["names"] is None else tuple(_list("names", d["names"], _text))
    if names is not None and len(set(names)) != len(names):
        raise CorruptError("a part names a tensor twice")
    return Part(_matching("object", d["object"], _OBJECT), _count("n_bytes", d["n_bytes"]), base, names)


def _wrong(what: str) -> CorruptError:
    return CorruptError(f"field {what!r} has an impossible value")


def _text(what: str, value: Any) -> str:
    if type(value) is not str:
        raise _wrong(what)
    return value


def _matching(what: str, value: Any, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(_text(what, value)):
        raise _wrong(what)
    return str(value)


def _integer(what: str, value: Any) -> int:
    if type(value) is not int or abs(value) >= 1 << 63:
        raise _wrong(what)
    return value


def _count(what: str, value: Any) -> int:
    if _integer(what, value) < 0:
        raise _wrong(what)
    return int(value)


def _get_number(value: Any) -> float:
    if type(value) in (int, float) and abs(value) < math.inf:
        return float(value)
    if value in ("nan", "inf", "-inf"):
        return float(value)
    raise _wrong("metrics")


def _dict(what: str, value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise _wrong(what)
    return value


def _list(what: str, value: Any, each: Callable[[str, Any], Any] | None = None) -> list[Any]:
    if type(value) is not list:
        raise _wrong(what)
    return value if each is None else [each(what, item) for item in value]
