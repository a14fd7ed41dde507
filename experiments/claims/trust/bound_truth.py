"""Is the bound kept? At least 100 000 random tensors of every floating-point dtype, checked in rational numbers.

    python -m experiments bound_truth --arrays 100000

Every tensor is compressed by a method, decoded again from the archive's bytes, and compared with the original by
`tests/oracle.py`, which shares no code with nearzip. "Rounded" arrays are those whose restored values differ;
the codec keeps a group of tensors exactly where that is smaller. Writes experiments/results/bound_truth.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))

from arrays import FLOATS, random_network
from oracle import judge

import nearzip as nz
from experiments.lab import record
from nearzip.tensors import DTYPES

BOUNDS = {
    "lossless": nz.Lossless,
    "abs": nz.Absolute,
    "rel": nz.Relative,
    "pwrel": nz.PointwiseRelative,
    "rms": nz.Rms,
}
WAYS = [
    *(("nearzip", kind, {}) for kind in BOUNDS),
    ("delta-dnn", "abs", {"mode": "absolute"}),
    ("delta-dnn", "pwrel", {"mode": "relative"}),
]
PER_CALL = 100


def measure(n_arrays: int, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    arrays: Counter[str] = Counter()
    values: Counter[str] = Counter()
    rounded: Counter[str] = Counter()
    worst: dict[str, float] = {}
    broken: list[dict[str, Any]] = []
    mismatched = call = 0
    while sum(arrays.values()) < n_arrays:
        rng = np.random.default_rng([seed, call])
        method, kind, options = WAYS[call % len(WAYS)]
        # One call in ten is of all dtypes; integers, booleans and complex numbers must be exact under every bound.
        dtypes = tuple(DTYPES) if call % 10 == 0 else FLOATS
        tensors, base = random_network(rng, PER_CALL, dtypes, with_base=bool(rng.random() < 0.7))
        value = 10.0 ** rng.uniform(-9, 0.5)
        bound = nz.Lossless() if kind == "lossless" else BOUNDS[kind](value)
        archive = nz.compress(tensors, base=base, method=method, bound=bound, options=options, threads=1)
        decoded = nz.decompress(archive.to_bytes(), base=base, threads=1)
        for name, array in tensors.items():
            mismatched += decoded[name].tobytes() != archive.restored[name].tobytes()
            verdict = judge(array, decoded[name], kind, value)
            key = f"{array.dtype.newbyteorder('=').name} x {method} {kind}"
            arrays[key] += 1
            values[key] += array.size
            rounded[key] += verdict.worst > 0
            worst[key] = max(worst.get(key, 0.0), verdict.worst)
            if verdict.broken:
                broken.append({"seed": [seed, call], "tensor": name, "way": key, "places": verdict.broken[:10]})
        call += 1
    return {
        "arrays": sum(arrays.values()),
        "values": sum(values.values()),
        "arrays_rounded": sum(rounded.values()),
        "arrays_with_violations": len(broken),
        "violations": broken[:100],
        "decoded_differs_from_restored": mismatched,
        "largest_error_over_tolerance": max(worst.values()),
        "dtype_x_bound": {
            key: {
                "arrays": arrays[key],
                "rounded": rounded[key],
                "values": values[key],
                "largest_error_over_tolerance": worst[key],
            }
            for key in sorted(arrays)
        },
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench bound_truth", description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args(arguments)
    result = measure(options.arrays, options.seed)
    record.save("bound_truth", result, ("nearzip", "numpy", "ml_dtypes"))
    print(f"{result['arrays']} arrays, {result['arrays_with_violations']} with violations, {result['seconds']} s")
    if result["arrays_with_violations"] or result["decoded_differs_from_restored"]:
        raise SystemExit(1)
