"""`torch.distributed.checkpoint` into stores: every process compresses its own shards against its own previous ones.

Under one place, each process has a store (`shards/00000`, ..), and `index` is a store whose versions say which versions
of the shards belong together. A version of `index` is the commit: what shards hold besides belongs to nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from nearzip.bounds import Bound, parse_bound
from nearzip.errors import BusyError, CorruptError, NotFoundError, UsageError
from nearzip.moments.settings import BUFFERS, MEANS, ROOTS, Moments
from nearzip.network.arrays import to_torch
from nearzip.store import Store
from nearzip.store.keep import parse_rules
from nearzip.store.sharded import INDEX, INDEX_TENSOR, below, prune_sharded, shard_path
from nearzip.tensors import Array
from nearzip.torch.dcp_index import Place, index_from_json, index_to_json
from nearzip.torch.places import commit_quietly, open_store
from nearzip.torch.plans import StatePlan
from nearzip.torch.state import FORMAT, TrainingState, unpack_parts
from nearzip.torch.trees import Json, pack
from nearzip.torch.wrappers import is_extra_state

__all__ = ["NearzipReader", "NearzipWriter", "prune", "versions"]

_MOMENTS = (*ROOTS, *MEANS, *BUFFERS)


class NearzipWriter(StorageWriter, BlockingAsyncStager):
    """`dcp.save(state_dict, storage_writer=NearzipWriter("runs/one", bound=nz.Absolute(1e-3)))`, also `async_save`.

    Keep one writer for the whole training: it holds the latest shards, against which the next are coded.

    Parameters
    ----------
    place : str or path
        A folder or URL that all processes see.
    bound : Bound or str
        For tensors of two axes or more that are no optimizer state; None: every bit. The others are exact.
    moments : Moments, "auto" or None
        For `exp_avg` and its like, recognised by the end of their names. "auto": `Moments()` if there is a bound.
    eps : float
        The optimizer's, for the unit of first moments.
    keep : str
        Which checkpoints stay after each save, as `Store.prune` spells it: "last:5 every:100"; None: all.

    Notes
    -----
    A `checkpoint_id` is kept as the version's message, and `dcp.load(.., checkpoint_id=..)` finds the version by it.
    Values that are not tensors are kept as the bytes that PyTorch makes of them, and refused when they are written
    unless its weights-only loader reads them.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        *,
        bound: Bound | str | None = None,
        moments: Moments | str | None = "auto",
        eps: float = 1e-8,
        keep: str | None = None,
    ):
        BlockingAsyncStager.__init__(self)
        self.place = place
        self._bound = parse_bound(bound) if isinstance(bound, str) else bound
        self._moments = (Moments() if bound is not None else None) if isinstance(moments, str) else moments
        self._eps = eps
        if keep is not None:
            parse_rules(keep)  # refused now, not after the first save
        self._keep = keep
        self._label = ""
        self._stores: dict[str, Store] = {}
        self._predictions: dict[str, tuple[Array, Array]] = {}

    def _store(self, path: str | Path) -> Store:
        where = str(path)
        if where not in self._stores:
            self._stores[where] = open_store(where, threads=1)
        return self._stores[where]

    # StorageWriter

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._label = "" if checkpoint_id is None else str(checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if not kwargs.get("use_collectives", True):
            raise UsageError("NearzipWriter writes one index for all processes: save with use_collectives=True")

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [dataclasses.replace(plan, storage_data=slot) for slot, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Compress and commit this process's shards."""
        future: Future[list[WriteResult]] = Future()
        if not plan.items:
            future.set_result([])
            return future
        state, names = _shard_state(plan, planner, self._eps)
        small = state.shrunk(self._moments, self._predictions)
        arrays = small.to_arrays()
        store = self._store(shard_path(self.place, plan.storage_data))
        version = commit_quietly(store, arrays, plan=StatePlan.of(small, self._bound), message=self._label)
        future.set_result(
            [
                WriteResult(item.index, _n_bytes(item), Place(plan.storage_data, version, name))
                for item, name in zip(plan.items, names, strict=True)
            ]
        )
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the index: from now on the checkpoint is there. Then drop those that are not kept."""
        places = {result.index: result.storage_data for own in results for result in own}
        document = json.dumps(index_to_json(metadata, places), separators=(",", ":")).encode()
        index = self._store(below(self.place, INDEX))
        index.commit({INDEX_TENSOR: np.frombuffer(document, np.uint8)}, message=self._label)
        if self._keep is not None:
            with contextlib.suppress(BusyError):  # another process prunes; the next save prunes again
                prune(self.place, self._keep)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=str(self.place))


def _n_bytes(item: WriteItem) -> int:
    return (item.bytes_io_data.nbytes if item.bytes_io_data else item.tensor_storage_size()) or 0


def _shard_state(plan: SavePlan, planner: SavePlanner, eps: float) -> tuple[TrainingState, list[str]]:
    """What a process writes, as a training state, and the name in it of each item."""
    tensors: dict[str, Any] = {}
    names, parameters, moments = [], [], dict[str, dict[str, Json]]()
    for item in plan.items:
        if item.type is WriteItemType.BYTE_IO:
            data = cast(io.BytesIO, planner.resolve_data(item)).getvalue()
            _check_loadable(item.index.fqn, data)
            names.append(f"bytes/{item.index.fqn}")
            tensors[names[-1]] = np.frombuffer(data, np.uint8)
            continue
        value = cast(torch.Tensor, planner.resolve_data(item)).detach()
        # Views of large tensors, and what a later step would change: the codec reads it on this thread.
        at = ",".join(map(str, item.index.offset or ()))
        owner, _, key = item.index.fqn.rpartition(".")
        if key in _MOMENTS:
            name = f"optimizer/{owner}@{at}/{key}"
            moments.setdefault(f"{owner}@{at}", {})[key] = {"t": name}
        else:
            name = f"model/{item.index.fqn}@{at}"
            fqn = item.index.fqn
            if value.is_floating_point() and value.dim() > 1 and not (_is_state(fqn) or is_extra_state(fqn)):
                parameters.append(name.removeprefix("model/"))
        names.append(name)
        tensors[name] = value
    group = {"names": list(moments), "options": pack({"eps": eps}, "options", {})}
    optimizer = {"class": None, "groups": [group], "state": [[name, nodes] for name, nodes in moments.items()]}
    document = {"format": FORMAT, "step": 0, "parameters": parameters, "optimizers": [optimizer]}
    return TrainingState(tensors, document), names


def _is_state(name: str) -> bool:
    """Whether it is an optimizer's: what is not known by its own key, such as Shampoo's factors, stays exact."""
    return bool({"optim", "optimizer", "optimizers"} & set(name.split(".")[:-1]))


def _check_loadable(name: str, data: bytes) -> None:
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise UsageError(
            f"{name!r} is not made of tensors and plain values, so that it could not be loaded without running code: "
            f"{str(error).splitlines()[0]}"
        ) from None


class NearzipReader(StorageReader):
    """`dcp.load(state_dict, storage_reader=NearzipReader("runs/one"))`, on any number of processes.

    Parameters
    ----------
    place : str or path
        What a `NearzipWriter` wrote to.
    version : int or str
        Of the index: a number or selector. With a `checkpoint_id`, the newest that was saved under it.
    """

    def __init__(self, place: str | os.PathLike[str], version: int | str = "latest"):
        self.place, self.version = place, version
        self._chosen = version
        self._places: dict[MetadataIndex, Place] = {}
        self._shards: dict[tuple[int, int], TrainingState] = {}

    # StorageReader

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Raises NotFoundError, UsageError for a `checkpoint_id` that no version, or another one, was saved under."""
        self._places, self._shards = {}, {}
        self._chosen = self.version if checkpoint_id is None else self._labelled(str(checkpoint_id))

    def _labelled(self, label: str) -> int | str:
        saved = versions(self.place)
        found = [number for number, message in saved.items() if message == label]
        if self.version != "latest":
            number = Store(below(self.place, INDEX)).resolve(self.version)
            if number not in found:
                raise UsageError(
                    f"{self.place}: version {number} was saved under checkpoint_id {saved.get(number)!r}, "
                    f"not {label!r}; leave out one of the two"
                )
            return number
        if found:
            return max(found)
        if label == str(self.place):  # as PyTorch's own readers name a checkpoint
            return "latest"
        known = ", ".join(repr(message) for message in list(saved.values())[-3:])
        raise NotFoundError(
            f"{self.place}: no checkpoint was saved under checkpoint_id {label!r}; the newest are {known or 'none'} "
            "(nearzip.torch.dcp.versions lists all)"
        )

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises NotFoundError, and CorruptError for an index that no writer of ours wrote."""
        arrays = Store(below(self.place, INDEX)).checkout(self._chosen)
        if set(arrays) != {INDEX_TENSOR} or arrays[INDEX_TENSOR].dtype != np.uint8:
            raise CorruptError(f"{self.place}: the version is no index of shards")
        return index_from_json(arrays[INDEX_TENSOR].tobytes(), str(self.place))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._places = dict(metadata.storage_data)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Decode the shards that this process needs, one at a time."""
        items = sorted(plan.items, key=lambda item: self._place(item.storage_index))
        for item in items:
            place = self._place(item.storage_index)
            array = self._array(place)
            if item.type is LoadItemType.BYTE_IO:
                _check_loadable(item.storage_index.fqn, array.tobytes())
                planner.load_bytes(item, io.BytesIO(array.tobytes()))
                continue
            source = to_torch(array, copy=False)
            for axis, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                if start + length > source.shape[axis]:
                    raise CorruptError(f"{self.place}: a shard of {item.storage_index.fqn!r} is too small")
                source = source.narrow(axis, start, length)
            target = planner.resolve_tensor(item).detach()
            if target.shape != source.shape:
                raise UsageError(
                    f"{item.dest_index.fqn!r}: {list(source.shape)} was saved, {list(target.shape)} is wanted"
                )
            target.copy_(source)
            planner.commit_tensor(item, target)
        self._shards = {}
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def _place(self, index: MetadataIndex) -> Place:
        if index not in self._places:
            raise NotFoundError(f"{self.place}: the checkpoint has no {index.fqn!r} at {index.offset}")
        return self._places[index]

    def _array(self, place: Place) -> Array:
        key = (place.slot, place.version)
        if key not in self._shards:
            store = Store(shard_path(self.place, place.slot), threads=1)
            # One at a time is enough: items come in the shards' order.
            self._shards = {key: TrainingState.from_arrays(store.checkout(place.version)).expanded()}
            unpack_parts(self._shards[key].document)
        state = self._shards[key]
        if place.name not in state.tensors:
            raise CorruptError(f"{self.place}: shard {place.slot} has no tensor {place.name[:80]!r}")
        array: Array = state.tensors[place.name]
        return array


def versions(place: str | os.PathLike[str]) -> Mapping[int, str]:
    """Versions that `NearzipReader` can read, with the `checkpoint_id` that each was saved under."""
    return {row.number: row.message for row in Store(below(place, INDEX)).log()}


def prune(place: str | os.PathLike[str], keep: str, *, dry_run: bool = False, timeout: float = 60.0) -> tuple[int, ...]:
    """Drop checkpoints that no rule of `keep` keeps, and their shards. Returns the versions that were dropped.

    The rules are those of `Store.prune`; the newest checkpoint is always kept.
    """
    return prune_sharded(place, keep, dry_run=dry_run, timeout=timeout)[INDEX].dropped
