"""Pickles read as data. No class is imported and nothing is called: what is not known becomes an `Unknown`.

A small machine over the opcodes of `pickletools`. It builds lists, dicts, numbers and strings, and the values of
`BUILDERS`, which are harmless; PyTorch's tensors become descriptions of where their bytes are.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

__all__ = [
    "Device",
    "Global",
    "PickleError",
    "Size",
    "StorageRef",
    "TensorRef",
    "Unknown",
    "WindowsPath",
    "read_pickle",
]


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


def _checked_keys(given: Any) -> list[Any]:
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
    _checked_keys(pair[0] for pair in pairs)
    return pairs


def _counter(items: Any = ()) -> collections.Counter[Any]:
    return collections.Counter(dict(_pairs(items)) if isinstance(items, Mapping) else _checked_keys(items))


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


def _array(*_: Any) -> _Array:
    return _Array()


class _Array:
    """An array that BUILD completes."""


@dataclass
class _Type:
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
    if not isinstance(kind, _Type) or not isinstance(data, bytes):
        return Unknown("numpy scalar", (kind, data))
    dtype = kind.dtype()
    if dtype.itemsize != len(data):
        raise PickleError("a NumPy scalar of the wrong length")
    return np.frombuffer(data, dtype)[0]


def _filled_array(state: Any) -> Any:
    _, shape, kind, fortran, data = state
    if not isinstance(kind, _Type) or not isinstance(data, bytes):
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
    **_both("set", lambda items=(): set(_checked_keys(items))),
    **_both("frozenset", lambda items=(): frozenset(_checked_keys(items))),
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
    "numpy.dtype": lambda name="", *_: _Type(str(name)),
    "numpy.ndarray": _array,
    **{f"numpy.{module}.multiarray._reconstruct": _array for module in ("core", "_core")},
    **{f"numpy.{module}.multiarray.scalar": _scalar for module in ("core", "_core")},
}  # fmt: skip


# ---- the machine -----------------------------------------------------------------------------------------------

_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": set,
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip
_SKIPPED = {"PROTO", "FRAME"}


class _Machine:
    def __init__(self, load: Callable[[Any], Any], find: Callable[[Global], Any]):
        self._load = load
        self._find = find
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, source: bytes | BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(source):
            name = opcode.name
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif name not in _SKIPPED:
                step = getattr(self, f"_do_{name.lower()}", None)
                if step is None:
                    raise PickleError(f"opcode {name}")
                step(argument)
        raise PickleError("ends early")

    def _to_mark(self) -> list[Any]:
        stack, i = self._stack, len(self._stack) - 1
        while stack[i] is not _MARK:
            i -= 1
            if i < 0:
                raise PickleError("no mark")
        items = stack[i + 1 :]
        del stack[i:]
        return items

    def _do_mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _do_pop(self, _: Any) -> None:
        self._stack.pop()

    def _do_pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _do_dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    # memo

    def _do_memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_put(self, index: Any) -> None:
        self._memo[int(index)] = self._stack[-1]

    _do_binput = _do_long_binput = _do_put

    def _do_get(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    _do_binget = _do_long_binget = _do_get

    # containers

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._to_mark()))

    def _do_tuple1(self, _: Any) -> None:
        self._last_as_tuple(1)

    def _do_tuple2(self, _: Any) -> None:
        self._last_as_tuple(2)

    def _do_tuple3(self, _: Any) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, n: int) -> None:
        items = tuple(self._stack[-n:])
        if len(items) != n:
            raise PickleError("stack is short")
        self._stack[-n:] = [items]

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._to_mark())

    def _do_dict(self, _: Any) -> None:
        items = self._to_mark()
        _checked_keys(items[::2])
        self._stack.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _do_frozenset(self, _: Any) -> None:
        self._stack.append(frozenset(_checked_keys(self._to_mark())))

    def _do_append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def _do_appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _do_additems(self, _: Any) -> None:
        items, target = _checked_keys(self._to_mark()), self._stack[-1]
        (target.update if isinstance(target, set) else target.items.extend)(items)

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        (target.extend if isinstance(target, list) else target.items.extend)(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set(self._to_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Unknown):
            target.items.extend(items)
            return
        if not isinstance(target, dict):
            raise PickleError(f"items for a {type(target).__name__}")
        for key, value in zip(_checked_keys(items[::2]), items[1::2], strict=True):
            target[key] = value

    # objects

    def _do_global(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        self._stack.append(self._find(Global(module, name)))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise PickleError("a name that is no text")
        self._stack.append(self._find(Global(module, name)))

    def _do_reduce(self, _: Any) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._made(function, args))

    _do_newobj = _do_reduce

    def _do_newobj_ex(self, _: Any) -> None:
        options, args, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Unknown(kind, (args, options)) if options else self._made(kind, args))

    def _do_obj(self, _: Any) -> None:
        kind, *args = self._to_mark()
        self._stack.append(self._made(kind, tuple(args)))

    def _do_inst(self, argument: str) -> None:
        self._stack.append(self._made(self._find(Global(*argument.split(" ", 1))), tuple(self._to_mark())))

    def _made(self, function: Any, args: Any) -> Any:
        if str(function) == "copyreg._reconstructor" and args and str(args[0]) in BUILDERS:
            function, args = args[0], ()
        builder = BUILDERS.get(str(function)) if isinstance(function, Global) else None
        if builder is None:
            return Unknown(function.kind if isinstance(function, Unknown) else function, args)
        return builder(*args)

    def _do_build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _Array):
            made = _filled_array(state)
            self._stack[-1] = made
            for index, value in self._memo.items():
                if value is target:
                    self._memo[index] = made
        elif isinstance(target, _Type):
            target.order = state[1] if isinstance(state[1], str) and state[1] in "<>=|" else "="
        elif isinstance(target, argparse.Namespace) and isinstance(state, Mapping):
            vars(target).update((str(key), value) for key, value in state.items())
        elif isinstance(target, collections.OrderedDict) and isinstance(state, Mapping):
            # What Module.state_dict() hangs on its dict: the versions of the modules.
            if "_metadata" in state:
                target._metadata = state["_metadata"]  # type: ignore[attr-defined]
        elif isinstance(target, Unknown):
            target.state = state

    def _do_persid(self, argument: Any) -> None:
        self._stack.append(self._load(argument))

    def _do_binpersid(self, _: Any) -> None:
        self._stack.append(self._load(self._stack.pop()))


def read_pickle(
    source: bytes | BinaryIO, load: Callable[[Any], Any] = lambda pid: pid, find: Callable[[Global], Any] = lambda g: g
) -> Any:
    """The value of one pickle, as data.

    Parameters
    ----------
    source : bytes or binary stream
        A stream is left behind the pickle.
    load : callable
        What a persistent id stands for.
    find : callable
        May replace a name.

    Raises
    ------
    PickleError
        It is damaged.
    """
    try:
        return _Machine(load, find).run(source)
    except PickleError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
    ) as e:
        raise PickleError(str(e)[:200] or type(e).__name__) from None


def storage_refs(pid: Any) -> Iterator[Any]:
    """The fields of PyTorch's persistent id for a storage."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
        raise PickleError("a reference to something that is no storage")
    yield from pid[1:5]


def torch_storage(pid: Any) -> StorageRef:
    """What PyTorch's persistent ids stand for."""
    kind, key, _, n = storage_refs(pid)
    if not isinstance(kind, Global) or type(n) is not int or n < 0:
        raise PickleError("a storage without a type or length")
    return StorageRef(kind.name, str(key), n)
