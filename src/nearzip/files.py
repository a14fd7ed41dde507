"""Checkpoint files: .safetensors, .pt/.pth/.bin and .npz, read and written tensor by tensor.

Reading never runs code from a file: .pt goes through PyTorch's weights-only loader, .npz without pickle. Nested
dictionaries (.pt) are flattened to dotted names; a plain JSON tree remembers the nesting, numbers and strings.
"""

from __future__ import annotations

import contextlib
import errno
import json
import lzma
import math
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import safetensors

from nearzip.errors import CorruptError, Error, UsageError, missing_extra
from nearzip.storage import atomic_file, naming_errors
from nearzip.tensors import Array, Checkpoint, TensorSpec, as_array, dtype_of, keeping_last

__all__ = ["ENDINGS", "CheckpointWriter", "check_writable", "open_checkpoint", "write_checkpoint"]

#: File name endings that can be read and written.
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".npz")
_TORCH = (".pt", ".pth", ".bin")


class CheckpointWriter(Protocol):
    """Takes the announced tensors in any order, each once."""

    def write(self, name: str, array: Array) -> None: ...


def _ending(path: str | os.PathLike[str]) -> str:
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UsageError(f"{os.fspath(path)}: unknown ending {ending!r}; use one of {', '.join(ENDINGS)}")
    return ending


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint by its ending; tensors are read when asked for, from mapped memory where the format allows.

    Raises
    ------
    NotFoundError, UsageError
        No such file; an ending or content that is not supported.
    CorruptError
        The file is damaged, truncated or empty.
    """
    ending = _ending(path)
    readers: dict[str, Callable[[str], Checkpoint]] = {".safetensors": _open_safetensors, ".npz": _open_npz}
    with naming_errors("read", path):
        if os.path.isdir(path):
            raise IsADirectoryError
        if os.stat(path).st_size == 0:
            raise CorruptError(f"{os.fspath(path)}: the file is empty")
        return readers.get(ending, _open_torch)(os.fspath(path))


def check_writable(path: str | os.PathLike[str], specs: Mapping[str, TensorSpec]) -> None:
    """Raise UsageError if the format of `path` cannot hold these tensors, before any work is done."""
    ending = _ending(path)
    unable = {".safetensors": {"complex128"}, ".npz": {"bfloat16", "float8_e4m3fn", "float8_e5m2"}}.get(ending, set())
    for spec in specs.values():
        if _is_confused(ending, spec.name, specs):
            raise UsageError(
                f"{os.fspath(path)}: {ending} cannot hold a tensor of the name {spec.name!r}; write another format"
            )
        if spec.dtype in unable:
            raise UsageError(
                f"{os.fspath(path)}: {ending} cannot hold tensor {spec.name!r} of dtype {spec.dtype}; "
                "write .safetensors or .pt"
            )
    if ending in _TORCH:
        _import_torch(path)


def _is_confused(ending: str, name: str, names: Container[str]) -> bool:
    """Whether a format would take the name for something else.

    safetensors keeps its metadata under that name; zip ends names at NUL; NumPy reads "a.npy" where "a" stands too.
    """
    if ending == ".safetensors":
        return name == "__metadata__"
    return ending == ".npz" and ("\0" in name or f"{name}.npy" in names)


@contextlib.contextmanager
def write_checkpoint(
    path: str | os.PathLike[str],
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str] | None = None,
    tree: str | None = None,
    force: bool = False,
) -> Iterator[CheckpointWriter]:
    """A writer for the format that the ending names. The file appears when the block ends, whole or not at all."""
    check_writable(path, specs)
    ending = _ending(path)
    with atomic_file(path, force=force) as stream:
        if ending == ".safetensors":
            yield _SafetensorsWriter(stream, specs, metadata or {})
        elif ending == ".npz":
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                yield _NpzWriter(archive)
        else:
            writer = _TorchWriter()
            yield writer
            writer.save(stream, list(specs), tree)


# ---- safetensors -----------------------------------------------------------------------------------------------

_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_TO_SAFETENSORS = {ours: theirs for theirs, ours in _SAFETENSORS_DTYPES.items()}


def _open_safetensors(path: str) -> Checkpoint:
    try:
        # The library checks the header: sizes, holes, overlaps. It copies tensors, so they are read by mapping.
        with safetensors.safe_open(path, "numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise CorruptError(f"{path}: not a readable safetensors file: {error}") from None
    with open(path, "rb") as stream:
        (n_header,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(n_header))
    metadata = header.pop("__metadata__", {})
    mapped = np.memmap(path, np.uint8, "r")
    specs = {}
    places = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise UsageError(f"{path}: tensor {name!r} has dtype {entry['dtype']}, which is not supported")
        specs[name] = TensorSpec(name, _SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]))
        places[name] = 8 + n_header + entry["data_offsets"][0]

    def read(name: str) -> Array:
        spec = specs[name]
        flat = np.asarray(mapped[places[name] : places[name] + spec.n_bytes]).view(dtype_of(spec.dtype))
        return (flat if flat.flags.aligned else flat.copy()).reshape(spec.shape)

    return Checkpoint(specs, read, metadata)


class _SafetensorsWriter:
    """Header first, then every tensor at its place. The library's own writer wants all tensors in memory."""

    def __init__(self, stream: BinaryIO, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]):
        self._stream = stream
        self._places: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        at = 0
        # Widest first, as the library orders them, so that everything is aligned.
        for spec in sorted(specs.values(), key=lambda s: -dtype_of(s.dtype).itemsize):
            header[spec.name] = {
                "dtype": _TO_SAFETENSORS[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [at, at + spec.n_bytes],
            }
            self._places[spec.name] = at
            at += spec.n_bytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        stream.write(struct.pack("<Q", len(text)) + text)
        self._start = 8 + len(text)
        stream.truncate(self._start + at)

    def write(self, name: str, array: Array) -> None:
        self._stream.seek(self._start + self._places[name])
        self._stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


# ---- npz -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _naming_file(path: str) -> Iterator[None]:
    """Put the file in front of what is wrong with one of its tensors."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _npy_spec(path: str, name: str, stream: Any) -> TensorSpec:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.kind == "V":
        raise UsageError(
            f"{path}: array {name!r} reads as raw bytes ({dtype}): .npz cannot hold bfloat16 or float8, its real type "
            "is lost. Save as .safetensors or .pt"
        )
    if dtype.kind == "O":
        raise UsageError(f"{path}: array {name!r} holds Python objects, which would have to be unpickled")
    with _naming_file(path):
        return TensorSpec(name, as_array(name, np.empty(0, dtype.newbyteorder("="))).dtype.name, tuple(shape))


#: What zip and NumPy raise on damaged, encrypted or unknown content.
_NPZ_DAMAGE = (ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


def _open_npz(path: str) -> Checkpoint:
    try:
        # Not by numpy.load: with "a" and "a.npy" in one file, it reads the first for both.
        zipped = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise CorruptError(f"{path}: not a readable .npz file: {error}") from None
    try:
        members = {member.removesuffix(".npy"): member for member in zipped.namelist()}
        specs = {}
        for name, member in members.items():
            with zipped.open(member) as stream:
                specs[name] = _npy_spec(path, name, stream)
    except BaseException as error:
        zipped.close()
        if isinstance(error, _NPZ_DAMAGE) and not isinstance(error, Error):
            raise CorruptError(f"{path}: not a readable .npz file: {error}") from None
        raise

    def read(name: str) -> Array:
        try:
            with zipped.open(members[name]) as stream:
                return as_array(name, np.lib.format.read_array(stream, allow_pickle=False))
        except Error:
            raise
        except (OSError, *_NPZ_DAMAGE) as error:
            raise CorruptError(f"{path}: array {name!r}: {error}") from None

    return Checkpoint(specs, keeping_last(read), close=zipped.close)


class _NpzWriter:
    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive

    def write(self, name: str, array: Array) -> None:
        with self._archive.open(zipfile.ZipInfo(name + ".npy"), "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, array, allow_pickle=False)


# ---- PyTorch ---------------------------------------------------------------------------------------------------


def _import_torch(path: str | os.PathLike[str]) -> Any:
    try:
        import torch
    except ImportError:
        raise missing_extra("PyTorch", "torch", f"{os.fspath(path)}: a {Path(path).suffix} file") from None
    return torch


def _open_torch(path: str) -> Checkpoint:
    torch = _import_torch(path)
    try:
        try:
            content = _torch_load(torch, path, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = _torch_load(torch, path)  # the format before PyTorch 1.6
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() and "Unsupported operand" not in str(error):
            raise UsageError(
                f"{path}: holds Python objects besides tensors and plain values, and loading them could run code; "
                "save the state_dict alone"
            ) from None
        raise CorruptError(f"{path}: not a readable PyTorch file") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CorruptError(f"{path}: not a readable PyTorch file: {str(error)[:200].partition(chr(10))[0]}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise CorruptError(f"{path}: not a readable PyTorch file: cut short") from None
    tensors: dict[str, Any] = {}
    tree = _Flattener(path, torch, tensors).node(content, "")
    flat = tree["d"] if isinstance(content, dict) else []
    is_flat = isinstance(content, dict) and all(node == {"a": key} for key, node in flat)
    with _naming_file(path):
        return Checkpoint.of(tensors, tree=None if is_flat else json.dumps(tree, separators=(",", ":")))


def _torch_load(torch: Any, path: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickle protocols that damage made up
        return torch.load(path, map_location="cpu", weights_only=True, **options)


class _Flattener:
    """The tree of a nested structure; its tensors go to `tensors` under dotted names.

    A node is {"d": [[key, node], ..]} (dict), {"l": [..]} (list), {"t": [..]} (tuple), {"a": name} (tensor),
    {"s": [name, first]} (a tensor that shares the memory of `first`), {"f": hexadecimal float} or {"v": None, bool,
    int or str}.
    """

    def __init__(self, path: str, torch: Any, tensors: dict[str, Any]):
        self._path = path
        self._torch = torch
        self._tensors = tensors
        self._first: dict[tuple[Any, ...], str] = {}

    def node(self, node: Any, name: str) -> dict[str, Any]:
        if isinstance(node, self._torch.Tensor):
            return self._leaf(node, name)
        deeper = f"{name}." if name else ""
        if isinstance(node, Mapping):
            for key in node:
                if type(key) not in (str, int):
                    where = name or "the top level"
                    raise UsageError(f"{self._path}: {where} has a key of type {type(key).__name__}")
            return {"d": [[key, self.node(v, f"{deeper}{key}")] for key, v in node.items()]}
        if isinstance(node, (list, tuple)):
            items = [self.node(v, f"{deeper}{i}") for i, v in enumerate(node)]
            return {"l" if isinstance(node, list) else "t": items}
        if type(node) is float:
            return {"f": node.hex()}
        if node is None or type(node) in (bool, int, str):
            return {"v": node}
        raise UsageError(f"{self._path}: {name!r} is a {type(node).__name__}, neither a tensor nor a plain value")

    def _leaf(self, tensor: Any, name: str) -> dict[str, Any]:
        while name in self._tensors or not name:
            name += "_"
        self._tensors[name] = tensor
        if tensor.layout is self._torch.strided and tensor.numel():
            place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            first = self._first.setdefault(place, name)
            if first != name:
                return {"s": [name, first]}
        return {"a": name}


def _unflatten(node: Any, tensors: Mapping[str, Any], depth: int = 0) -> Any:
    """The structure that `_Flattener` read, from an untrusted tree. Raises CorruptError."""
    if type(node) is not dict or len(node) != 1 or depth > 100:
        raise CorruptError("the tree of nested values is damaged")
    (kind, value), *_ = node.items()
    if kind == "d" and type(value) is list and all(_is_item(item) for item in value):
        return {key: _unflatten(v, tensors, depth + 1) for key, v in value}
    if kind in ("l", "t") and type(value) is list:
        items = [_unflatten(v, tensors, depth + 1) for v in value]
        return items if kind == "l" else tuple(items)
    if kind == "a" and type(value) is str and value in tensors:
        return tensors[value]
    if kind == "s" and type(value) is list and len(value) == 2 and all(type(v) is str and v in tensors for v in value):
        return tensors[value[1]]
    if kind == "f" and type(value) is str:
        with contextlib.suppress(ValueError, OverflowError):
            return float.fromhex(value)
    if kind == "v" and (value is None or type(value) in (bool, int, str)):
        return value
    raise CorruptError("the tree of nested values is damaged")


def _is_item(item: Any) -> bool:
    return type(item) is list and len(item) == 2 and type(item[0]) in (str, int)


class _TorchWriter:
    """Collects; PyTorch's own writer wants everything at once."""

    def __init__(self) -> None:
        self._arrays: dict[str, Array] = {}

    def write(self, name: str, array: Array) -> None:
        self._arrays[name] = array

    def save(self, stream: BinaryIO, names: list[str], tree: str | None) -> None:
        import torch

        # Equal tensors get memory of their own: what shares it in the source is marked in the tree. Two counters of an
        # optimizer that happen to be equal must not become one.
        tensors = {name: _to_torch(torch, self._arrays[name]) for name in names}
        content = tensors if tree is None else _unflatten(_load_tree(tree), tensors)
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            # A full disk arrives as a complaint about positions, on top of what really happened.
            if isinstance(error.__context__, (OSError, Error)):
                raise error.__context__ from None
            raise


def _load_tree(tree: str) -> Any:
    try:
        return json.loads(tree)
    except (ValueError, RecursionError):
        raise CorruptError("the tree of nested values is damaged") from None


def _to_torch(torch: Any, array: Array) -> Any:
    name = array.dtype.name
    if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        bits = np.array(array, copy=True, order="C").view(np.int16 if array.itemsize == 2 else np.uint8)
        return torch.from_numpy(bits.reshape(array.shape)).view(getattr(torch, name))
    if not math.prod(array.shape):
        return torch.empty(array.shape, dtype=getattr(torch, name))
    return torch.from_numpy(np.array(array, copy=True, order="C"))
