"""What compress, commit, checkout, pull, a save through DCP and calibration cost, by number of parameters.

Every step of every size is a process of its own, on one thread: processor seconds, the most anonymous memory beyond
what it had after imports, and bytes. Costs are taken as a constant and an amount for each parameter, from the smallest
and the largest size; the size in between says how well that holds.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import record
from experiments.lab.anonymous import anonymous, peak_of

#: Parameters, float32 matrices of 1024 x 1024.
_SIZES = (2 << 20, 8 << 20, 32 << 20)
_SIDE = 1024
#: Layers of calibration, 512 x 512 each.
_LAYERS, _WIDTH = (4, 16, 64), 512
_BOUND = "abs:5e-4"
_STEPS = ("compress", "checkout", "pull", "commit", "save through DCP")


def versions(n: int, count: int = 3) -> list[dict[str, np.ndarray]]:
    """Weights of spread 0.02, and updates of spread 0.001."""
    rng = np.random.default_rng(0)
    found = [{f"{i:03d}": rng.normal(0, 0.02, (_SIDE, _SIDE)).astype(np.float32) for i in range(n // _SIDE**2)}]
    for _ in range(count - 1):
        moved = {k: w + np.float32(1e-3) * rng.standard_normal(w.shape, np.float32) for k, w in found[-1].items()}
        found.append(moved)
    return found


def prepare(folder: Path, n: int) -> None:
    """Files of three versions, a store of the first two, and a client's file of the first."""
    from safetensors.numpy import save_file

    import nearzip as nz

    store = nz.Store(folder / "store", create=True, bound=_BOUND, threads=1)
    for i, tensors in enumerate(versions(n)):
        save_file(tensors, folder / f"{i}.safetensors")
        if i < 2:
            store.commit(tensors, warn=False)
    store.checkout_file(0, folder / "client.safetensors")


def _compress(folder: Path) -> Callable[[], int]:
    import nearzip as nz

    new, old = folder / "1.safetensors", folder / "0.safetensors"
    return lambda: nz.compress_file(new, folder / "u.nz", old, bound=_BOUND, threads=1, force=True).n_bytes


def _commit(folder: Path) -> Callable[[], int]:
    import nearzip as nz

    store = nz.Store(folder / "store", threads=1)

    def commit() -> int:
        before = store.stat().n_stored
        store.commit_file(folder / "2.safetensors", warn=False)
        return store.stat().n_stored - before

    return commit


def _checkout(folder: Path) -> Callable[[], int]:
    import nearzip as nz

    store = nz.Store(folder / "store", threads=1)

    def checkout() -> int:
        store.checkout_file(1, folder / "out.safetensors", force=True)
        return store.stat().n_stored

    return checkout


def _pull(folder: Path) -> Callable[[], int]:
    from nearzip.store.pulling.pull import pull

    return lambda: pull(folder / "store", folder / "client.safetensors", 1, threads=1).n_needed


def _save(folder: Path) -> Callable[[], int]:
    """The second save of one process: the first is a keyframe."""
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors.numpy import load_file

    from nearzip.torch.dcp import NearzipWriter

    torch.set_num_threads(1)
    writer = NearzipWriter(folder / "dcp", bound=_BOUND)
    first, second = (
        {name: torch.from_numpy(w) for name, w in load_file(folder / f"{i}.safetensors").items()} for i in (0, 1)
    )
    dcp.save(first, storage_writer=writer, no_dist=True)

    def save() -> int:
        before = _stored(folder / "dcp")
        dcp.save(second, storage_writer=writer, no_dist=True)
        return _stored(folder / "dcp") - before

    return save


def _stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


_WORK = {"compress": _compress, "commit": _commit, "checkout": _checkout, "pull": _pull, "save through DCP": _save}


def _calibrate(layers: int) -> Callable[[], int]:
    import torch

    from nearzip import calibrate

    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = [m for _ in range(layers) for m in (torch.nn.Linear(_WIDTH, _WIDTH), torch.nn.LayerNorm(_WIDTH))]
    network = torch.nn.Sequential(*blocks)
    base = {name: w.clone() for name, w in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    batches = [torch.randn(64, _WIDTH) for _ in range(4)]
    return lambda: calibrate.compress(network, batches, base, step=1e-3, fit_biases=False, threads=1).nbytes


def child(step: str, folder: str, size: int) -> dict[str, Any]:
    """One step, with a small round of it before that loads what it needs."""
    work = _calibrate(size) if step == "calibrate" else _WORK[step](Path(folder))
    # What the small round leaves for reuse belongs to the step.
    before, found = anonymous(), list[int]()
    if step == "calibrate":
        _calibrate(1)()
    else:
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), _SIDE**2)
            _WORK[step](Path(name))()
    begin = time.process_time()
    peak = peak_of(lambda: found.append(work()))
    return {"seconds": time.process_time() - begin, "memory_bytes": peak - before, "bytes": found[0]}


def measured(step: str, folder: Path, size: int) -> dict[str, Any]:
    """A step in a fresh process."""
    command = [sys.executable, "-m", "experiments", "cost_model", "--step", step, str(folder), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(step, size, row, file=sys.stderr)
    return row


def _between(sizes: list[int], values: list[float]) -> dict[str, float]:
    """A line through the ends, and the middle over it."""
    each = (values[-1] - values[0]) / (sizes[-1] - sizes[0])
    constant = values[0] - each * sizes[0]
    expected = constant + each * sizes[1]
    return {"constant": constant, "each": each, "middle_over_line": values[1] / expected if expected else math.nan}


def lines(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By cost: constant, for each parameter, and how far the middle size is from it."""
    sizes = [row["parameters"] for row in rows]
    return {key: _between(sizes, [row[key] for row in rows]) for key in ("seconds", "memory_bytes", "bytes")}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench cost_model", description=__doc__)
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        step, folder, size = options.step
        print(json.dumps(child(step, folder, int(size))))
        return
    rows: dict[str, list[dict[str, Any]]] = {}
    for n in _SIZES:
        with tempfile.TemporaryDirectory() as name:
            prepare(Path(name), n)
            for step in _STEPS:
                rows.setdefault(step, []).append({"parameters": n, **measured(step, Path(name), n)})
    for layers in _LAYERS:
        n = layers * _WIDTH * (_WIDTH + 3)
        rows.setdefault("calibrate", []).append({"parameters": n, **measured("calibrate", Path(), layers)})
    found = {step: {"rows": of, "lines": lines(of)} for step, of in rows.items()}
    record.save("cost_model", {"bound": _BOUND, "steps": found}, ("nearzip", "numpy", "torch"))
