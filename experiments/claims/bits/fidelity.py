"""Bits against divergence: every method and peer over the pairs of the traces, swept, closed loop, decoded and checked.

A file is coded against the older version, which the reader has bit for bit. Bits per parameter count the whole
file over all values of the checkpoint. Speeds are float32 bytes over processor seconds, so that a busy machine and the
number of threads matter little.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.lab import record, traces
from experiments.lab.peers import METHODS, PEERS, running

_ROOT = Path(__file__).parents[3]


def update(old: traces.Tensors, new: traces.Tensors) -> dict[str, Any]:
    """Size of an update: number of values, rms and largest change."""
    moved = np.concatenate([(new[n].astype(np.float64) - w).reshape(-1) for n, w in old.items() if w.dtype.kind == "f"])
    return {
        "parameters": sum(w.size for w in new.values()),
        "update_rms": float(np.sqrt(np.mean(moved**2))),
        "update_max": float(np.abs(moved).max()),
    }


def earlier(document: dict[str, Any]) -> dict[str, Any]:
    """Rows of an earlier run; entries get its machine and date, which this run's file will not have."""
    rows: dict[str, Any] = document.get("pairs", {})
    for row in rows.values():
        for entry in row["entries"].values():
            entry.setdefault("machine", document["machine"])
            entry.setdefault("date", document["date"])
    return rows


def main(arguments: list[str]) -> None:
    known = {peer.name: peer for peer in METHODS + PEERS}
    parser = argparse.ArgumentParser(prog="bench fidelity", description=__doc__)
    parser.add_argument("--data", help="folder with the data and, beside it, the traces (or NEARZIP_DATA)")
    parser.add_argument("--methods", nargs="*", metavar="NAME", default=[m.name for m in METHODS])
    parser.add_argument("--peers", nargs="*", metavar="NAME", default=[p.name for p in PEERS])
    parser.add_argument("--pairs", nargs="+", choices=traces.pair_names(), default=traces.pair_names())
    parser.add_argument("--share", type=float, default=1.0, help="how much of the held-out data to use")
    parser.add_argument("--rounds", type=int, default=1, help="times to encode and decode; medians are kept")
    parser.add_argument("--fresh", action="store_true", help="ignore cached evaluations")
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
        pair = traces.load_pair(name, where)
        evaluate = running.CachedEvaluator(pair, data, options.share, options.fresh)
        for method in options.methods + options.peers:
            entry = running.measure(known[method](), pair, evaluate, options.rounds)
            rows = earlier(record.load("fidelity"))
            row = rows.setdefault(name, {"unit": pair.unit, "entries": {}})
            row |= {**update(pair.old, pair.new), "held_out_share": options.share}
            row |= {"base": evaluate(pair.old), "original": evaluate(pair.new)}
            row["entries"][method] = entry
            record.save("fidelity", {"seed": 1, "pairs": rows}, ("nearzip", "numpy", "torch"))
