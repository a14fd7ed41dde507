"""Checkpoints of Lightning in a store: `Trainer(plugins=[NearzipCheckpointIO(..)])`. Needs the extra `lightning`."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nearzip.bounds import Bound, parse_bound
from nearzip.errors import BusyError, CorruptError, UsageError, missing_extra
from nearzip.fileio import atomic_file, naming_errors
from nearzip.moments import Moments
from nearzip.network.arrays import to_torch
from nearzip.store import Store
from nearzip.store.keep import parse_rules
from nearzip.tensors import Array
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

__all__ = ["NearzipCheckpointIO", "opened_checkpoint"]

#: A checkpoint's file says where its version is, and no more.
_POINTER = "nearzip.lightning"
_MAX_BYTES = 1 << 16
#: What the JSON in such a file begins with.
_START = json.dumps({"kind": _POINTER}).encode()[:-1]


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
    keep : str
        Which versions stay after each save, as `Store.prune` takes it ("last:3 best:val_loss"), besides those that a
        file in the checkpoint's folder refers to; None: all. The monitored value of `ModelCheckpoint` is a metric.

    Notes
    -----
    `remove_checkpoint` removes the file and leaves the version: newer ones may be coded against it. `keep` or
    `store.prune` free the space. A callback or hyperparameter that is not made of tensors and plain values (paths,
    Namespaces, devices, sets and the like included) is refused by its position in the checkpoint; none is pickled.

    `Model.load_from_checkpoint(path)` and `torch.load(path)` read the file as any other, once this module is imported.
    """

    def __init__(
        self,
        store: StoreLike,
        *,
        bound: Bound | str | None = None,
        moments: Moments | str | None = "auto",
        keep: str | None = None,
    ):
        if keep is not None:
            parse_rules(keep)  # refused now, not after the first save
        self._keep = keep
        self.store = open_store(store)
        self._bound = parse_bound(bound) if isinstance(bound, str) else bound
        self._moments = (Moments() if bound is not None else None) if isinstance(moments, str) else moments
        self._predictions: dict[str, tuple[Array, Array]] = {}
        self._shapes = Shapes(self.store)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Commit, then write the file that refers to the version. Raises UsageError.

        `storage_options`: {"bound": ..} for this one.
        """
        bound = _bound_of(storage_options, self._bound)
        exact = _to_state(checkpoint)
        self._shapes.check(exact)
        state = exact.shrunk(self._moments, self._predictions)
        plan = StatePlan.of(state, bound)
        said = {"step": state.step, "message": os.path.basename(path), "metrics": _metrics(checkpoint)}
        version = commit_quietly(self.store, state.to_arrays(), plan=plan, **said)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, force=True) as stream:
            stream.write(_pointer(self.store, version))
        self._prune(Path(path).parent)

    def _prune(self, folder: Path) -> None:
        """Drop versions that are not to be kept, except those that a file in the folder refers to."""
        if self._keep is None:
            return
        referred = {str(version) for path in folder.iterdir() for version in self._versions_in(path)}
        with contextlib.suppress(BusyError):  # another process prunes; the next save prunes again
            self.store.prune([self._keep, *sorted(referred)])

    def _versions_in(self, path: Path) -> list[int]:
        """The version that a file refers to, if it is one of this store's checkpoints."""
        try:
            with open(path, "rb") as stream:
                store, version = _parsed(stream.read(_MAX_BYTES), str(path))
        except (OSError, CorruptError):
            return []
        return [version] if _absolute(store) == _absolute(self.store.url) else []

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint that a file refers to. Raises NotFoundError, CorruptError.

        `weights_only` makes no difference: there is nothing in it that could run.
        """
        state = TrainingState.from_arrays(self.store.checkout(_version_of(path)))
        found = _from_state(state.expanded())
        self._predictions = state.predictions()
        return found if map_location is None else _moved(found, map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file; the version stays until the store is pruned."""
        Path(path).unlink(missing_ok=True)


def _metrics(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """What callbacks monitor, as it is now."""
    found = {}
    for state in (checkpoint.get("callbacks") or {}).values():
        if not isinstance(state, Mapping) or not isinstance(state.get("monitor"), str):
            continue
        score = state.get("current_score")
        if isinstance(score, torch.Tensor) and score.numel() == 1:
            score = score.item()
        if isinstance(score, (int, float)) and math.isfinite(score):
            found[state["monitor"]] = float(score)
    return found


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
        data = stream.read(_MAX_BYTES)
    return _parsed(data, os.fspath(path))[1]


def _parsed(data: bytes, where: str) -> tuple[str, int]:
    """The store and the version that a pointer names. Nothing of it is unpickled. Raises CorruptError."""
    try:
        pointer, _ = json.JSONDecoder().raw_decode(data[data.index(_START) :].decode("ascii", "replace"))
        store, version = pointer["store"], pointer["version"]
        if isinstance(store, str) and type(version) is int:
            return store, version
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise CorruptError(f"{where}: is no checkpoint of NearzipCheckpointIO")


class _Pointer:
    """Pickled as a call of `opened_checkpoint`, so that `torch.load` gives the checkpoint itself."""

    def __init__(self, text: str):
        self._text = text

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return opened_checkpoint, (self._text,)


def _absolute(url: str) -> str:
    """Whoever loads the file may be in another folder than the training was."""
    return url if "://" in url else os.path.abspath(url)


def _pointer(store: Store, version: int) -> bytes:
    """A checkpoint's file: one that PyTorch reads, with JSON in it."""
    stream = io.BytesIO()
    text = json.dumps({"kind": _POINTER, "store": _absolute(store.url), "version": version})
    torch.save(_Pointer(text), stream, _use_new_zipfile_serialization=False)  # the other format is longer
    return stream.getvalue()


def opened_checkpoint(pointer: str) -> dict[str, Any]:
    """The checkpoint that a checkpoint's file refers to: what `torch.load` calls for such a file.

    PyTorch's weights-only loader allows it once this module is imported. Raises NotFoundError, CorruptError.
    """
    url, version = _parsed(pointer.encode(), "the file")
    return _from_state(TrainingState.from_arrays(Store(url).checkout(version)).expanded())


torch.serialization.add_safe_globals([opened_checkpoint])


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
