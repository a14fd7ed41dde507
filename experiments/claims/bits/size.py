"""Whole files of every method at the same absolute bound, on neighbouring versions of trained networks."""

from __future__ import annotations

import argparse
import sys

import numpy as np

import nearzip as nz
from experiments.lab import record, traces


def order_0_bits(old: traces.Tensors, new: traces.Tensors, step: float) -> float:
    """Entropy of the quantized differences of all tensors under one table, bits per parameter."""
    deltas = [(new[name].astype(np.float64) - old[name]).reshape(-1) / step for name in new]
    counts = np.unique(np.rint(np.concatenate(deltas)), return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def measure(old: traces.Tensors, new: traces.Tensors, bound: float) -> dict[str, object]:
    """Bytes of each method for one pair; every archive is restored and compared."""
    n = sum(w.size for w in new.values())
    sizes = {}
    for method in ("nearzip", "delta-dnn"):
        archive = nz.compress(new, base=old, method=method, bound=nz.Absolute(bound))
        restored = nz.decompress(archive.to_bytes(), base=old)
        worst = max(
            float(np.abs(restored[name].astype(np.float64) - new[name]).max()) for name in new if new[name].size
        )
        if worst > bound:
            raise SystemExit(f"{method} broke its bound: {worst} > {bound}")
        sizes[method] = archive.nbytes
    for method in ("lossless", "gzip", "zstd", "lzma"):
        name = "nearzip" if method == "lossless" else method
        sizes[method] = nz.compress(new, base=old, method=name, bound=nz.Lossless()).nbytes
    return {
        "bound": bound,
        "bytes": sizes,
        "bits_per_parameter": {name: round(8 * size / n, 4) for name, size in sizes.items()},
        "order_0_bits": round(order_0_bits(old, new, 2 * bound), 4),
        "delta_dnn_over_nearzip": round(sizes["delta-dnn"] / sizes["nearzip"], 3),
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench size", description=__doc__)
    parser.add_argument("--data", help="folder with the traces (or NEARZIP_DATA)")
    where = traces.folder(parser.parse_args(arguments).data)
    if where is None:
        raise SystemExit("bench size needs the traces: --data DIR or NEARZIP_DATA")
    rows = []
    for name, (_, _, bounds) in traces.PAIRS.items():
        old, new = traces.pair(where, name)
        for bound in bounds:
            rows.append({"pair": name, **measure(old, new, bound)})
            print(rows[-1], file=sys.stderr)
    record.save("size", {"rows": rows})
