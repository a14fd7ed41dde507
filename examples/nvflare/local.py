"""Rounds over NVIDIA FLARE's data objects and serialization, in this process.

Ten clients train a linear classifier of handwritten digits; their weight differences pass the filters of
`nearzip.nvflare` and FLARE's FOBS, as between a client and a server, and are averaged.

    python local.py [ROUNDS]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, from_bytes
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer
from nvflare.fuel.utils import fobs
from sklearn.datasets import load_digits

from nearzip.nvflare import Compress, Decompress

CLIENTS, TESTS = 10, 360
Model = dict[str, np.ndarray]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, (1797, 64) float32 from 0 to 1, and labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order]


def _features(images: np.ndarray) -> np.ndarray:
    """A fixed random layer, so that there is something to compress."""
    weights = np.random.default_rng(3).normal(0, 0.2, (64, 512)).astype(np.float32)
    features: np.ndarray = np.maximum(images @ weights, 0)
    return features


def train(model: Model, features: np.ndarray, labels: np.ndarray, seed: int) -> Model:
    """The difference after an epoch of SGD."""
    weight, bias = model["weight"].copy(), model["bias"].copy()
    rng = np.random.default_rng(seed)
    for batch in np.array_split(rng.permutation(len(labels)), max(1, len(labels) // 16)):
        logits = features[batch] @ weight + bias
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        shares[np.arange(len(batch)), labels[batch]] -= 1
        weight -= np.float32(0.1 / len(batch)) * (features[batch].T @ shares)
        bias -= np.float32(0.1 / len(batch)) * shares.sum(0)
    return {"weight": weight - model["weight"], "bias": bias - model["bias"]}


def sent(difference: Model, filters: Sequence[DXOFilter]) -> tuple[Model, int]:
    """What arrives of a difference, and the bytes of FLARE's message."""
    dxo = DXO(DataKind.WEIGHT_DIFF, difference)
    if filters:
        dxo = filters[0].process_dxo(dxo, None, None)
    data = dxo.to_bytes()
    arrived = from_bytes(data)
    if filters:
        arrived = filters[1].process_dxo(arrived, None, None)
    return arrived.data, len(data)


def run(rounds: int, compressed: bool) -> tuple[float, int]:
    """Accuracy after the rounds, and bytes that the clients sent."""
    images, labels = digits()
    features = _features(images)
    owner = np.random.default_rng(1).integers(0, CLIENTS, len(labels) - TESTS)
    filters = [(Compress(), Decompress()) if compressed else () for _ in range(CLIENTS)]
    model = {"weight": np.zeros((512, 10), np.float32), "bias": np.zeros(10, np.float32)}
    total = 0
    for turn in range(rounds):
        updates = []
        for client in range(CLIENTS):
            own = TESTS + np.flatnonzero(owner == client)
            difference = train(model, features[own], labels[own], CLIENTS * turn + client)
            arrived, n_bytes = sent(difference, filters[client])
            updates.append(arrived)
            total += n_bytes
        model = {
            name: (value + np.mean([update[name] for update in updates], 0)).astype(np.float32)
            for name, value in model.items()
        }
    found = (features[:TESTS] @ model["weight"] + model["bias"]).argmax(1)
    return float((found == labels[:TESTS]).mean()), total


def main(rounds: int) -> None:
    fobs.register(NumpyArrayDecomposer)  # as FLARE's runtime does
    for label, compressed in (("plain", False), ("nearzip", True)):
        accuracy, n_bytes = run(rounds, compressed)
        print(f"{label}: accuracy {accuracy:.3f}, {n_bytes:,} bytes up")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
