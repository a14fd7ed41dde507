"""Speed and peak memory of every method and peer on one update, each in a process of its own.

Every program codes the same update twice: bound to one core, and with all of them (most use one). Speeds are float32
bytes over wall seconds, medians; what comes back is checked. Peak memory is the process's own (VmHWM), above what it
held before its first call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiments.claims.bits import fidelity
from experiments.claims.speed.speed import BOUND
from experiments.lab import pairs, record, traces
from experiments.lab.peers import METHODS, PEERS, Peer
from experiments.lab.peers.environments import NotInstalledError

_PAIR = "transformer late"


def _setting(peer: Peer, unit: float) -> list[dict[str, Any]]:
    """The middle of the sweep, near the unit; of lossless programs the one with the base."""
    settings = peer.settings(unit)
    return [settings[-1] if peer.lossless else settings[len(settings) // 2]]


def one(peer: Peer, pair: pairs.Pair, rounds: int, cores: int) -> dict[str, Any]:
    """A program bound to some cores: MB/s of float32 each way, and its peak memory. Raises NotInstalledError."""
    n_bytes = 4 * sum(w.size for w in pair.new.values())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answer = fidelity.ask(peer, pair, _setting(peer, pair.unit), rounds, folder, cores)
        (point,) = answer["points"]
        fidelity.check(peer, point["setting"], pair.new, fidelity.restored(folder, 0))
    return {
        "setting": point["setting"],
        "encode_mb_s": n_bytes / point["encode_wall_s"] / 1e6,
        "decode_mb_s": n_bytes / point["decode_wall_s"] / 1e6,
        "peak_mib": point["peak_mib"],
    }


def _tiled(where: Path) -> pairs.Pair:
    """As the bench of our own speed has it, at its bound."""
    name, old, new = traces.tiled(where)
    return pairs.Pair(name, "transformer", old, new, BOUND)


def main(arguments: list[str]) -> None:
    known = {peer.name: peer for peer in METHODS + PEERS}
    parser = argparse.ArgumentParser(prog="bench throughput", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=known, default=list(known))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiled", action="store_true", help="on 51 MB: the late transformer again and again")
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench throughput needs traces: --data DIR or NEARZIP_DATA")
    os.environ.setdefault("NEARZIP_DATA", str(where.parent / "data"))  # for the worker that calibrates
    pair, cores = _tiled(where) if options.tiled else pairs.load(_PAIR, where), os.cpu_count() or 1
    entries: dict[str, Any] = {}
    for name in options.only:
        try:
            entries[name] = {
                "one_core": one(known[name](), pair, options.rounds, 1),
                "all_cores": one(known[name](), pair, options.rounds, cores),
            }
        except NotInstalledError as error:
            entries[name] = {"not_measured": str(error)}
        print(name, json.dumps(entries[name]), file=sys.stderr)
    result = {"pair": pair.name, "unit": pair.unit, "rounds": options.rounds, "entries": entries}
    record.save("throughput_tiled" if options.tiled else "throughput", result, ("nearzip", "numpy"))
