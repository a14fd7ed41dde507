"""Is the bound kept? At least 100 000 random tensors of every floating-point dtype, judged in rational numbers.

    python experiments/bound_truth.py --arrays 100000

Every tensor is compressed by a method, decoded again from the archive's bytes, and compared with the original by
`tests/oracle.py`, which shares no code with nearzip. "Rounded" arrays are those that came back other than they went
in; the codec keeps a group of tensors exactly where that is smaller. Writes experiments/results/bound_truth.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from arrays import FLOATS, random_network  # noqa: E402
from oracle import judge  # noqa: E402

import nearzip as nz  # noqa: E402
from nearzip.tensors import DTYPES  # noqa: E402

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


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.strip()


def run(n_arrays: int, seed: int) -> dict:
    commit = _commit()
    started = time.perf_counter()
    arrays: Counter[str] = Counter()
    values: Counter[str] = Counter()
    rounded: Counter[str] = Counter()
    worst: dict[str, float] = {}
    broken: list[dict] = []
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
        "commit": commit,
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arrays", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--out", type=Path, default=ROOT / "experiments/results/bound_truth.json")
    options = parser.parse_args()
    result = run(options.arrays, options.seed) | {
        "machine": f"{platform.machine()}, {_processor()}",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "ml_dtypes": ml_dtypes.__version__,
            "nearzip": nz.__version__,
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['arrays']} arrays, {result['arrays_with_violations']} with violations, {result['seconds']} s")
    return 1 if result["arrays_with_violations"] or result["decoded_differs_from_restored"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
