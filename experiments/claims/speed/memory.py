"""Memory and time from file to file, from 10 MB to 4 GB: does cost stay linear and anonymous memory bounded?"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab import record

_TENSOR_VALUES = 4 << 20
_STEPS = {
    "compress": "import sys, nearzip as nz; nz.compress_file(sys.argv[1], sys.argv[3], sys.argv[2], bound='abs:1e-3')",
    "decompress": "import sys, nearzip as nz; nz.decompress_file(sys.argv[3], sys.argv[4], sys.argv[2])",
    "check": """
import sys, numpy as np
from nearzip.checkpoints import open_checkpoint
a, b = open_checkpoint(sys.argv[1]), open_checkpoint(sys.argv[4])
assert list(a.specs) == list(b.specs)
worst = max(float(np.abs(a.read(n) - b.read(n)).max()) for n in a.specs)
assert worst <= 1e-3, worst
""",
}


def write_pair(new: Path, old: Path, n_bytes: int) -> None:
    """Two versions of a network of 16 MB tensors: weights of spread 0.02, updates of spread 0.001."""
    n_tensors = max(1, n_bytes // (4 * _TENSOR_VALUES))
    values = min(_TENSOR_VALUES, n_bytes // 4)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(2 * values, np.float32) * np.float32(0.02)
    updates = rng.standard_normal(2 * values, np.float32) * np.float32(0.001)
    header = {
        f"layer.{i:04d}.weight": {
            "dtype": "F32",
            "shape": [values],
            "data_offsets": [4 * values * i, 4 * values * (i + 1)],
        }
        for i in range(n_tensors)
    }
    text = json.dumps(header).encode()
    with old.open("wb") as first, new.open("wb") as second:
        for stream in (first, second):
            stream.write(struct.pack("<Q", len(text)) + text)
        for i in range(n_tensors):
            at, shift = (i * 7919) % values, (i * 104729) % values
            tensor = weights[at : at + values] + np.float32(i * 1e-4)
            first.write(tensor.tobytes())
            second.write((tensor + updates[shift : shift + values]).tobytes())


def watch(code: str, arguments: list[str]) -> dict[str, float]:
    """Run Python code in a child; its seconds and the most anonymous memory that it held."""
    begin = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *arguments])
    peak = 0
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peak = max(peak, int(fields.get("RssAnon", "0").split()[0]))
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    if child.returncode:
        raise SystemExit(f"the child failed with {child.returncode}")
    return {"seconds": round(time.perf_counter() - begin, 2), "anonymous_mb": round(peak / 1e3, 1)}


def measure(n_bytes: int) -> dict[str, Any]:
    """Compress, restore and check one size."""
    with tempfile.TemporaryDirectory() as folder:
        new, old, archive, back = (
            Path(folder) / name for name in ("b.safetensors", "a.safetensors", "u.nz", "r.safetensors")
        )
        write_pair(new, old, n_bytes)
        row: dict[str, Any] = {"checkpoint_mb": round(new.stat().st_size / 1e6, 1)}
        for step, code in _STEPS.items():
            row[step] = watch(code, [str(p) for p in (new, old, archive, back)])
        row["archive_mb"] = round(archive.stat().st_size / 1e6, 2)
    del row["check"]
    return row


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench memory", description=__doc__)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000, 4000])
    options = parser.parse_args(arguments)
    rows = []
    for megabytes in options.megabytes:
        rows.append(measure(megabytes * 1_000_000))
        print(rows[-1], file=sys.stderr)
    record.save("memory", {"rows": rows})
