"""Every registered method, ours and plug-ins': what one process wrote, another restores from the bytes alone, and it
writes the same bytes itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np

import nearzip as nz
from nearzip.recipes import recipe_types
from nearzip.testing.contract import odd_layers

_READER = """
import hashlib, json, sys
import numpy as np, nearzip as nz
base = dict(np.load("base.npz"))
found = {}
for name in json.loads(sys.argv[1]):
    held = base if name.endswith("update.nz") else None
    found[name] = {k: hashlib.sha256(a.tobytes()).hexdigest() for k, a in nz.decompress(name, base=held).items()}
print(json.dumps(found))
"""


_WRITER = """
import hashlib, json, sys
import numpy as np, nearzip as nz
new, base = dict(np.load("new.npz")), dict(np.load("base.npz"))
found = {}
for method in json.loads(sys.argv[1]):
    for held in (None, base):
        archive = nz.compress(new, base=held, method=method)
        found.setdefault(method, []).append(hashlib.sha256(archive.to_bytes()).hexdigest())
print(json.dumps(found))
"""


def _network(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv.weight": rng.normal(0, 0.1, (8, 4, 3, 3)).astype(np.float32),
        "fc1.weight": rng.standard_t(4, (60, 50)).astype(np.float32),
        "fc1.bias": rng.normal(0, 0.01, 60).astype(np.float64),
        "half": rng.normal(0, 1, 33).astype(np.float16),
        "steps": np.array(seed),
        "zeros": np.zeros((40, 3), np.float32),
        "constant": np.full(7, 0.25, np.float32),
        "one": np.ones(1, np.float32),
        "empty": np.empty((0, 5), np.float32),
        "not finite": np.array([np.nan, np.inf, -np.inf, -0.0, 1.0], np.float32),
        **{name: np.roll(array, seed) for name, array in odd_layers().items()},
    }


def _installed(method: str) -> bool:
    return all(importlib.util.find_spec(package) for package in recipe_types()[method].needs)


def test_every_method_restores_in_a_fresh_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = _network(1)
    np.savez("base.npz", **base)
    expected = {}
    for method in filter(_installed, recipe_types()):
        for side, held in (("alone", None), ("update", base)):
            archive = nz.compress(_network(2), base=held, method=method)
            archive.save(f"{method}-{side}.nz")
            expected[f"{method}-{side}.nz"] = {
                name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in archive.restored.items()
            }
    assert _said(_READER, list(expected)) == expected


def test_every_method_writes_the_same_bytes_in_another_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new, base = _network(2), _network(1)
    np.savez("new.npz", **new)
    np.savez("base.npz", **base)
    methods = list(filter(_installed, recipe_types()))
    expected = {
        method: [
            hashlib.sha256(nz.compress(new, base=held, method=method).to_bytes()).hexdigest() for held in (None, base)
        ]
        for method in methods
    }
    for threads, seed in (("1", "0"), ("3", "12345")):
        assert _said(_WRITER, methods, NEARZIP_THREADS=threads, PYTHONHASHSEED=seed) == expected


def _said(code: str, names: list[str], **environment: str) -> dict[str, object]:
    """What a new process makes of these names."""
    command = [sys.executable, "-W", "error", "-W", "ignore::UserWarning", "-c", code, json.dumps(names)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found
