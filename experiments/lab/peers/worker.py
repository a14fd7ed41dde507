"""Runs one peer over one pair: `python -m experiments.lab.peers.worker REQUEST`, both ways through files.

The request (JSON) names the peer, the two versions (.npz), the settings and a folder; into the folder go `I.npz` for
each setting, the restored tensors, and `answer.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.peers import Peer, Setting, Tensors, by_name


def _children_seconds() -> float:
    """Processor seconds of the processes that this one started and that still run; 0 where the system does not tell."""
    found = 0.0
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # threads and children end
            # The clock of another process: clock_getcpuclockid of Linux.
            found += sum(time.clock_gettime((~int(pid) << 3) | 2) for pid in path.read_text().split())
    return found


def _processor_seconds() -> float:
    """SZ3, ZFP and blosc2 as methods work in a child process: its time counts."""
    return time.process_time() + _children_seconds()


def _timed(work: Callable[[], Any], rounds: int) -> tuple[Any, float, float]:
    """The result, and the medians of the processor seconds (all threads and children together) and wall seconds."""
    seconds, wall = [], []
    for _ in range(rounds):
        begin, begin_wall = _processor_seconds(), time.perf_counter()
        result = work()
        seconds.append(_processor_seconds() - begin)
        wall.append(time.perf_counter() - begin_wall)
    return result, statistics.median(seconds), statistics.median(wall)


def _memory_mib(field: str) -> float | None:
    """VmRSS or VmHWM of this process; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def _warm_up(peer: Peer) -> None:
    """Imports and first calls are not what is timed."""
    base = {"weight": np.linspace(-0.1, 0.1, 4096, dtype=np.float32).reshape(64, 64)}
    new = {"weight": base["weight"] + np.float32(0.001)}
    peer.decode(peer.encode(new, base, peer.settings(0.001)[-1]), base)


def _point(peer: Peer, new: Tensors, base: Tensors, setting: Setting, rounds: int, out: Path) -> dict[str, Any]:
    before = _memory_mib("VmRSS")
    data, encode_s, encode_wall_s = _timed(lambda: peer.encode(new, base, setting), rounds)
    restored, decode_s, decode_wall_s = _timed(lambda: peer.decode(data, base), rounds)
    peak = _memory_mib("VmHWM")
    np.savez(out, **restored)
    return {
        "setting": setting,
        "bytes": len(data),
        "encode_s": encode_s,
        "decode_s": decode_s,
        "encode_wall_s": encode_wall_s,
        "decode_wall_s": decode_wall_s,
        "peak_mib": None if peak is None or before is None else round(peak - before, 1),
    }


def _package(peer: Peer) -> dict[str, str]:
    names = [need.split("==")[0] for need in peer.needs if "<" not in need] or ["numpy"]
    own = next((n for n in names if n not in ("torch", "safetensors")), names[0])
    return {own: version(own)} if peer.needs else {}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    peer, out = by_name(request["peer"]), Path(request["out"])
    if request.get("cores") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: request["cores"]])
    new, base = dict(np.load(request["new"])), dict(np.load(request["base"]))
    _warm_up(peer)
    points = [
        _point(peer, new, base, setting, request["rounds"], out / f"{i}.npz")
        for i, setting in enumerate(request["settings"])
    ]
    (out / "answer.json").write_text(json.dumps({"points": points, "versions": _package(peer)}))


if __name__ == "__main__":
    main()
