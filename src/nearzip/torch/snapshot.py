"""A copy of a training's tensors in the computer's own memory, into the same memory every time."""

from __future__ import annotations

import dataclasses

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
        live = {name: value for name, value in state.tensors.items() if isinstance(value, torch.Tensor)}
        self._buffers = {name: self._buffer(name, value) for name, value in live.items()}
        on_devices = any(value.is_cuda for value in live.values())
        if live:
            # One call: Python's share of it does not grow with the number of tensors.
            torch._foreach_copy_(list(self._buffers.values()), list(live.values()), non_blocking=on_devices)
        if on_devices:
            torch.cuda.synchronize()
        others = {n: as_array(n, value).copy() for n, value in state.tensors.items() if n not in live}
        tensors = {name: self._buffers[name] if name in live else others[name] for name in state.tensors}
        return dataclasses.replace(state, tensors=tensors)

    def _buffer(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Memory for a tensor, laid out as it is: what is copied in another order takes several times as long."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != value.shape or buffer.dtype != value.dtype:
            buffer = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda, requires_grad=False)
        return buffer
