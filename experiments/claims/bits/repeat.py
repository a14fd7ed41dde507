"""Is the bench the same twice? Bits and divergence to the last digit, speeds as ratios within noise.

Methods and peers run over one pair twice, each time in new processes and evaluated again. Then their speeds are
measured twice, as multiples of one program's, so that whatever slows the whole machine cancels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from typing import Any

import torch

from experiments.lab import record, traces
from experiments.lab.peers import METHODS, PEERS, by_name, running

#: What does not depend on clocks.
_EXACT = ("setting", "bytes", "bits_per_parameter", "kl", "loss", "accuracy", "agreement", "max_error")
_WAYS = ("encode_mb_s", "decode_mb_s")
#: Whose speed is one, and on what: large enough that a call takes milliseconds.
_YARDSTICK, _SPEED_PAIR = "pcodec", "transformer late"
#: Times that each program is started in a run; medians are compared.
_STARTS = 5


def _exact(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: point[name] for name in _EXACT} for point in points]


def fidelity_twice(name: str, pair: traces.Pair, data: Any, share: float) -> dict[str, Any]:
    """Run twice; the number of points, and whether all are equal."""
    runs = []
    for _ in range(2):
        entry = running.measure(by_name(name), pair, running.CachedEvaluator(pair, data, share, fresh=True), 1)
        if "not_measured" in entry:
            return entry  # type: ignore[no-any-return]
        runs.append(_exact(entry["points"]))
    return {"points": len(runs[0]), "same": runs[0] == runs[1]}


def speeds(names: list[str], pair: traces.Pair, rounds: int) -> dict[str, dict[str, float]]:
    """MB/s on one core: the programs take turns, so that a busy minute hurts all alike."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(_STARTS):
        for name in names:
            found[name].append(running.throughput(by_name(name), pair, rounds, 1))
    return {n: {way: statistics.median(row[way] for row in rows) for way in _WAYS} for n, rows in found.items()}


def speeds_twice(names: list[str], pair: traces.Pair, rounds: int) -> dict[str, Any]:
    """MB/s of two runs, and by how much the ratio to the yardstick changed."""
    runs = [speeds(names, pair, rounds) for _ in range(2)]
    found: dict[str, Any] = {}
    for name in names:
        first, second = ({way: run[name][way] / run[_YARDSTICK][way] for way in _WAYS} for run in runs)
        found[name] = {
            way: {"mb_s": [round(run[name][way], 1) for run in runs], "ratio_changed": second[way] / first[way] - 1}
            for way in _WAYS
        }
    return found


def main(arguments: list[str]) -> None:
    known = [peer.name for peer in METHODS + PEERS]
    parser = argparse.ArgumentParser(prog="bench repeat", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--pair", choices=traces.pair_names(), default="vgg-small late")
    parser.add_argument("--only", nargs="*", metavar="NAME", choices=known, default=known)
    parser.add_argument("--speeds", nargs="*", metavar="NAME", choices=known, default=["nearzip", "SZ3 NOPRED"])
    parser.add_argument("--share", type=float, default=0.1, help="how much of the held-out data to use")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench repeat needs data and traces: --data DIR or NEARZIP_DATA")
    torch.set_num_threads(1)
    data = where.parent / "data"
    os.environ.setdefault("NEARZIP_DATA", str(data))  # for the worker that calibrates
    pair = traces.load_pair(options.pair, where)
    result = record.load("repeat")
    kept = {name: result.get(name, {}) for name in ("fidelity", "speed")}
    for name in options.only:
        kept["fidelity"][name] = fidelity_twice(name, pair, data, options.share)
        print(name, kept["fidelity"][name], file=sys.stderr)
    if options.speeds:
        timed = traces.load_pair(_SPEED_PAIR, where)
        kept["speed"] = speeds_twice([_YARDSTICK, *options.speeds], timed, options.rounds)
    named = {"pair": options.pair, "speed_pair": _SPEED_PAIR, "yardstick": _YARDSTICK}
    record.save("repeat", {**named, **kept}, ("nearzip", "numpy", "torch"))
