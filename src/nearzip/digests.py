"""Checksums of tensors and the identity of a whole checkpoint (docs/format.md, "Digests").

XXH3-128 guards against damage at the speed of memory. It is no signature: who can write a file can make it match.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from operator import itemgetter

import numpy as np
import xxhash

from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = [
    "DIGEST_BYTES",
    "PIECE_BYTES",
    "checkpoint_id",
    "content_id",
    "digest",
    "fingerprint",
    "part_digests",
    "piece_digests",
    "tensor_digest",
]

DIGEST_BYTES = 16
#: A tensor's digest is taken over pieces of this size, so that blocks can be checked in parallel.
PIECE_BYTES = 4 << 20


def digest(*parts: bytes | memoryview) -> bytes:
    """XXH3-128 of the parts, one after the other."""
    if len(parts) == 1:
        return xxhash.xxh3_128_digest(parts[0])
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")


def piece_digests(values: Array) -> list[bytes]:
    """Digests of consecutive pieces of a contiguous array that starts at a piece's border; one for an empty array."""
    data = _bytes_of(values)
    return [digest(data[at : at + PIECE_BYTES]) for at in range(0, max(1, len(data)), PIECE_BYTES)]


def part_digests(values: Array, parts: Sequence[int]) -> list[list[bytes]]:
    """`piece_digests` of each of several arrays whose values follow each other in one."""
    data, width = _bytes_of(values), values.itemsize
    found = []
    at = 0
    of = xxhash.xxh3_128_digest
    for part in parts:
        end = at + part * width
        if end - at <= PIECE_BYTES:
            found.append([of(data[at:end])])
        else:
            starts = range(at, end, PIECE_BYTES)
            found.append([of(data[start : min(start + PIECE_BYTES, end)]) for start in starts])
        at = end
    return found


def join_pieces(pieces: list[bytes]) -> bytes:
    """The digest of a tensor from those of its pieces."""
    return pieces[0] if len(pieces) == 1 else digest(b"".join(pieces))


def join_all(pieces: list[list[bytes]]) -> list[bytes]:
    """The digests of several tensors from those of their pieces."""
    return [own[0] if len(own) == 1 else join_pieces(own) for own in pieces]


def tensor_digest(array: Array) -> bytes:
    """Digest of a contiguous array's bytes: of its pieces' digests if there are several."""
    return join_pieces(piece_digests(array))


#: Spots of a large tensor that a fingerprint looks at, and bytes at each.
_SPOTS, _SPOT_BYTES = 256, 64


def fingerprint(array: Array) -> bytes:
    """Digest of a contiguous array's bytes at a few evenly spaced spots: tells tensors of a training apart, no more."""
    data = array.reshape(-1).view(np.uint8)
    if data.size <= _SPOTS * _SPOT_BYTES:
        return digest(_bytes_of(array))
    step = (data.size - _SPOT_BYTES) // (_SPOTS - 1)
    spots = np.lib.stride_tricks.as_strided(data, (_SPOTS, _SPOT_BYTES), (step, 1), writeable=False)
    return digest(spots.tobytes())


def content_id(tensors: Iterable[tuple[TensorSpec, bytes]]) -> str:
    """Identity of a checkpoint: names, dtypes, shapes and content, whatever their order, as 32 hexadecimal digits."""
    rows = sorted([(spec.name, spec.dtype, spec.shape, content) for spec, content in tensors], key=itemgetter(0))
    heads = json.dumps([row[:3] for row in rows], separators=(",", ":"))
    return digest(heads.encode() + b"".join([row[3] for row in rows])).hex()


def checkpoint_id(checkpoint: Checkpoint) -> str:
    """Identity of a checkpoint, read tensor by tensor."""
    return content_id((checkpoint.specs[name], tensor_digest(array)) for name, array in checkpoint.arrays())
