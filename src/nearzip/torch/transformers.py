"""The Trainer of transformers: its checkpoints in a store, and back into a folder. Needs the extra `transformers`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import safetensors.torch
import torch

from nearzip.bounds import Bound, parse_bound
from nearzip.errors import CorruptError, NotFoundError, UsageError, missing_extra
from nearzip.fileio import atomic_file
from nearzip.network.arrays import to_torch
from nearzip.store import Store
from nearzip.tensors import Array
from nearzip.torch.background import Background
from nearzip.torch.moments import Moments
from nearzip.torch.places import StoreLike, commit_quietly, open_store, prune_store
from nearzip.torch.plans import StatePlan
from nearzip.torch.shapes import Shapes
from nearzip.torch.state import FORMAT, TrainingState, pack_optimizer, unpack_optimizer, unpack_parts
from nearzip.torch.trees import pack

try:
    from transformers import TrainerCallback
except ImportError:
    raise missing_extra("transformers", "transformers", "nearzip.torch.transformers") from None

__all__ = ["NearzipCallback", "materialize"]

#: Written by torch.save; read by its weights-only loader.
_OPTIMIZER = "optimizer.pt"
#: Larger files that are neither weights nor optimizer are left alone.
_MOST_BYTES = 64 << 20


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
        What `Store.prune` shall keep.
    replace : bool
        Remove a folder's weights and optimizer once they are committed; `materialize` brings them back.

    Notes
    -----
    The folder is read at once and committed behind; an error is raised at the next save or at the end of training.
    Weights and Adam's moments are coded as such; all other files of the folder are kept byte for byte and never opened.
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
        self._shapes.check(captured)
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
            for path in (*folder.glob("model*.safetensors"), folder / _OPTIMIZER):
                path.unlink(missing_ok=True)


def _metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """The latest value of each number that was logged."""
    found: dict[str, float] = {}
    for row in history:
        found |= {name: float(value) for name, value in row.items() if type(value) in (int, float) and name != "step"}
    return found


def _read(folder: Path, step: int) -> TrainingState:
    """A checkpoint folder as a state. Raises NotFoundError, UsageError."""
    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise NotFoundError(f"{folder}: no model*.safetensors; train with safetensors and without a sharding backend")
    tensors: dict[str, Any] = {}
    for shard in shards:
        tensors.update({f"model/{name}": value for name, value in safetensors.torch.load_file(shard).items()})
    parts = []
    if (folder / _OPTIMIZER).exists():
        content = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
        names = [[f"#{index}" for index in group["params"]] for group in content["param_groups"]]
        parts.append(pack_optimizer(content, None, names, 0, tensors))
    files = _others(folder, {path.name for path in shards})
    tensors.update({f"file/{name}": data for name, data in files.items()})
    document = {
        "format": FORMAT,
        "step": step,
        "parameters": [n.removeprefix("model/") for n, t in tensors.items() if n.startswith("model/") and t.dim() > 1],
        "optimizers": parts,
        "files": pack(list(files), "files", {}),
    }
    return TrainingState(tensors, document)


def _others(folder: Path, known: set[str]) -> dict[str, Array]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.is_symlink() or name in known or name in (_OPTIMIZER, _INDEX):
            continue
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size} bytes that are neither weights nor optimizer")
        found[name] = np.frombuffer(path.read_bytes(), np.uint8)
    return found


#: Which shard holds which tensor; `materialize` writes one file.
_INDEX = "model.safetensors.index.json"


def materialize(store: StoreLike, output_dir: str | os.PathLike[str], version: int | str = "latest") -> str:
    """Write a version as `output_dir/checkpoint-N`, for `trainer.train(resume_from_checkpoint=..)`.

    Returns
    -------
    str
        The folder. It appears whole or not at all.

    Raises
    ------
    UsageError
        There is such a folder already, with a model in it.
    NotFoundError, CorruptError
        No such version; or it is damaged, or not one of the Trainer's.
    """
    store = store if isinstance(store, Store) else Store(store)
    state = TrainingState.from_arrays(store.checkout(version)).expanded()
    names = state.document.get("files")
    if not isinstance(names, dict):
        raise CorruptError(f"{store.url}: version {version} is no checkpoint of the transformers Trainer")
    target = Path(output_dir) / f"checkpoint-{state.step}"
    if (target / "model.safetensors").exists():
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
    weights = {n.removeprefix("model/"): to_torch(a) for n, a in tensors.items() if n.startswith("model/")}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for part in unpack_parts(state.document):
        torch.save(unpack_optimizer(part, tensors), folder / _OPTIMIZER)


def _inside(name: str) -> Path:
    """A relative path that stays in its folder. Raises CorruptError."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in name or ":" in name:
        raise CorruptError(f"a checkpoint holds no file named {name[:80]!r}")
    return Path(*pure.parts)
