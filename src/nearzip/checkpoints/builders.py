"""The values that pickles may hold, and how they are made: plain ones from plain ones, without importing a class."""

from __future__ import annotations

import argparse
import collections
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = [
    "BUILDERS", "Device", "Global", "PendingArray", "PendingType", "PickleError", "Size", "StorageRef", "TensorRef",
    "Unknown", "WindowsPath", "checked_keys", "filled_array",
]  # fmt: skip


class PickleError(Exception):
    """The bytes are no pickle, or a damaged one."""


@dataclass(frozen=True)
class Global:
    """A name of a class, function or constant. Never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Unknown:
    """An object of a type that is not known: its type's name, and what it was made from."""

    def __init__(self, kind: object, args: Any = ()):
        self.kind = str(kind)
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []


class Size(tuple):  # type: ignore[type-arg]
    """A `torch.Size`."""


@dataclass(frozen=True)
class Device:
    """A `torch.device`."""

    name: str


@dataclass(frozen=True)
class WindowsPath:
    """A path of another system, as text."""

    text: str


@dataclass(frozen=True)
class StorageRef:
    """Memory of tensors: the type that it was saved with, the key of its bytes, and its length in values."""

    kind: str
    key: str
    n: int


@dataclass(frozen=True)
class TensorRef:
    """A view of a storage. `dtype`: PyTorch's name, or None for the storage's own; `conjugate`, `negative`: what is
    done to the values on reading."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None
    conjugate: bool = False
    negative: bool = False
    #: Of a Parameter: whether it wants gradients. None for other tensors.
    parameter: bool | None = field(default=None, compare=False)


#: Deeper tuples cannot be keys: hashing them recurses in C, without a guard.
_KEY_DEPTH = 16


def checked_keys(given: Any) -> list[Any]:
    """Keys of a dict, items of a set. Raises PickleError for tuples that are nested too deep to be hashed."""
    keys: list[Any] = list(given)
    level = [key for key in keys if isinstance(key, (tuple, frozenset))]
    for _ in range(_KEY_DEPTH):
        level = [item for key in level for item in key if isinstance(item, (tuple, frozenset))]
        if len(level) > 1_000_000:
            break
    if level:
        raise PickleError("a key is nested too deep")
    return keys


def _pairs(items: Any = ()) -> list[Any]:
    pairs = list(items.items()) if isinstance(items, Mapping) else [tuple(pair) for pair in items]
    checked_keys(pair[0] for pair in pairs)
    return pairs


def _counter(items: Any = ()) -> collections.Counter[Any]:
    return collections.Counter(dict(_pairs(items)) if isinstance(items, Mapping) else checked_keys(items))


# ---- what is known ---------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any, dtype: str | None = None) -> TensorRef:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, StorageRef) or len(shape) != len(strides):
        raise PickleError("a tensor without memory")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise PickleError("a tensor of an impossible shape")
    flags = rest[-1] if rest and isinstance(rest[-1], dict) and len(rest) > 2 else {}
    return TensorRef(
        storage, offset, tuple(shape), tuple(strides), dtype, flags.get("conj") is True, flags.get("neg") is True
    )


def _tensor_v3(*args: Any) -> TensorRef:
    storage, offset, shape, strides, _, _, dtype, *rest = args
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise PickleError("a tensor without a type")
    return _tensor(storage, offset, shape, strides, None, None, *rest, dtype=dtype.name)


def _parameter(tensor: Any, wants_gradient: Any = True, *_: Any) -> Any:
    if not isinstance(tensor, TensorRef):
        return Unknown("torch.nn.parameter.Parameter", (tensor,))
    return TensorRef(
        tensor.storage, tensor.offset, tensor.shape, tensor.strides, tensor.dtype, tensor.conjugate, tensor.negative,
        parameter=bool(wants_gradient),
    )  # fmt: skip


#: Types whose tensors are tensors and nothing else.
_PLAIN_TENSORS = {
    "torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "torch.nn.Parameter",
}  # fmt: skip


def _tensor_of_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    if str(kind) not in _PLAIN_TENSORS or str(function) not in BUILDERS:
        return Unknown(kind, (args, state))
    return BUILDERS[str(function)](*args)


def _device(kind: Any, index: Any = None) -> Device:
    return Device(str(kind) if index is None else f"{kind}:{int(index)}")


def _array(*_: Any) -> PendingArray:
    return PendingArray()


class PendingArray:
    """An array that BUILD completes."""


@dataclass
class PendingType:
    """A NumPy dtype that BUILD completes with its byte order."""

    name: str
    order: str = "="

    def dtype(self) -> np.dtype[Any]:
        try:
            dtype = np.dtype(self.name)
        except (TypeError, ValueError):
            raise PickleError(f"{self.name!r} is no dtype") from None
        if dtype.hasobject:
            raise PickleError("an array of objects")
        ordered: np.dtype[Any] = dtype.newbyteorder("=" if self.order == "|" else self.order)  # type: ignore[arg-type]
        return ordered


def _scalar(kind: Any, data: Any = b"") -> Any:
    if not isinstance(kind, PendingType) or not isinstance(data, bytes):
        return Unknown("numpy scalar", (kind, data))
    dtype = kind.dtype()
    if dtype.itemsize != len(data):
        raise PickleError("a NumPy scalar of the wrong length")
    return np.frombuffer(data, dtype)[0]


def filled_array(state: Any) -> Any:
    _, shape, kind, fortran, data = state
    if not isinstance(kind, PendingType) or not isinstance(data, bytes):
        return Unknown("numpy.ndarray of Python objects", state)
    flat = np.frombuffer(data, kind.dtype())
    return flat.reshape(shape, order="F" if fortran else "C")


def _encoded(text: str, codec: str = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise PickleError(f"text in {codec}")
    return text.encode(codec)


def _bytearray(data: Any = b"", codec: str | None = None) -> bytearray:
    if isinstance(data, int):  # which would be a length
        raise PickleError("a bytearray without bytes")
    return bytearray(data if codec is None else _encoded(data, codec))


def _path(*parts: Any) -> pathlib.PurePosixPath:
    return pathlib.PurePosixPath(*(str(part) for part in parts))


_FACTORIES: dict[str, Callable[..., Any]] = {
    f"{module}.{kind.__name__}": kind
    for kind in (list, dict, int, float, set, str)
    for module in ("builtins", "__builtin__")
}


def _default_dict(factory: Any = None, *rest: Any) -> Any:
    if factory is not None and str(factory) not in _FACTORIES:
        return Unknown("collections.defaultdict", (factory, *rest))
    return collections.defaultdict(None if factory is None else _FACTORIES[str(factory)], *map(_pairs, rest))


def _both(name: str, builder: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return {f"builtins.{name}": builder, f"__builtin__.{name}": builder}


#: What a name may be called with: each makes a plain value from plain values.
BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "torch.Size": lambda items=(): Size(items),
    "torch.device": _device,
    "collections.OrderedDict": lambda items=(): collections.OrderedDict(_pairs(items)),
    "collections.Counter": _counter,
    "collections.defaultdict": _default_dict,
    "argparse.Namespace": lambda: argparse.Namespace(),
    "_codecs.encode": _encoded,
    **_both("set", lambda items=(): set(checked_keys(items))),
    **_both("frozenset", lambda items=(): frozenset(checked_keys(items))),
    **_both("complex", lambda real=0.0, imag=0.0: complex(real, imag)),
    **_both("bytearray", _bytearray),
    **{
        f"{module}.{kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "PurePosixPath")
    },
    **{
        f"{module}.{kind}": lambda *parts: WindowsPath(str(pathlib.PureWindowsPath(*parts)))
        for module in ("pathlib", "pathlib._local")
        for kind in ("WindowsPath", "PureWindowsPath")
    },
    "numpy.dtype": lambda name="", *_: PendingType(str(name)),
    "numpy.ndarray": _array,
    **{f"numpy.{module}.multiarray._reconstruct": _array for module in ("core", "_core")},
    **{f"numpy.{module}.multiarray.scalar": _scalar for module in ("core", "_core")},
}  # fmt: skip
