"""A module with the shapes of a file: layers are given the sizes of the tensors, which are then loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearzip.errors import UsageError
from nearzip.network.arrays import to_torch
from nearzip.tensors import as_array

__all__ = ["fit", "is_depthwise", "shapes_of"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Shape = tuple[int, ...]


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a convolution has one filter for each channel: thinned channels are groups of it."""
    return isinstance(layer, _CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels > 1


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes by name. Of an open archive (`nearzip.open`) they come from its index: nothing is decoded."""
    index = getattr(tensors, "index", None)
    known = {} if index is None else {spec.name: tuple(spec.shape) for spec in index.tensors}
    return {name: known[name] if name in known else tuple(tensors[name].shape) for name in tensors}


def fit(module: nn.Module, tensors: Mapping[str, Any]) -> nn.Module:
    """Give a module the shapes and values of a thinned network: what `nearzip.decompress` returns, or `nearzip.open`.

    Parameters
    ----------
    module : torch.nn.Module
        The original network, made as before: its layers say what each tensor is. It is changed in place.
    tensors : mapping of str to array or tensor
        Named as in its `state_dict()`. Every dimension is at most the module's own.

        ==========================  ======================================================================
        layer                       what may differ from the module's
        ==========================  ======================================================================
        Linear                      rows and columns
        Conv1d to 3d, transposed    filters and channels; depthwise: both together, with the groups
        BatchNorm1d to 3d           channels
        Embedding                   width
        anything else               nothing
        ==========================  ======================================================================

    Returns
    -------
    torch.nn.Module
        The same module; it needs nothing of this package any more. Optimizers made before hold parameters that are no
        longer the module's.

    Raises
    ------
    UsageError
        Tensors that are missing or that the module does not have; shapes that contradict the layer or each other, or
        that are larger than the module's. All shapes are checked before memory is taken or the module is changed.
    """
    shapes = shapes_of(tensors)
    own = _own(module)
    _check_names(shapes, own)
    for prefix, layer in module.named_modules():
        _check_layer(prefix, layer, shapes)
    _set_sizes(module, shapes)
    with torch.no_grad():
        for name, value in _own(module).items():
            if name in shapes:
                found = to_torch(as_array(name, tensors[name]), copy=False)
                value.copy_(found.reshape(value.shape).to(value.dtype))
    return module


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _check_names(shapes: Mapping[str, Shape], own: Mapping[str, Tensor]) -> None:
    for name, shape in shapes.items():
        if name not in own:
            raise UsageError(f"tensor {name!r}: the module has none of that name; is this the network it was made of?")
        mine = tuple(own[name].shape)
        if len(shape) != len(mine) or any(a > b for a, b in zip(shape, mine, strict=True)):
            raise UsageError(f"tensor {name!r} is {list(shape)}; a thinned one of the module's fits into {list(mine)}")
        if 0 in shape and 0 not in mine:
            raise UsageError(f"tensor {name!r} is {list(shape)}; a layer needs at least one row")
    missing = [name for name in own if name not in shapes]
    if missing:
        raise UsageError(f"tensor {missing[0]!r} of the module is not among the tensors given")


def _check_layer(prefix: str, layer: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Raises UsageError for shapes that no layer of this kind has."""
    dot = f"{prefix}." if prefix else ""
    names = [
        *(n for n, _ in layer.named_parameters(recurse=False)),
        *(n for n, _ in layer.named_buffers(recurse=False)),
    ]
    own = {n: shapes[dot + n] for n in names if dot + n in shapes}
    mine = {n: tuple(getattr(layer, n).shape) for n in own}
    if own == mine:
        return
    free = _free(layer)
    for name, shape in own.items():
        fixed = [
            i for i, (a, b) in enumerate(zip(shape, mine[name], strict=True)) if a != b and i not in free.get(name, ())
        ]
        if fixed:
            raise UsageError(
                f"tensor {dot + name!r} is {list(shape)}, the module's is {list(mine[name])}; dimension {fixed[0]} of "
                f"a {type(layer).__name__} cannot be thinned"
            )
    rows = {n: s[_row(layer, n)] for n, s in own.items() if s and n in free and _row(layer, n) in free[n]}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{dot}{n} has {count}" for n, count in rows.items())
        raise UsageError(f"the tensors of layer {prefix!r} contradict each other: {listed}")


def _row(layer: nn.Module, name: str) -> int:
    """The dimension of a layer's outputs."""
    transposed = isinstance(layer, _TRANSPOSED) and name == "weight"
    return 1 if transposed or isinstance(layer, nn.Embedding) else 0


def _free(layer: nn.Module) -> dict[str, tuple[int, ...]]:
    """Dimensions that thinning may change, by tensor."""
    if is_depthwise(layer):
        return {"weight": (0,), "bias": (0,)}
    if isinstance(layer, nn.Embedding):
        return {"weight": (1,)}
    if isinstance(layer, nn.Linear) or (isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)) and layer.groups == 1):
        return {"weight": (0, 1), "bias": (0,)}
    if isinstance(layer, _NORMS):
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (0,))
    return {}


def _set_sizes(module: nn.Module, shapes: Mapping[str, Shape]) -> None:
    """Resize the parameters and buffers, and what the layers say about their sizes. Tied ones stay tied."""
    resized: dict[int, Tensor] = {}
    for prefix, layer in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            shape = shapes.get(dot + name)
            if shape is None or (shape == tuple(value.shape) and id(value) not in resized):
                continue
            if id(value) not in resized:
                resized[id(value)] = _empty(value, shape)
            setattr(layer, name, resized[id(value)])
        _describe(layer)


def _empty(value: Tensor, shape: Shape) -> Tensor:
    empty = value.detach().new_zeros(shape)
    return nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty


def _describe(layer: nn.Module) -> None:
    """Make a layer's own figures those of its weight."""
    weight = getattr(layer, "weight", None)
    if isinstance(layer, _NORMS):
        sized = weight if weight is not None else layer.running_mean
        layer.num_features = layer.num_features if sized is None else len(sized)
    elif not isinstance(weight, Tensor):
        return
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif is_depthwise(layer):
        assert isinstance(layer, _CONVOLUTIONS)
        layer.in_channels = layer.out_channels = layer.groups = len(weight)
    elif isinstance(layer, _CONVOLUTIONS) and layer.groups == 1:
        layer.out_channels, layer.in_channels = weight.shape[:2]
    elif isinstance(layer, _TRANSPOSED) and layer.groups == 1:
        layer.in_channels, layer.out_channels = weight.shape[:2]
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = weight.shape[1]
