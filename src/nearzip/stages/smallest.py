"""Whichever of several compressors gives the fewest bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nearzip.errors import CorruptError, MissingExtraError, UsageError
from nearzip.stages.base import BYTES, Coded, Context, Stage
from nearzip.stages.external import Gzip, Lzma, Zstd
from nearzip.stages.foreign import Blosc

__all__ = ["SmallestOf"]

_COMPRESSORS: dict[str, Stage] = {
    "gzip": Gzip(),
    "zstd": Zstd(),
    "blosc": Blosc(typesize=1),
    "lzma": Lzma(),
}


@dataclass(frozen=True)
class SmallestOf(Stage):
    """The smallest of what several general-purpose compressors make (DeepSZ's "best-fit lossless compressor").

    Side data: the number of the one that was taken, a byte; its own side data. One whose extra is not installed takes
    no part, as long as others do.

    Parameters
    ----------
    of : str
        Their ids with spaces between; of equal sizes the first is taken.

    Examples
    --------
    >>> SmallestOf("gzip zstd").encode(bytes(100)).side
    b'\\x00'
    """

    id = "smallest-of"
    takes, gives = BYTES, BYTES

    of: str = "gzip zstd"

    def __post_init__(self) -> None:
        names = self.of.split(" ")
        if len(set(names)) != len(names) or not set(names) <= set(_COMPRESSORS):
            raise UsageError(f"smallest-of takes some of {' '.join(_COMPRESSORS)}, not {self.of[:80]!r}")

    @property
    def _stages(self) -> list[Stage]:
        return [_COMPRESSORS[name] for name in self.of.split(" ")]

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        tried = []
        for i, stage in enumerate(self._stages):
            try:
                coded = stage.encode(value, context)
            except MissingExtraError:
                if len(self._stages) == 1:
                    raise
                continue
            tried.append(Coded(coded.data, bytes([i]) + coded.side))
        return min(tried, key=lambda coded: len(coded.data) + len(coded.side))

    def decode(self, coded: Coded, context: Context) -> Any:
        if not coded.side or coded.side[0] >= len(self._stages):
            raise CorruptError("no such compressor")
        return self._stages[coded.side[0]].decode(Coded(coded.value, coded.side[1:]), context)
