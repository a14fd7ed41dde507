"""Named arrays: what is compressed, and what comes back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from nearzip.errors import NotFoundError, UsageError
from nearzip.parallel import ForkSafeLock

__all__ = [
    "DTYPES",
    "Checkpoint",
    "TensorSpec",
    "as_array",
    "bits_of",
    "check_text",
    "dtype_name",
    "dtype_of",
    "is_float",
    "keeping_last",
    "mantissa_bits",
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
    # Kept bit for bit, never rounded: scales and formats of some accelerators.
    "float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
    # NumPy has no such types: two 4-bit numbers in a byte; a complex number of two halves.
    "float4_e2m1fn_x2": np.dtype([("float4_e2m1fn_x2", np.uint8)]),
    "complex32": np.dtype([("real", np.float16), ("imag", np.float16)]),
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


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of a NumPy dtype in `DTYPES`. Raises UsageError."""
    if dtype not in _NAMES:
        raise UsageError(f"dtype {dtype} is not supported; known are {', '.join(sorted(DTYPES))}")
    return _NAMES[dtype]


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


def round_to(dtype: np.dtype[Any], values: Array) -> Array:
    """Round double-precision values to `dtype`, types below 32 bits by way of float32.

    The detour is part of the format: it makes the result independent of how a library converts.
    """
    if values.dtype == dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if dtype.itemsize < 4:
            values = values.astype(np.float32, copy=False)
        return values.astype(dtype)


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (a key of `DTYPES`) and shape of one tensor, and what follows from them. Raises UsageError for
    another dtype.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    # Computed at once: each is used some ten times a tensor, and `cached_property` would take longer for one.
    n_elements: int = field(init=False, compare=False, repr=False)
    n_bytes: int = field(init=False, compare=False, repr=False)
    numpy_dtype: np.dtype[Any] = field(init=False, compare=False, repr=False)
    #: As `is_float` of the dtype.
    is_float: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        known = self.__dict__  # as the class is frozen
        known["numpy_dtype"] = dtype = DTYPES.get(self.dtype) or dtype_of(self.dtype)
        known["n_elements"] = n = math.prod(self.shape)
        known["n_bytes"] = n * dtype.itemsize
        known["is_float"] = self.dtype in FLOATS

    @staticmethod
    def known(
        names: Iterable[str],
        dtypes: Iterable[str],
        shapes: Iterable[tuple[int, ...]],
        counts: Iterable[int],
        sizes: Iterable[int],
    ) -> tuple[TensorSpec, ...]:
        """Specs of many tensors whose numbers of elements and of bytes are known: in a third of the time."""
        found = []
        new = object.__new__
        for name, dtype, shape, count, size in zip(names, dtypes, shapes, counts, sizes, strict=True):
            spec = new(TensorSpec)
            kept = spec.__dict__
            kept["name"], kept["dtype"], kept["shape"], kept["n_elements"], kept["n_bytes"] = (
                name, dtype, shape, count, size,
            )  # fmt: skip
            kept["numpy_dtype"], kept["is_float"] = DTYPES[dtype], dtype in FLOATS
            found.append(spec)
        return tuple(found)

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


#: Mappings and lists inside each other, at most.
_MAX_DEPTH = 100


def _flattened(tensors: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Names and values, those of mappings, lists and tuples inside by names with dots, as field tools write trees of
    parameters; items of lists by their number, of named tuples by their name.
    """
    if depth > _MAX_DEPTH:
        raise UsageError(f"tensors are nested more than {_MAX_DEPTH} mappings deep")
    for name, value in tensors.items():
        whole = prefix + check_text("tensor names", name)
        # Asking whether an array is a mapping takes longer than all else here.
        if type(value) is np.ndarray:
            yield whole, value
            continue
        if isinstance(value, (list, tuple)) and not any(isinstance(item, (int, float, complex, str)) for item in value):
            fields = getattr(value, "_fields", None) or map(str, range(len(value)))
            value = dict(zip(fields, value, strict=True))
        if isinstance(value, Mapping):
            yield from _flattened(value, whole + ".", depth + 1)
        else:
            yield whole, value


def _from_torch(torch: Any, name: str, tensor: Any) -> Array:
    kind = type(tensor)
    if kind is not torch.Tensor and hasattr(kind, "__tensor_flatten__"):
        parts = ", ".join(map(repr, tensor.__tensor_flatten__()[0]))
        raise UsageError(
            f"tensor {name!r} is a {kind.__name__}, made of the tensors {parts}; give those as tensors of their "
            "own, or convert it to a plain tensor (nearzip.torch.Saver keeps it as it is)"
        )
    if tensor.device.type == "meta":
        raise UsageError(f"tensor {name!r} is on the meta device and has no values; load the weights first")
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise UsageError(f"tensor {name!r} is sparse or quantized; give its parts as plain tensors")
    type_name = str(tensor.dtype).removeprefix("torch.")
    if type_name not in DTYPES:
        raise UsageError(f"tensor {name!r} has dtype {tensor.dtype}, which is not supported")
    try:
        return _values_of(torch, tensor.detach().cpu().resolve_conj().resolve_neg(), DTYPES[type_name])
    except (RuntimeError, NotImplementedError, TypeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UsageError(
            f"tensor {name!r}: PyTorch cannot give the values of this {kind.__name__} ({reason}); convert it to a "
            "plain tensor"
        ) from None


def _values_of(torch: Any, tensor: Any, dtype: np.dtype[Any]) -> Array:
    if dtype.isbuiltin == 1:
        return np.asarray(tensor.numpy())
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    return np.asarray(tensor.contiguous().view(integers).numpy()).view(dtype)


def keeping_last(read: Callable[[str], Array]) -> Callable[[str], Array]:
    """For sources that decode on every call: the latest array is kept, since large ones are asked for piece by piece.

    Threads take turns.
    """
    lock = ForkSafeLock()
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
    """Tensors by name, read one at a time, with the file's metadata and structure.

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
    #: Tensors that are bytes of files, not numbers of a network (see `attached`).
    attached: frozenset[str] = frozenset()
    #: Tensors that keep every bit unless a bound or a plan names them: the state of an optimizer beside its network.
    exact: frozenset[str] = frozenset()
    #: Steps of quantization by which tensors were rounded when they were compressed, as far as that is known. Versions
    #: that were rounded by the same step can be coded exactly against each other at little cost.
    steps: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    #: Called when no reader is left.
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
