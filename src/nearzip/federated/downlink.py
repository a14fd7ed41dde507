"""What the server sends: updates from the model that a client holds to the newest, or a keyframe, and acknowledgements.

::

    "ND", version       3 bytes
    gives              16 bytes   identity of the model after all parts
    takes               8 bytes   first bytes of the identity of the model that the first part is made against
    acknowledgements    count, then 4 bytes each: first bytes of the digests of updates that the server accepted
    parts               count, then each: 0 keyframe (an archive) or 1 update (that of a round, or the exact difference
                        between two models), first 8 bytes of the model that it gives, length, bytes

The same bytes serve every client that holds the last version, so that an engine that stores equal blobs once sends one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nearzip.digests import DIGEST_BYTES, digest
from nearzip.errors import CorruptError, LimitError, NewerFormatError, TruncatedError, WrongBaseError
from nearzip.stages.base import get_varint, put_varint

__all__ = ["TAG_BYTES", "Downlink", "Part", "put_downlink", "read_downlink"]

MAGIC = b"ND"
VERSION = 1
#: Of identities that are cut short, and of the checksum at the end.
TAG_BYTES = _TAG = 8
_ACK = 4
_MAX_PARTS, _MAX_ACKS = 4096, 1 << 20


@dataclass(frozen=True)
class Part:
    """One step towards the newest model. `gives`: identity of the model after it, 16 bytes."""

    is_keyframe: bool
    gives: bytes
    data: bytes | memoryview


@dataclass(frozen=True)
class Downlink:
    """What `read_downlink` found; the parts are not decoded yet."""

    gives: bytes
    takes: bytes
    acks: frozenset[bytes]
    parts: tuple[Part, ...]

    def acknowledges(self, tag: bytes) -> bool:
        """Whether the server accepted the update with this digest."""
        return tag[:_ACK] in self.acks

    def parts_after(self, held: bytes) -> Sequence[Part]:
        """The parts that lead from the model held (its identity, or nothing) to the newest. Raises WrongBaseError."""
        if held == self.gives:
            return ()
        starts = [self.takes, *(part.gives[:_TAG] for part in self.parts)]
        matching = [i for i, start in enumerate(starts[:-1]) if held and start == held[:_TAG]]
        if matching:
            return self.parts[matching[-1] :]
        if self.parts and self.parts[0].is_keyframe:
            return self.parts
        raise WrongBaseError("the server sent an update of a model that is not held; ask for a keyframe")


def put_downlink(takes: bytes, parts: Sequence[Part], acks: Iterable[bytes], gives: bytes) -> bytes:
    """Bytes for a client that holds `takes`."""
    tags = sorted({tag[:_ACK] for tag in acks})
    pieces: list[bytes | memoryview] = [
        MAGIC, bytes([VERSION]), gives, takes[:_TAG].ljust(_TAG, b"\0"), put_varint(len(tags)), *tags,
        put_varint(len(parts)),
    ]  # fmt: skip
    for part in parts:
        pieces += [bytes([not part.is_keyframe]), part.gives[:_TAG], put_varint(len(part.data)), part.data]
    return b"".join((*pieces, digest(*pieces)[:_TAG]))


def read_downlink(data: bytes | memoryview) -> Downlink:
    """Parse and check a downlink message. Raises CorruptError, TruncatedError, NewerFormatError, LimitError."""
    view = memoryview(data)
    if len(view) < len(MAGIC) + 1 + DIGEST_BYTES + 2 * _TAG + 2:
        raise TruncatedError(f"downlink: ends after {len(view)} bytes, shorter than any")
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise CorruptError("downlink: not sent by nearzip.federated")
    if view[2] > VERSION:
        raise NewerFormatError(f"downlink: has format {view[2]}; this release reads up to {VERSION}: upgrade nearzip")
    body = view[:-_TAG]
    if digest(body)[:_TAG] != bytes(view[-_TAG:]):
        raise CorruptError("downlink: the bytes are damaged (checksum differs)")
    at = 3 + DIGEST_BYTES
    gives, takes = bytes(body[3:at]), bytes(body[at : at + _TAG])
    n_acks, at = get_varint(body, at + _TAG)
    if n_acks > _MAX_ACKS or n_acks * _ACK > len(body) - at:
        raise LimitError(f"downlink: {n_acks} acknowledgements do not fit")
    acks = frozenset(bytes(body[at + _ACK * i : at + _ACK * (i + 1)]) for i in range(n_acks))
    n_parts, at = get_varint(body, at + _ACK * n_acks)
    if n_parts > _MAX_PARTS:
        raise LimitError(f"downlink: {n_parts} parts; the limit is {_MAX_PARTS}")
    parts = []
    for i in range(n_parts):
        part, at = _part(body, at, gives if i + 1 == n_parts else None)
        parts.append(part)
    if at != len(body):
        raise CorruptError("downlink: bytes are left over")
    return Downlink(gives, takes, acks, tuple(parts))


def _part(body: memoryview, at: int, gives: bytes | None) -> tuple[Part, int]:
    """`gives`: of the last part, whose whole identity is known."""
    if len(body) - at < 1 + _TAG or body[at] > 1:
        raise CorruptError("downlink: a part is malformed")
    kind, tag = body[at], bytes(body[at + 1 : at + 1 + _TAG])
    length, at = get_varint(body, at + 1 + _TAG)
    if length > len(body) - at:
        raise CorruptError("downlink: a part ends early")
    if gives is not None and gives[:_TAG] != tag:
        raise CorruptError("downlink: the last part gives another model")
    return Part(kind == 0, gives or tag, body[at : at + length]), at + length
