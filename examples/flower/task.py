"""The network, the data of each client, and training: no word about compression."""

from __future__ import annotations

import functools

import numpy as np
from sklearn.datasets import load_digits

CLIENTS = 10
_HIDDEN, _CLASSES, _TESTS = 64, 10, 360


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, (1797, 64) float32 from 0 to 1, and labels."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order]


@functools.cache
def shard(client: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's samples: each has more of some labels than of others."""
    images, labels = (part[_TESTS:] for part in digits())
    rng = np.random.default_rng(1)
    owner = np.empty(len(labels), int)
    for label in range(_CLASSES):
        shares = rng.dirichlet(np.full(CLIENTS, 0.5))
        own = labels == label
        owner[own] = rng.choice(CLIENTS, own.sum(), p=shares)
    return images[owner == client], labels[owner == client]


def first_model() -> dict[str, np.ndarray]:
    """Weights before the first round."""
    rng = np.random.default_rng(2)
    return {
        "hidden.weight": rng.normal(0, 0.15, (64, _HIDDEN)).astype(np.float32),
        "hidden.bias": np.zeros(_HIDDEN, np.float32),
        "out.weight": rng.normal(0, 0.15, (_HIDDEN, _CLASSES)).astype(np.float32),
        "out.bias": np.zeros(_CLASSES, np.float32),
    }


def _forward(model: dict[str, np.ndarray], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hidden = np.maximum(images @ model["hidden.weight"] + model["hidden.bias"], 0)
    logits = hidden @ model["out.weight"] + model["out.bias"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return hidden, powers / powers.sum(1, keepdims=True)


def train(model: dict[str, np.ndarray], client: int, seed: int) -> dict[str, np.ndarray]:
    """Three epochs of SGD on a client's samples."""
    images, labels = shard(client)
    model = {name: value.copy() for name, value in model.items()}
    rng = np.random.default_rng([seed, client])
    for _ in range(3):
        for batch in np.array_split(rng.permutation(len(labels)), max(1, len(labels) // 16)):
            hidden, shares = _forward(model, images[batch])
            shares[np.arange(len(batch)), labels[batch]] -= 1
            error = shares / len(batch)
            back = (error @ model["out.weight"].T) * (hidden > 0)
            for name, gradient in (
                ("out.weight", hidden.T @ error), ("out.bias", error.sum(0)),
                ("hidden.weight", images[batch].T @ back), ("hidden.bias", back.sum(0)),
            ):  # fmt: skip
                model[name] -= np.float32(0.2) * gradient
    return model


def accuracy(model: dict[str, np.ndarray]) -> float:
    """Share of the test images that are recognized."""
    images, labels = (part[:_TESTS] for part in digits())
    return float((_forward(model, images)[1].argmax(1) == labels).mean())
