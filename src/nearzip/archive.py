"""What compressing gives: an archive in memory, what was done to write it, and how each tensor is coded.

`writing` makes archives and `reading` opens them.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import nearzip._core as _core
from nearzip.changes import UpdateKept
from nearzip.container import Index
from nearzip.display import html_table, human_bytes
from nearzip.fileio import atomic_file
from nearzip.matching import matches_text
from nearzip.tensors import Array, TensorSpec

__all__ = ["CHOICES", "Archive", "Progress", "TensorReport", "WriteReport", "described"]

#: Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]

#: Ways to code a tensor that take the place of the method's own where they are smaller.
CHOICES = {
    "no-base": "without the base",
    "exact": "exactly",
    "repeats": "exactly, by their repeats",
    "stored": "as they are",
}


@dataclass
class WriteReport:
    """What happened while an archive was written."""

    index: Index
    n_bytes: int
    n_patched: int
    #: Digest of every tensor as a reader will get it.
    contents: dict[str, bytes]
    #: Tensors coded without a base although one was given, and why.
    without_base: dict[str, str] = field(default_factory=dict)
    #: Tensors whose base has another name or dtype, and that tensor of the base.
    matches: Mapping[str, TensorSpec] = field(default_factory=dict)
    #: For tensors in a filter that errs on zeros: how many zeros a reader gets back as weights.
    false_positives: dict[str, int] = field(default_factory=dict)
    #: Tensors that took fewer bytes in another way than the method's own, and which: a key of `CHOICES`.
    choices: dict[str, str] = field(default_factory=dict)
    #: Calibrated archives: tensors that were rounded without calibration, and why.
    uncalibrated: dict[str, str] = field(default_factory=dict)
    #: Calibrated archives: of the outputs on the batches held back, in nats per prediction.
    divergence: float | None = None
    #: How much of the change against the base is kept; None if no base was used.
    update_kept: UpdateKept | None = None

    @property
    def alone(self) -> dict[str, str]:
        """The old name of `without_base`."""
        warnings.warn("WriteReport.alone is now called without_base", DeprecationWarning, stacklevel=2)
        return self.without_base

    @property
    def plain(self) -> dict[str, str]:
        """The old name of `uncalibrated`."""
        warnings.warn("WriteReport.plain is now called uncalibrated", DeprecationWarning, stacklevel=2)
        return self.uncalibrated

    @property
    def matches_text(self) -> str | None:
        """Which tensors of the base are used under another name or in another dtype; None if none is."""
        return matches_text(self.matches, {spec.name: spec for spec in self.index.tensors})

    @property
    def choices_text(self) -> str:
        """How many tensors were coded in which other way; empty if none was."""
        counts = Counter(self.choices.values())
        return ", ".join(f"{counts[choice]} {text}" for choice, text in CHOICES.items() if counts[choice])


@dataclass(frozen=True)
class TensorReport:
    """What `inspect` shows of a tensor: how it is coded and, for one in a block of its own, its bytes in the file."""

    spec: TensorSpec
    stages: tuple[str, ...]
    with_base: bool
    n_bytes: float
    alias_of: str | None = None


class Archive:
    """A compressed network in memory, as `compress` makes it.

    Attributes
    ----------
    nbytes : int
        Length of the archive.
    ratio : float
        Bytes of the original tensors over bytes of the archive.
    restored : dict of arrays
        What a reader will get, bit for bit: the base for the next version.
    id, base_id : str, str or None
        Identities of `restored` and of the base it needs.
    update_kept : UpdateKept or None
        How much of the change against the base is kept: `.share` of the network's, `.tensors` one by one, `.lost` the
        names of tensors that lost theirs. None if no base was used.
    """

    def __init__(self, data: bytes | Array, restored: dict[str, Array], report: WriteReport):
        self._data: bytes | Array = data
        self.restored = restored
        self.report = report

    @property
    def nbytes(self) -> int:
        return len(self._data)

    @property
    def data(self) -> memoryview:
        """As `to_bytes`, without a copy."""
        return memoryview(self._data) if isinstance(self._data, bytes) else self._data.data

    @property
    def ratio(self) -> float:
        return self.report.index.n_bytes / len(self._data)

    @property
    def id(self) -> str:
        return self.report.index.id

    @property
    def update_kept(self) -> UpdateKept | None:
        return self.report.update_kept

    @property
    def base_id(self) -> str | None:
        return self.report.index.base_id

    def to_bytes(self) -> bytes:
        """The archive, as `decompress` reads it. The first call makes a copy."""
        if not isinstance(self._data, bytes):
            self._data = _core.to_bytes(self._data)
        return self._data

    def save(self, path: str | os.PathLike[str] | BinaryIO, force: bool = True) -> None:
        """Write the archive to a file, whole or not at all, or to a binary stream.

        A file that exists is replaced; with `force=False` it is a UsageError.
        """
        if not isinstance(path, (str, os.PathLike)):
            path.write(self.data)
            return
        with atomic_file(path, force=force) as stream:
            stream.write(self.data)

    def __repr__(self) -> str:
        n = len(self.report.index.tensors)
        choices = self.report.choices_text
        smaller = f"; smaller than asked: {choices}" if choices else ""
        return f"<nearzip.Archive of {n} tensors, {self.nbytes} bytes, ratio {self.ratio:.2f}{smaller}>"

    def _repr_html_(self) -> str:
        kept = None if self.update_kept is None else f"{self.update_kept.share:.2%} of the change"
        return html_table("nearzip.Archive", [*described(self.report.index, self.nbytes), ("update kept", kept)])


def described(index: Index, n_bytes: int) -> list[tuple[str, object]]:
    """What notebooks show of an archive."""
    return [
        ("tensors", f"{len(index.tensors):,}, {human_bytes(index.n_bytes)}"),
        ("size", f"{human_bytes(n_bytes)}: {index.n_bytes / max(1, n_bytes):.2f}x smaller"),
        ("method", index.method.get("name")),
        ("bound", ":".join(str(index.bound[key]) for key in ("kind", "value") if key in index.bound)),
        ("base", index.base_id or "none needed"),
    ]
