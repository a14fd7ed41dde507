"""Many damaged archives in one process: few threads, children and descriptors, and every error named."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nearzip as nz
from nearzip.recipes import recipe_types
from nearzip.testing.damage import Held, random_damage, storm

METHODS = sorted(recipe_types())
#: Beyond the start: two pools of four threads, one child process, its two pipes and a few files that are being opened.
THREADS, CHILDREN, DESCRIPTORS = 8, 1, 6


@functools.cache
def sample(method: str, rows: int = 48) -> tuple[bytes, dict[str, np.ndarray]]:
    """An archive of several segments, so that some blocks are still decoded when another is found damaged."""
    draws = np.random.default_rng(1)
    old = {
        "w": draws.normal(0, 0.05, (rows, 40)).astype(np.float32),
        "b": draws.normal(0, 0.1, 64).astype(np.float16),
        "d": draws.normal(0, 0.1, 300),
        "n": np.arange(7),
    }
    new = {name: (w + 0.003 * draws.normal(size=w.shape)).astype(w.dtype) for name, w in old.items()}
    return nz.compress(new, base=old, method=method).to_bytes(), old


def skip_if_missing(method: str) -> None:
    for package in recipe_types()[method].needs:
        pytest.importorskip(package)


@pytest.mark.parametrize("method", METHODS)
def test_damage_upon_damage_leaves_little_behind(method: str) -> None:
    skip_if_missing(method)
    data, base = sample(method, rows=900)  # large enough for threads
    found = storm(random_damage(data, 120), base, threads=4)
    assert not found.unnamed
    assert found.outcomes.total() == 120
    assert found.outcomes["CorruptError"] > 40
    assert found.more_threads <= THREADS
    assert found.more_children <= CHILDREN
    assert found.more_descriptors <= DESCRIPTORS


def test_storms_in_several_threads_at_once() -> None:
    data, base = sample("nearzip", rows=900)
    began = Held.now().threads
    results: list[Any] = []
    callers = [
        threading.Thread(target=lambda seed=seed: results.append(storm(random_damage(data, 60, seed), base, threads=3)))
        for seed in range(4)
    ]
    for caller in callers:
        caller.start()
    most = 0
    while any(caller.is_alive() for caller in callers):
        most = max(most, Held.now().threads - began)
    assert len(results) == 4
    assert not [error for found in results for error in found.unnamed]
    # Each caller has one pool at work; as many again may still be busy with what was abandoned.
    assert most <= 4 * (1 + 3 + 3)


def test_damaged_archives_in_files_leave_no_file_open(tmp_path: Path) -> None:
    data, base = sample("zstd")
    began = Held.now()
    for i, damage in enumerate(random_damage(data, 200)):
        path = tmp_path / f"{i}.nz"
        path.write_bytes(damage.data)
        try:
            with nz.open(path, base=base) as archive:
                dict(archive)
        except nz.errors.Error:
            continue
    assert Held.now().descriptors - began.descriptors <= DESCRIPTORS


# ---- under an address-space limit ------------------------------------------------------------------------------

_WORKER = """
import json, resource, struct, sys
from pathlib import Path
import numpy as np, nearzip as nz
from nearzip.testing.damage import Damage, storm
folder = Path(sys.argv[1])
base = dict(np.load(folder / "base.npz"))
sound = (folder / "sound.nz").read_bytes()

def damages(stream):
    for i in range(int(sys.argv[3])):
        yield Damage(f"archive {i}", stream.read(struct.unpack("<I", stream.read(4))[0]))

np.random.default_rng()  # loads what NumPy loads late
has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = has + (int(sys.argv[2]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for _ in range(10):
    nz.decompress(sound, base)
with open(folder / "damaged", "rb") as stream:
    found = storm(damages(stream), base)
nz.decompress(sound, base)
print(json.dumps({"address_space_mib": limit >> 20, **vars(found)}))
"""


def in_little_memory(folder: Path, mib: int, count: int) -> dict[str, Any] | None:
    """A storm in a process that may take so many MiB of addresses beyond those that it begins with.

    None if sound archives do not decode in them.
    """
    run = subprocess.run(
        [sys.executable, "-c", _WORKER, str(folder), str(mib), str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
        env={**os.environ, "NEARZIP_THREADS": "4", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    return json.loads(run.stdout) if run.returncode == 0 else None


def prepare(folder: Path, method: str, count: int) -> None:
    """The worker's files. It reads what is damaged one by one, so that the limit is the decoder's alone."""
    folder.mkdir(exist_ok=True)
    data, base = sample(method)
    (folder / "sound.nz").write_bytes(data)
    np.savez(folder / "base.npz", **base)
    with open(folder / "damaged", "wb") as stream:
        for damage in random_damage(data, count):
            stream.write(struct.pack("<I", len(damage.data)) + damage.data)


def smallest_limit(folder: Path) -> int:
    """MiB, a power of two, in which a sound archive decodes every time of three."""
    mib = 1
    while any(in_little_memory(folder, mib, 0) is None for _ in range(3)):
        mib *= 2
    return mib


linux_only = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit of addresses is Linux's")


@linux_only
@pytest.mark.parametrize("method", ["nearzip", "lzma", "blosc", "sz3"])
def test_a_storm_in_little_memory(method: str, tmp_path: Path) -> None:
    skip_if_missing(method)
    prepare(tmp_path, method, 100)
    found = in_little_memory(tmp_path, 256, 100)
    assert found is not None
    check_storm(found, 100)


def check_storm(found: dict[str, Any], count: int) -> None:
    assert found["unnamed"] == []
    assert sum(found["outcomes"].values()) == count
    assert found["more_threads"] <= THREADS
    assert found["more_children"] <= CHILDREN
    assert found["more_descriptors"] <= DESCRIPTORS


@pytest.mark.long
@linux_only
def test_measure_thousands_of_damaged_archives(tmp_path: Path) -> None:
    """5,000 of each method under the smallest limit in which sound ones decode. NEARZIP_RESULTS: where to write."""
    rows = {}
    for method in METHODS:
        if not all(map(importlib.util.find_spec, recipe_types()[method].needs)):
            continue
        folder = tmp_path / method
        prepare(folder, method, 5000)
        limit = smallest_limit(folder)
        found = in_little_memory(folder, limit, 5000)
        assert found is not None, method
        check_storm(found, 5000)
        rows[method] = {"more_mib": limit, **found}
        (folder / "damaged").unlink()
    folder = Path(os.environ.get("NEARZIP_RESULTS", tmp_path))
    (folder / "damaged_many.json").write_text(json.dumps({"archives": 5000, "methods": rows}, indent=1) + "\n")
