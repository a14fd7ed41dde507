"""Damaged archives: every byte changed, every length cut, and how a reader responds.

>>> import numpy as np, nearzip as nz
>>> from nearzip.testing import Outcome, examine, harm
>>> archive = nz.compress({"w": np.arange(6, dtype=np.float32)})
>>> outcomes = [examine(damage.data, archive.restored) for damage in harm(archive.to_bytes(), every=97)]
>>> set(outcomes) == {Outcome.REFUSED}
True
"""

from __future__ import annotations

import base64
import collections
import contextlib
import enum
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.api import decompress
from nearzip.digests import digest
from nearzip.errors import Error
from nearzip.limits import Limits
from nearzip.testing.sealing import seal, unseal

__all__ = ["Damage", "Held", "Outcome", "Storm", "examine", "harm", "random_damage", "same_tensors", "storm"]


@dataclass(frozen=True)
class Damage:
    """A damaged archive and, in words, what was done to it."""

    what: str
    data: bytes


class Outcome(enum.Enum):
    """How a reader responded to a damaged archive. Only the first two are allowed."""

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
    """Decompress a damaged archive and compare with the tensors of the sound one."""
    try:
        tensors = decompress(data, base, limits, threads=1)
    except Error:
        return Outcome.REFUSED
    except Exception:
        return Outcome.UNNAMED
    return Outcome.RIGHT if same_tensors(tensors, right) else Outcome.WRONG


# ---- many, one after the other ---------------------------------------------------------------------------------


def random_damage(data: bytes, count: int, seed: int = 0) -> Iterator[Damage]:
    """Damaged copies of one archive: a byte changed, the end cut off, and stored values changed under a right checksum.

    Of these only the last reaches a decoder: blocks are checked before they are decoded.
    """
    draws = np.random.default_rng(seed)
    document, blocks = unseal(data)
    for i in range(count):
        at = int(draws.integers(len(data)))
        if i % 3 == 0:
            new = data[at] ^ int(draws.integers(1, 256))
            yield Damage(f"byte {at} of {len(data)}: set to {new:#04x}", data[:at] + bytes([new]) + data[at + 1 :])
        elif i % 3 == 1:
            yield Damage(f"cut to {at} of {len(data)} bytes", data[:at])
        else:
            changed = bytearray(blocks)
            for place in draws.integers(len(blocks), size=int(draws.integers(1, 4))):
                changed[place] ^= int(draws.integers(1, 256))
            yield Damage(f"damage {i} under right checksums", _resealed(document, bytes(changed)))


def _resealed(document: Mapping[str, Any], blocks: bytes) -> bytes:
    """The archive with other blocks, and their checksums right."""
    segments, start = [], 0
    for segment in document["segments"]:
        entries = []
        for pipeline, length, _ in segment["blocks"]:
            text = base64.b64encode(digest(blocks[start : start + length])).decode().rstrip("=")
            entries.append([pipeline, length, text])
            start += length
        segments.append({**segment, "blocks": entries})
    return seal({**document, "segments": segments}, blocks)


@dataclass(frozen=True)
class Held:
    """Resources of this process. `children` and `descriptors` are 0 on systems that do not report them."""

    threads: int
    children: int
    descriptors: int

    @staticmethod
    def now() -> Held:
        try:
            tasks, descriptors = os.listdir("/proc/self/task"), len(os.listdir("/proc/self/fd"))
        except OSError:
            return Held(threading.active_count(), 0, 0)
        children = 0
        for task in tasks:
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children") as file:  # it may have ended
                children += len(file.read().split())
        return Held(len(tasks), children, descriptors)


@dataclass
class Storm:
    """Outcomes of many damaged archives, and the maximum of the resources used beyond those at the start."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    more_threads: int = 0
    more_children: int = 0
    more_descriptors: int = 0
    unnamed: list[str] = field(default_factory=list)

    def add(self, began: Held) -> None:
        now = Held.now()
        self.more_threads = max(self.more_threads, now.threads - began.threads)
        self.more_children = max(self.more_children, now.children - began.children)
        self.more_descriptors = max(self.more_descriptors, now.descriptors - began.descriptors)


def storm(damages: Iterable[Damage], base: Mapping[str, Any] | None = None, threads: int | None = None) -> Storm:
    """Decode many damaged archives in this process, one after the other.

    Parameters
    ----------
    damages : iterable of Damage
        As of `random_damage`.
    base : mapping or None
        What they need.
    threads : int or None
        As for `nearzip.decompress`.

    Returns
    -------
    Storm
        `outcomes` counts the classes of errors, and "decoded". `unnamed` holds the errors that are none of nearzip's.
    """
    found, began = Storm(), Held.now()
    for damage in damages:
        try:
            decompress(damage.data, base, threads=threads)
            found.outcomes["decoded"] += 1
        except Error as error:
            found.outcomes[type(error).__name__] += 1
        except Exception as error:
            found.unnamed.append(f"{damage.what}: {type(error).__name__}: {error}"[:300])
        found.add(began)
    return found
