"""What reading an untrusted file may take. Every number can be raised by the caller."""

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
        Most that all decoded tensors may take together. None: 1 GiB plus what has a base of that shape, or more if
        the file is at least 1/1024 of it.
    index_bytes : int
        Most that the decompressed index may take.
    tensors : int
        Most tensors.
    rank : int
        Most dimensions of a tensor.
    name_bytes : int
        Longest tensor name in UTF-8.
    depth : int
        Deepest nesting of the index.
    """

    output_bytes: int | None = None
    index_bytes: int = 16 * MIB
    tensors: int = 1_000_000
    rank: int = 32
    name_bytes: int = 4096
    depth: int = 16

    #: Without `output_bytes`: always allowed, and most decoded bytes for one byte of the file beyond that.
    FREE_BYTES = 1 << 30
    EXPANSION = 1024

    def allowed_output(self, file_bytes: int) -> int:
        """Most decoded bytes, besides tensors whose base is at hand."""
        if self.output_bytes is not None:
            return self.output_bytes
        return max(self.FREE_BYTES, file_bytes * self.EXPANSION)
