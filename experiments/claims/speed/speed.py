"""Speed of nearzip on 50 MB of weights in memory, beside zstd and a copy, in one process.

float32 bytes per second; medians of rounds in which the sides take turns; every output is checked first. One core is
timed in processor seconds, which other processes on the machine do not change; two cores in wall seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import lzma
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zstandard

import nearzip as nz
from experiments.lab import record, traces
from nearzip.bounds import Tolerance
from nearzip.codec import encode_block
from nearzip.parallel import ordered_map
from nearzip.stages import Context, PackIntegers, Pipeline, Rans, SubtractBase, UniformStep

BOUND = 2.5e-4
#: Half the differences are not zero any more.
FINE = 1e-4


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Bind this process to one processor."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rates(
    sides: dict[str, Callable[[], object]], n_bytes: int, rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    seconds = record.interleaved(sides, rounds, clock)
    return {name: round(n_bytes / s / 1e6, 1) for name, s in seconds.items()}


def end_to_end(old: traces.Tensors, new: traces.Tensors, rounds: int) -> dict[str, Any]:
    """Two versions in memory to verified bytes and back."""
    archive = nz.compress(new, base=old, bound=nz.Absolute(BOUND), threads=1)
    restored = nz.decompress(archive, base=old, threads=2)
    for name, weights in new.items():
        assert restored[name].tobytes() == archive.restored[name].tobytes(), name
        assert np.abs(restored[name].astype(np.float64) - weights).max() <= BOUND, name
    assert nz.compress(new, base=old, bound=nz.Absolute(BOUND), threads=2).to_bytes() == archive.to_bytes()
    n_bytes = sum(w.nbytes for w in new.values())
    flat = b"".join(w.tobytes() for w in new.values())
    packed = zstandard.ZstdCompressor(level=3).compress(flat)

    def sides(threads: int) -> dict[str, Callable[[], object]]:
        return {
            "encode": lambda: nz.compress(new, base=old, bound=nz.Absolute(BOUND), threads=threads),
            "decode": lambda: nz.decompress(archive, base=old, threads=threads),
        }

    fine = nz.compress(new, base=old, bound=nz.Absolute(FINE), threads=1)
    lossless = nz.compress(new, base=old, threads=1)
    no_base = nz.compress(new, threads=1)
    for exact, base in ((lossless, old), (no_base, None)):
        found = nz.decompress(exact, base=base, threads=1)
        assert all(found[name].tobytes() == weights.tobytes() for name, weights in new.items())
    with one_core():
        alone = rates(
            {
                **sides(1),
                "fine encode": lambda: nz.compress(new, base=old, bound=nz.Absolute(FINE), threads=1),
                "fine decode": lambda: nz.decompress(fine, base=old, threads=1),
                "lossless encode": lambda: nz.compress(new, base=old, threads=1),
                "lossless decode": lambda: nz.decompress(lossless, base=old, threads=1),
                "lossless encode, no base": lambda: nz.compress(new, threads=1),
                "lossless decode, no base": lambda: nz.decompress(no_base, threads=1),
                "zstd -3 encode": lambda: zstandard.ZstdCompressor(level=3).compress(flat),
                "zstd -3 decode": lambda: zstandard.ZstdDecompressor().decompress(packed),
                "memory copy": lambda: {name: w.copy() for name, w in new.items()},
            },
            n_bytes,
            rounds,
        )
    return {
        "megabytes": round(n_bytes / 1e6, 1),
        "bits_per_parameter": round(8 * archive.nbytes / (n_bytes / 4), 4),
        "fine_bits_per_parameter": round(8 * fine.nbytes / (n_bytes / 4), 4),
        "lossless_bits_per_parameter": round(8 * lossless.nbytes / (n_bytes / 4), 4),
        "one_core_mb_s": alone,
        "two_cores_mb_s": rates(sides(2), n_bytes, rounds, time.perf_counter),
        "zstd_3_ratio": round(len(flat) / len(packed), 3),
    }


def scaling(old: traces.Tensors, new: traces.Tensors, rounds: int) -> dict[str, float]:
    """Quantizing, coding, decoding and checking blocks on two cores against one."""
    x = np.concatenate([w.reshape(-1) for w in new.values()])
    base = np.concatenate([w.reshape(-1) for w in old.values()])
    size = 1 << 20
    places = range(0, x.size - size, size)
    pipeline = Pipeline((SubtractBase(), UniformStep(2 * BOUND), Rans()))

    def block(at: int) -> bytes:
        values, reference = x[at : at + size], base[at : at + size]
        context = Context(values.dtype, (size,), reference)
        return encode_block(values, context, pipeline, [Tolerance("absolute", BOUND)]).payload

    assert list(ordered_map(block, places, 1)) == list(ordered_map(block, places, 2))
    sides = {f"{n} threads": (lambda n=n: list(ordered_map(block, places, n))) for n in (1, 2)}
    seconds = record.interleaved(sides, rounds)
    return {"two_cores_over_one": round(seconds["1 threads"] / seconds["2 threads"], 2)}


def entropy_coding(old: traces.Tensors, new: traces.Tensors, rounds: int) -> dict[str, Any]:
    """rANS against LZMA on the same quantized differences (LZMA gets them packed in the narrowest integers)."""
    n = 1 << 21
    x = np.concatenate([w.reshape(-1) for w in new.values()])[:n]
    base = np.concatenate([w.reshape(-1) for w in old.values()])[:n]
    context = Context(x.dtype, (x.size,), base)
    symbols = UniformStep(2 * BOUND).encode(SubtractBase().encode(x, context).floats).symbols
    coded = Rans().encode(symbols, context)
    packed = PackIntegers().encode(symbols).data
    squeezed = lzma.compress(packed, preset=6)
    assert np.array_equal(Rans().decode(coded, context), symbols)
    counts = np.unique(symbols, return_counts=True)[1] / symbols.size
    with one_core():
        speed = rates(
            {
                "rans encode": lambda: Rans().encode(symbols, context),
                "rans decode": lambda: Rans().decode(coded, context),
                "lzma encode": lambda: lzma.compress(packed, preset=6),
                "lzma decode": lambda: lzma.decompress(squeezed),
            },
            4 * x.size,
            max(3, rounds // 3),
        )
    return {
        "order_0_bits": round(float(-(counts * np.log2(counts)).sum()), 4),
        "rans_bits": round(8 * len(coded.data) / x.size, 4),
        "lzma_bits": round(8 * len(squeezed) / x.size, 4),
        "mb_s": speed,
        "encode_ratio": round(speed["rans encode"] / speed["lzma encode"], 1),
        "decode_ratio": round(speed["rans decode"] / speed["lzma decode"], 1),
    }


#: What a function of a file spends its own time on.
_PARTS = {
    ("quantize.py", "encode"): "quantize and code",
    ("quantize.py", "decode"): "decode and dequantize",
    ("bounds.py", "violations"): "check the bound",
    ("bounds.py", "of"): "statistics",
    ("layout.py", "block_values"): "gather small tensors",
}


def profile(work: Callable[[], object]) -> dict[str, float]:
    """Share of the time by what it goes to, in per cent; memory is there from a first time."""
    profiler = cProfile.Profile()
    work()
    profiler.enable()
    for _ in range(5):
        work()
    profiler.disable()
    shares: dict[str, float] = {}
    table: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(row[2] for row in table.values())
    for (path, _, function), row in table.items():
        name = _PARTS.get((os.path.basename(path), function), "everything else")
        if "xxh3" in function:
            name = "checksums"
        shares[name] = shares.get(name, 0.0) + 100 * row[2] / total
    return {name: round(share, 1) for name, share in sorted(shares.items(), key=lambda item: -item[1])}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench speed", description=__doc__)
    parser.add_argument("--data", help="folder with the traces (or NEARZIP_DATA)")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    where = traces.folder(options.data)
    source, old, new = traces.tiled(where)
    result: dict[str, Any] = {"source": source, "bound": BOUND, "rounds": options.rounds}
    result["load_average"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    result["end_to_end"] = end_to_end(old, new, options.rounds)
    result["scaling"] = scaling(old, new, options.rounds)
    names = ("transformer early", "transformer late", "vgg-small early") if where else ()
    pairs = {name: traces.pair(where, name) for name in names} if where else {source: (old, new)}
    result["entropy_coding"] = {name: entropy_coding(*versions, options.rounds) for name, versions in pairs.items()}
    archive = nz.compress(new, base=old, bound=nz.Absolute(BOUND), threads=1)
    result["profile_percent"] = {
        "encode": profile(lambda: nz.compress(new, base=old, bound=nz.Absolute(BOUND), threads=1)),
        "decode": profile(lambda: nz.decompress(archive, base=old, threads=1)),
    }
    print(result, file=sys.stderr)
    record.save("speed", result, ("nearzip", "numpy", "zstandard", "xxhash"))
