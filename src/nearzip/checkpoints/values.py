"""Nested values with tensors in them, as a JSON document: how a .pt file is remembered and made again.

A node is an object with one key:

- ``d`` dict, ``o`` OrderedDict (null: all tensors under their own names), ``c`` Counter, ``g`` argparse.Namespace:
  pairs of key and node, where a key is a string, an integer or a node; ``D`` [factory, pairs] defaultdict;
- ``l`` list, ``t`` tuple, ``S`` set, ``F`` frozenset, ``z`` torch.Size: nodes; ``i``, ``j`` tuple, list of many
  integers;
- ``a`` the name of a tensor, ``s`` [name, first] a tensor that shares the memory of `first`, ``N`` the name of a NumPy
  array, ``p`` [node, requires_grad] a Parameter;
- ``v`` None, bool, int or str, ``f`` hexadecimal float, ``x`` complex, ``b``, ``B`` bytes, bytearray in base64,
  ``n`` [dtype, base64] NumPy scalar, ``y`` torch dtype, ``e`` device, ``P`` path, ``W`` path of Windows;
- ``m`` [node, node]: an OrderedDict and its `_metadata`.
"""

from __future__ import annotations

import argparse
import base64
import collections
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from nearzip.checkpoints.builders import Device, Global, Size, TensorRef, Unknown, WindowsPath
from nearzip.errors import CorruptError, UsageError

__all__ = ["MAX_DEPTH", "Tree", "load_tree", "other_values", "unflatten"]

Node = dict[str, Any]

#: Deeper nesting is refused, on both sides. Python's own recursion limit is not far.
MAX_DEPTH = 100
#: More values would take too much memory.
MAX_NODES = 5_000_000
#: How often containers may be referred to, in all, and for each of them: few that hold each other stand for very many.
_MAX_REFERENCES, _REFERENCES_EACH = 50_000, 20
#: From this length on, a sequence of integers is one node (Python's random state has 625).
_MANY = 16
_FACTORIES = {"list": list, "dict": dict, "int": int, "float": float, "set": set, "str": str, "": None}


class Tree:
    """Builds the document of a value. Its tensors and arrays go to `tensors` under dotted names.

    Parameters
    ----------
    path : str
        For messages.
    leaf : callable
        leaf(value) is true for tensors.
    memory : callable
        memory(tensor) is equal for tensors that are the same view of the same memory; None: of its own.
    """

    def __init__(self, path: str, leaf: Callable[[Any], bool], memory: Callable[[Any], Any]):
        self.tensors: dict[str, Any] = {}
        self.unknown: list[tuple[str, str]] = []
        self._path = path
        self._is_leaf = leaf
        self._memory = memory
        self._first: dict[Any, str] = {}
        self._n_nodes = self._n_containers = 0
        self._containers: set[int] = set()

    def of(self, value: Any) -> str | None:
        """The document as text; None for a plain dict of tensors.

        Raises UsageError that names what cannot be kept, and where it is.
        """
        node = self.node(value, "")
        if self.unknown:
            raise UsageError(self._complaint())
        if type(value) in (dict, collections.OrderedDict) and self._is_flat(node):
            if type(value) is dict:
                return None
            node = {"m": [{"o": None}, node["m"][1]]} if "m" in node else {"o": None}
        return json.dumps(node, separators=(",", ":"))

    def _is_flat(self, node: Node) -> bool:
        content = node["m"][0] if "m" in node else node
        return all(each == {"a": key} for key, each in content.get("d", content.get("o", ())))

    def _complaint(self) -> str:
        (name, kind), n = self.unknown[0], len(self.unknown)
        more = (
            ""
            if n == 1
            else f" (and {n - 1} more: {', '.join(repr(name) for name, _ in self.unknown[1:4])}"
            + (", ..)" if n > 4 else ")")
        )
        return (
            f"{self._path}: {name!r} is a {kind}{more}: loading such objects could run code, so they are not kept. "
            "Save the file without them (only the state_dict), or as dicts, lists, numbers and strings"
        )

    def node(self, value: Any, name: str, depth: int = 0) -> Node:
        """The node of `value`, whose place is `name`."""
        self._n_nodes += 1
        if depth > MAX_DEPTH or self._n_nodes > MAX_NODES:
            what = f"is nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else f"has over {MAX_NODES} values"
            raise UsageError(f"{self._path}: {name[:80]!r} {what}; save only the state_dict")
        self._count(value)
        if self._is_leaf(value):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray):
            return self._array(value, name)
        if isinstance(value, argparse.Namespace):
            return {"g": self._pairs(vars(value), name, depth)}
        if isinstance(value, dict):
            return self._dict(value, name, depth)
        if isinstance(value, (list, tuple)):
            return self._sequence(value, name, depth)
        if isinstance(value, (set, frozenset)):
            items = [self.node(item, f"{name}.{i}", depth + 1) for i, item in enumerate(value)]
            return {"S" if isinstance(value, set) else "F": items}
        return self._scalar(value, name)

    def _count(self, value: Any) -> None:
        if not isinstance(value, (dict, list, tuple, set, frozenset)):
            return
        self._n_containers += 1
        self._containers.add(id(value))
        if self._n_containers > _MAX_REFERENCES + _REFERENCES_EACH * len(self._containers):
            raise UsageError(f"{self._path}: its values refer to each other over and over; save only the state_dict")

    def _dict(self, value: Any, name: str, depth: int) -> Node:
        pairs = self._pairs(value, name, depth)
        if isinstance(value, collections.OrderedDict):
            metadata = getattr(value, "_metadata", None)
            return {"o": pairs} if metadata is None else {"m": [{"o": pairs}, self.node(metadata, name, depth + 1)]}
        if isinstance(value, collections.defaultdict):
            factory = "" if value.default_factory is None else getattr(value.default_factory, "__name__", "?")
            if factory in _FACTORIES:
                return {"D": [factory, pairs]}
        kind = "c" if isinstance(value, collections.Counter) else "d"
        if type(value) not in (dict, collections.Counter):
            return self._refused(type(value), name)
        return {kind: pairs}

    def _pairs(self, value: Mapping[Any, Any], name: str, depth: int) -> list[list[Any]]:
        deeper = f"{name}." if name else ""
        return [
            [self._key(key, f"{deeper}key", depth), self.node(item, f"{deeper}{key}", depth + 1)]
            for key, item in value.items()
        ]

    def _key(self, key: Any, name: str, depth: int) -> Any:
        return key if type(key) in (str, int) else self.node(key, name, depth + 1)

    def _sequence(self, value: Any, name: str, depth: int) -> Node:
        if type(value) in (list, tuple) and len(value) >= _MANY and all(type(item) is int for item in value):
            return {"j" if isinstance(value, list) else "i": list(value)}
        kinds: dict[type, str] = {list: "l", tuple: "t", Size: "z"}
        kind = kinds.get(type(value)) or ("z" if type(value).__name__ == "Size" else None)
        if kind is None:  # a named tuple, say
            return self._refused(type(value), name)
        deeper = f"{name}." if name else ""
        return {kind: [self.node(item, f"{deeper}{i}", depth + 1) for i, item in enumerate(value)]}

    def _scalar(self, value: Any, name: str) -> Node:
        if value is None or type(value) in (bool, int, str):
            return {"v": value}
        if type(value) is float:
            return {"f": value.hex()}
        if type(value) is complex:
            return {"x": [value.real.hex(), value.imag.hex()]}
        if isinstance(value, (bytes, bytearray)):
            return {"b" if isinstance(value, bytes) else "B": base64.b64encode(value).decode()}
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return {"n": [value.dtype.str, base64.b64encode(value.tobytes()).decode()]}
        if isinstance(value, Device):
            return {"e": value.name}
        if isinstance(value, WindowsPath):
            return {"W": value.text}
        if isinstance(value, pathlib.PurePath):
            return {"P": str(value)}
        if isinstance(value, Global) and value.module == "torch":
            return {"y": value.name}
        return self._refused(value, name)

    def _refused(self, value: Any, name: str) -> Node:
        kind = value.kind if isinstance(value, Unknown) else str(value) if isinstance(value, Global) else None
        if kind is None:
            kind = f"{value.__module__}.{value.__qualname__}" if isinstance(value, type) else type(value).__name__
        self.unknown.append((name or "the file", kind[:200]))
        return {"v": None}

    def _unique(self, name: str) -> str:
        while name in self.tensors or not name:
            name += "_"
        return name

    def _array(self, value: Any, name: str) -> Node:
        if value.dtype.kind not in "fiubc":
            return self._refused(Unknown(f"numpy.ndarray of {value.dtype}"), name)
        unique = self._unique(name)
        self.tensors[unique] = value
        return {"N": unique}

    def _tensor(self, tensor: Any, name: str) -> Node:
        name = self._unique(name)
        self.tensors[name] = tensor
        place = self._memory(tensor)
        first = name if place is None else self._first.setdefault(place, name)
        node: Node = {"a": name} if first == name else {"s": [name, first]}
        wants = tensor.parameter if isinstance(tensor, TensorRef) else None
        return node if wants is None else {"p": [node, wants]}


# ---- back ------------------------------------------------------------------------------------------------------


def load_tree(tree: str) -> Any:
    """The document of a tree. Raises CorruptError."""
    try:
        return json.loads(tree)
    except (ValueError, RecursionError):
        raise CorruptError("the tree of nested values is damaged") from None


def unflatten(node: Any, tensors: Mapping[str, Any], torch: Any, depth: int = 0) -> Any:
    """The value of a node, from an untrusted document; `tensors`: torch tensors by name. Raises CorruptError."""
    try:
        return _Builder(tensors, torch).value(node, depth)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError, RuntimeError):
        raise CorruptError("the tree of nested values is damaged") from None


class _Builder:
    def __init__(self, tensors: Mapping[str, Any], torch: Any):
        self._tensors = tensors
        self._torch = torch

    def value(self, node: Any, depth: int = 0) -> Any:
        if type(node) is not dict or len(node) != 1 or depth > MAX_DEPTH + 1:
            raise CorruptError("the tree of nested values is damaged")
        ((kind, content),) = node.items()
        if kind == "v" and (content is None or type(content) in (bool, int, str)):
            return content
        if kind in _SEQUENCES:
            return self._sequence(kind, content, depth + 1)
        reader: Callable[[_Builder, Any, int], Any] | None = _READERS.get(kind)
        if reader is None:
            raise CorruptError("the tree of nested values is damaged, or from a newer release")
        return reader(self, content, depth + 1)

    def _sequence(self, kind: str, content: Any, depth: int) -> Any:
        items = [self.value(item, depth) for item in _list(content)]
        return self._torch.Size(items) if kind == "z" else _SEQUENCES[kind](items)

    def tensor(self, name: Any, _: int = 0) -> Any:
        if type(name) is not str or name not in self._tensors:
            raise CorruptError("the tree of nested values is damaged: it names a tensor that is not there")
        return self._tensors[name]

    def shared(self, names: Any, _: int) -> Any:
        own, first = (self.tensor(name) for name in _list(names))
        return first if self._same_bits(own, first) else own  # bounds of their own may have parted them

    def _same_bits(self, one: Any, other: Any) -> bool:
        parts = (each.reshape(-1).view(self._torch.uint8) for each in (one, other))
        return one.dtype == other.dtype and bool(self._torch.equal(*parts))

    def array(self, name: Any, _: int) -> Any:
        return self.tensor(name).numpy()

    def parameter(self, content: Any, depth: int) -> Any:
        node, wants = _list(content)
        tensor = self.value(node, depth)
        return self._torch.nn.Parameter(tensor, requires_grad=bool(wants))

    def pairs(self, content: Any, depth: int) -> Iterable[tuple[Any, Any]]:
        for item in _list(content):
            key, node = _list(item)
            if type(key) not in (str, int):
                key = self.value(key, depth)
            yield key, self.value(node, depth)

    def ordered(self, content: Any, depth: int) -> Any:
        return collections.OrderedDict(self._tensors if content is None else self.pairs(content, depth))

    def with_metadata(self, content: Any, depth: int) -> Any:
        node, metadata = _list(content)
        value = self.value(node, depth - 1)  # the writer counts the two as one
        value._metadata = self.value(metadata, depth)
        return value

    def default_dict(self, content: Any, depth: int) -> Any:
        factory, pairs = _list(content)
        return collections.defaultdict(_FACTORIES[str(factory)], self.pairs(pairs, depth))

    def namespace(self, content: Any, depth: int) -> Any:
        return argparse.Namespace(**{str(key): value for key, value in self.pairs(content, depth)})

    def dtype(self, name: Any, _: int) -> Any:
        found = getattr(self._torch, name)
        if not isinstance(found, self._torch.dtype):
            raise CorruptError(f"{name[:80]!r} is no dtype")
        return found


def _list(content: Any) -> Any:
    if type(content) is not list:
        raise CorruptError("the tree of nested values is damaged")
    return content


def _numpy_dtype(text: Any) -> np.dtype[Any]:
    dtype = np.dtype(str(text))
    if dtype.hasobject:
        raise CorruptError("the tree of nested values is damaged: a NumPy scalar of objects")
    return dtype


def _integers(content: Any) -> list[int]:
    if not all(type(item) is int for item in _list(content)):
        raise CorruptError("the tree of nested values is damaged")
    return list(content)


_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"l": list, "t": tuple, "S": set, "F": frozenset, "z": tuple}
_READERS: dict[str, Callable[[_Builder, Any, int], Any]] = {
    "a": _Builder.tensor,
    "s": _Builder.shared,
    "N": _Builder.array,
    "p": _Builder.parameter,
    "d": lambda self, content, depth: dict(self.pairs(content, depth)),
    "o": _Builder.ordered,
    "c": lambda self, content, depth: collections.Counter(dict(self.pairs(content, depth))),
    "g": _Builder.namespace,
    "D": _Builder.default_dict,
    "m": _Builder.with_metadata,
    "i": lambda self, content, depth: tuple(_integers(content)),
    "j": lambda self, content, depth: _integers(content),
    "f": lambda self, content, depth: float.fromhex(content),
    "x": lambda self, content, depth: complex(*map(float.fromhex, _list(content))),
    "b": lambda self, content, depth: base64.b64decode(content, validate=True),
    "B": lambda self, content, depth: bytearray(base64.b64decode(content, validate=True)),
    "n": lambda self, content, depth: np.frombuffer(base64.b64decode(content[1]), _numpy_dtype(content[0]))[0],
    "y": _Builder.dtype,
    "e": lambda self, content, depth: self._torch.device(content),
    "P": lambda self, content, depth: pathlib.Path(str(content)),
    "W": lambda self, content, depth: pathlib.PureWindowsPath(str(content)),
}


# ---- what other formats lose -----------------------------------------------------------------------------------


def other_values(node: Any, name: str = "", depth: int = 0) -> list[str]:
    """The paths of all values that are not tensors: what is lost where a format holds tensors only."""
    if type(node) is not dict or len(node) != 1 or depth > MAX_DEPTH + 1:
        return []
    ((kind, content),) = node.items()
    if kind in ("a", "s", "N", "m"):  # versions of modules are no values that anybody set
        return other_values(content[0], name, depth + 1) if kind == "m" and type(content) is list else []
    if kind == "p" and type(content) is list and content:
        return other_values(content[0], name, depth + 1)
    deeper = f"{name}." if name else ""
    if kind == "D" and type(content) is list and len(content) == 2:
        kind, content = "d", content[1]
    if kind in "docg":
        pairs = [pair for pair in content or () if type(pair) is list and len(pair) == 2]
        return [each for key, item in pairs for each in other_values(item, f"{deeper}{_key_text(key)}", depth + 1)]
    if kind in _SEQUENCES and type(content) is list:
        return [each for i, item in enumerate(content) for each in other_values(item, f"{deeper}{i}", depth + 1)]
    return [name]


def _key_text(key: Any) -> str:
    return str(key) if type(key) in (str, int) else json.dumps(key)
