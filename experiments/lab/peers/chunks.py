"""What a store of content-defined chunks transfers for an update: an imitation of the Hugging Face Hub's (Xet).

Chunks as its documentation specifies them: a gear hash over 64 bytes, ends where its upper 16 bits are zero, 8 to 128
KiB. Our table of the hash is random, theirs another; which ends come out differs, their statistics do not. A chunk that
the older file has costs nothing, another the smallest of: as it is, LZ4, LZ4 of the bytes grouped by place in four.
What the service adds for names and lists of chunks is not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

#: Shortest and longest chunk, bytes.
SHORTEST, LONGEST = 8 << 10, 128 << 10
#: Bytes that the hash depends on: one bit shift each, of 64 bits.
_WINDOW = 64
_MASK = np.uint64(0xFFFF << 48)


@dataclass(frozen=True)
class Transfer:
    """What a reader of the older file fetches of the new one, bytes."""

    n_bytes: int
    n_new_chunks: int
    n_chunks: int


def ends(data: bytes) -> list[int]:
    """Where chunks end, the end of the data included."""
    possible = _possible_ends(np.frombuffer(data, np.uint8))
    found, start = [], 0
    while start < len(data):
        i = int(np.searchsorted(possible, start + SHORTEST))
        natural = int(possible[i]) if i < len(possible) else len(data)
        start = min(natural, start + LONGEST, len(data))
        found.append(start)
    return found


def _possible_ends(data: np.ndarray) -> np.ndarray:
    table = np.random.default_rng(0).integers(0, 1 << 64, 256, np.uint64)
    gears = table[data]
    hashes = np.zeros(len(data), np.uint64)
    for i in range(min(_WINDOW, len(data))):
        hashes[i:] += gears[: len(data) - i] << np.uint64(i)
    return np.flatnonzero((hashes & _MASK) == 0) + 1


def chunks(data: bytes) -> Iterator[bytes]:
    """The data, cut."""
    start = 0
    for end in ends(data):
        yield data[start:end]
        start = end


def compressed_size(chunk: bytes) -> int:
    """The smallest of the ways in which a chunk may be stored."""
    import blosc2

    sizes = [len(chunk)]
    for filters in ([blosc2.Filter.NOFILTER], [blosc2.Filter.SHUFFLE]):
        # One block, so that the bytes of the whole chunk are grouped.
        packed = blosc2.compress2(
            chunk, codec=blosc2.Codec.LZ4, clevel=9, filters=filters, typesize=4, nthreads=1, blocksize=LONGEST
        )
        sizes.append(len(packed))
    return min(sizes)


def transfer(new: bytes, base: bytes) -> Transfer:
    """The new file, for a reader who holds all chunks of the older one."""
    held = {hashlib.sha256(chunk).digest() for chunk in chunks(base)}
    n_bytes = n_new = n = 0
    for chunk in chunks(new):
        n += 1
        key = hashlib.sha256(chunk).digest()
        if key not in held:
            held.add(key)
            n_new += 1
            n_bytes += compressed_size(chunk)
    return Transfer(n_bytes, n_new, n)
