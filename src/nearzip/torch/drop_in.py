"""safetensors' functions, with compressed files behind them: change the import, keep the code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

import nearzip.api as api
from nearzip.errors import UsageError
from nearzip.limits import Limits
from nearzip.network.arrays import to_torch

__all__ = ["load_file", "safe_open", "save_file"]

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
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{name!r} is a {type(tensor).__name__}, not a torch.Tensor")
    _refuse_shared(tensors)
    api.compress(tensors, metadata=dict(metadata or {}), **codec).save(filename, force=force)


def _refuse_shared(tensors: Mapping[str, torch.Tensor]) -> None:
    seen: dict[tuple[str, int], str] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or not tensor.numel():
            continue
        key = (str(tensor.device), tensor.untyped_storage().data_ptr())
        if key in seen and key[1]:
            raise UsageError(
                f"tensors {seen[key]!r} and {name!r} share memory; clone one of them, or use nearzip.compress, which "
                "stores equal tensors once"
            )
        seen[key] = name


def load_file(
    filename: Path, device: str | int | torch.device = "cpu", *, base: Any = None, limits: Limits | None = None
) -> dict[str, torch.Tensor]:
    """`safetensors.torch.load_file`, from an archive; `base` is what it was made against, if anything."""
    arrays = api.decompress(filename, base, limits)
    return {name: to_torch(array, copy=False).to(device) for name, array in arrays.items()}


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
    """`safetensors.safe_open`, for an archive: a context manager with `keys`, `metadata`, `get_tensor`, `get_slice`.

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
        self._reader = api.open(filename, base, limits)

    def keys(self) -> list[str]:
        return list(self._reader)

    def metadata(self) -> dict[str, str] | None:
        return self._reader.metadata() or None

    def get_tensor(self, name: str) -> Any:
        """One tensor. Raises NotFoundError, CorruptError."""
        array = self._reader[name]
        return to_torch(array, copy=False).to(self._device) if self._torch else array

    def get_slice(self, name: str) -> Any:
        """Something that gives parts of a tensor: `get_slice(name)[:, 3:5]`."""
        array = self._reader[name]
        return _Slice(to_torch(array, copy=False), self._device) if self._torch else array

    def __enter__(self) -> safe_open:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()
