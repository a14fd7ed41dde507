"""Speed and peak memory of every method and peer on one update, each in a process of its own.

Every program codes the same update twice: bound to one core, and with all of them (most use one). Speeds are float32
bytes over wall seconds, medians; outputs are checked. Peak memory is the process's own (VmHWM), less its memory before
the first call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from experiments.claims.speed.speed import BOUND
from experiments.lab import record, traces
from experiments.lab.peers import METHODS, PEERS, running
from experiments.lab.peers.environments import NotInstalledError

_PAIR = "transformer late"


def _tiled(where: Path) -> traces.Pair:
    """The data and the bound of the `speed` measurement."""
    name, old, new = traces.tiled(where)
    return traces.Pair(name, "transformer", old, new, BOUND)


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
    pair, cores = _tiled(where) if options.tiled else traces.load_pair(_PAIR, where), os.cpu_count() or 1
    entries: dict[str, Any] = {}
    for name in options.only:
        try:
            entries[name] = {
                "one_core": running.throughput(known[name](), pair, options.rounds, 1),
                "all_cores": running.throughput(known[name](), pair, options.rounds, cores),
            }
        except NotInstalledError as error:
            entries[name] = {"not_measured": str(error)}
        print(name, json.dumps(entries[name]), file=sys.stderr)
    result = {"pair": pair.name, "unit": pair.unit, "rounds": options.rounds, "entries": entries}
    record.save("throughput_tiled" if options.tiled else "throughput", result, ("nearzip", "numpy"))
