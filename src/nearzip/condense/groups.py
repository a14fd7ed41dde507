"""Which channels of a network go together: found by torch-pruning's dependency graph, and tried out one by one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nearzip.errors import Error, UsageError, missing_extra
from nearzip.network.calls import call, device_of, moved, output_of
from nearzip.network.fitting import fit, is_depthwise

__all__ = ["Group", "Part", "find_groups", "masked", "outputs_of", "relative_difference", "thinned"]

#: Largest difference of the outputs of a masked and a thinned network, relative to the outputs' size.
TOLERANCE = 1e-4
#: Forwards of one channel take as long as of many: half of a group is removed to try it out.
_PROBED = 0.5


@dataclass(frozen=True)
class Part:
    """One side of a tensor that belongs to a group.

    Parameters
    ----------
    tensor : str
        Name in the module's state dict.
    dim : int
    channels : Tensor of int64, shape (m,)
        The channel of the group for each of the indices.
    indices : Tensor of int64, shape (m,)
        Indices into the dimension; several may belong to one channel, as behind a flattening.
    makes : bool
        Whether it makes the channel (filters, biases, batch norm) or only reads it.
    """

    tensor: str
    dim: int
    channels: Tensor
    indices: Tensor
    makes: bool


@dataclass(frozen=True)
class Group:
    """Channels that can only go together, in all tensors that have them.

    Parameters
    ----------
    name : str
        Of the first layer that makes them.
    width : int
        How many there are.
    parts : tuple of Part
    """

    name: str
    width: int
    parts: tuple[Part, ...]


def outputs_of(module: nn.Module, inputs: Any) -> Tensor:
    """The module's outputs for example inputs, in evaluation mode; its mode stays as it is."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            return output_of(call(module, moved(inputs, device_of(module))), "inputs")
    finally:
        for layer, mode in modes:
            layer.training = mode


def relative_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference of two outputs, relative to the largest output; infinite for other shapes."""
    if a.shape != b.shape:
        return float("inf")
    size = float(a.abs().max()) if a.numel() else 0.0
    return float((a - b).abs().max()) / max(size, 1e-12) if a.numel() else 0.0


def masked(values: Mapping[str, Tensor], removed: Mapping[Group, Tensor]) -> dict[str, Tensor]:
    """Tensors with all that belongs to removed channels made zero; only those that a group has."""
    found: dict[str, Tensor] = {}
    for group, channels in removed.items():
        gone = torch.zeros(group.width, dtype=torch.bool)
        gone[channels] = True
        for part in group.parts:
            value = found.get(part.tensor)
            if value is None:
                value = found[part.tensor] = values[part.tensor].detach().clone()
            value.index_fill_(part.dim, part.indices[gone[part.channels]].to(value.device), 0)
    return found


def thinned(values: Mapping[str, Tensor], removed: Mapping[Group, Tensor]) -> dict[str, Tensor]:
    """All tensors, without the removed channels."""
    kept: dict[tuple[str, int], Tensor] = {}
    for group, channels in removed.items():
        gone = torch.zeros(group.width, dtype=torch.bool)
        gone[channels] = True
        for part in group.parts:
            key = part.tensor, part.dim
            stays = kept.setdefault(key, torch.ones(values[part.tensor].shape[part.dim], dtype=torch.bool))
            stays[part.indices[gone[part.channels]]] = False
    found = {name: value.detach() for name, value in values.items()}
    for (name, dim), stays in kept.items():
        found[name] = found[name].index_select(dim, stays.nonzero()[:, 0].to(found[name].device))
    return found


def find_groups(module: nn.Module, inputs: Any) -> tuple[list[Group], list[str]]:
    """The groups that can be thinned, and a line for each that cannot.

    Every group is tried: half of its channels are removed from a copy, which must run and give the outputs of the
    network whose channels are masked, within 1e-4. Groups that reach the network's outputs fail that, and stay.

    Raises
    ------
    UsageError
        `inputs` is missing, or the network cannot be traced with them.
    """
    if inputs is None:
        raise UsageError("Structure needs inputs=, a batch of example inputs, to see which channels go together")
    try:
        outputs_of(module, inputs)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the network does not run on inputs=: {type(error).__name__}: {error}") from error
    groups, notes = [], []
    for name, found in _traced(module, inputs):
        problem = found if isinstance(found, str) else _problem(module, inputs, found)
        if problem is None:
            assert isinstance(found, Group)
            groups.append(found)
        else:
            notes.append(f"{name}: {problem}")
    return groups, notes


def _problem(module: nn.Module, inputs: Any, group: Group) -> str | None:
    """Why a group cannot be thinned; None if it can."""
    if group.width < 2:
        return "has one channel"
    removed = {group: torch.arange(group.width)[: max(1, int(group.width * _PROBED))]}
    values = dict(module.state_dict())
    try:
        with_zeros = copy.deepcopy(module)
        with_zeros.load_state_dict({**values, **masked(values, removed)})
        small = fit(copy.deepcopy(module), thinned(values, removed))
        expected, got = outputs_of(with_zeros, inputs), outputs_of(small, inputs)
    except Error as error:
        return str(error)
    except Exception as error:
        return f"the thinned network does not run ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
    if expected.shape != got.shape:
        return "makes the network's outputs"
    difference = relative_difference(expected, got)
    if difference > TOLERANCE:
        return f"the thinned network gives other outputs than the masked one (by {difference:.2g})"
    return None


def _traced(module: nn.Module, inputs: Any) -> list[tuple[str, Group | str]]:
    """For each set of channels its name and group, or the reason why it cannot be thinned."""
    try:
        import torch_pruning
    except ImportError:
        raise missing_extra("torch-pruning", "condense", "thinning a network") from None
    traced = copy.deepcopy(module).eval()
    for parameter in traced.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    graph = torch_pruning.DependencyGraph()
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph.build_dependency(
                traced, moved(inputs, device_of(traced)), verbose=False,
                forward_fn=lambda net, batch: output_of(call(net, batch), "inputs"),
            )  # fmt: skip
        except Exception as error:
            raise UsageError(f"the network's layers cannot be traced: {type(error).__name__}: {error}") from error
        names = {layer: name for name, layer in traced.named_modules()}
        found: list[tuple[str, Group | str]] = []
        seen: set[str] = set()
        for name, layer in traced.named_modules():
            makes_channels = isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))
            if not makes_channels or layer not in graph.module2node or name in seen or is_depthwise(layer):
                continue
            one, makers = _group(graph, name, layer, names)
            seen |= makers
            found.append((name, one))
    return found


def _group(graph: Any, name: str, layer: nn.Module, names: Mapping[Any, str]) -> tuple[Group | str, set[str]]:
    """The group of a layer's outputs, or why it cannot be thinned; and the layers that compute its channels."""
    pruner = graph.get_pruner_of_module(layer)
    width = pruner.get_out_channels(layer)
    try:
        items = list(graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(width))))
    except Exception as error:
        return f"its dependencies cannot be followed ({type(error).__name__}: {error})", {name}
    makers, parts, problem = {name}, [], None
    for item in items:
        target = item.dep.target.module
        if target not in names:
            if isinstance(target, nn.Parameter):
                problem = problem or "its channels meet a parameter outside of any layer"
            continue
        makes = graph.is_out_channel_pruning_fn(item.dep.handler)
        if makes and isinstance(target, (nn.Linear, nn.modules.conv._ConvNd)):
            makers.add(names[target])
        if len(set(item.root_idxs)) != width:
            problem = problem or f"layer {names[target]!r} has {len(set(item.root_idxs))} of its {width} channels"
        sides = _sides(target, makes)
        if sides is None:
            problem = problem or f"its channels go through {names[target]!r}, a {type(target).__name__}"
            continue
        channels, indices = torch.tensor(item.root_idxs), torch.tensor(item.idxs)
        parts += [Part(f"{names[target]}.{side}".lstrip("."), dim, channels, indices, makes) for side, dim in sides]
    return problem or Group(name, width, tuple(parts)), makers


def _sides(layer: nn.Module, makes: bool) -> Sequence[tuple[str, int]] | None:
    """Tensors of a layer that have a channel's values, and their dimension; None for a kind that is not thinned."""
    if isinstance(layer, (nn.ReLU, nn.Dropout, nn.Identity)):
        return ()
    present = {name for name, value in layer.state_dict().items() if isinstance(value, Tensor)}
    transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) or is_depthwise(layer):
        return [(name, 0) for name in ("weight", "bias", "running_mean", "running_var") if name in present]
    if isinstance(layer, nn.Linear) or (isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == 1):
        if not makes:
            return [("weight", 0 if transposed else 1)]
        return [("weight", 1 if transposed else 0), *([("bias", 0)] if "bias" in present else [])]
    return [("weight", 1)] if isinstance(layer, nn.Embedding) else None
