"""What damage does to an archive: every byte changed, every length cut, and what a reader makes of it.

>>> import numpy as np, nearzip as nz
>>> from nearzip.testing import Outcome, examine, harm
>>> archive = nz.compress({"w": np.arange(6, dtype=np.float32)})
>>> outcomes = [examine(damage.data, archive.restored) for damage in harm(archive.to_bytes(), every=97)]
>>> set(outcomes) == {Outcome.REFUSED}
True
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.api import decompress
from nearzip.errors import Error
from nearzip.limits import Limits

__all__ = ["Damage", "Outcome", "examine", "harm", "same_tensors"]


@dataclass(frozen=True)
class Damage:
    """A damaged archive and, in words, what was done to it."""

    what: str
    data: bytes


class Outcome(enum.Enum):
    """What a reader made of a damaged archive. Only the first two are allowed."""

    REFUSED = "refused by a named error"
    RIGHT = "exactly the right tensors"
    WRONG = "wrong tensors, silently"
    UNNAMED = "an error without a name"


def _variants(byte: int) -> Iterator[tuple[str, int]]:
    for bit in range(8):
        yield f"bit {bit} flipped", byte ^ (1 << bit)
    for value in (0x00, 0xFF):
        if value not in (byte, *(byte ^ (1 << bit) for bit in range(8))):
            yield f"set to {value:#04x}", value


def harm(data: bytes, every: int = 1, append: bool = True) -> Iterator[Damage]:
    """Each byte with each single bit flipped and set to 00 and FF, each shorter length, and bytes appended.

    `every`: only each n-th of these (evenly thinned, each kind on its own).
    """
    changes = ((at, what, new) for at in range(len(data)) for what, new in _variants(data[at]))
    for i, (at, what, new) in enumerate(changes):
        if i % every == 0:
            yield Damage(f"byte {at} of {len(data)}: {what}", data[:at] + bytes([new]) + data[at + 1 :])
    for length in range(0, len(data), every):
        yield Damage(f"cut to {length} of {len(data)} bytes", data[:length])
    if append:
        for n in range(1, 65, every):
            yield Damage(f"{n} zeros appended", data + bytes(n))
            yield Damage(f"its own last {n} bytes appended", data + data[-n:])
            yield Damage(f"its own first {n} bytes put in front", data[:n] + data)


def same_tensors(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether names, their order, dtypes, shapes and all bits agree."""
    return list(one) == list(other) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def examine(
    data: bytes,
    right: Mapping[str, Any],
    base: Mapping[str, Any] | None = None,
    limits: Limits | None = None,
) -> Outcome:
    """Decompress a damaged archive and compare with the tensors that the good one holds."""
    try:
        tensors = decompress(data, base, limits, threads=1)
    except Error:
        return Outcome.REFUSED
    except Exception:
        return Outcome.UNNAMED
    return Outcome.RIGHT if same_tensors(tensors, right) else Outcome.WRONG
