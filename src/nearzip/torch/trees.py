"""Nested plain values with tensors in them, as named tensors and a JSON document. Nothing is ever pickled.

A node of the document is null, a boolean, an integer, a string or a finite float as it is, and else an object with one
key: `d` dict (pairs of key and value), `o` OrderedDict, `c` Counter, `g` Namespace, `l` list, `u` tuple, `n` named
tuple (name, fields, values), `z` torch.Size, `S` / `F` set / frozenset, `f` a float that JSON cannot spell, `C` complex
(two texts), `b` bytes, `t` / `a` the name of a torch tensor or NumPy array, `x` a tensor of one number (dtype and
value), `i` / `j` the name of the array of a tuple / list of many integers, `y` a torch dtype, `e` a torch device, `P` a
path, `T` a tensor made of tensors, `E` a member of an enumeration, `D` an instance of a dataclass (see `subclasses`).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import collections
import dataclasses
import enum
import math
import pathlib
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from nearzip.errors import CorruptError, UsageError
from nearzip.network.arrays import to_torch
from nearzip.tensors import as_array
from nearzip.torch.subclasses import class_name, has_parts, is_safe, parts_of, read_member, read_record, rebuilt

__all__ = ["Json", "pack", "pack_tensor", "unpack"]

Json = Any
#: Deeper nesting than any training state has; keeps recursion bounded.
_DEPTH = 64
#: From this length on a sequence of integers is stored as an array (Python's random state has 625).
_MANY = 16
#: Larger integers are counted in bits.
_LARGE = 1 << 64
#: Named tuples have fewer fields.
_MAX_FIELDS = 255
_NUMBERS = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)


def pack(value: Any, name: str, tensors: MutableMapping[str, Any], where: str | None = None, depth: int = 0) -> Json:
    """The node of `value`; its tensors go to `tensors` under names that begin with `name`.

    Parameters
    ----------
    value
        None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict, Counter, Namespace, set, tensor,
        array, dtype, device, torch.Size or path, nested up to 64 deep. A named tuple comes back as one of the same name
        and fields, which equals it.
    name : str
        Prefix of the tensors' names.
    tensors : mutable mapping
        Gets torch tensors and arrays as they are; nothing is copied.
    where : str
        What messages call the value; `name` if not given.

    Raises
    ------
    UsageError
        Something else is in there; the message says where.
    """
    if depth > _DEPTH:
        raise UsageError(f"{where or name}: is nested more than {_DEPTH} deep")
    if _is_plain(value):
        return value
    where = where or name
    if isinstance(value, enum.Enum) and (not isinstance(value, (str, int)) or is_safe(type(value))):
        return {"E": [class_name(type(value)), value.name]}
    if value is None or isinstance(value, (bool, str)) or type(value) is int:
        return _plain(value, where)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"f": repr(float(value))}
    if isinstance(value, torch.Tensor):
        return (
            _pack_parts(value, name, tensors, where, depth) if has_parts(value) else pack_tensor(value, name, tensors)
        )
    if isinstance(value, np.ndarray):
        return {"a": _keep(value, name, tensors)}
    if isinstance(value, np.generic):
        return pack(value.item(), name, tensors, where, depth)
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    if isinstance(value, complex):
        return {"C": [repr(value.real), repr(value.imag)]}
    if isinstance(value, torch.dtype):
        return {"y": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"e": str(value)}
    if isinstance(value, pathlib.PurePath):
        return {"P": _plain(str(value), where)}
    if isinstance(value, (set, frozenset)):
        nodes = _pack_sequence(list(value), name, tensors, where, depth)
        return {"S" if isinstance(value, set) else "F": nodes}
    if isinstance(value, argparse.Namespace):
        return {"g": [_pack_item(key, item, name, tensors, where, depth) for key, item in vars(value).items()]}
    if isinstance(value, (list, tuple)):
        return _pack_sequence(value, name, tensors, where, depth)
    if isinstance(value, Mapping):
        kinds = {collections.Counter: "c", collections.OrderedDict: "o"}
        kind = next((node for kind, node in kinds.items() if isinstance(value, kind)), "d")
        return {kind: [_pack_item(key, item, name, tensors, where, depth) for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        values = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        return {"D": [class_name(type(value)), pack(values, name, tensors, where, depth + 1)]}
    raise UsageError(
        f"{where}: a {type(value).__module__}.{type(value).__qualname__} cannot be stored; "
        "training state is made of tensors, numbers, strings, paths, lists, dicts and the like"
    )


def _is_plain(value: Any) -> bool:
    """Whether the document holds it as it is, without a conversion; most of a state's values do."""
    kind = type(value)
    if kind is float:
        return math.isfinite(value)
    return value is None or kind is bool or (kind is str and value.isascii()) or (kind is int and abs(value) < _LARGE)


def _plain(value: Any, where: str) -> Json:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{where}: {value!r} is not valid Unicode") from None
        return str(value)
    if type(value) is int and value.bit_length() > 8192:
        raise UsageError(f"{where}: an integer of {value.bit_length()} bits cannot be stored")
    return value


def _keep(value: Any, name: str, tensors: MutableMapping[str, Any]) -> str:
    unique, n = name, 2
    while unique in tensors:
        unique, n = f"{name}~{n}", n + 1
    tensors[unique] = value
    return unique


def pack_tensor(value: torch.Tensor, name: str, tensors: MutableMapping[str, Any]) -> Json:
    """The node of a tensor: `pack`'s, for what is known to be one."""
    if value.dim() == 0 and value.dtype in _NUMBERS and value.device.type == "cpu":
        number = value.item()
        # A negative zero and what is not finite are rare enough to be arrays.
        if math.isfinite(number) and not (number == 0 and math.copysign(1, number) < 0):
            return {"x": [str(value.dtype).removeprefix("torch."), number]}
    return {"t": _keep(value.detach(), name, tensors)}


def _pack_whole(value: torch.Tensor, name: str, tensors: MutableMapping[str, Any], where: str, depth: int) -> Json:
    return pack_tensor(value, name, tensors)


def _pack_parts(
    value: torch.Tensor, name: str, tensors: MutableMapping[str, Any], where: str, depth: int
) -> dict[str, Json]:
    """The node of a tensor made of tensors."""
    described, parts, context = parts_of(value)
    nodes = {
        part: pack(inner, f"{name}.{part}", tensors, f"{where}.{part}", depth + 1) for part, inner in parts.items()
    }
    packed = pack(context, f"{name}.context", tensors, f"the context of {where}", depth + 1)
    return {"T": {**described, "parts": nodes, "context": packed}}


def _pack_sequence(value: Any, name: str, tensors: MutableMapping[str, Any], where: str, depth: int) -> Json:
    is_list = isinstance(value, list)
    fields = getattr(value, "_fields", None)
    if not is_list and isinstance(fields, tuple):
        named = zip(fields, value, strict=True)
        nodes = [pack(item, f"{name}.{field}", tensors, f"{where}.{field}", depth + 1) for field, item in named]
        return {"n": [type(value).__name__, list(fields), nodes]}
    if (
        len(value) >= _MANY
        and not isinstance(value, torch.Size)
        and all(type(item) is int and 0 <= item < 1 << 63 for item in value)
    ):
        width = np.uint32 if max(value) < 1 << 32 else np.uint64
        return {"j" if is_list else "i": _keep(np.array(value, width), name, tensors)}
    nodes = [pack(item, f"{name}.{i}", tensors, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    return {"l" if is_list else "z" if isinstance(value, torch.Size) else "u": nodes}


def _pack_item(
    key: Any, item: Any, name: str, tensors: MutableMapping[str, Any], where: str, depth: int
) -> tuple[Json, Json]:
    if depth < _DEPTH and _is_plain(key) and _is_plain(item):
        return key, item  # without the names that messages would have
    if isinstance(key, (list, Mapping, torch.Tensor, np.ndarray)):
        raise UsageError(f"{where}: a {type(key).__name__} cannot be the key of a stored dict")
    packed_key = pack(key, f"{name}.key", tensors, f"a key of {where}", depth + 1)
    return packed_key, pack(item, f"{name}.{key}", tensors, f"{where}[{key!r}]", depth + 1)


def unpack(node: Json, tensors: Mapping[str, np.ndarray[Any, Any]], depth: int = 0) -> Any:
    """The value of a node, from an untrusted document; `tensors` by name. Raises CorruptError."""
    if depth > _DEPTH:
        raise CorruptError("training state: nested too deep")
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    if isinstance(node, dict) and len(node) == 1:
        ((kind, content),) = node.items()
        reader = _READERS.get(kind)
        if reader is not None:
            return reader(content, tensors, depth + 1)
    raise CorruptError(f"training state: {str(node)[:80]!r} is not a node")


def _array(name: Any, tensors: Mapping[str, Any]) -> Any:
    if not isinstance(name, str) or name not in tensors:
        raise CorruptError(f"training state: names tensor {str(name)[:80]!r}, which is not there")
    return tensors[name]


def _items(content: Any, what: type = list) -> Any:
    if not isinstance(content, what):
        raise CorruptError(f"training state: {str(content)[:80]!r} is not a {what.__name__}")
    return content


def _read_dict(content: Any, tensors: Mapping[str, Any], depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for pair in _items(content):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise CorruptError("training state: a dict holds pairs")
        key = unpack(pair[0], tensors, depth)
        try:
            duplicate = key in found
        except TypeError:
            raise CorruptError("training state: a key cannot be hashed") from None
        if duplicate:
            raise CorruptError(f"training state: key {key!r} appears twice")
        found[key] = unpack(pair[1], tensors, depth)
    return found


def _read_list(content: Any, tensors: Mapping[str, Any], depth: int) -> list[Any]:
    return [unpack(node, tensors, depth) for node in _items(content)]


def _read_integers(content: Any, tensors: Mapping[str, Any]) -> list[int]:
    array = _array(content, tensors)
    if array.dtype.kind != "u" or array.ndim != 1:
        raise CorruptError("training state: a list of integers is damaged")
    integers: list[int] = array.tolist()
    return integers


def _read_float(content: Any) -> float:
    if content not in ("nan", "inf", "-inf"):
        raise CorruptError(f"training state: {str(content)[:80]!r} is not a float")
    return float(content)


def _read_bytes(content: Any) -> bytes:
    try:
        return base64.b64decode(_items(content, str), validate=True)
    except (binascii.Error, ValueError):
        raise CorruptError("training state: bytes are not base64") from None


def _read_dtype(content: Any) -> torch.dtype:
    found = getattr(torch, content, None) if isinstance(content, str) else None
    if not isinstance(found, torch.dtype):
        raise CorruptError(f"training state: {str(content)[:80]!r} is no dtype")
    return found


def _read_device(content: Any) -> torch.device:
    try:
        return torch.device(_items(content, str))
    except RuntimeError:
        raise CorruptError(f"training state: {str(content)[:80]!r} is no device") from None


def _read_complex(content: Any) -> complex:
    try:
        real, imaginary = map(float, _items(content))
    except (TypeError, ValueError):
        raise CorruptError("training state: a complex number is damaged") from None
    return complex(real, imaginary)


def _read_size(content: Any, tensors: Mapping[str, Any], depth: int) -> torch.Size:
    axes = _read_list(content, tensors, depth)
    if not all(type(axis) is int and 0 <= axis < 1 << 63 for axis in axes):
        raise CorruptError("training state: a shape is damaged")
    return torch.Size(axes)


def _read_set(content: Any, tensors: Mapping[str, Any], depth: int) -> set[Any]:
    try:
        return set(unpack(content, tensors, depth))
    except TypeError:
        raise CorruptError("training state: a set is damaged") from None


def _read_namespace(content: Any, tensors: Mapping[str, Any], depth: int) -> argparse.Namespace:
    values = _read_dict(content, tensors, depth)
    if not all(isinstance(key, str) for key in values):
        raise CorruptError("training state: a Namespace is damaged")
    found = argparse.Namespace()
    vars(found).update(values)
    return found


def _read_named_tuple(content: Any, tensors: Mapping[str, Any], depth: int) -> Any:
    """A tuple of a class of its own, with the name and fields of the original: its class is not imported."""
    if not isinstance(content, list) or len(content) != 3 or not isinstance(content[1], list):
        raise CorruptError("training state: a named tuple is damaged")
    values = _read_list(content[2], tensors, depth)
    texts = [content[0], *content[1]]
    if len(values) != len(content[1]) or len(texts) > _MAX_FIELDS or not all(isinstance(t, str) for t in texts):
        raise CorruptError("training state: a named tuple is damaged")
    try:
        return collections.namedtuple(content[0], content[1])(*values)
    except ValueError:
        raise CorruptError("training state: a named tuple is damaged") from None


def _read_parts(content: Any, tensors: Mapping[str, Any], depth: int) -> torch.Tensor:
    described = _items(content, dict)
    parts = {str(name): unpack(node, tensors, depth) for name, node in _items(described.get("parts"), dict).items()}
    if not all(isinstance(part, torch.Tensor) for part in parts.values()):
        raise CorruptError("training state: a part of a tensor is not a tensor")
    return rebuilt(described, parts, unpack(described.get("context"), tensors, depth))


def _read_pair(content: Any) -> list[Any]:
    if not isinstance(content, list) or len(content) != 2:
        raise CorruptError("training state: a value of a class is damaged")
    return content


def _read_record(content: Any, tensors: Mapping[str, Any], depth: int) -> Any:
    name, node = _read_pair(content)
    values = unpack(node, tensors, depth)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise CorruptError("training state: a value of a class is damaged")
    return read_record(name, values)


def _read_number(content: Any) -> torch.Tensor:
    if not isinstance(content, list) or len(content) != 2 or not isinstance(content[1], (bool, int, float)):
        raise CorruptError("training state: a number is damaged")
    dtype = _read_dtype(content[0])
    if dtype not in _NUMBERS:
        raise CorruptError(f"training state: a number of dtype {dtype}")
    try:
        return torch.tensor(content[1], dtype=dtype)
    except (RuntimeError, OverflowError, ValueError):
        raise CorruptError(f"training state: {content[1]!r} does not fit {dtype}") from None


def _read_array(content: Any, tensors: Mapping[str, Any]) -> Any:
    return as_array(content if isinstance(content, str) else "?", _array(content, tensors)).copy()


_READERS: dict[str, Callable[[Any, Mapping[str, Any], int], Any]] = {
    "d": _read_dict,
    "c": lambda content, tensors, depth: collections.Counter(_read_dict(content, tensors, depth)),
    "o": lambda content, tensors, depth: collections.OrderedDict(_read_dict(content, tensors, depth)),
    "l": _read_list,
    "u": lambda content, tensors, depth: tuple(_read_list(content, tensors, depth)),
    "f": lambda content, tensors, depth: _read_float(content),
    "b": lambda content, tensors, depth: _read_bytes(content),
    "t": lambda content, tensors, depth: to_torch(_array(content, tensors)),
    "a": lambda content, tensors, depth: _read_array(content, tensors),
    "x": lambda content, tensors, depth: _read_number(content),
    "i": lambda content, tensors, depth: tuple(_read_integers(content, tensors)),
    "j": lambda content, tensors, depth: _read_integers(content, tensors),
    "y": lambda content, tensors, depth: _read_dtype(content),
    "n": _read_named_tuple,
    "T": _read_parts,
    "E": lambda content, tensors, depth: read_member(*_read_pair(content)),
    "D": _read_record,
    "z": _read_size,
    "S": _read_set,
    "F": lambda content, tensors, depth: frozenset(_read_set(content, tensors, depth)),
    "g": _read_namespace,
    "C": lambda content, tensors, depth: _read_complex(content),
    "e": lambda content, tensors, depth: _read_device(content),
    "P": lambda content, tensors, depth: pathlib.Path(_items(content, str)),
}
