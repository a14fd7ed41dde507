"""Bits against divergence: every method and peer over the pairs of the traces, swept, closed loop, decoded and checked.

A file is coded against the older version as the reader holds it, here bit for bit. Bits per parameter count the whole
file over all values of the checkpoint. Speeds are float32 bytes over processor seconds, so that a busy machine and the
number of threads matter little.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.lab import evaluate, pairs, record, traces
from experiments.lab.cache import cache_folder
from experiments.lab.peers import METHODS, PEERS, Peer
from experiments.lab.peers.environments import NotInstalledError, python_of

_ROOT = Path(__file__).parents[3]


class Judge:
    """Fidelity to the newer version of a pair; what was judged before is kept by the restored bits."""

    def __init__(self, pair: pairs.Pair, data: Path, share: float, fresh: bool):
        self.network, self.new = pair.network, pair.new
        self.data, self.share, self.fresh = data, share, fresh

    @functools.cached_property
    def evaluator(self) -> evaluate.Evaluator:
        return evaluate.Evaluator(self.network, self.new, evaluate.held_out(self.network, self.data, self.share))

    def __call__(self, restored: traces.Tensors) -> dict[str, float]:
        key = hashlib.sha256(repr((self.network, self.share, torch.__version__)).encode())
        for tensors in (self.new, restored):
            for name in self.new:
                key.update(tensors[name].tobytes())
        path = cache_folder() / "judged" / f"{key.hexdigest()}.json"
        if self.fresh or not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(dataclasses.asdict(self.evaluator.compare(restored))))
        judged: dict[str, float] = json.loads(path.read_text())
        return judged


def check(peer: Peer, setting: dict[str, Any], new: traces.Tensors, restored: traces.Tensors) -> dict[str, Any]:
    """Names, types and shapes as they were; bits too, if the peer is lossless; how far off otherwise."""
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


def ask(
    peer: Peer, pair: pairs.Pair, settings: list[dict[str, Any]], rounds: int, folder: Path, cores: int | None = None
) -> Any:
    """Run the peer's worker; its answer. What it restored lies in `folder`. Raises NotInstalledError."""
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


def restored(folder: Path, i: int) -> traces.Tensors:
    """What the worker got back with its i-th setting."""
    return dict(np.load(folder / f"{i}.npz"))


def _point(raw: dict[str, Any], found: dict[str, Any], fidelity: dict[str, float], n: int) -> dict[str, Any]:
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
    peer: Peer, pair: pairs.Pair, judge: Judge, settings: list[dict[str, Any]], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One method or peer over one pair, decoded, checked and judged at each setting; versions of what it is made of.

    Raises NotInstalledError.
    """
    n = sum(w.size for w in pair.new.values())
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = ask(peer, pair, settings, rounds, folder)
        for i, raw in enumerate(answer["points"]):
            tensors = restored(folder, i)
            checked = check(peer, raw["setting"], pair.new, tensors)
            found.append(_point(raw, checked, judge(tensors), n))
            print(pair.name, peer.name, found[-1], file=sys.stderr)
    return found, answer["versions"]


def measure(peer: Peer, pair: pairs.Pair, judge: Judge, rounds: int) -> Any:
    """One method or peer over its sweep, or why it could not be measured."""
    try:
        found, versions = points(peer, pair, judge, peer.settings(pair.unit), rounds)
    except NotInstalledError as error:
        return {"not_measured": str(error)}
    return {"commit": record.commit(), "lossless": peer.lossless, "versions": versions, "points": found}


def update(old: traces.Tensors, new: traces.Tensors) -> dict[str, Any]:
    """How many values, and how far they moved."""
    moved = np.concatenate([(new[n].astype(np.float64) - w).reshape(-1) for n, w in old.items() if w.dtype.kind == "f"])
    return {
        "parameters": sum(w.size for w in new.values()),
        "update_rms": float(np.sqrt(np.mean(moved**2))),
        "update_max": float(np.abs(moved).max()),
    }


def _load() -> dict[str, Any]:
    path = record.RESULTS / "fidelity.json"
    loaded: dict[str, Any] = json.loads(path.read_text())["pairs"] if path.is_file() else {}
    return loaded


def main(arguments: list[str]) -> None:
    known = {peer.name: peer for peer in METHODS + PEERS}
    parser = argparse.ArgumentParser(prog="bench fidelity", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--methods", nargs="*", metavar="NAME", default=[m.name for m in METHODS])
    parser.add_argument("--peers", nargs="*", metavar="NAME", default=[p.name for p in PEERS])
    parser.add_argument("--pairs", nargs="+", choices=pairs.NAMES, default=pairs.NAMES)
    parser.add_argument("--share", type=float, default=1.0, help="how much of the held-out data to use")
    parser.add_argument("--rounds", type=int, default=1, help="times to encode and decode; medians are kept")
    parser.add_argument("--fresh", action="store_true", help="judge again what was judged before")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench fidelity needs data and traces: --data DIR or NEARZIP_DATA")
    unknown = [name for name in options.methods + options.peers if name not in known]
    if unknown:
        raise SystemExit(f"no method or peer {unknown[0]!r}; known are: {', '.join(known)}")
    # One thread adds in the same order on any machine's number of cores.
    torch.set_num_threads(1)
    data = where.parent / "data"
    os.environ.setdefault("NEARZIP_DATA", str(data))  # for the worker that calibrates
    for name in options.pairs:
        pair = pairs.load(name, where)
        judge = Judge(pair, data, options.share, options.fresh)
        for method in options.methods + options.peers:
            entry = measure(known[method](), pair, judge, options.rounds)
            rows = _load()
            row = rows.setdefault(name, {"unit": pair.unit, "entries": {}})
            row |= {**update(pair.old, pair.new), "held_out_share": options.share}
            row |= {"base": judge(pair.old), "original": judge(pair.new)}
            row["entries"][method] = entry
            record.save("fidelity", {"seed": 1, "pairs": rows}, ("nearzip", "numpy", "torch"))
