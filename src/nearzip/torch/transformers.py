"""The Trainer of transformers: its checkpoints in a store, and back into a folder. Needs the extra `transformers`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from nearzip.bounds import Bound, parse_bound
from nearzip.errors import CorruptError, NotFoundError, UsageError, missing_extra
from nearzip.fileio import atomic_file
from nearzip.moments import Moments
from nearzip.network.arrays import to_torch
from nearzip.store import Store
from nearzip.tensors import Array
from nearzip.torch.background import Background
from nearzip.torch.places import StoreLike, commit_quietly, open_store, prune_store
from nearzip.torch.plans import StatePlan
from nearzip.torch.shapes import Shapes
from nearzip.torch.state import FORMAT, TrainingState, pack_optimizer, unpack_optimizer, unpack_parts
from nearzip.torch.trees import pack
from nearzip.torch.wrappers import is_extra_state

try:
    from transformers import TrainerCallback
except ImportError:
    raise missing_extra("transformers", "transformers", "nearzip.torch.transformers") from None

__all__ = ["NearzipCallback", "materialize"]

#: Written by torch.save; read by its weights-only loader.
_OPTIMIZER = "optimizer.pt"
#: What a network's files are called, without the number of the shard; adapters if there is no other.
_NETWORKS = ("model", "adapter_model")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
#: Larger files that are neither weights nor optimizer are refused.
_MAX_BYTES = 64 << 20


class NearzipCallback(TrainerCallback):
    """Commits every checkpoint folder that the Trainer writes: `Trainer(.., callbacks=[NearzipCallback("runs/one")])`.

    Parameters
    ----------
    store : Store, str or path
        Made if it is not there.
    bound : Bound or str
        For matrices and filters, kept against the folder's own values; None: every bit.
    moments : Moments, "auto" or None
        As `nearzip.torch.Saver` takes them.
    keep : str
        What `Store.prune` keeps after each save.
    replace : bool
        Remove a folder's weights and optimizer once they are committed; `materialize` brings them back.

    Notes
    -----
    The folder is read at once and committed in the background; an error there is raised at the next save or at the end
    of training. Weights are all `.safetensors` files: those of a network, in shards or not, and those of adapters
    (PEFT), in subfolders too. They and Adam's moments are compressed as such; all other files are kept byte for byte.
    """

    def __init__(
        self,
        store: StoreLike,
        *,
        bound: Bound | str | None = None,
        moments: Moments | str | None = "auto",
        keep: str | None = None,
        replace: bool = False,
    ):
        self.store = open_store(store)
        self._bound = parse_bound(bound) if isinstance(bound, str) else bound
        self._moments = (Moments() if bound is not None else None) if isinstance(moments, str) else moments
        self._keep, self._replace = keep, replace
        self._predictions: dict[str, tuple[Array, Array]] = {}
        self._shapes = Shapes(self.store)
        self._background = Background("save")

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Commit `checkpoint-N`; other processes than the first do nothing."""
        if not state.is_world_process_zero:
            return
        self._background.wait()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        captured = _read(folder, state.global_step)
        self._shapes.check(captured, others.get("model"))
        metrics = _metrics(state.log_history)
        self._background.start(lambda: self._commit(captured, folder, metrics))

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Wait for the last commit. Raises what failed."""
        self._background.wait()

    def _commit(self, captured: TrainingState, folder: Path, metrics: dict[str, float]) -> None:
        small = captured.shrunk(self._moments, self._predictions)
        plan = StatePlan.of(small, self._bound)
        said = {"step": small.step, "metrics": metrics, "message": folder.name}
        commit_quietly(self.store, small.to_arrays(), plan=plan, **said)
        prune_store(self.store, self._keep)
        if self._replace:
            for name in (*(name for name, _, _ in _shards_of(captured)), _OPTIMIZER):
                (folder / name).unlink(missing_ok=True)


def _metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """The latest value of each number that was logged."""
    found: dict[str, float] = {}
    for row in history:
        found |= {name: float(value) for name, value in row.items() if type(value) in (int, float) and name != "step"}
    return found


def _read(folder: Path, step: int) -> TrainingState:
    """A checkpoint folder as a state. Raises NotFoundError, UsageError."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if _is_own(path)}
    shards = [name for name in files if name.endswith(".safetensors")]
    if not shards:
        raise _without_weights(folder)
    tensors: dict[str, Any] = {}
    described = [[name, *_read_shard(files.pop(name), prefix, tensors)] for name, prefix in _prefixes(shards).items()]
    parameters = [
        name.removeprefix("model/")
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dim() > 1 and not is_extra_state(name)
    ]
    parts = []
    if _OPTIMIZER in files:
        content = torch.load(files.pop(_OPTIMIZER), map_location="cpu", weights_only=True)
        names = [[f"#{index}" for index in group["params"]] for group in content["param_groups"]]
        parts.append(pack_optimizer(content, None, names, 0, tensors))
    tensors.update({f"file/{name}": _bytes_of(path) for name, path in files.items()})
    document = {
        "format": FORMAT,
        "step": step,
        "parameters": parameters,
        "optimizers": parts,
        "shards": described,
        "files": pack(list(files), "files", {}),
    }
    return TrainingState(tensors, document)


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _without_weights(folder: Path) -> NotFoundError | UsageError:
    """What to do about a folder without weights that can be read."""
    for pattern in ("*.bin", "*_fsdp_*", "global_step*"):
        for found in sorted(folder.glob(pattern)):
            if found.name == "training_args.bin":
                continue
            advice = (
                "set save_safetensors=True" if found.is_file() else "save the whole state, or use nearzip.torch.dcp"
            )
            return UsageError(f"{folder}: its weights are in {found.name}, not in .safetensors files; {advice}")
    return NotFoundError(f"{folder}: no .safetensors file; is it the folder of a checkpoint?")


def _prefixes(shards: list[str]) -> dict[str, str]:
    """The prefix of the names of each file's tensors: nothing for the network, or else for the adapter."""
    groups = {name: _SHARD.sub("", name.removesuffix(".safetensors")) for name in shards}
    network = next((name for name in _NETWORKS if name in groups.values()), None)
    return {name: "model/" if group == network else f"model/{group}/" for name, group in groups.items()}


def _read_shard(path: Path, prefix: str, tensors: dict[str, Any]) -> tuple[dict[str, str], list[list[str]]]:
    """Puts a file's tensors to the others; returns its metadata, and its names with those that they now have."""
    names = []
    with safetensors.safe_open(path, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - safetensors' method
            stored = prefix + name
            while stored in tensors:
                stored += "_"
            tensors[stored] = opened.get_tensor(name)
            names.append([name, stored])
        return opened.metadata() or {}, names


def _bytes_of(path: Path) -> Array:
    n = path.stat().st_size
    if n > _MAX_BYTES:
        raise UsageError(f"{path}: {n} bytes that are neither weights nor optimizer; only up to {_MAX_BYTES} are kept")
    return np.frombuffer(path.read_bytes(), np.uint8)


def _shards_of(state: TrainingState) -> list[tuple[str, dict[str, str], dict[str, str]]]:
    """Files of weights: path, metadata, and the name in the state of each name in the file. Raises CorruptError."""
    described = state.document.get("shards")
    if described is None:  # older releases described none, and wrote one file
        names = {name.removeprefix("model/"): name for name in state.tensors if name.startswith("model/")}
        return [("model.safetensors", {"format": "pt"}, names)]
    try:
        shards = [(path, dict(metadata), dict(names)) for path, metadata, names in described]
        texts = [text for _, *pairs in shards for each in pairs for pair in each.items() for text in pair]
    except (TypeError, ValueError):
        raise CorruptError("the description of the checkpoint's files is damaged") from None
    if not all(isinstance(text, str) for text in [*texts, *(path for path, _, _ in shards)]):
        raise CorruptError("the description of the checkpoint's files is damaged")
    for _, _, names in shards:
        if not set(names.values()) <= state.tensors.keys():
            raise CorruptError("the description of the checkpoint's files names a tensor that is not there")
    return shards


def materialize(store: StoreLike, output_dir: str | os.PathLike[str], version: int | str = "latest") -> str:
    """Write a version as `output_dir/checkpoint-N`, for `trainer.train(resume_from_checkpoint=..)`.

    Returns
    -------
    str
        The folder. It appears whole or not at all.

    Raises
    ------
    UsageError
        There is such a folder already, with weights in it.
    NotFoundError, CorruptError
        No such version; or it is damaged, or not one of the Trainer's.
    """
    store = store if isinstance(store, Store) else Store(store)
    state = TrainingState.from_arrays(store.checkout(version)).expanded()
    names = state.document.get("files")
    if not isinstance(names, dict):
        raise CorruptError(f"{store.url}: version {version} is no checkpoint of the transformers Trainer")
    target = Path(output_dir) / f"checkpoint-{state.step}"
    if any((target / _inside(name)).exists() for name, _, _ in _shards_of(state)):
        raise UsageError(f"{target}: is there already; remove it, or resume from it")
    unfinished = target.with_name(f".{target.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        _write(unfinished, state.tensors, state)
        if target.exists():  # what `replace` left of it
            shutil.rmtree(target)
        unfinished.rename(target)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(unfinished)
    return str(target)


def _write(folder: Path, tensors: Mapping[str, Any], state: TrainingState) -> None:
    for name, array in tensors.items():
        if name.startswith("file/"):
            path = folder / _inside(name.removeprefix("file/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as stream:
                stream.write(array.tobytes())
    for name, metadata, names in _shards_of(state):
        path = folder / _inside(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        weights = {own: to_torch(tensors[stored]) for own, stored in names.items()}
        safetensors.torch.save_file(weights, path, metadata or None)
    for part in unpack_parts(state.document):
        torch.save(unpack_optimizer(part, tensors), folder / _OPTIMIZER)


def _inside(name: str) -> Path:
    """A relative path that stays in its folder. Raises CorruptError."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or ":" in name:
        raise CorruptError(f"a checkpoint holds no file named {name[:80]!r}")
    return Path(*pure.parts)
