"""Limits for reading an untrusted file. The caller can raise each of them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits for one archive; all in bytes or counts.

    Parameters
    ----------
    output_bytes : int or None
        Maximum size of all decoded tensors together. None: 1 GiB plus what has a base of that shape, or more if
        the file is at least 1/1024 of it.
    index_bytes : int or None
        Maximum size of the decompressed index. None: 1 MiB, or up to 16 MiB if the file is at least 1/64 of it.
    tensors : int
        Maximum number of tensors.
    rank : int
        Maximum number of dimensions of a tensor.
    name_bytes : int
        Longest tensor name in UTF-8.
    depth : int
        Deepest nesting of the index.
    """

    output_bytes: int | None = None
    index_bytes: int | None = None
    tensors: int = 1_000_000
    rank: int = 32
    name_bytes: int = 4096
    depth: int = 16

    #: Without `output_bytes`: always allowed, and the maximum of decoded bytes for one byte of the file beyond that.
    FREE_BYTES = 1 << 30
    EXPANSION = 1024

    #: The same for the index, without `index_bytes`, and its maximum.
    FREE_INDEX = MIB
    INDEX_EXPANSION = 64
    MAX_INDEX = 16 * MIB

    def allowed_index(self, file_bytes: int) -> int:
        """Maximum size of the decompressed index. The objects made from it take some twenty times as much."""
        if self.index_bytes is not None:
            return self.index_bytes
        return min(self.MAX_INDEX, max(self.FREE_INDEX, file_bytes * self.INDEX_EXPANSION))

    def allowed_output(self, file_bytes: int) -> int:
        """Maximum number of decoded bytes, besides tensors that have a base."""
        if self.output_bytes is not None:
            return self.output_bytes
        return max(self.FREE_BYTES, file_bytes * self.EXPANSION)
