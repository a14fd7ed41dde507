"""The whole state of a training, as named tensors and one JSON document.

Tensors are called `model/NAME`, `optimizer/PARAMETER/KEY`, `scheduler/..`, `rng/..` and so on; the model's and the
optimizer's names are those of the model without wrappers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from torch import nn, optim

from nearzip.errors import CorruptError, UsageError
from nearzip.moments import Moments, expand_moments, shrink_moments
from nearzip.moments.document import DOCUMENT, FORMAT, optimizer_prefix, read_document, unpack_parts
from nearzip.tensors import Array, as_array
from nearzip.torch.subclasses import has_parts, whole
from nearzip.torch.trees import Json, pack, pack_tensor, unpack
from nearzip.torch.wrappers import check_whole, plain_names, plain_parameters

__all__ = [
    "DOCUMENT",
    "FORMAT",
    "TrainingState",
    "capture",
    "listed",
    "pack_optimizer",
    "parameter_names",
    "random_state",
    "unpack_optimizer",
    "unpack_parts",
]


@dataclass(frozen=True)
class TrainingState:
    """The state of a training: tensors by name, and everything else as plain JSON.

    Parameters
    ----------
    tensors : dict
        Name to torch tensor or array. After `capture` they are the live tensors, which further training changes.
    document : dict
        Step, metrics, the optimizer's groups, and so on; `trees` describes how it holds nested values.
    """

    tensors: dict[str, Any]
    document: dict[str, Json]

    @property
    def step(self) -> int:
        return int(self.document["step"])

    @property
    def parameters(self) -> frozenset[str]:
        """Names in `tensors` of the model's parameters, under every name that they have; the others of `model/` are
        buffers."""
        return frozenset(f"model/{name}" for name in self.document["parameters"])

    def to_arrays(self) -> dict[str, Array]:
        """Everything as arrays, the document among them: what a store or an archive takes."""
        text = json.dumps(self.document, separators=(",", ":"), allow_nan=False).encode()
        packed = zstandard.ZstdCompressor(19, write_content_size=True).compress(text)
        arrays = {name: as_array(name, value) for name, value in self.tensors.items()}
        return {**arrays, DOCUMENT: np.frombuffer(packed, np.uint8)}

    def with_random(self, generators: Mapping[str, Any]) -> TrainingState:
        """And the random generators, as `random_state` gave them."""
        tensors = dict(self.tensors)
        return TrainingState(tensors, {**self.document, "rng": pack(generators, "rng", tensors)})

    def shrunk(self, moments: Moments | None, predictions: dict[str, tuple[Array, Array]]) -> TrainingState:
        """The state with the optimizer's moments quantized by `moments`; None leaves them exact.

        Pass the same `predictions`, empty at first, with every state of a training.
        """
        if moments is None or "optimizers" not in self.document:
            return self
        tensors, parts = dict(self.tensors), []
        for part in self.document["optimizers"]:
            options = {n: unpack(g["options"], tensors) for g in part["groups"] for n in g["names"]}
            state = [
                [n, shrink_moments(nodes, tensors, options[n], moments, predictions)] for n, nodes in part["state"]
            ]
            parts.append({**part, "state": state})
        return TrainingState(tensors, {**self.document, "optimizers": parts})

    def expanded(self) -> TrainingState:
        """The inverse of `shrunk`, up to its rounding. Raises CorruptError."""
        tensors, parts = dict(self.tensors), []
        for i, part in enumerate(unpack_parts(self.document)):
            state = []
            for name, nodes in part["state"]:
                values = expand_moments(nodes, self.tensors)
                for key, value in values.items():
                    if isinstance(value, np.ndarray):
                        tensors[f"{optimizer_prefix(i)}/{name}/{key}"] = value
                        values[key] = {"t": f"{optimizer_prefix(i)}/{name}/{key}"}
                state.append([name, values])
            parts.append({**part, "state": state})
        return TrainingState(tensors, {**self.document, "optimizers": parts} if parts else self.document)

    def predictions(self) -> dict[str, tuple[Array, Array]]:
        """What `shrunk` predicted second moments by, to go on with in the next state."""
        found = {}
        for i, part in enumerate(unpack_parts(self.document)):
            for name, nodes in part["state"]:
                for key, node in nodes.items():
                    content = node.get("v") if isinstance(node, dict) else None
                    if content is not None:
                        rows, columns = self.tensors[content["rows"]], self.tensors[content["columns"]]
                        found[f"{optimizer_prefix(i)}/{name}/{key}"] = (rows, columns)
        return found

    @staticmethod
    def from_arrays(arrays: Mapping[str, Array]) -> TrainingState:
        """The inverse of `to_arrays`, for arrays from an untrusted source. Raises CorruptError, NewerFormatError."""
        if DOCUMENT not in arrays:
            raise CorruptError(f"no tensor {DOCUMENT!r}: this is not a training state but plain tensors")
        document = read_document(arrays[DOCUMENT])
        return TrainingState({name: array for name, array in arrays.items() if name != DOCUMENT}, document)


# ---- live objects to state -------------------------------------------------------------------------------------


def capture(
    model: nn.Module,
    optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None = None,
    scheduler: Any = None,
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    *,
    scaler: Any = None,
    loader: Any = None,
    extra: Any = None,
    rng: bool = True,
) -> TrainingState:
    """Collect the state of a training without copying tensors.

    Parameters
    ----------
    model, optimizer, scheduler, scaler
        Whatever has `state_dict`; the optimizer is a `torch.optim.Optimizer`, or several of them.
    step : int
    metrics : mapping of str to float
    loader
        A data loader with `state_dict`, or any plain value that says where in the data the training is.
    extra
        Plain values and tensors of your own.
    rng : bool
        Whether the states of random, numpy.random, torch and its CUDA devices belong to it.

    Raises
    ------
    UsageError
        State that is not made of tensors and plain values, or is spread over processes.
    """
    tensors: dict[str, Any] = {}
    other: dict[str, Any] = {}
    check_whole(model)
    parameters = plain_parameters(model)
    content = model.state_dict()
    for given, name in plain_names(model, content).items():
        value = content[given]
        if isinstance(value, torch.Tensor) and not has_parts(value):
            tensors[f"model/{name}"] = _whole(name, value)
        else:
            other[name] = value
    document: dict[str, Json] = {
        "format": FORMAT,
        "step": _step(step),
        "metrics": pack(dict(metrics or {}), "metrics", {}),
        "parameters": [*parameters, *_tied(parameters, tensors)],
        "other": pack(other, "model.extra", tensors),
    }
    optimizers = listed(optimizer)
    if optimizers:
        document["optimizers"] = [
            pack_optimizer(each.state_dict(), type(each).__name__, parameter_names(parameters, each), i, tensors)
            for i, each in enumerate(optimizers)
        ]
    for key, thing in (("scheduler", scheduler), ("scaler", scaler), ("loader", loader)):
        if thing is not None:
            document[key] = _capture_object(key, thing, tensors)
    if extra is not None:
        document["extra"] = pack(extra, "extra", tensors)
    state = TrainingState(tensors, document)
    return state.with_random(random_state()) if rng else state


def _tied(parameters: Mapping[str, torch.Tensor], tensors: Mapping[str, Any]) -> list[str]:
    """Other names in the state dict of a parameter's memory: a tied head is a parameter as much as the embedding is."""
    memory = {_memory(parameter) for parameter in parameters.values()} - {None}
    names = [name for name in tensors if name.removeprefix("model/") not in parameters]
    return [name.removeprefix("model/") for name in names if _memory(tensors[name]) in memory]


def _memory(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Equal for tensors that show the same values of the same memory; None where that cannot be told."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _step(step: Any) -> int:
    if isinstance(step, bool) or int(step) != step or step < 0:
        raise UsageError(f"a step is a whole number from 0 on, not {step!r}")
    return int(step)


def _whole(name: str, value: torch.Tensor) -> torch.Tensor:
    return whole(value.detach(), lambda: _spread(name))


def _spread(name: str) -> UsageError:
    return UsageError(
        f"tensor {name!r} is spread over processes (a DTensor); save it with torch.distributed.checkpoint and "
        "nearzip.torch.dcp.NearzipWriter"
    )


def parameter_names(parameters: Mapping[str, nn.Parameter], optimizer: optim.Optimizer) -> list[list[str]]:
    """Names of the parameters of each of the optimizer's groups; `#n` for the n-th if it is not the model's."""
    known = {id(parameter): name for name, parameter in parameters.items()}
    names, n = [], 0
    for group in optimizer.param_groups:
        names.append([known.get(id(p), f"#{n + i}") for i, p in enumerate(group["params"])])
        n += len(group["params"])
    return names


def listed(optimizer: optim.Optimizer | Sequence[optim.Optimizer] | None) -> list[optim.Optimizer]:
    """One optimizer, several or none, as a list. Raises UsageError."""
    found: list[Any] = (
        list(optimizer) if isinstance(optimizer, (list, tuple)) else [] if optimizer is None else [optimizer]
    )
    for each in found:
        if not isinstance(each, optim.Optimizer):
            raise UsageError(f"the optimizer is a {type(each).__name__}, not a torch.optim.Optimizer")
    return found


def pack_optimizer(
    content: Mapping[str, Any], kind: str | None, names: list[list[str]], i: int, tensors: dict[str, Any]
) -> Json:
    """The node of the i-th optimizer's `state_dict()`; `names` of parameters by group. Raises UsageError."""
    prefix, flat = optimizer_prefix(i), [name for group in names for name in group]
    groups = [
        {"names": own, "options": pack({k: v for k, v in group.items() if k != "params"}, f"{prefix}/{n}", tensors)}
        for n, (own, group) in enumerate(zip(names, content["param_groups"], strict=True))
    ]
    state = []
    for index, values in content["state"].items():
        name = flat[index]
        state.append([name, _pack_state(values, f"{prefix}/{name}", name, tensors)])
    return {"class": kind, "groups": groups, "state": state}


def _pack_state(values: Mapping[str, Any], prefix: str, name: str, tensors: dict[str, Any]) -> dict[str, Json]:
    """The nodes of one parameter's state by key."""
    nodes: dict[str, Json] = {}
    for key, given in values.items():
        value = given
        if type(value) is torch.Tensor:  # nearly always; without the names that only messages need
            nodes[key] = pack_tensor(value, f"{prefix}/{key}", tensors)
            continue
        if isinstance(value, torch.Tensor):
            value = _whole(f"{name}.{key}", value)
        nodes[key] = pack(value, f"{prefix}/{key}", tensors, f"optimizer state {key!r} of {name}")
    return nodes


def _capture_object(key: str, thing: Any, tensors: dict[str, Any]) -> Json:
    if hasattr(thing, "state_dict"):
        return {"class": type(thing).__name__, "state": pack(thing.state_dict(), key, tensors)}
    return {"class": None, "state": pack(thing, key, tensors)}


def random_state() -> dict[str, Any]:
    """The states of random, numpy.random, torch and its CUDA devices. They are copies: nothing changes them later."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - programs that use the global generator get it back
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def unpack_optimizer(part: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's `state_dict()`. Raises CorruptError."""
    index = {name: i for i, name in enumerate(name for group in part["groups"] for name in group["names"])}
    options = [unpack(group["options"], arrays) for group in part["groups"]]
    if not all(name in index for name, _ in part["state"]) or not all(isinstance(group, dict) for group in options):
        raise CorruptError("training state: the optimizer's part is damaged")
    state = {
        index[name]: {str(key): unpack(node, arrays) for key, node in nodes.items()} for name, nodes in part["state"]
    }
    groups = [
        {**own, "params": [index[name] for name in group["names"]]}
        for own, group in zip(options, part["groups"], strict=True)
    ]
    return {"state": state, "param_groups": groups}
