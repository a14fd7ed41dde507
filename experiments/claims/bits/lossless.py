"""Bit-exact updates: bytes and speed of nearzip beside other lossless programs, on float32 and bfloat16 pairs.

Neighbouring versions early and late in training, the same rounded to bfloat16, updates that change a few values, and
updates so small that most bfloat16 values stay. Every program sees one vector of all values; nearzip's files are whole
archives of named tensors. A program that does not restore every bit is listed with its error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import nearzip as nz
from experiments.claims.bits.lossless_worker import NEEDS
from experiments.lab import record, traces
from experiments.lab.peers.environments import NotInstalledError, python_of
from nearzip import _core
from nearzip.tensors import mantissa_bits

Pair = tuple[traces.Tensors, traces.Tensors]
#: Share of the values that a sparse update changes.
SHARES = (0.001, 0.01, 0.1)
#: How much smaller than the trace's the updates are that imitate one step of reinforcement learning.
SMALL = 0.02


def rounded(tensors: traces.Tensors) -> traces.Tensors:
    return {name: w.astype(ml_dtypes.bfloat16) for name, w in tensors.items() if w.dtype == np.float32}


def only_floats(tensors: traces.Tensors) -> traces.Tensors:
    return {name: w for name, w in tensors.items() if w.dtype == np.float32}


def sparse(old: traces.Tensors, new: traces.Tensors, share: float) -> traces.Tensors:
    """`old` with `share` of its values replaced by `new`'s, anywhere."""
    rng = np.random.default_rng(0)
    return {name: np.where(rng.random(w.shape) < share, new[name], w).astype(w.dtype) for name, w in old.items()}


def pairs(where: Path) -> Iterator[tuple[str, Pair]]:
    """Name, base and new version."""
    for name in traces.PAIRS:
        old, new = map(only_floats, traces.pair(where, name))
        yield f"{name}, float32", (old, new)
        yield f"{name}, bfloat16", (rounded(old), rounded(new))
    old, new = map(only_floats, traces.pair(where, "transformer late"))
    small = {name: (w + np.float32(SMALL) * (new[name] - w)).astype(np.float32) for name, w in old.items()}
    yield "small update, bfloat16", (rounded(old), rounded(small))
    for share in SHARES:
        yield f"{100 * share:g} % changed, float32", (old, sparse(old, new, share))
        low = rounded(old)
        # Whatever stays of an update after rounding: values that are replaced do differ.
        changed = {n: np.nextafter(w.astype(np.float32) * np.float32(1.02), np.float32(9)) for n, w in low.items()}
        yield f"{100 * share:g} % changed, bfloat16", (low, sparse(low, rounded(changed), share))


def flat(tensors: traces.Tensors) -> np.ndarray:
    values = np.concatenate([w.reshape(-1) for w in tensors.values()])
    return values.view(f"u{values.itemsize}")


def changes_alone(new: np.ndarray, base: np.ndarray, mantissa: int) -> int:
    """Bytes for which values changed, by the entropy of that share, and for the changed values on their own."""
    changed = new != base
    share = float(changed.mean())
    if share in (0.0, 1.0):
        return len(_core.encode_contexts(new, base, True, mantissa, [new.size]))
    entropy = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    values = _core.encode_contexts(new[changed], base[changed], True, mantissa, [int(changed.sum())])
    return int(np.ceil(entropy * new.size / 8)) + len(values)


def ours(old: traces.Tensors, new: traces.Tensors, rounds: int) -> dict[str, Any]:
    """Whole archives with and without the base, restored and compared."""
    found = {}
    n_bytes = sum(w.nbytes for w in new.values())
    for mode, base in (("alone", None), ("base", old)):
        seconds: dict[str, list[float]] = {"encode": [], "decode": []}
        for _ in range(rounds + 1):
            begin = time.process_time()
            archive = nz.compress(new, base=base, threads=1)
            middle = time.process_time()
            restored = nz.decompress(archive.to_bytes(), base=base, threads=1)
            seconds["encode"].append(middle - begin)
            seconds["decode"].append(time.process_time() - middle)
        if any(restored[name].tobytes() != w.tobytes() for name, w in new.items()):
            raise SystemExit("nearzip does not restore every bit")
        medians = {f"{way}_mb_s": round(n_bytes / sorted(s)[len(s) // 2] / 1e6, 1) for way, s in seconds.items()}
        found[mode] = {"bytes": archive.nbytes, **medians}
    return found


def theirs(folder: Path, program: str, names: list[str], rounds: int) -> dict[str, Any]:
    """Run one program over all pairs in `folder`."""
    request = {
        "program": program,
        "rounds": rounds,
        "answer": str(folder / "answer.json"),
        "pairs": [{"name": n, "new": f"{folder}/{i}.new.npy", "base": f"{folder}/{i}.base.npy"}
                  for i, n in enumerate(names)],
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(request))
    try:
        python = python_of(NEEDS[program])
    except NotInstalledError as error:
        return {"error": str(error)}
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "experiments.claims.bits.lossless_worker", str(folder / "request.json")]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.splitlines() or ["no answer"])[-1][:200]}
    answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return answer


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """nearzip against the smallest of the others, with and without the base."""
    sizes = {
        (program, mode): result["bytes"]
        for program, modes in row["programs"].items()
        for mode, result in modes.items()
        if isinstance(result, dict) and "bytes" in result
    }
    alone = {key: size for key, size in sizes.items() if key[1] == "alone"}
    result = {}
    for mode, others in (("base", sizes), ("alone", alone)):
        if others:
            best = min(others, key=others.__getitem__)
            result[f"best_other_{mode}"] = {"program": ", ".join(best), "bytes": others[best]}
            result[f"best_other_over_nearzip_{mode}"] = round(others[best] / row["nearzip"][mode]["bytes"], 3)
    return result


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench lossless", description=__doc__)
    parser.add_argument("--data", help="folder with the traces (or NEARZIP_DATA)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("bench lossless needs the traces: --data DIR or NEARZIP_DATA")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for i, (name, (old, new)) in enumerate(pairs(where)):
            bits, base = flat(new), flat(old)
            np.save(folder / f"{i}.new.npy", bits)
            np.save(folder / f"{i}.base.npy", base)
            dtype = next(iter(new.values())).dtype
            rows.append({
                "pair": name,
                "bytes": bits.nbytes,
                "changed": round(float((bits != base).mean()), 5),
                "changes_alone": changes_alone(bits, base, mantissa_bits(dtype)),
                "nearzip": ours(old, new, options.rounds),
                "programs": {},
            })  # fmt: skip
        names = [str(row["pair"]) for row in rows]
        for program in NEEDS:
            answer = theirs(folder, program, names, options.rounds)
            for row in rows:
                row["programs"][program] = answer.get(row["pair"], answer)
    for row in rows:
        row |= summary(row)
        print({key: value for key, value in row.items() if key != "programs"}, file=sys.stderr)
    record.save("lossless", {"rounds": options.rounds, "rows": rows}, ("nearzip", "numpy", "zstandard"))
