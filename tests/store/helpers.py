"""Small networks and their histories, for tests of the store."""

from __future__ import annotations

import itertools

import numpy as np

_names = itertools.count()


def memory_url() -> str:
    """A store in memory that no other test has."""
    return f"memory://nearzip-test-{next(_names)}"


def network(seed: int = 0, n: int = 600) -> dict[str, np.ndarray]:
    """A few small tensors of several dtypes."""
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(0, 0.1, (n // 20, 20)).astype(np.float32),
        "bias": rng.normal(0, 0.1, 20).astype(np.float16),
        "steps": np.array(seed, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


def updated(tensors: dict[str, np.ndarray], seed: int, size: float = 0.003) -> dict[str, np.ndarray]:
    """The next version."""
    rng = np.random.default_rng(1000 + seed)
    found = dict(tensors)
    for name, array in tensors.items():
        if array.dtype.kind == "f" and array.size:
            found[name] = (array + rng.normal(0, size, array.shape)).astype(array.dtype)
        elif array.dtype.kind == "i":
            found[name] = np.asarray(array + 1)
    return found


def history(n_versions: int, n: int = 600) -> list[dict[str, np.ndarray]]:
    """Versions of one network."""
    versions = [network(0, n)]
    for i in range(1, n_versions):
        versions.append(updated(versions[-1], i))
    return versions


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Names in order, dtypes, shapes and bits."""
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(one.values(), other.values(), strict=True)
    )
