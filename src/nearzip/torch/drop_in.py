"""safetensors' functions on compressed files: change the import, keep the code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch

import nearzip.api as api
from nearzip.archive import Archive
from nearzip.attached import without_attached
from nearzip.container import MAGIC, is_archive
from nearzip.errors import NotFoundError, UsageError
from nearzip.inputs import open_input
from nearzip.limits import Limits
from nearzip.network.arrays import to_torch
from nearzip.tensors import Array, Checkpoint, as_array

__all__ = ["load", "load_file", "load_model", "safe_open", "save", "save_file", "save_model"]

Path = str | os.PathLike[str]


def save_file(
    tensors: Mapping[str, torch.Tensor],
    filename: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = True,
    **codec: Any,
) -> None:
    """`safetensors.torch.save_file`, to an archive.

    Parameters
    ----------
    tensors : mapping of str to torch.Tensor
        Any dtype that archives hold, on any device.
    filename : path
        Written whole or not at all; replaced if it exists, as safetensors does, unless `force` is false.
    metadata : mapping of str to str
    **codec
        `base`, `method`, `bound`, `options` as `nearzip.compress` takes them; without them every bit is kept.

    Raises
    ------
    UsageError
        Not tensors, or tensors that share memory (safetensors refuses those too).
    """
    _archive(tensors, metadata, codec).save(filename, force=force)


def save(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None, **codec: Any) -> bytes:
    """`safetensors.torch.save`: the archive as bytes. Parameters and errors are `save_file`'s."""
    return _archive(tensors, metadata, codec).to_bytes()


def save_model(
    model: torch.nn.Module,
    filename: Path,
    metadata: Mapping[str, str] | None = None,
    force_contiguous: bool = True,
    *,
    force: bool = True,
    **codec: Any,
) -> None:
    """`safetensors.torch.save_model`: the state of a module, whose tensors may share memory.

    All names are kept; equal tensors are stored once. `force_contiguous` is accepted and makes no difference: tensors
    of any layout are saved. The other parameters and the errors are `save_file`'s.
    """
    api.compress(model.state_dict(), metadata=dict(metadata or {}), **codec).save(filename, force=force)


def _archive(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None, codec: Mapping[str, Any]
) -> Archive:
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{name!r} is a {type(tensor).__name__}, not a torch.Tensor")
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            as_array(name, tensor)  # which names what it cannot hold, before memory is asked for
    _refuse_shared(tensors)
    return api.compress(tensors, metadata=dict(metadata or {}), **codec)


def _refuse_shared(tensors: Mapping[str, torch.Tensor]) -> None:
    """Views that overlap are refused, as safetensors does; parts of one memory that do not are sound."""
    by_memory: dict[tuple[str, int], list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        if tensor.layout is torch.strided and tensor.numel() and tensor.data_ptr():
            key = (str(tensor.device), tensor.untyped_storage().data_ptr())
            by_memory.setdefault(key, []).append((name, tensor))
    for members in by_memory.values():
        if len(members) > 1:
            _refuse_overlaps(members)


def _refuse_overlaps(members: list[tuple[str, torch.Tensor]]) -> None:
    storage = members[0][1].untyped_storage()
    owner = np.zeros(storage.nbytes(), np.int32)
    for number, (name, tensor) in enumerate(members, 1):
        size = tensor.element_size()
        strides = (*(4 * size * step for step in tensor.stride()), 4)
        start = 4 * (tensor.data_ptr() - storage.data_ptr())
        mine = np.ndarray((*tensor.shape, size), np.int32, owner.data, start, strides)
        other = int(mine.max())
        if other:
            raise UsageError(
                f"tensors {members[other - 1][0]!r} and {name!r} share memory; clone one of them, or use save_model or "
                "nearzip.compress, which store equal tensors once"
            )
        mine[...] = number


def load_file(
    filename: Path, device: str | int | torch.device = "cpu", *, base: Any = None, limits: Limits | None = None
) -> dict[str, torch.Tensor]:
    """`safetensors.torch.load_file`, from an archive or from any checkpoint file; `base` is what the archive was made
    against, if anything.
    """
    if is_archive(filename):
        arrays: Mapping[str, Array] = api.decompress(filename, base, limits)
        return {name: to_torch(array, copy=False).to(device) for name, array in arrays.items()}
    with safe_open(filename, device=device) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - safetensors' method


def load(data: bytes, *, base: Any = None, limits: Limits | None = None) -> dict[str, torch.Tensor]:
    """`safetensors.torch.load`: the tensors of an archive, or of a safetensors file, in memory."""
    if bytes(data[: len(MAGIC)]) != MAGIC:
        import safetensors.torch

        return safetensors.torch.load(data)
    return {name: to_torch(array, copy=False) for name, array in api.decompress(data, base, limits).items()}


def load_model(
    model: torch.nn.Module,
    filename: Path,
    strict: bool = True,
    device: str | int | torch.device = "cpu",
    *,
    base: Any = None,
    limits: Limits | None = None,
) -> tuple[list[str], list[str]]:
    """`safetensors.torch.load_model`: loads a file into a module; returns the names missing and unexpected.

    A name that is missing is no fault where the module shares its memory with a name that is there.

    Raises
    ------
    UsageError
        With `strict`: names are missing or unexpected. Shapes differ.
    """
    state = load_file(filename, device, base=base, limits=limits)
    memory = {name: _memory(value) for name, value in model.state_dict().items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UsageError(f"{os.fspath(filename)}: {error}") from None
    loaded = {memory[name] for name in state if name in memory}
    missing = [name for name in missing if memory.get(name) not in loaded]
    if strict and (missing or unexpected):
        raise UsageError(
            f"{os.fspath(filename)}: does not fit {type(model).__name__}: missing are {missing[:4]}, unexpected are "
            f"{unexpected[:4]}; strict=False loads the rest"
        )
    return missing, list(unexpected)


def _memory(value: Any) -> tuple[Any, ...]:
    """Equal for tensors that show the same values of the same memory."""
    if not isinstance(value, torch.Tensor) or not value.numel():  # extra state may be anything
        return (object(),)  # equal to nothing else
    return (value.data_ptr(), value.shape, value.stride(), value.dtype)


class _Slice:
    """A tensor that is cut before it leaves for its device."""

    def __init__(self, tensor: torch.Tensor, device: Any):
        self._tensor, self._device = tensor, device

    def get_shape(self) -> list[int]:
        return list(self._tensor.shape)

    def get_dtype(self) -> str:
        return str(self._tensor.dtype).removeprefix("torch.")

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._tensor[index].contiguous().to(self._device)


class safe_open:  # noqa: N801 - safetensors' name
    """`safetensors.safe_open`, for an archive or any checkpoint file: a context manager with `keys`, `metadata`,
    `get_tensor`, `get_slice`.

    Parameters
    ----------
    filename : path
    framework : "pt" or "np"
    device : str
        Where torch tensors go.
    base : mapping of str to array
        What the archive was made against, if anything.
    """

    def __init__(
        self,
        filename: Path,
        framework: str = "pt",
        device: str | int | torch.device = "cpu",
        *,
        base: Any = None,
        limits: Limits | None = None,
    ):
        names = {"pt": True, "torch": True, "pytorch": True, "np": False, "numpy": False}
        if framework not in names:
            raise UsageError(f"framework is 'pt' or 'np', not {framework!r}")
        self._torch, self._device = names[framework], device
        self._read: Callable[[str], Array]
        if is_archive(filename):
            reader = api.open(filename, base, limits)
            self._names, self._metadata = list(reader), reader.metadata()
            self._read, self._close = reader.__getitem__, reader.close
        else:
            found: Checkpoint = without_attached(open_input(filename))
            self._names, self._metadata = list(found.specs), dict(found.metadata)
            self._read, self._close = found.read, found.close
        self._filename = filename

    def keys(self) -> list[str]:
        return list(self._names)

    #: In the order of the file.
    offset_keys = keys

    def metadata(self) -> dict[str, str] | None:
        return self._metadata or None

    def _array(self, name: str) -> Array:
        if name not in self._names:
            raise NotFoundError(f"{os.fspath(self._filename)}: no tensor {name!r}")
        return self._read(name)

    def get_tensor(self, name: str) -> Any:
        """One tensor. Raises NotFoundError, CorruptError."""
        array = self._array(name)
        return to_torch(array, copy=False).to(self._device) if self._torch else array

    def get_slice(self, name: str) -> Any:
        """Something that gives parts of a tensor: `get_slice(name)[:, 3:5]`."""
        array = self._array(name)
        return _Slice(to_torch(array, copy=False), self._device) if self._torch else array

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
