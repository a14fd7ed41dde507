"""Files of `torch.save`: read without PyTorch and without running anything in them; written by PyTorch.

The zip format since PyTorch 1.6 and the stream of pickles before it. Tensors are views of the mapped file.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from nearzip.checkpoints.base import CheckpointWriter, mapped, naming_file
from nearzip.checkpoints.builders import PickleError, StorageRef, TensorRef, Unknown
from nearzip.checkpoints.pickles import read_pickle, torch_storage
from nearzip.checkpoints.values import Tree, load_tree, unflatten
from nearzip.checkpoints.zips import data_offset
from nearzip.errors import CorruptError, Error, LimitError, UsageError, missing_extra
from nearzip.frameworks import as_torch
from nearzip.limits import Limits
from nearzip.tensors import DTYPES, Array, Checkpoint, TensorSpec, as_array, dtype_of

__all__ = ["PyTorch", "Storages", "ZipStorages", "read_tensor", "to_torch"]

#: What PyTorch calls its storages, and their dtypes in ours.
_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip
#: The numbers that a file of before PyTorch 1.6 begins with.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class Storages:
    """The memory of tensors in a file, by key."""

    def bytes_of(self, storage: StorageRef) -> Array:
        """All bytes of a storage. Raises CorruptError."""
        raise NotImplementedError


class ZipStorages(Storages):
    """Entries `data/KEY` of a zip file, mapped: `torch.save` does not compress them."""

    def __init__(self, path: str, zipped: zipfile.ZipFile, prefix: str, folder: str = "data/"):
        self._zipped = zipped
        self._file = mapped(path)
        self._prefix = prefix + folder

    def bytes_of(self, storage: StorageRef) -> Array:
        try:
            entry = self._zipped.getinfo(self._prefix + storage.key)
        except KeyError:
            raise CorruptError(f"storage {storage.key!r} is not there") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(self._zipped.read(entry), np.uint8)
        start = data_offset(self._file, entry)
        if start + entry.file_size > self._file.size:
            raise CorruptError(f"storage {storage.key!r} ends after the end of the file")
        return self._file[start : start + entry.file_size]


class _LegacyStorages(Storages):
    """One after the other behind the pickles, each behind its length in values."""

    def __init__(self, path: str, start: int, keys: list[str], kinds: Mapping[str, StorageRef]):
        self._file = mapped(path)
        self._places: dict[str, tuple[int, int]] = {}
        at = start
        for key in keys:
            if key not in kinds:
                raise CorruptError(f"storage {key!r} belongs to no tensor")
            n = int.from_bytes(self._file[at : at + 8].tobytes(), "little") * _item_bytes(kinds[key])
            self._places[key] = (at + 8, n)
            at += 8 + n
        if at > self._file.size:
            raise CorruptError("cut short")

    def bytes_of(self, storage: StorageRef) -> Array:
        if storage.key not in self._places:
            raise CorruptError(f"storage {storage.key!r} is not there")
        start, n = self._places[storage.key]
        return self._file[start : start + n]


def _item_bytes(storage: StorageRef) -> int:
    kind = _STORAGES.get(storage.kind)
    if kind is None:
        raise UsageError(f"has memory of type {storage.kind}, which is not supported")
    return dtype_of(kind).itemsize


def dtype_name(tensor: TensorRef) -> str:
    """Our name of a tensor's dtype. Raises UsageError."""
    name = tensor.dtype or _STORAGES.get(tensor.storage.kind)
    if name not in DTYPES:
        raise UsageError(f"dtype {name or tensor.storage.kind}, which is not supported")
    return name


def read_tensor(tensor: TensorRef, storages: Storages) -> Array:
    """The values of a tensor: a view of the file where it lies in order. Raises CorruptError."""
    dtype = dtype_of(dtype_name(tensor))
    raw = storages.bytes_of(tensor.storage)
    n_items = 1 + tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    if n_items * dtype.itemsize > raw.size:
        raise CorruptError("a tensor reaches beyond its memory")
    if raw.ctypes.data % dtype.alignment:
        raw = raw.copy()
    strides = tuple(step * dtype.itemsize for step in tensor.strides)
    view: Array = np.ndarray(tensor.shape, dtype, raw.data, tensor.offset * dtype.itemsize, strides)
    if tensor.conjugate:
        view = view.conj()
    if tensor.negative:
        view = -view
    return np.asarray(np.ascontiguousarray(view).reshape(tensor.shape))


# ---- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PyTorch:
    """`torch.save`."""

    name: str = "PyTorch"
    endings: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".th", ".tar")

    def recognizes(self, path: str, head: bytes) -> bool:
        if head.startswith(b"PK"):
            names = zip_names(path)
            return any(name.endswith("data.pkl") for name in names) and not is_script(names)
        return head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"

    def open(self, path: str) -> Checkpoint:
        value, storages, close = self._load(path)
        return checkpoint_of(path, value, storages, close)

    def _load(self, path: str) -> tuple[Any, Storages, Callable[[], None]]:
        with open(path, "rb") as stream:
            zipped = stream.read(2) == b"PK"
        try:
            return _load_zip(path) if zipped else _load_legacy(path)
        except PickleError as error:
            raise CorruptError(f"{path}: not a readable PyTorch file: {error}") from None
        except CorruptError as error:
            raise CorruptError(f"{path}: not a readable PyTorch file: {error}") from None
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None

    def check(self, path: str, specs: Mapping[str, TensorSpec], tree: str | None) -> None:
        torch = import_torch(path)
        for spec in specs.values():
            if spec.dtype != "bool" and not hasattr(torch, spec.dtype):
                raise UsageError(
                    f"{path}: PyTorch {torch.__version__} has no dtype {spec.dtype} for tensor {spec.name!r}; "
                    "write .safetensors"
                )

    @contextlib.contextmanager
    def writing(
        self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str], tree: str | None
    ) -> Iterator[CheckpointWriter]:
        writer = _Collector()
        yield writer
        save(stream, {name: writer.arrays[name] for name in specs}, tree)


def zip_names(path: str) -> list[str]:
    """Names of a zip file's entries; none if it is damaged."""
    try:
        with zipfile.ZipFile(path) as zipped:
            return zipped.namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, OSError):
        return []


def is_script(names: list[str]) -> bool:
    """Whether entries of a zip file are those of TorchScript."""
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def _load_zip(path: str) -> tuple[Any, Storages, Callable[[], None]]:
    zipped, prefix = open_zip(path)
    try:
        value = read_pickle(read_entry(zipped, f"{prefix}data.pkl"), torch_storage)
        return value, ZipStorages(path, zipped, prefix), zipped.close
    except BaseException:
        zipped.close()
        raise


def open_zip(path: str) -> tuple[zipfile.ZipFile, str]:
    """A zip file of PyTorch's, and the folder in it that holds everything. Raises CorruptError."""
    try:
        zipped = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise CorruptError(str(error)) from None
    main = next((name for name in zipped.namelist() if name.endswith("data.pkl")), None)
    if main is None:
        zipped.close()
        raise CorruptError("it has no data.pkl")
    prefix = main.removesuffix("data.pkl")
    with contextlib.suppress(KeyError):
        if zipped.read(f"{prefix}byteorder") == b"big":
            zipped.close()
            raise UsageError("is of a big-endian machine; load and save it with PyTorch first")
    return zipped, prefix


def read_entry(zipped: zipfile.ZipFile, name: str) -> bytes:
    """One entry, checked. Raises CorruptError."""
    try:
        return zipped.read(name)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        raise CorruptError(f"entry {name!r}: {error}") from None


def _load_legacy(path: str) -> tuple[Any, Storages, Callable[[], None]]:
    kinds: dict[str, StorageRef] = {}

    def load(pid: Any) -> StorageRef:
        storage = torch_storage(pid)
        kinds[storage.key] = storage
        return storage

    with open(path, "rb") as stream:
        if read_pickle(stream) != _LEGACY_MAGIC:
            raise UsageError(
                "is a pickle, but not PyTorch's: loading it could run code; save the tensors with torch.save or as "
                ".safetensors"
            )
        for _ in range(2):  # the version of the protocol, and of what machine
            read_pickle(stream)
        value = read_pickle(stream, load)
        keys = read_pickle(stream)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CorruptError("cut short")
        start = stream.tell()
    return value, _LegacyStorages(path, start, keys, kinds), lambda: None


def checkpoint_of(
    path: str, value: Any, storages: Storages, close: Callable[[], None], tree: bool = True
) -> Checkpoint:
    """Tensors and the tree of a value that was read from a pickle."""
    try:
        builder = Tree(path, lambda each: isinstance(each, TensorRef) or _is_tensor(each), _memory)
        text = builder.of(value)
        tensors = builder.tensors
        with naming_file(path):
            specs = {name: _spec(name, each) for name, each in tensors.items()}
        _check_expansion(path, specs, tensors)

        def read(name: str) -> Array:
            each = tensors[name]
            try:
                return read_tensor(each, storages) if isinstance(each, TensorRef) else as_array(name, each)
            except CorruptError as error:
                raise CorruptError(f"{path}: tensor {name!r}: {error}") from None

        for name in specs:  # what is damaged is named before work begins
            if isinstance(tensors[name], TensorRef):
                _check_memory(path, name, tensors[name], storages)
        return Checkpoint(specs, read, {}, text if tree else None, close=close)
    except BaseException:
        close()
        raise


def _is_tensor(value: Any) -> bool:
    """Tensors that are named and refused one by one."""
    return isinstance(value, Unknown) and value.kind.startswith("torch._utils._rebuild_")


def _memory(tensor: Any) -> Any:
    if not isinstance(tensor, TensorRef) or 0 in tensor.shape:
        return None
    return tensor


#: Names of the functions that make tensors without plain memory, and what errors call them.
_REFUSED = {
    "torch._utils._rebuild_meta_tensor_no_storage": "is on the meta device and has no values; load the weights first",
    "torch._utils._rebuild_sparse_tensor": "is sparse or quantized; give its parts as plain tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "is sparse or quantized; give its parts as plain tensors",
    "torch._utils._rebuild_qtensor": "is sparse or quantized; give its parts as plain tensors",
    "torch._utils._rebuild_wrapper_subclass": "is a tensor subclass; give its parts as plain tensors",
}


def _spec(name: str, tensor: Any) -> TensorSpec:
    if isinstance(tensor, Unknown):
        reason = _REFUSED.get(tensor.kind, f"is made by {tensor.kind}, which is not supported")
        raise UsageError(f"tensor {name!r} {reason}")
    if isinstance(tensor, TensorRef):
        try:
            return TensorSpec(name, dtype_name(tensor), tensor.shape)
        except UsageError as error:
            raise UsageError(f"tensor {name!r} has {error}") from None
    array = as_array(name, tensor)
    return Checkpoint.of({name: array}).specs[name]


def _check_memory(path: str, name: str, tensor: TensorRef, storages: Storages) -> None:
    with naming_file(path):
        n = 1 + tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
        size = storages.bytes_of(tensor.storage).size
        if 0 not in tensor.shape and n * dtype_of(dtype_name(tensor)).itemsize > size:
            raise CorruptError(f"tensor {name!r} reaches beyond its memory")


def _check_expansion(path: str, specs: Mapping[str, TensorSpec], tensors: Mapping[str, Any]) -> None:
    """Expanded tensors take no bytes in the file: bounded like everything that is read."""
    n_bytes = sum(spec.n_bytes for spec in specs.values() if isinstance(tensors[spec.name], TensorRef))
    allowed = Limits().allowed_output(os.stat(path).st_size)
    if n_bytes > allowed:
        raise LimitError(f"{path}: its tensors take {n_bytes} bytes, expanded from few; the limit is {allowed}")


# ---- writing ---------------------------------------------------------------------------------------------------


def import_torch(path: str) -> Any:
    """PyTorch. Raises MissingExtraError."""
    try:
        import torch
    except ImportError:
        raise missing_extra("PyTorch", "torch", f"{path}: writing a PyTorch file") from None
    return torch


class _Collector:
    """PyTorch's own writer wants everything at once."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def write(self, name: str, array: Array) -> None:
        self.arrays[name] = array


def save(stream: BinaryIO, arrays: Mapping[str, Array], tree: str | None) -> None:
    """`torch.save` of the value that a tree describes. Raises CorruptError for a damaged tree."""
    import torch

    # Equal tensors get memory of their own: what shares it in the source is marked in the tree. Two counters of an
    # optimizer that happen to be equal must not become one.
    tensors = {name: to_torch(torch, array) for name, array in arrays.items()}
    content = tensors if tree is None else unflatten(load_tree(tree), tensors, torch)
    try:
        torch.save(content, stream)
    except RuntimeError as error:
        # A full disk arrives as a complaint about positions, on top of what really happened.
        if isinstance(error.__context__, (OSError, Error)):
            raise error.__context__ from None
        raise


def to_torch(torch: Any, array: Array) -> Any:
    """A tensor with memory of its own, of any dtype that archives hold."""
    return as_torch(torch, np.array(array, copy=True, order="C"))
