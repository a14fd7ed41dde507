"""Checkpoints of Lightning in a store: `Trainer(plugins=[NearzipCheckpointIO(..)])`. Needs the extra `lightning`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nearzip.bounds import Bound, parse_bound
from nearzip.errors import CorruptError, UsageError, missing_extra
from nearzip.fileio import atomic_file, naming_errors
from nearzip.network.arrays import to_torch
from nearzip.tensors import Array
from nearzip.torch.moments import Moments
from nearzip.torch.places import StoreLike, commit_quietly, open_store
from nearzip.torch.plans import StatePlan
from nearzip.torch.shapes import Shapes
from nearzip.torch.state import FORMAT, TrainingState, pack_optimizer, unpack_optimizer, unpack_parts
from nearzip.torch.trees import pack, unpack
from nearzip.torch.wrappers import is_extra_state

try:
    from lightning.fabric.plugins import CheckpointIO
except ImportError:
    raise missing_extra("Lightning", "lightning", "nearzip.torch.lightning") from None

__all__ = ["NearzipCheckpointIO"]

#: A checkpoint's file says where its version is, and no more.
_POINTER = "nearzip.lightning"
_MOST_BYTES = 1 << 16


class NearzipCheckpointIO(CheckpointIO):
    """Keeps checkpoints as versions of a store; the files that Lightning sees only point at them.

    Parameters
    ----------
    store : Store, str or path
        Made if it is not there.
    bound : Bound or str
        For matrices and filters of `state_dict`, kept against the training's own values; None: every bit. What has one
        axis or none is exact.
    moments : Moments, "auto" or None
        As `nearzip.torch.Saver` takes them.

    Notes
    -----
    `remove_checkpoint` takes the pointer away and leaves the version: newer ones are coded against it. To make room:
    `store.prune`. A callback or hyper parameter that is not made of tensors and plain values is refused by its place in
    the checkpoint: nothing is pickled.
    """

    def __init__(
        self,
        store: StoreLike,
        *,
        bound: Bound | str | None = None,
        moments: Moments | str | None = "auto",
    ):
        self.store = open_store(store)
        self._bound = parse_bound(bound) if isinstance(bound, str) else bound
        self._moments = (Moments() if bound is not None else None) if isinstance(moments, str) else moments
        self._predictions: dict[str, tuple[Array, Array]] = {}
        self._shapes = Shapes(self.store)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Commit, then write the pointer. `storage_options`: {"bound": ..} for this one. Raises UsageError."""
        bound = _bound_of(storage_options, self._bound)
        exact = _to_state(checkpoint)
        self._shapes.check(exact)
        state = exact.shrunk(self._moments, self._predictions)
        plan = StatePlan.of(state, bound)
        said = {"step": state.step, "message": os.path.basename(path)}
        version = commit_quietly(self.store, state.to_arrays(), plan=plan, **said)
        text = json.dumps({"kind": _POINTER, "store": self.store.url, "version": version})
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, force=True) as stream:
            stream.write(text.encode())

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint that a pointer means. Raises NotFoundError, CorruptError.

        `weights_only` makes no difference: there is nothing in it that could run.
        """
        state = TrainingState.from_arrays(self.store.checkout(_version_of(path)))
        found = _from_state(state.expanded())
        self._predictions = state.predictions()
        return found if map_location is None else _moved(found, map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Take the pointer away; the version stays until the store is pruned."""
        Path(path).unlink(missing_ok=True)


def _bound_of(storage_options: Any, bound: Bound | None) -> Bound | None:
    if storage_options is None:
        return bound
    if not isinstance(storage_options, Mapping) or set(storage_options) != {"bound"}:
        raise UsageError(f"storage_options are {{'bound': ..}}, not {storage_options!r}")
    wanted = storage_options["bound"]
    return parse_bound(wanted) if isinstance(wanted, str) else wanted


def _to_state(checkpoint: Mapping[str, Any]) -> TrainingState:
    rest, tensors = dict(checkpoint), {}
    weights = rest.pop("state_dict", {})
    tensors.update({f"model/{name}": value.detach() for name, value in weights.items()})
    parts = []
    for i, content in enumerate(rest.pop("optimizer_states", [])):
        names = [[f"#{index}" for index in group["params"]] for group in content["param_groups"]]
        parts.append(pack_optimizer(content, None, names, i, tensors))
    document = {
        "format": FORMAT,
        "step": int(rest.get("global_step", 0)),
        "parameters": [
            n for n, v in weights.items() if v.is_floating_point() and v.dim() > 1 and not is_extra_state(n)
        ],
        "optimizers": parts,
        "weights": list(weights),
        "has": [key for key in ("state_dict", "optimizer_states") if key in checkpoint],
        "rest": pack(rest, "rest", tensors, "checkpoint"),
    }
    return TrainingState(tensors, document)


def _from_state(state: TrainingState) -> dict[str, Any]:
    document, arrays = state.document, state.tensors
    names, has, rest = document.get("weights"), document.get("has"), unpack(document.get("rest"), arrays)
    if not isinstance(names, list) or not isinstance(has, list) or not isinstance(rest, dict):
        raise CorruptError("this version is no Lightning checkpoint")
    lacking = [name for name in names if f"model/{name}" not in arrays]
    if lacking:
        raise CorruptError(f"the checkpoint lacks tensor {str(lacking[0])[:80]!r}")
    found: dict[str, Any] = dict(rest)
    if "state_dict" in has:
        found["state_dict"] = {name: to_torch(arrays[f"model/{name}"]) for name in names}
    if "optimizer_states" in has:
        found["optimizer_states"] = [unpack_optimizer(part, arrays) for part in unpack_parts(document)]
    return found


def _version_of(path: Any) -> int:
    with naming_errors("read", path), open(path, "rb") as stream:
        data = stream.read(_MOST_BYTES)
    try:
        pointer = json.loads(data)
        if pointer["kind"] == _POINTER and type(pointer["version"]) is int:
            return int(pointer["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CorruptError(f"{os.fspath(path)}: is no checkpoint of NearzipCheckpointIO")


def _moved(value: Any, where: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if callable(where):
            return where(value, str(value.device))
        return value.to(where.get(str(value.device), value.device) if isinstance(where, Mapping) else where)
    if isinstance(value, dict):
        return {key: _moved(item, where) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, where) for item in value)
    return value
