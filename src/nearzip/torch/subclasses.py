"""Tensors made of tensors: torchao's quantized weights, 8-bit and 4-bit states of optimizers, DTensor.

They are stored as their parts (`__tensor_flatten__`) and rebuilt from them. A class is never imported because a
document names it: only those are used that this process has declared safe to load, with
`torch.serialization.add_safe_globals`, as torchao does for its own when it is imported.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nearzip.errors import CorruptError, UsageError

__all__ = [
    "class_name",
    "distributed_like",
    "has_parts",
    "is_safe",
    "parts_of",
    "read_member",
    "read_record",
    "rebuilt",
    "whole",
]


def has_parts(value: torch.Tensor) -> bool:
    """Whether a tensor is made of other tensors."""
    kind = type(value)
    return kind is not torch.Tensor and hasattr(kind, "__tensor_flatten__") and not _is_distributed(value)


def _is_distributed(value: torch.Tensor) -> bool:
    return hasattr(value, "full_tensor") and hasattr(value, "placements")


def class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def parts_of(value: torch.Tensor) -> tuple[dict[str, Any], dict[str, torch.Tensor], Any]:
    """What describes a tensor made of tensors: class, shape, strides; its parts; and its context, plain values."""
    names, context = value.__tensor_flatten__()  # type: ignore[attr-defined]
    described = {"class": class_name(type(value)), "shape": list(value.shape), "strides": list(value.stride())}
    return described, {name: getattr(value, name) for name in names}, context


def is_safe(kind: type) -> bool:
    """Whether a class is one of those that are safe to load."""
    return any(
        kind is (each[0] if isinstance(each, tuple) else each) for each in torch.serialization.get_safe_globals()
    )


def _safe(name: Any) -> Any:
    """The class of a name, if it is one of those that are safe to load. Raises UsageError."""
    for each in torch.serialization.get_safe_globals():
        found, known = each if isinstance(each, tuple) else (each, None)
        if isinstance(found, type) and name in (known, class_name(found)):
            return found
    package = str(name).split(".")[0][:40]
    raise UsageError(
        f"the state holds a {str(name)[:120]}; import {package} first, or declare the class safe with "
        "torch.serialization.add_safe_globals"
    )


def _numbers(content: Any) -> list[int]:
    if not isinstance(content, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in content):
        raise CorruptError("training state: the shape of a tensor made of tensors is damaged")
    return content


def rebuilt(described: Mapping[str, Any], parts: Mapping[str, torch.Tensor], context: Any) -> torch.Tensor:
    """The tensor that `parts_of` took apart, from an untrusted document. Raises CorruptError, UsageError."""
    kind = _safe(described.get("class"))
    shape, strides = (_numbers(described.get(key)) for key in ("shape", "strides"))
    if not issubclass(kind, torch.Tensor) or not hasattr(kind, "__tensor_unflatten__"):
        raise CorruptError(f"training state: {class_name(kind)} is not made of tensors")
    try:
        found = kind.__tensor_unflatten__(dict(parts), context, torch.Size(shape), tuple(strides))
    except Exception as error:
        raise CorruptError(f"training state: a {kind.__name__} cannot be made of its parts: {error}") from error
    if not isinstance(found, torch.Tensor) or list(found.shape) != shape:
        raise CorruptError(f"training state: a {kind.__name__} has another shape than it had")
    return found


def read_member(name: Any, member: Any) -> enum.Enum:
    """A member of an enumeration that is safe to load. Raises CorruptError, UsageError."""
    kind = _safe(name)
    if not issubclass(kind, enum.Enum) or member not in kind.__members__:
        raise CorruptError(f"training state: {str(name)[:80]} has no member {str(member)[:80]!r}")
    found: enum.Enum = kind[member]
    return found


def read_record(name: Any, values: Mapping[str, Any]) -> Any:
    """An instance of a dataclass that is safe to load. Raises CorruptError, UsageError."""
    kind = _safe(name)
    if not hasattr(kind, "__dataclass_fields__"):
        raise CorruptError(f"training state: {str(name)[:80]} is not a record")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise CorruptError(f"training state: a {class_name(kind)} cannot be made of its fields: {error}") from error


# ---- DTensor ---------------------------------------------------------------------------------------------------


def whole(value: torch.Tensor, refuse: Callable[[], Exception]) -> torch.Tensor:
    """A DTensor of one process as a plain tensor; other tensors as they are. Raises `refuse()` if it is spread."""
    if not _is_distributed(value):
        return value
    if value.device_mesh.size() > 1:  # type: ignore[attr-defined]
        raise refuse()
    return value.to_local()  # type: ignore[attr-defined, no-any-return]


def distributed_like(target: Any, value: Any) -> Any:
    """A plain tensor as a DTensor where the live one is: each process takes its share of what it has read itself."""
    plain = isinstance(value, torch.Tensor) and not _is_distributed(value)
    if not isinstance(target, torch.Tensor) or not _is_distributed(target) or not plain or value.shape != target.shape:
        return value
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    on_device = value.to(target.device)
    try:
        return distribute_tensor(on_device, mesh, placements, src_data_rank=None)
    except TypeError:  # PyTorch before 2.6 sends it from the first process
        replicated = distribute_tensor(on_device, mesh, [Replicate()] * mesh.ndim)
        return replicated.redistribute(mesh, placements)
