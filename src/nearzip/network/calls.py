"""Calling a module on a batch, with other tensors in place of its own where wanted."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearzip.errors import UsageError
from nearzip.network.arrays import to_torch
from nearzip.tensors import as_array

__all__ = [
    "Caller",
    "Names",
    "call",
    "captured",
    "check_layer",
    "device_of",
    "last_linear",
    "moved",
    "output_of",
    "predictions_of",
]


def moved(batch: Any, device: torch.device) -> Any:
    """The batch on a device: tensors, and mappings, tuples and lists of them. Other values stay as they are."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(moved(value, device) for value in batch)
    return batch


def device_of(module: nn.Module) -> torch.device:
    """Where a module's first parameter or buffer is; the CPU if it has none."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def call(module: Callable[..., Any], batch: Any) -> Any:
    """The module's output for a batch.

    ======================  =====================================================
    batch                   what the module gets
    ======================  =====================================================
    tensor                  the tensor
    tuple or list           its first item (inputs; targets may follow)
    mapping                 keyword arguments, except "labels"
    ======================  =====================================================
    """
    if isinstance(batch, Mapping):
        return module(**{name: value for name, value in batch.items() if name != "labels"})
    return module(batch[0] if isinstance(batch, (tuple, list)) else batch)


def output_of(output: Any, option: str) -> Tensor:
    """The predictions in a module's output: a tensor, "logits" of an object or mapping, or the first of a tuple.

    Raises UsageError, which names the `option` that takes a function in place of the usual call.
    """
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, (tuple, list)) and output and not hasattr(output, "logits"):
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise UsageError(f"the network returns no tensor, and nothing called logits; say how to call it with {option}=")
    return output


def predictions_of(module: Callable[..., Any], batch: Any) -> Tensor:
    """A network's predictions for a batch, called and read the usual way. Raises UsageError, as `output_of`."""
    return output_of(call(module, batch), "forward")


class Caller:
    """A module, and how it is called.

    Parameters
    ----------
    module : torch module
    forward : callable
        forward(module, batch): any function of the module itself. Tensors are exchanged while it runs, so it may call
        the module's methods as well.
    """

    def __init__(self, module: nn.Module, forward: Callable[[Any, Any], Any]):
        self.module, self._forward = module, forward
        self.device = device_of(module)

    def __call__(self, batch: Any, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """What `forward` returns for a batch that is on the module's device.

        `tensors`: in place of the module's own parameters and buffers. One thread at a time: the module holds them
        while it runs.
        """
        if tensors is None:
            return self._forward(self.module, batch)
        renamed = {f"module.{name}": value for name, value in tensors.items()}
        return torch.func.functional_call(_Exchanged(self.module, self._forward), renamed, (batch,))


class _Exchanged(nn.Module):
    """Lets `functional_call` exchange the tensors of a network that is called in the user's own way."""

    def __init__(self, module: nn.Module, forward: Callable[[Any, Any], Any]):
        super().__init__()
        self.module = module
        self._how = forward

    def forward(self, batch: Any) -> Any:
        return self._how(self.module, batch)


class Names:
    """A module's parameters and buffers by every name that its state dict gives them.

    Tied parameters have several names; the first is the one that counts.
    """

    def __init__(self, module: nn.Module):
        named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        first: dict[int, str] = {}
        self._first = {name: first.setdefault(id(tensor), name) for name, tensor in named}

    def thinned(self, module: nn.Module, tensors: Mapping[str, Any]) -> bool:
        """Whether all of the module's tensors are given, and some with fewer rows or columns than the module's."""
        own = module.state_dict()
        if not own.keys() <= tensors.keys():
            return False
        shapes = {name: tuple(tensors[name].shape) for name in own}
        if any(len(shape) != own[name].dim() for name, shape in shapes.items()):
            return False
        pairs = [(a, b) for name, shape in shapes.items() for a, b in zip(shape, own[name].shape, strict=True)]
        return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

    def fitted(self, module: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
        """Arrays or tensors as the module's own: on its device, in its dtypes, tied ones under one name.

        Raises UsageError for a name that the module does not have, and for another shape.
        """
        own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        found = {}
        for name, value in tensors.items():
            if name not in self._first:
                raise UsageError(f"tensor {name!r}: the module has none of that name")
            mine = own[self._first[name]]
            tensor = to_torch(as_array(name, value), copy=False)
            if tensor.shape != mine.shape:
                raise UsageError(f"tensor {name!r} is {list(tensor.shape)}, the module's is {list(mine.shape)}")
            found[self._first[name]] = tensor.to(mine.device, mine.dtype)
        return found


def last_linear(module: nn.Module) -> str:
    """Name of the last linear layer. Raises UsageError if there is none."""
    names: list[str] = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise UsageError("the module has no linear layer whose inputs could be its features; name a layer")
    return names[-1]


def check_layer(module: nn.Module, layer: str) -> None:
    """Raises UsageError for a layer that the module does not have."""
    names = [name for name, _ in module.named_modules() if name]
    if layer not in names:
        raise UsageError(f"the module has no layer {layer!r}; it has {', '.join(names)[:200]}")


@contextlib.contextmanager
def captured(module: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """The inputs of a layer, one tensor for each call, while the context lasts.

    Raises UsageError for a layer that the module does not have.
    """
    layers = dict(module.named_modules())
    check_layer(module, layer)
    found: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0])

    hook = layers[layer].register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        hook.remove()
