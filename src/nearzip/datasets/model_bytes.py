"""The bytes of a coder's model: a head, then arrays whose types and shapes follow from it, compressed together."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import numpy as np
import zstandard

from nearzip.errors import CorruptError
from nearzip.stages.external import unpack_zstd
from nearzip.tensors import Array

__all__ = ["read_model", "write_model"]

_HEADER = struct.Struct("<BBH")
_MAX_BYTES = 1 << 20

Fields = Sequence[tuple[str, str]]
Shapes = Callable[[int, int], Sequence[tuple[int, ...]]]


def write_model(channels: int, color: bool, n_tables: int, arrays: Sequence[Array], planes: bool) -> bytes:
    """Arrays in the types of their fields. `planes`: bytes of one significance together, as `read_model` takes them."""
    pieces = [_HEADER.pack(channels, color, n_tables)]
    for array in arrays:
        # The upper bytes are nearly all alike.
        parted = array.reshape(-1).view(np.uint8).reshape(-1, array.itemsize).T if planes else array
        pieces.append(parted.tobytes())
    return zstandard.ZstdCompressor(level=19).compress(b"".join(pieces))


def read_model(data: bytes, fields: Fields, shapes: Shapes, planes: bool) -> tuple[int, bool, dict[str, Array]]:
    """Channels, whether colours are turned, and the arrays by name. Raises CorruptError.

    `fields`: names and dtypes. `shapes`: of all fields, for numbers of channels and of tables.
    """
    raw = unpack_zstd(data, _MAX_BYTES)
    if len(raw) < _HEADER.size:
        raise CorruptError("the model of the images ends early")
    channels, color, n_tables = _HEADER.unpack(raw[: _HEADER.size])
    if not 1 <= channels <= 4 or color > (channels > 2) or not 1 <= n_tables <= 256:
        raise CorruptError("the model of the images is invalid")
    found: dict[str, Array] = {}
    at = _HEADER.size
    for (name, dtype), shape in zip(fields, shapes(channels, n_tables), strict=True):
        kind = np.dtype(dtype)
        n = int(np.prod(shape)) * kind.itemsize
        piece = np.frombuffer(raw[at : at + n], np.uint8)
        if piece.size != n:
            raise CorruptError("the model of the images ends early")
        if planes:
            piece = np.ascontiguousarray(piece.reshape(kind.itemsize, -1).T)
        found[name] = piece.reshape(-1).view(kind).reshape(shape)
        at += n
    if at != len(raw):
        raise CorruptError("the model of the images is too long")
    return channels, bool(color), found
