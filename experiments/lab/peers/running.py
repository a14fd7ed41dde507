"""Run peers in processes of their own: sweeps with the fidelity of restored networks, and speed on some cores."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.lab import evaluate, record
from experiments.lab.peers.base import Peer
from experiments.lab.peers.environments import NotInstalledError, python_of
from experiments.lab.traces import Pair, Tensors, cache_folder

_ROOT = Path(__file__).parents[3]


class CachedEvaluator:
    """Fidelity to the newer version of a pair; results are cached by the restored bits."""

    def __init__(self, pair: Pair, data: Path, share: float, fresh: bool):
        self.network, self.new = pair.network, pair.new
        self.data, self.share, self.fresh = data, share, fresh

    @functools.cached_property
    def evaluator(self) -> evaluate.Evaluator:
        return evaluate.Evaluator(self.network, self.new, evaluate.held_out(self.network, self.data, self.share))

    def __call__(self, restored: Tensors) -> dict[str, Any]:
        key = hashlib.sha256(repr((self.network, self.share, torch.__version__)).encode())
        for tensors in (self.new, restored):
            for name in self.new:
                key.update(tensors[name].tobytes())
        path = cache_folder() / "judged" / f"{key.hexdigest()}.json"
        if self.fresh or not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(self.evaluator.compare(restored).to_json(), allow_nan=False))
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def check(peer: Peer, setting: dict[str, Any], new: Tensors, restored: Tensors) -> dict[str, Any]:
    """Check names, dtypes and shapes, and bits if the peer is lossless; else return the largest error."""
    assert set(restored) == set(new), f"{peer.name}: other tensors came back"
    worst, outside = 0.0, 0
    for name, weights in new.items():
        found = restored[name]
        assert (found.dtype, found.shape) == (weights.dtype, weights.shape), f"{peer.name}: {name} changed its kind"
        if peer.lossless or weights.dtype != np.float32:
            assert found.tobytes() == weights.tobytes(), f"{peer.name}: {name} is not what it was"
            continue
        assert np.isfinite(found).all(), f"{peer.name}: {name} is not finite"
        error = np.abs(found.astype(np.float64) - weights)
        worst = max(worst, float(error.max(initial=0.0)))
        outside += int((error > setting.get("abs", np.inf)).sum())
    return {"max_error": worst} | ({"values_outside_bound": outside} if "abs" in setting else {})


def run_worker(
    peer: Peer, pair: Pair, settings: list[dict[str, Any]], rounds: int, folder: Path, cores: int | None = None
) -> Any:
    """Run the peer's worker and return its report; restored tensors are in `folder`. Raises NotInstalledError."""
    request = {"peer": peer.name, "new": str(folder / "new.npz"), "base": str(folder / "base.npz"), "cores": cores,
               "settings": settings, "rounds": rounds, "out": str(folder)}  # fmt: skip
    np.savez(folder / "new.npz", **pair.new)
    np.savez(folder / "base.npz", **pair.old)
    (folder / "request.json").write_text(json.dumps(request))
    command = [python_of(peer.needs), "-m", "experiments.lab.peers.worker", folder / "request.json"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalledError(f"failed: {(done.stderr.strip().splitlines() or [str(done.returncode)])[-1][:200]}")
    return json.loads((folder / "answer.json").read_text())


def restored(folder: Path, i: int) -> Tensors:
    """The tensors that the worker restored with its i-th setting."""
    return dict(np.load(folder / f"{i}.npz"))


def _point(raw: dict[str, Any], found: dict[str, Any], fidelity: dict[str, Any], n: int) -> dict[str, Any]:
    return {
        "setting": raw["setting"],
        "bytes": raw["bytes"],
        "bits_per_parameter": round(8 * raw["bytes"] / n, 5),
        "ratio": round(4 * n / raw["bytes"], 3),
        **fidelity,
        **found,
        "encode_mb_s": round(4 * n / max(raw["encode_s"], 1e-6) / 1e6, 2),
        "decode_mb_s": round(4 * n / max(raw["decode_s"], 1e-6) / 1e6, 2),
    }


def points(
    peer: Peer, pair: Pair, evaluate_restored: CachedEvaluator, settings: list[dict[str, Any]], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One method or peer over one pair, decoded, checked and evaluated at each setting, and versions of its packages.

    Raises NotInstalledError.
    """
    n = sum(w.size for w in pair.new.values())
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = run_worker(peer, pair, settings, rounds, folder)
        for i, raw in enumerate(answer["points"]):
            tensors = restored(folder, i)
            checked = check(peer, raw["setting"], pair.new, tensors)
            found.append(_point(raw, checked, evaluate_restored(tensors), n))
            print(pair.name, peer.name, found[-1], file=sys.stderr)
    return found, answer["versions"]


def measure(peer: Peer, pair: Pair, evaluate_restored: CachedEvaluator, rounds: int) -> Any:
    """One method or peer over its sweep, or why it could not be measured."""
    try:
        found, versions = points(peer, pair, evaluate_restored, peer.settings(pair.unit), rounds)
    except NotInstalledError as error:
        return {"not_measured": str(error)}
    return {"commit": record.commit(), "lossless": peer.lossless, "versions": versions, "points": found}


def _setting(peer: Peer, unit: float) -> list[dict[str, Any]]:
    """The middle of the sweep, near the unit; of lossless programs the one with the base."""
    settings = peer.settings(unit)
    return [settings[-1] if peer.lossless else settings[len(settings) // 2]]


def throughput(peer: Peer, pair: Pair, rounds: int, cores: int) -> dict[str, Any]:
    """A program bound to some cores: MB/s of float32 each way, and its peak memory. Raises NotInstalledError."""
    n_bytes = 4 * sum(w.size for w in pair.new.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = run_worker(peer, pair, _setting(peer, pair.unit), rounds, folder, cores)
        (point,) = answer["points"]
        check(peer, point["setting"], pair.new, restored(folder, 0))
    return {
        "setting": point["setting"],
        "encode_mb_s": n_bytes / point["encode_wall_s"] / 1e6,
        "decode_mb_s": n_bytes / point["decode_wall_s"] / 1e6,
        "peak_mib": point["peak_mib"],
    }
