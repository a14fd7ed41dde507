"""A baseline after ExCP (Li et al., ICML 2024), our own implementation.

The difference to the reader's version is pruned, the values kept are replaced by one of 15 centres per tensor
(k-means), and 4 bits per value go through LZMA. ExCP prunes by the size of the weights over the root of Adam's second
moment; checkpoints without optimizer state have no moments, so that here the threshold of a tensor is `alpha` times
the median size of its difference. Moments are not coded. Tensors of one axis are quantized like the others.
"""

from __future__ import annotations

import lzma

import numpy as np

from experiments.lab.peers.base import Flat, Peer, Setting, Tensors

_N_CENTRES = 15
_ROUNDS = 20


def k_means(values: np.ndarray, n: int) -> np.ndarray:
    """At most `n` centres of one-dimensional values, ascending, started at equal shares of the sorted values."""
    ordered = np.sort(values.astype(np.float64))
    centres = np.unique(ordered[((np.arange(n) + 0.5) * ordered.size / n).astype(int)])
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    for _ in range(_ROUNDS):
        ends = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], ends, [ordered.size]])
        counts = np.diff(ends)
        moved = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres.astype(np.float32)


def nibbles(symbols: np.ndarray) -> bytes:
    padded = np.pad(symbols, (0, symbols.size % 2))
    return (padded[::2] | padded[1::2] << 4).astype(np.uint8).tobytes()


def from_nibbles(data: bytes, size: int) -> np.ndarray:
    pairs = np.frombuffer(data, np.uint8)
    return np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:size]


def quantize(delta: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Symbols, 0 for what is pruned, and the table of 16 values, the first of them zero."""
    size = np.abs(delta)
    kept = (size > alpha * np.median(size)) & (delta != 0)
    table = np.zeros(1 + _N_CENTRES, np.float32)
    symbols = np.zeros(delta.size, np.uint8)
    if kept.any():
        centres = k_means(delta[kept], _N_CENTRES)
        table[1 : 1 + centres.size] = centres
        symbols[kept] = 1 + np.searchsorted((centres[1:] + centres[:-1]) / 2, delta[kept])
    return symbols, table


class ExcpPeer(Peer):
    """Weights only."""

    name = "ExCP-like"

    def settings(self, unit: float) -> list[Setting]:
        return [{"alpha": alpha} for alpha in (0.0, 1.0, 2.0, 3.0, 4.5)]

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        symbols, tables = [], []
        for name, weights in new.items():
            if weights.dtype == np.float32:
                delta = (weights - base[name]).reshape(-1)
                for into, part in zip((symbols, tables), quantize(delta, setting["alpha"]), strict=True):
                    into.append(part)
        payload = np.concatenate(tables).tobytes() + lzma.compress(nibbles(np.concatenate(symbols)))
        return Flat.of(new).pack(payload)

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        header, rest, payload = Flat.unpack(data)
        sizes = [w.size for w in base.values() if w.dtype == np.float32]
        tables = np.frombuffer(payload, np.float32, 16 * len(sizes)).reshape(-1, 16)
        symbols = from_nibbles(lzma.decompress(payload[tables.nbytes :]), sum(sizes))
        parts = np.split(symbols, np.cumsum(sizes)[:-1])
        delta = np.concatenate([table[part] for table, part in zip(tables, parts, strict=True)])
        return Flat(header, Flat.of(base).floats + delta, rest).tensors()
