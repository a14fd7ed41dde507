"""The interface of a peer, and a simple file format for peers that have none of their own."""

from __future__ import annotations

import json
import struct
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Tensors = dict[str, np.ndarray]
Setting = dict[str, Any]


class Peer(ABC):
    """One program, compared on whole checkpoints.

    `needs`: what pip installs into its environment; empty: runs where the bench runs.
    `lossless`: every setting restores every bit. `uses_base`: whether any setting does.
    `prunes`: values may become zero, and zeros values, whatever their size.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    lossless: ClassVar[bool] = False
    uses_base: ClassVar[bool] = True
    prunes: ClassVar[bool] = False

    @abstractmethod
    def settings(self, unit: float) -> list[Setting]:
        """Settings to sweep, from fine to coarse; `unit` is an absolute error that suits the pair."""

    @abstractmethod
    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        """A whole file: everything but the base that `decode` needs."""

    @abstractmethod
    def decode(self, data: bytes, base: Tensors) -> Tensors:
        """The restored tensors, for a reader who has `base`."""


#: Absolute errors swept, in units that suit a pair.
SWEEP = (0.5, 0.7, 1.0, 1.4, 2.0)


def absolute(unit: float) -> list[Setting]:
    """The sweep of all methods with an absolute error."""
    return [{"abs": float(f"{unit * factor:.4g}")} for factor in SWEEP]


@dataclass(frozen=True)
class Flat:
    """A checkpoint as one vector of its float32 values, the rest as it is, and a header that puts it together again."""

    header: bytes
    floats: np.ndarray
    rest: bytes

    @classmethod
    def of(cls, tensors: Tensors) -> Flat:
        index = [[name, str(w.dtype), w.shape] for name, w in tensors.items()]
        floats = [w.reshape(-1) for w in tensors.values() if w.dtype == np.float32]
        rest = [w.tobytes() for w in tensors.values() if w.dtype != np.float32]
        return cls(zlib.compress(json.dumps(index).encode(), 9), np.concatenate(floats), zlib.compress(b"".join(rest)))

    def tensors(self) -> Tensors:
        restored, rest, n_floats, n_bytes = {}, zlib.decompress(self.rest), 0, 0
        for name, dtype, shape in json.loads(zlib.decompress(self.header)):
            size = int(np.prod(shape))
            if dtype == "float32":
                values = self.floats[n_floats : n_floats + size]
                n_floats += size
            else:
                values = np.frombuffer(rest, dtype, size, n_bytes)
                n_bytes += values.nbytes
            restored[name] = values.reshape(shape)
        return restored

    def pack(self, payload: bytes) -> bytes:
        """A file: lengths, header, what is not float32, and the coded values."""
        return struct.pack("<II", len(self.header), len(self.rest)) + self.header + self.rest + payload

    @staticmethod
    def unpack(data: bytes) -> tuple[bytes, bytes, bytes]:
        """Header, rest and payload of `pack`."""
        n_header, n_rest = struct.unpack_from("<II", data)
        at = 8 + n_header
        return data[8:at], data[at : at + n_rest], data[at + n_rest :]


class DeltaPeer(Peer):
    """Codes the differences of all float32 values to the base as one vector."""

    @abstractmethod
    def encode_values(self, delta: np.ndarray, setting: Setting) -> bytes: ...

    @abstractmethod
    def decode_values(self, data: bytes, size: int) -> np.ndarray: ...

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        flat = Flat.of(new)
        return flat.pack(self.encode_values(flat.floats - Flat.of(base).floats, setting))

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        header, rest, payload = Flat.unpack(data)
        old = Flat.of(base).floats
        return Flat(header, old + self.decode_values(payload, old.size), rest).tensors()


class BytesPeer(Peer):
    """Lossless on the bits of all float32 values: as they are, or their exclusive or with the base's."""

    lossless = True

    def settings(self, unit: float) -> list[Setting]:
        return [{"bits": "raw"}, {"bits": "xor"}]

    @abstractmethod
    def encode_bits(self, bits: np.ndarray) -> bytes:
        """uint32 -> bytes. `bits` may be written over."""

    @abstractmethod
    def decode_bits(self, data: bytes, size: int) -> np.ndarray: ...

    def encode(self, new: Tensors, base: Tensors, setting: Setting) -> bytes:
        flat = Flat.of(new)
        bits = flat.floats.view(np.uint32)
        xor = setting["bits"] == "xor"
        if xor:
            bits = bits ^ Flat.of(base).floats.view(np.uint32)
        return flat.pack(bytes([xor]) + self.encode_bits(bits))

    def decode(self, data: bytes, base: Tensors) -> Tensors:
        header, rest, payload = Flat.unpack(data)
        old = Flat.of(base).floats.view(np.uint32)
        bits = self.decode_bits(payload[1:], old.size)
        return Flat(header, (bits ^ old if payload[0] else bits).view(np.float32), rest).tensors()
