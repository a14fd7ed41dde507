"""The same input gives the same bytes: in any process, with any number of threads, in any memory layout."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import nearzip as nz
from nearzip.recipes import recipe_types
from nearzip.tensors import DTYPES

BOUND_OF = {"nearzip": nz.Rms(0.01), "delta-dnn": nz.Absolute(1e-3)}


def network(seed: int, size: int = 50_000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "large": rng.normal(0, 0.1, size).astype(np.float32),
        "half": rng.normal(0, 0.1, (64, 64)).astype(np.float16),
        **{f"small.{i}": rng.normal(0, 0.1, 100).astype(np.float32) for i in range(30)},
        "counter": np.array(seed, np.int64),
    }


def digest_of(method: str, **how) -> str:
    size = 3_000_000 if method == "nearzip" else 50_000  # several blocks
    archive = nz.compress(network(1, size), base=network(2, size), method=method, bound=BOUND_OF.get(method), **how)
    return hashlib.sha256(archive.to_bytes()).hexdigest()


@pytest.mark.parametrize("method", ["nearzip", "delta-dnn", "zstd"])
def test_another_process_writes_the_same_bytes(method):
    options = {"options": {"level": 1}} if method == "zstd" else {}
    code = f"import test_determinism as t; print(t.digest_of({method!r}, **{options!r}))"
    folder = os.path.dirname(__file__)
    here = digest_of(method, **options)
    for threads, seed in (("1", "0"), ("3", "12345")):
        environment = os.environ | {"NEARZIP_THREADS": threads, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=folder, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stdout.strip() == here


def test_the_registry_has_no_method_that_was_not_looked_at():
    """A recipe that uses chance or the clock would show in the contract suite; ours are named here."""
    assert set(recipe_types()) >= {"nearzip", "delta-dnn", "gzip", "zstd", "lzma"}


def test_memory_layout_does_not_show():
    x = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    room = np.zeros((60, 40), np.float32)
    room[::2] = x
    forms = [x, np.asfortranarray(x), room[::2], x.astype(">f4"), np.ascontiguousarray(x[::-1])[::-1]]
    assert len({nz.compress({"x": form}, bound=nz.Absolute(1e-3)).to_bytes() for form in forms}) == 1


def test_torch_and_numpy_give_the_same_bytes():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(30, 40)).astype(np.float32)
    tensors = {"f": torch.from_numpy(x), "b": torch.from_numpy(x).bfloat16(), "t": torch.from_numpy(x).T}
    arrays = {"f": x, "b": x.astype(DTYPES["bfloat16"]), "t": x.T}
    assert nz.compress(tensors).to_bytes() == nz.compress(arrays).to_bytes()


def test_the_identity_does_not_depend_on_order_or_method():
    tensors = network(3)
    one = nz.compress(tensors)
    backwards = nz.compress(dict(reversed(tensors.items())), method="zstd", options={"level": 1})
    assert one.id == backwards.id
    changed = nz.compress(tensors | {"counter": np.array(4, np.int64)})
    renamed = nz.compress({("new" if name == "half" else name): array for name, array in tensors.items()})
    assert len({one.id, changed.id, renamed.id}) == 3
