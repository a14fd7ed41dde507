"""Damage: every change of every byte of small archives of all methods, and the same damage to files of other formats.

`damage` runs the long forms of `tests/test_damage.py` and `tests/test_hostile.py` and writes down their results with
the circumstances. `damage_peers` damages files of other formats: one process for each format, one fork for each trial.
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
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
            [sys.executable, "-W", "ignore", "-m", "experiments", "damage_peers", "--one", name],
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


def main_peers(arguments: list[str]) -> None:
    """The same damage to tiny files of several formats, and what each reader makes of it.

    Install the peers where this runs: safetensors zstandard pcodec zfpy pysz zipnn blosc2 torch. A missing
    package is reported.
    """
    parser = argparse.ArgumentParser(prog="bench damage_peers", description=main_peers.__doc__)
    parser.add_argument("--one", choices=FORMATS, help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="+", choices=FORMATS, default=list(FORMATS), help="measure these alone")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(examine(options.one)))
        return
    measure(options.only)


def main(arguments: list[str]) -> None:
    """The long forms of the damage tests."""
    parser = argparse.ArgumentParser(prog="bench damage", description=main.__doc__)
    parser.add_argument("pytest", nargs=argparse.REMAINDER, help="further arguments of pytest")
    further = parser.parse_args(arguments).pytest
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "--long", "tests/test_damage.py", "tests/test_hostile.py"),
                *("-k", "every_change_of_every_byte or test_measure", *further),
            ],
            env={**os.environ, "NEARZIP_RESULTS": folder},
            check=True,
        )
        found = {name: json.loads((Path(folder) / f"{name}.json").read_text()) for name in ("damage", "hostile")}
    record.save("damage", found, ("nearzip", "numpy", "ml_dtypes", "zstandard", "xxhash"))
