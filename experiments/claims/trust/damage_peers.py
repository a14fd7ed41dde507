"""The same damage to tiny files of several formats: what each reader makes of it.

    python -m experiments damage_peers            measure (one process for each format, one fork for each trial)
    python -m experiments damage_peers --docs     write the table of docs/damage.md from the result

Install the peers where this runs: safetensors zstandard pcodec zfpy pysz zipnn blosc2 torch. What is missing is named.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import io
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from experiments.lab import record

N_VALUES = 1024
ADDRESS_SPACE = 6 << 30
CPU_SECONDS = 2
#: Every change of the first bytes, an even sample of the others', an even sample of all lengths.
HEAD_BYTES, SAMPLED_CHANGES, SAMPLED_LENGTHS = 48, 1500, 200


@dataclass(frozen=True)
class Format:
    """How one format writes an array and reads it back. Imports happen in its own process."""

    label: str
    package: str
    module: str
    make: Callable[[np.ndarray], bytes]
    read: Callable[[bytes], np.ndarray]


def _safetensors(x: np.ndarray) -> bytes:
    from safetensors.numpy import save

    return save({"w": x})


def _read_safetensors(data: bytes) -> np.ndarray:
    from safetensors.numpy import load

    return load(data)["w"]


def _torch(x: np.ndarray) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({"w": torch.from_numpy(x)}, stream)
    return stream.getvalue()


def _read_torch(data: bytes) -> np.ndarray:
    import torch

    found: np.ndarray = torch.load(io.BytesIO(data), weights_only=True)["w"].numpy()
    return found


def _zstd(x: np.ndarray, checksum: bool = False) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=19, write_checksum=checksum).compress(x.tobytes())


def _zstd_with_checksum(x: np.ndarray) -> bytes:
    return _zstd(x, checksum=True)


def _read_zstd(data: bytes) -> np.ndarray:
    import zstandard

    return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.float32)


def _blosc2(x: np.ndarray) -> bytes:
    import blosc2

    return bytes(blosc2.compress2(x.tobytes(), typesize=4))


def _read_blosc2(data: bytes) -> np.ndarray:
    import blosc2

    return np.frombuffer(blosc2.decompress2(data), np.float32)


def _pcodec(x: np.ndarray) -> bytes:
    from pcodec import ChunkConfig, standalone

    return bytes(standalone.simple_compress(x, ChunkConfig()))


def _read_pcodec(data: bytes) -> np.ndarray:
    from pcodec import standalone

    return np.asarray(standalone.simple_decompress(data))


def _zipnn(x: np.ndarray) -> bytes:
    import zipnn

    # It changes the caller's bytes in place: a copy.
    return bytes(zipnn.ZipNN(input_format="byte", bytearray_dtype="float32").compress(bytearray(x.tobytes())))


def _read_zipnn(data: bytes) -> np.ndarray:
    import zipnn

    return np.frombuffer(zipnn.ZipNN(input_format="byte", bytearray_dtype="float32").decompress(data), np.float32)


def _sz3(x: np.ndarray) -> bytes:
    from pysz import sz, szConfig, szErrorBoundMode

    config = szConfig()
    config.errorBoundMode = szErrorBoundMode.ABS
    config.absErrorBound = 1e-4
    packed, _ = sz.compress(x, config)
    return packed.tobytes()


def _read_sz3(data: bytes) -> np.ndarray:
    from pysz import sz

    return np.asarray(sz.decompress(np.frombuffer(data, np.uint8).copy(), np.float32, (N_VALUES,))[0])


def _zfp(x: np.ndarray) -> bytes:
    import zfpy

    return bytes(zfpy.compress_numpy(x, tolerance=1e-4))


def _read_zfp(data: bytes) -> np.ndarray:
    import zfpy

    return np.asarray(zfpy.decompress_numpy(data))


def _nearzip(x: np.ndarray) -> bytes:
    import nearzip

    return nearzip.compress({"w": x}).to_bytes()


def _nearzip_bound(x: np.ndarray) -> bytes:
    import nearzip

    return nearzip.compress({"w": x}, bound=nearzip.Absolute(1e-4)).to_bytes()


def _read_nearzip(data: bytes) -> np.ndarray:
    import nearzip

    return nearzip.decompress(data, threads=1)["w"]


FORMATS = {
    "safetensors": Format("safetensors", "safetensors", "safetensors", _safetensors, _read_safetensors),
    "torch": Format("torch.save, weights_only", "torch", "torch", _torch, _read_torch),
    "zstd": Format("zstd", "zstandard", "zstandard", _zstd, _read_zstd),
    "zstd-checksum": Format("zstd with checksum", "zstandard", "zstandard", _zstd_with_checksum, _read_zstd),
    "blosc2": Format("blosc2", "blosc2", "blosc2", _blosc2, _read_blosc2),
    "pcodec": Format("pcodec", "pcodec", "pcodec", _pcodec, _read_pcodec),
    "zipnn": Format("ZipNN", "zipnn", "zipnn", _zipnn, _read_zipnn),
    "sz3": Format("SZ3 (pysz), abs 1e-4", "pysz", "pysz", _sz3, _read_sz3),
    "zfp": Format("ZFP (zfpy), abs 1e-4", "zfpy", "zfpy", _zfp, _read_zfp),
    "nearzip": Format("**nearzip**, lossless", "nearzip", "nearzip", _nearzip, _read_nearzip),
    "nearzip-bound": Format("**nearzip**, abs 1e-4", "nearzip", "nearzip", _nearzip_bound, _read_nearzip),
}

_OUTCOMES = ("error", "wrong", "right", "memory")


def _try(read: Callable[[bytes], np.ndarray], data: bytes, right: bytes) -> str:
    """One damaged file in a fork of its own."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        spent = int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS, spent + CPU_SECONDS))
        try:
            outcome = "right" if read(data).tobytes() == right else "wrong"
        except MemoryError:
            outcome = "memory"
        except BaseException:
            outcome = "error"
        os._exit(_OUTCOMES.index(outcome))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "hang" if os.WTERMSIG(status) in (9, 24) else "crash"
    code = os.WEXITSTATUS(status)
    return _OUTCOMES[code] if code < len(_OUTCOMES) else "crash"


def _evenly(items: list[bytes], most: int) -> list[bytes]:
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _changes(data: bytes, begin: int, end: int) -> list[bytes]:
    """Each byte with each bit flipped, and as 00 and FF."""
    found = []
    for at in range(begin, min(end, len(data))):
        values = {data[at] ^ (1 << bit) for bit in range(8)} | {0, 255} - {data[at]}
        found += [data[:at] + bytes([new]) + data[at + 1 :] for new in sorted(values)]
    return found


def examine(name: str) -> dict[str, object]:
    """All damage to one format, in this process."""
    form = FORMATS[name]
    try:
        importlib.import_module(form.module)
    except ImportError as error:
        return {"missing": str(error)}
    x = np.random.default_rng(1).normal(0, 0.02, N_VALUES).astype(np.float32)
    data = form.make(x.copy())
    right = form.read(data).tobytes()
    changes = _changes(data, 0, HEAD_BYTES) + _evenly(_changes(data, HEAD_BYTES, len(data)), SAMPLED_CHANGES)
    lengths = _evenly([data[:n] for n in range(len(data))], SAMPLED_LENGTHS)
    began = time.monotonic()
    return {
        "version": record.versions(form.package)[form.package],
        "commit": record.commit(),
        "bytes": len(data),
        "changes": dict(collections.Counter(_try(form.read, d, right) for d in changes)),
        "truncations": dict(collections.Counter(_try(form.read, d, right) for d in lengths)),
        "seconds": round(time.monotonic() - began, 1),
    }


def measure(names: list[str]) -> None:
    """Measure `names`; the rows of the others stay as they were measured."""
    path = record.RESULTS / "damage_peers.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else {}
    rows = {name: known[name] for name in FORMATS if name in known}
    for name in names:
        print(name, file=sys.stderr, flush=True)
        child = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "experiments.claims.trust.damage_peers", "--one", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        rows[name] = (
            json.loads(child.stdout.splitlines()[-1]) if child.returncode == 0 else {"missing": child.stderr[-200:]}
        )
    settings = {
        "values": N_VALUES, "head_bytes": HEAD_BYTES, "sampled_changes": SAMPLED_CHANGES,
        "sampled_lengths": SAMPLED_LENGTHS, "address_space_gib": ADDRESS_SPACE >> 30, "cpu_seconds": CPU_SECONDS,
    }  # fmt: skip
    found = {FORMATS[name].package: row["version"] for name, row in rows.items() if "version" in row}
    ordered = {name: rows[name] for name in FORMATS if name in rows}
    record.save("damage_peers", {"settings": settings, "versions": found | record.versions("numpy"), "rows": ordered})


def _row(name: str, row: dict) -> list[object]:
    if "missing" in row:
        return [FORMATS[name].label, "not installed", *[""] * 6]
    label, _, rest = FORMATS[name].label.partition(",")
    label = f"{label} {row['version']}" + (f",{rest}" if rest else "")
    c, t = row["changes"], row["truncations"]
    failed = c.get("crash", 0) + c.get("memory", 0) + c.get("hang", 0)
    wrong = c.get("wrong", 0)
    cut, noticed = sum(t.values()), t.get("error", 0)
    how = ", ".join(f"{t[kind]} {text}" for kind, text in (("wrong", "silently wrong"), ("right", "read as if whole"),
                    ("crash", "crash"), ("memory", "out of memory"), ("hang", "hang")) if t.get(kind))  # fmt: skip
    return [
        label, row["bytes"], sum(c.values()), c.get("error", 0), f"**{wrong}**" if wrong else 0, c.get("right", 0),
        f"**{failed}**" if failed else 0, f"{noticed} of {cut}" + (f" ({how})" if how else ""),
    ]  # fmt: skip


def table() -> str:
    from experiments.docs.tables import table as markdown

    result = json.loads((record.RESULTS / "damage_peers.json").read_text())
    head = ["format", "bytes", "changes tried", "error", "silently wrong", "right all the same",
            "crash, hang or out of memory", "truncations noticed"]  # fmt: skip
    rows = [_row(name, row) for name, row in result["rows"].items()]
    m, s = result["machine"], result["settings"]
    commits = sorted({row["commit"] for row in result["rows"].values() if "commit" in row})
    seconds = sum(row.get("seconds", 0) for row in result["rows"].values())
    return markdown(head, rows) + (
        f"\n\nMade by `python -m experiments damage_peers` in {seconds:.0f} s: {m['cpu']}, {m['cores']} cores, Python "
        f"{m['python']}; commit {', '.join(commits)}, {result['date']}. Each trial in a process of its own with "
        f"{s['address_space_gib']} GiB of address space and {s['cpu_seconds']} s of processor time."
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="only write the table of docs/damage.md")
    parser.add_argument("--one", choices=FORMATS, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS), help="measure these alone")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(examine(options.one)))
        return
    if not options.docs:
        measure(options.only)
    from experiments.docs.tables import fill

    fill("docs/damage.md", "peers", table())


if __name__ == "__main__":
    main(sys.argv[1:])
