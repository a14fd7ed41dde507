"""Fifty versions, each coded against what the reader decoded before: the error of the last is that of the first."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from oracle import judge

import nearzip as nz
from nearzip.tensors import DTYPES

N_VERSIONS = 50
WAYS = [
    ("nearzip", "abs", 2e-3, {}),
    ("nearzip", "rel", 2e-3, {}),
    ("nearzip", "pwrel", 0.02, {}),
    ("nearzip", "rms", 0.02, {}),
    ("nearzip", "lossless", 0.0, {}),
    ("delta-dnn", "abs", 2e-3, {"backend": "rle+zstd"}),
    ("delta-dnn", "pwrel", 0.02, {"mode": "relative", "backend": "zstd"}),
]
IDS = [f"{method}, {kind}" for method, kind, *_ in WAYS]
BOUNDS = {"abs": nz.Absolute, "rel": nz.Relative, "pwrel": nz.PointwiseRelative, "rms": nz.Rms}


def network(rng: np.random.Generator) -> dict[str, np.ndarray]:
    embed = rng.normal(0, 0.1, (20, 16)).astype(np.float32)
    return {
        "embed.weight": embed,
        "conv.weight": rng.normal(0, 0.2, (4, 4, 3, 3)).astype(np.float32),
        "norm.weight": np.ones(16, np.float32),
        "norm.bias": np.zeros(16, np.float32),
        "norm.running_var": np.full(16, 0.9, np.float16),
        "norm.num_batches_tracked": np.array(0, np.int64),
        "half.weight": rng.normal(0, 0.1, (16, 16)).astype(DTYPES["bfloat16"]),
        "double.weight": rng.normal(0, 0.1, (5, 5)),
        "mask": rng.random(20) < 0.5,
        "empty": np.empty((0, 4), np.float32),
        "head.weight": embed,
    }


def train(rng: np.random.Generator, tensors: dict[str, np.ndarray], version: int) -> dict[str, np.ndarray]:
    """The next version: a random walk, with tensors that come, go and change shape on the way."""
    after = {}
    for name, array in tensors.items():
        if array.dtype.kind in "ib":
            after[name] = array + 100 if array.dtype.kind == "i" else array ^ (rng.random(array.shape) < 0.02)
        elif name == "head.weight":
            after[name] = after["embed.weight"]
        else:
            moved = array.astype(np.float64) * 0.999 + rng.normal(0, 5e-3, array.shape)
            after[name] = moved.astype(np.float32).astype(array.dtype)
    if version == 20:
        after["adapter.weight"] = rng.normal(0, 0.1, (4, 16)).astype(np.float32)
        after["embed.weight"] = np.concatenate([after["embed.weight"], np.zeros((3, 16), np.float32)])
        after["head.weight"] = after["embed.weight"]
    if version == 30:
        after["double.weight"] = after["double.weight"].astype(np.float32)
        del after["mask"]
    if version == 35:
        after["norm.bias"][0] = np.nan
    return after


@pytest.mark.parametrize(("method", "kind", "value", "options"), WAYS, ids=IDS)
def test_fifty_versions_do_not_drift(tmp_path, method, kind, value, options):
    rng = np.random.default_rng(50)
    bound = nz.Lossless() if kind == "lossless" else BOUNDS[kind](value)
    tensors, held = network(rng), None
    expected = []
    for version in range(N_VERSIONS):
        archive = nz.compress(tensors, base=held, method=method, bound=bound, options=options, threads=1)
        assert (archive.base_id is None) == (version == 0)
        for name, array in tensors.items():
            verdict = judge(array, archive.restored[name], kind, value)
            assert not verdict.broken, f"version {version}, {name}"
        archive.save(tmp_path / f"{version:02}.nz")
        held = archive.restored
        expected.append({name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in held.items()})
        tensors = train(rng, tensors, version + 1)
    assert read_back(tmp_path) == expected


READ_BACK = """
import hashlib, json, pathlib, sys
import nearzip
held, digests = None, []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.nz")):
    held = nearzip.decompress(path, base=held)
    digests.append({name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in held.items()})
print(json.dumps(digests))
"""


def read_back(folder) -> list[dict[str, str]]:
    """The whole chain, in a fresh process."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_BACK, str(folder)], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)


def test_open_loop_would_drift():
    """Against originals instead of what was decoded, the reader's error grows: why the base is `restored`."""
    rng = np.random.default_rng(1)
    original = rng.normal(0, 0.1, 4000).astype(np.float32)
    held = original.copy()
    for _ in range(N_VERSIONS):
        following = original + rng.normal(0, 5e-3, 4000).astype(np.float32)
        step = nz.compress({"w": following}, base={"w": original}, bound=nz.Absolute(1e-3)).restored["w"]
        held = held + (step - original)
        original = following
    assert np.abs(held - original).max() > 3e-3
