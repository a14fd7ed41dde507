"""Which contexts share a table of frequencies, tables as whole numbers, and least squares. Encoders only."""

from __future__ import annotations

import numpy as np

from nearzip.tensors import Array

__all__ = ["SCALE", "frequencies_of", "group_contexts", "solved"]

#: Frequencies of a table sum to 2^SCALE.
SCALE = 14
_MAX_TABLES = 256
_RIDGE = 1e-3
#: About what a frequency takes in the file, in bits.
_BITS_OF_AN_ENTRY = 7.0


def frequencies_of(counts: Array) -> Array:
    """Counts as frequencies that sum to 2^SCALE, at least 1 where there is a count; (tokens,) uint16."""
    whole, n = 1 << SCALE, int(counts.sum())
    freqs = np.zeros(counts.shape, np.int64)
    if not n:
        freqs[0] = whole
        return freqs.astype(np.uint16)
    freqs[counts > 0] = np.maximum(1, np.rint(counts[counts > 0] * (whole / n)))
    while (excess := int(freqs.sum()) - whole) != 0:
        if excess < 0:
            freqs[np.argmax(counts)] -= excess
        else:  # where a unit costs least
            cost = np.where(freqs > 1, counts / np.maximum(1, freqs - 1), np.inf)
            freqs[np.argmin(cost)] -= 1
    return freqs.astype(np.uint16)


def group_contexts(counts: Array) -> Array:
    """Groups of contexts whose tokens are distributed alike: (contexts,) numbers from 0, at most 256 groups.

    Pairs are joined as long as that saves bits, the best first; a table of its own must save what it takes.
    """
    used = np.flatnonzero(counts.sum(1))
    groups = np.zeros(len(counts), np.int64)
    if len(used) < 2:
        return groups
    kept = counts[used].astype(np.float64)
    owners = [[int(i)] for i in used]
    costs = _costs(kept)
    gains = np.full((len(used), len(used)), -np.inf)
    for i in range(len(used)):
        gains[i, i + 1 :] = costs[i] + costs[i + 1 :] - _costs(kept[i] + kept[i + 1 :])
    alive = len(used)
    while alive > 1:
        i, j = divmod(int(np.argmax(gains)), len(used))
        if gains[i, j] <= 0 and alive <= _MAX_TABLES:
            break
        kept[i] += kept[j]
        owners[i] += owners[j]
        owners[j] = []
        costs[i] = _costs(kept[i : i + 1])[0]
        gains[j, :] = gains[:, j] = -np.inf
        others = np.array([k for k, own in enumerate(owners) if own and k != i])
        alive -= 1
        if len(others):
            new = costs[i] + costs[others] - _costs(kept[i] + kept[others])
            gains[np.minimum(i, others), np.maximum(i, others)] = new
    for number, own in enumerate(own for own in owners if own):
        groups[own] = number
    return groups


def _costs(counts: Array) -> Array:
    """Bits of each row's tokens and of its table."""
    total = counts.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(counts > 0, counts * np.log2(counts), 0).sum(-1)
        whole = np.where(total > 0, total * np.log2(total), 0)
    return np.asarray(whole - logs + _BITS_OF_AN_ENTRY * (counts > 0).sum(-1) + 16)


def solved(moments: Array) -> Array:
    """Least squares for every row, with a ridge: (rows, features)."""
    n = moments.shape[1]
    gram, target = moments[..., :n], moments[..., n]
    ridge = _RIDGE * (np.trace(gram, axis1=1, axis2=2) / n + 1e-9)
    return np.asarray(np.linalg.solve(gram + ridge[:, None, None] * np.eye(n), target[..., None])[..., 0])
