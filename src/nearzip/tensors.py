"""Named arrays: what is compressed, and what comes back."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nearzip.errors import NotFoundError, UsageError

__all__ = [
    "DTYPES",
    "Checkpoint",
    "TensorSpec",
    "as_array",
    "bits_of",
    "borrowed_room",
    "check_text",
    "dtype_of",
    "is_float",
    "keeping_last",
    "mantissa_bits",
    "room_for",
    "round_to",
]

Array = NDArray[Any]

#: Names of dtypes in files, and the NumPy types that hold them.
DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "complex64", "complex128", "bool")},
    **{f"int{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"})
_UNSIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}


def dtype_of(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a name in `DTYPES`."""
    try:
        return DTYPES[name]
    except KeyError:
        raise UsageError(f"dtype {name!r} is not supported; known are {', '.join(sorted(DTYPES))}") from None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether values of that type may be rounded (real floating point); everything else is exact."""
    return _NAMES.get(dtype) in FLOATS


def mantissa_bits(dtype: np.dtype[Any]) -> int:
    """Bits below the exponent of a floating-point number, or of each part of a complex one."""
    return int(ml_dtypes.finfo(dtype).nmant)  # type: ignore[no-untyped-call]


def bits_of(values: Array) -> Array:
    """The same memory as unsigned integers; complex numbers as pairs of their parts."""
    size: int = values.dtype.itemsize
    if values.dtype.kind == "c":
        size //= 2
    return values.view(_UNSIGNED[size])


#: Linux backs memory by pages of this size where a large array starts at such a border.
_LARGE_PAGE = 2 << 20


#: What a block takes, and the most memory that is kept in one piece.
_BLOCK_BYTES, _MOST_KEPT = 4 << 20, 64 << 20
#: Memory that nobody holds any more: of blocks, 64 MiB in all, and of one larger array, as an archive.
_spare_blocks: deque[Array] = deque(maxlen=16)
_spare_large: deque[Array] = deque(maxlen=1)


class _Lent:
    """Owns memory for the arrays that show it; it is spare again when the last of them is gone."""

    def __init__(self, raw: Array, give_back: Callable[[Array], None]) -> None:
        self._raw, self._give_back = raw, give_back
        self.__array_interface__ = raw.__array_interface__

    def __del__(self) -> None:
        self._give_back(self._raw)


def _at_large_page(n_bytes: int) -> Array:
    raw = np.empty(n_bytes + _LARGE_PAGE, np.uint8)
    start = -raw.ctypes.data % _LARGE_PAGE
    return raw[start : start + n_bytes]


def _lent(n_bytes: int) -> Array:
    """At least so many bytes, spare ones if they are not far more."""
    spare, size = (_spare_blocks, _BLOCK_BYTES) if n_bytes <= _BLOCK_BYTES else (_spare_large, n_bytes)
    try:
        raw = spare.pop()
    except IndexError:
        raw = _at_large_page(size)
    if not size <= raw.size <= 2 * size:
        raw = _at_large_page(size)
    return np.asarray(_Lent(raw, spare.append))


def room_for(n: int, dtype: np.dtype[Any] | type[np.generic]) -> Array:
    """An uninitialised array, shape (n,).

    Large ones start at the border of a large page: taking 4 MiB in small pages cost 1.4 to 2 ms where filling them
    takes 0.2, in large ones 0.7. Up to 64 MiB are in memory that was used before, if there is any to spare.
    """
    dtype = np.dtype(dtype)
    n_bytes = n * dtype.itemsize
    if n_bytes < _LARGE_PAGE:
        return np.empty(n, dtype)
    return (_lent if n_bytes <= _MOST_KEPT else _at_large_page)(n_bytes)[:n_bytes].view(dtype)


class _Rooms(threading.local):
    """Memory that a thread keeps for its next block."""

    def __init__(self) -> None:
        self.free: list[Array] = []


_rooms = _Rooms()
_MOST_ROOMS, _LARGEST_ROOM = 3, 16 << 20


@contextlib.contextmanager
def borrowed_room(n: int, dtype: np.dtype[Any]) -> Iterator[Array]:
    """As `room_for`, of memory that the thread takes back and uses again: nothing may hold on to the array."""
    n_bytes = n * dtype.itemsize
    room = _rooms.free.pop() if _rooms.free else np.empty(0, np.uint8)
    if room.size < n_bytes:
        room = room_for(n_bytes, np.uint8)
    try:
        yield room[:n_bytes].view(dtype)
    finally:
        if room.size <= _LARGEST_ROOM and len(_rooms.free) < _MOST_ROOMS:
            _rooms.free.append(room)


def round_to(dtype: np.dtype[Any], values: Array) -> Array:
    """Round double-precision values to `dtype`, types below 32 bits by way of float32.

    The detour is part of the format: it makes the result independent of how a library converts.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if dtype.itemsize < 4:
            values = values.astype(np.float32)
        return values.astype(dtype)


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (a key of `DTYPES`) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    # Not kept: the lock of a cached property takes longer than the product.
    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize

    @property
    def is_float(self) -> bool:
        """As `is_float` of its dtype."""
        return self.dtype in FLOATS

    def same_kind(self, other: TensorSpec | None) -> bool:
        """Whether `other` can serve as a base: same dtype and shape."""
        return other is not None and self.dtype == other.dtype and self.shape == other.shape


def as_array(name: str, value: Any) -> Array:
    """`value` as a contiguous array in native byte order, without a copy where possible: of NumPy, of torch on any
    device, or of a library whose arrays have `__array__` or DLPack.

    Raises UsageError for anything that is not a tensor of a supported dtype; the message names `name`.
    """
    if type(value) is np.ndarray and value.dtype in _NAMES and value.flags.c_contiguous:
        return value
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        value = _from_torch(torch, name, value)
    if not isinstance(value, (np.ndarray, np.generic)):
        value = _from_others(name, value)
    array = np.asarray(value)
    if array.dtype.newbyteorder("=") not in _NAMES:
        raise UsageError(f"tensor {name!r} has dtype {array.dtype}, which is not supported")
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(array.shape)


def _from_others(name: str, value: Any) -> Any:
    """A NumPy array of JAX's, TensorFlow's, .. array. Raises UsageError for what is none."""
    convert = np.asarray if hasattr(value, "__array__") else np.from_dlpack if hasattr(value, "__dlpack__") else None
    if convert is None:
        raise UsageError(
            f"tensor {name!r} is a {type(value).__name__}, not an array of NumPy, PyTorch or another library that has "
            f"__array__ or DLPack"
        )
    try:
        return convert(value)
    except Exception as error:
        raise UsageError(
            f"tensor {name!r}, a {type(value).__name__}, does not become a NumPy array: {error}"
        ) from error


#: Mappings inside mappings, at most.
_MAX_DEPTH = 100


def _flattened(tensors: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values, those of mappings inside by names with dots, as field tools write trees of parameters."""
    if depth > _MAX_DEPTH:
        raise UsageError(f"tensors are nested more than {_MAX_DEPTH} mappings deep")
    for name, value in tensors.items():
        whole = prefix + check_text("tensor names", name)
        if isinstance(value, Mapping):
            yield from _flattened(value, whole + ".", depth + 1)
        else:
            yield whole, value


def _from_torch(torch: Any, name: str, tensor: Any) -> Array:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UsageError(f"tensor {name!r} is sparse or quantized; give its parts as plain tensors")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    type_name = str(tensor.dtype).removeprefix("torch.")
    if type_name not in DTYPES:
        raise UsageError(f"tensor {name!r} has dtype {tensor.dtype}, which is not supported")
    dtype = DTYPES[type_name]
    if dtype.kind != "V" and type_name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return np.asarray(tensor.numpy())
    as_integers = tensor.contiguous().view(torch.int16 if dtype.itemsize == 2 else torch.uint8)
    return np.asarray(as_integers.numpy()).view(dtype)


def keeping_last(read: Callable[[str], Array]) -> Callable[[str], Array]:
    """For sources that decode on every call: the latest array is kept, since large ones are asked for piece by piece.

    Threads take turns.
    """
    lock = threading.Lock()
    kept: list[tuple[str, Array]] = []

    def read_once(name: str) -> Array:
        with lock:
            if not kept or kept[0][0] != name:
                kept[:] = [(name, read(name))]
            return kept[0][1]

    return read_once


def check_text(what: str, text: object) -> str:
    """A string that can be written as UTF-8. Raises UsageError."""
    if not isinstance(text, str):
        raise UsageError(f"{what} are strings, not {type(text).__name__} ({text!r})")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} are valid Unicode, which {text!r} is not") from None
    return text


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, read one at a time, with what else the file said.

    Parameters
    ----------
    specs : dict
        Name to TensorSpec, in the order of the source.
    read : callable
        Name to array. May return views of mapped memory; callers do not write to them.
    metadata : dict
        Plain strings (safetensors' `__metadata__`).
    tree : str or None
        JSON text that says how nested dicts were flattened (see `files`), or None.
    """

    specs: Mapping[str, TensorSpec]
    read: Callable[[str], Array]
    metadata: Mapping[str, str] = field(default_factory=dict)
    tree: str | None = None
    #: Called when nobody reads any more.
    close: Callable[[], None] = lambda: None

    @staticmethod
    def of(
        tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None, tree: str | None = None
    ) -> Checkpoint:
        """Wrap a mapping of arrays (nothing is copied where that can be avoided); mappings inside are flattened."""
        if not isinstance(tensors, Mapping):
            raise UsageError(f"tensors must be a mapping of names to arrays, not {type(tensors).__name__}")
        arrays: dict[str, Array] = {}
        for name, value in _flattened(tensors):
            if name in arrays:
                raise UsageError(f"two tensors are called {name!r} once mappings inside are flattened; rename one")
            arrays[name] = as_array(name, value)
        specs = {name: TensorSpec(name, _NAMES[a.dtype], a.shape) for name, a in arrays.items()}
        return Checkpoint(specs, arrays.__getitem__, dict(metadata or {}), tree)

    def spec(self, name: str) -> TensorSpec:
        """The spec of one tensor. Raises NotFoundError."""
        try:
            return self.specs[name]
        except KeyError:
            raise NotFoundError(f"no tensor {name!r}") from None

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """All tensors, one after the other."""
        for name in self.specs:
            yield name, self.read(name)

    @property
    def n_bytes(self) -> int:
        return sum(spec.n_bytes for spec in self.specs.values())

    @property
    def n_elements(self) -> int:
        return sum(spec.n_elements for spec in self.specs.values())
