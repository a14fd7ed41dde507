"""A copy of a training's tensors in the computer's own memory, into the same memory every time."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from nearzip.tensors import as_array
from nearzip.torch.state import TrainingState

__all__ = ["Snapshot"]


class Snapshot:
    """Memory for one copy of a state. It is taken at the first copy and kept."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def n_bytes(self) -> int:
        """Memory that the copy takes."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def copy(self, state: TrainingState) -> TrainingState:
        """The state with copies in place of live tensors. The copies before are overwritten.

        Devices copy all tensors before they are waited for once.
        """
        tensors = {name: self._copied(name, value) for name, value in state.tensors.items()}
        self._buffers = {name: buffer for name, buffer in self._buffers.items() if name in tensors}
        if any(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in state.tensors.values()):
            torch.cuda.synchronize()
        return dataclasses.replace(state, tensors=tensors)

    def _copied(self, name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return as_array(name, value).copy()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            pinned = value.device.type == "cuda"
            buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=pinned)
            self._buffers[name] = buffer
        buffer.copy_(value.detach(), non_blocking=value.device.type == "cuda")
        return buffer
