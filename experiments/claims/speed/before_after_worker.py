"""Runs calls of one build of nearzip, one at a time, as its parent asks.

Arguments: the folder that the build is installed in, and two .safetensors files (new, base). Each line on standard
input names a case; the answer is a line of JSON: processor seconds and bytes. The first call of a case warms up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from safetensors.numpy import load_file

BOUND = 2.5e-4
N_SMALL, SMALL = 3000, (16, 16)

Tensors = dict[str, Any]


def import_build(folder: str) -> Any:
    """nearzip from a folder, whatever the environment has installed in place."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
    sys.path.insert(0, folder)
    import nearzip

    if not str(nearzip.__file__).startswith(folder):
        raise SystemExit(f"nearzip came from {nearzip.__file__}, not from {folder}")
    return nearzip


def small_tensors() -> tuple[Tensors, Tensors]:
    """Many small tensors in two versions: new, base."""
    rng = np.random.default_rng(0)
    base = {f"block.{i}.weight": rng.normal(0, 0.05, SMALL).astype(np.float32) for i in range(N_SMALL)}
    new = {name: (w + rng.laplace(0, 1.2e-4, w.shape)).astype(np.float32) for name, w in base.items()}
    return new, base


def cases(nz: Any, new: Tensors, base: Tensors) -> dict[str, Callable[[], Any]]:
    """Calls by name; each gives an archive or tensors. Archives that are decoded are checked first."""
    small_new, small_base = small_tensors()
    bound = nz.Absolute(BOUND)
    found: dict[str, Callable[[], Any]] = {}

    def add(name: str, tensors: Tensors, reference: Tensors | None, error: float) -> None:
        archives: list[Any] = []

        def encode() -> Any:
            return nz.compress(tensors, base=reference, bound=bound if error else nz.Lossless(), threads=1)

        def decode() -> Any:
            if not archives:
                archives.append(encode())
                _check(nz.decompress(archives[0], base=reference, threads=1), tensors, error)
            return nz.decompress(archives[0], base=reference, threads=1)

        found[f"{name}, encode"], found[f"{name}, decode"] = encode, decode

    add("update", new, base, BOUND)
    add("lossless update", new, base, 0.0)
    add("no base", new, None, 0.0)
    add("small tensors", small_new, small_base, BOUND)
    add("small tensors, lossless", small_new, small_base, 0.0)
    return found


def _check(restored: Tensors, tensors: Tensors, error: float) -> None:
    for name, values in tensors.items():
        if error:
            assert np.abs(restored[name].astype(np.float64) - values).max() <= error, name
        else:
            assert restored[name].tobytes() == values.tobytes(), name


def main() -> None:
    folder, new, base = sys.argv[1:]
    nz = import_build(folder)
    calls = cases(nz, load_file(new), load_file(base))
    print(json.dumps(list(calls)), flush=True)
    for line in sys.stdin:
        begin = time.process_time()
        result = calls[line.strip()]()
        seconds = time.process_time() - begin
        n_bytes = getattr(result, "nbytes", None)
        del result
        print(json.dumps({"seconds": seconds, "bytes": n_bytes}), flush=True)


if __name__ == "__main__":
    main()
