"""Lossless compressors made for the weights of networks."""

from __future__ import annotations

import numpy as np

from experiments.lab.peers.base import BytesPeer, Flat, Peer, Setting, Tensors


class ZipnnPeer(BytesPeer):
    name = "ZipNN"
    needs = ("zipnn", "torch", "safetensors")

    def encode_bits(self, bits: np.ndarray) -> bytes:
        from zipnn import ZipNN

        # It reorders the bytes that it is given in place.
        packed = ZipNN(input_format="byte", bytearray_dtype="float32", threads=1).compress(bytearray(bits.tobytes()))
        return bytes(packed)

    def decode_bits(self, data: bytes, size: int) -> np.ndarray:
        from zipnn import ZipNN

        restored = ZipNN(input_format="byte", bytearray_dtype="float32", threads=1).decompress(bytearray(data))
        return np.frombuffer(bytes(restored), np.uint32)


class Z4aiPeer(Peer):
    """z4ai: at its best effort without a base; with its own difference to a base otherwise."""

    name = "z4ai"
    needs = ("z4ai",)
    lossless = True

    def settings(self, unit: float) -> list[Setting]:
        return [{"bits": "raw"}, {"bits": "its own delta"}]

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        import z4ai

        flat = Flat.of(new)
        if setting["bits"] == "raw":
            return flat.pack(b"\0" + z4ai.compress(flat.floats, threads=1, effort="max"))
        return flat.pack(b"\1" + z4ai.compress_delta(flat.floats, Flat.of(base).floats, threads=1))

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        import z4ai

        header, rest, payload = Flat.unpack(data)
        if payload[0]:
            restored = z4ai.decompress_delta(payload[1:], Flat.of(base).floats)
        else:
            restored = z4ai.decompress_ndarray(payload[1:])
        return Flat(header, np.frombuffer(bytes(restored), np.float32), rest).tensors()
