"""General-purpose compressors. Each decodes into at most what the context says, whatever its input claims."""

from __future__ import annotations

import lzma
import zlib
from dataclasses import dataclass
from typing import Any

import zstandard

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, Coded, Context, Stage

__all__ = ["Gzip", "Lzma", "Zstd", "most_bytes"]


def most_bytes(context: Context) -> int:
    """Maximum size of n values before compression: their own, or 5 each as base 128 of 32 bits; and a little."""
    return max(6, context.dtype.itemsize + 1) * context.n + 1024


def _check_level(level: int, low: int, high: int) -> None:
    if not low <= level <= high:
        raise UsageError(f"a level of this compressor lies between {low} and {high}, not {level}")


def _ended(name: str, whole: bool, rest: bytes) -> None:
    if not whole:
        raise CorruptError(f"{name} stream ends early or holds too much")
    if rest:
        raise CorruptError(f"extra bytes after the {name} stream")


@dataclass(frozen=True)
class Gzip(Stage):
    """DEFLATE, RFC 1951, without gzip's own header and checksum (the container has one)."""

    id = "gzip"
    takes, gives = BYTES, BYTES

    level: int = 9

    def __post_init__(self) -> None:
        _check_level(self.level, 0, 9)

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        deflate = zlib.compressobj(self.level, zlib.DEFLATED, -15)
        return Coded(deflate.compress(value) + deflate.flush())

    def decode(self, coded: Coded, context: Context) -> bytes:
        inflate = zlib.decompressobj(-15)
        try:
            out = inflate.decompress(coded.data, most_bytes(context))
        except zlib.error as error:
            raise CorruptError(f"gzip: {error}") from None
        _ended("gzip", inflate.eof, inflate.unused_data + inflate.unconsumed_tail)
        return out


@dataclass(frozen=True)
class Lzma(Stage):
    """LZMA2 without the .xz frame, whose header and checksum the container replaces."""

    id = "lzma"
    takes, gives = BYTES, BYTES

    preset: int = 6

    def __post_init__(self) -> None:
        _check_level(self.preset, 0, 9)

    @property
    def _filters(self) -> list[dict[str, int]]:
        return [{"id": lzma.FILTER_LZMA2, "preset": self.preset}]

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        return Coded(lzma.compress(value, lzma.FORMAT_RAW, filters=self._filters))

    def decode(self, coded: Coded, context: Context) -> bytes:
        unpack = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=self._filters)
        try:
            out = unpack.decompress(coded.data, most_bytes(context))
            if not unpack.eof:  # all bytes are out, the end mark is still to be read
                out += unpack.decompress(b"", 1) if not unpack.needs_input else b""
        except (lzma.LZMAError, EOFError) as error:
            raise CorruptError(f"lzma: {error}") from None
        _ended("lzma", unpack.eof, unpack.unused_data)
        return out


@dataclass(frozen=True)
class Zstd(Stage):
    """Zstandard, RFC 8878, with the content size in its frame and no checksum of its own."""

    id = "zstd"
    takes, gives = BYTES, BYTES

    level: int = 19

    def __post_init__(self) -> None:
        _check_level(self.level, -50, 22)

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        return Coded(zstandard.ZstdCompressor(level=self.level).compress(value))

    def decode(self, coded: Coded, context: Context) -> bytes:
        return unpack_zstd(bytes(coded.data), most_bytes(context))


def unpack_zstd(data: bytes, most: int) -> bytes:
    """The content of exactly one frame that states its size, at most `most` bytes. Raises CorruptError."""
    try:
        claimed = zstandard.frame_content_size(data)
    except zstandard.ZstdError as error:
        raise CorruptError(f"zstd: {error}") from None
    if not 0 <= claimed <= most:
        raise CorruptError("zstd: content size missing or too large")
    return unpack_frame(data, claimed)


def unpack_frame(data: bytes, n: int, dictionary: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """The `n` bytes of exactly one frame, which claims no other size. Raises CorruptError, MemoryError."""
    unpack = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << 27)
    try:
        # The library takes memory for what a frame claims, so the claim is checked first.
        if zstandard.frame_content_size(data) not in (-1, n):
            raise CorruptError("zstd: another content size than is due")
        content: bytes = unpack.decompress(data, max_output_size=n, allow_extra_data=False)
    except zstandard.ZstdError as error:
        if "not enough memory" in str(error) or "out of memory" in str(error):  # the data may be sound
            raise MemoryError(str(error)) from None
        raise CorruptError(f"zstd: {error}") from None
    if len(content) != n:
        raise CorruptError("zstd: stream ends early")
    return content
