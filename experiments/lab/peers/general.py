"""General-purpose and numerical lossless compressors."""

from __future__ import annotations

import gzip
import lzma

import numpy as np

from experiments.lab.peers.base import BytesPeer


def _planes(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.uint8).reshape(-1, 4).T.copy()


def _from_planes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(4, -1).T.copy().view(np.uint32).reshape(-1)


class GzipPeer(BytesPeer):
    name = "gzip"

    def encode_bits(self, bits: np.ndarray) -> bytes:
        return gzip.compress(bits.tobytes(), 9, mtime=0)

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress(data), np.uint32)


class LzmaPeer(BytesPeer):
    name = "LZMA"

    def encode_bits(self, bits: np.ndarray) -> bytes:
        return lzma.compress(bits.tobytes(), preset=6)

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        return np.frombuffer(lzma.decompress(data), np.uint32)


class ZstdPeer(BytesPeer):
    name = "zstd"
    needs = ("zstandard",)

    def encode_bits(self, bits: np.ndarray) -> bytes:
        import zstandard

        return zstandard.ZstdCompressor(level=19).compress(bits.tobytes())

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        import zstandard

        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), np.uint32)


class Blosc2Peer(BytesPeer):
    """Byte shuffle and zstd at level 5 of 9."""

    name = "blosc2"
    needs = ("blosc2",)

    def encode_bits(self, bits: np.ndarray) -> bytes:
        import blosc2

        packed: bytes = blosc2.compress2(
            bits, typesize=4, clevel=5, codec=blosc2.Codec.ZSTD, filters=[blosc2.Filter.SHUFFLE], filters_meta=[0]
        )
        return packed

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        import blosc2

        return np.frombuffer(blosc2.decompress2(data), np.uint32)


class PcodecPeer(BytesPeer):
    """Pcodec at its default level, of integers."""

    name = "pcodec"
    needs = ("pcodec",)

    def encode_bits(self, bits: np.ndarray) -> bytes:
        from pcodec import ChunkConfig, standalone

        packed: bytes = standalone.simple_compress(bits, ChunkConfig())
        return packed

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        from pcodec import standalone

        bits: np.ndarray = standalone.simple_decompress(data)
        return bits


class OpenzlPeer(BytesPeer):
    """OpenZL's generic graph on typed integers."""

    name = "OpenZL"
    needs = ("openzl",)

    def encode_bits(self, bits: np.ndarray) -> bytes:
        import openzl.ext as zl

        compressor, context = zl.Compressor(), zl.CCtx()
        compressor.select_starting_graph(zl.graphs.Compress()(compressor))
        context.ref_compressor(compressor)
        context.set_parameter(zl.CParam.FormatVersion, zl.MAX_FORMAT_VERSION)
        packed: bytes = context.compress([zl.Input(zl.Type.Numeric, bits)])
        return packed

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        import openzl.ext as zl

        return np.asarray(zl.DCtx().decompress(data)[0].content.as_nparray()).view(np.uint32).copy()
