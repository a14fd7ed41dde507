"""SZ3, ZFP and blosc2: each needs an extra and runs in a child process (`child`)."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, FLOATS, Coded, Context, Stage
from nearzip.stages.external import most_bytes
from nearzip.stages.foreign import child
from nearzip.stages.foreign.child import CrashError, Foreign
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["Blosc", "Sz3", "Zfp"]

#: Below this, headers weigh more than values, and some codecs know no arrays so small.
_FEWEST = 16
_PLAIN, _PACKED = b"\0", b"\1"


def _decode(codec: Foreign, data: Any, most: int, **settings: Any) -> bytes:
    try:
        return child.run(codec, "decode", bytes(data), most, **settings)
    except CrashError as error:
        raise CorruptError(str(error)) from None


@dataclass(frozen=True)
class _FloatCodec(Stage):
    """Floats within an absolute error, as float64 for tensors of that type, else as float32.

    What is not finite becomes 0 and is left to the codec's patch. Few values are kept as they are.
    """

    takes, gives = FLOATS, BYTES

    codec: ClassVar[Foreign]

    error: float

    def __post_init__(self) -> None:
        if not 0 < self.error < math.inf:
            raise UsageError(f"an absolute error is positive and finite, not {self.error!r}")

    @abstractmethod
    def _pack(self, data: bytes, dtype: str) -> bytes:
        """The codec's bytes of an array's bytes."""

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        dtype = _working_type(value.dtype if context is None else context.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            values = value.astype(dtype)
        values[~np.isfinite(values)] = 0
        data = values.tobytes()
        if values.size < _FEWEST:
            return Coded(data, _PLAIN)
        return Coded(self._pack(data, dtype.str), _PACKED)

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        dtype = _working_type(context.dtype)
        data: Any = coded.data
        if coded.side == _PACKED and context.n >= _FEWEST:
            most = context.n * dtype.itemsize
            data = _decode(self.codec, data, most, dtype=dtype.str, n=context.n, error=self.error)
        elif coded.side != _PLAIN or context.n >= _FEWEST:
            raise CorruptError("neither packed nor plain values")
        if len(data) != context.n * dtype.itemsize:
            raise CorruptError("stream holds another number of values")
        values: Array = np.frombuffer(data, dtype).copy()
        return values


def _working_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype("<f8" if dtype.itemsize == 8 else "<f4")


@dataclass(frozen=True)
class Sz3(_FloatCodec):
    """SZ3 (Zhao, Liang et al.) on values in a row, |x - x'| <= `error` in exact arithmetic.

    Parameters
    ----------
    error : float
    algorithm : str
        "smaller" tries the predictors and none, since on weights they often cost more than they save.
    """

    id = "sz3"
    needs = ("pysz",)
    codec = Foreign("sz3", "pysz", "sz")

    algorithm: Literal["smaller", "INTERP_LORENZO", "NOPRED"] = "smaller"

    def _pack(self, data: bytes, dtype: str) -> bytes:
        tried = ("INTERP_LORENZO", "NOPRED") if self.algorithm == "smaller" else (self.algorithm,)
        packed = (
            child.run(self.codec, "encode", data, 2 * len(data) + 4096, dtype=dtype, error=self.error, algorithm=name)
            for name in tried
        )
        return min(packed, key=len)


@dataclass(frozen=True)
class Zfp(_FloatCodec):
    """ZFP (Lindstrom) on values in a row with a fixed accuracy: it rounds `error` down to a power of two."""

    id = "zfp"
    needs = ("zfpy",)
    codec = Foreign("zfp", "zfpy", "zfp")

    def _pack(self, data: bytes, dtype: str) -> bytes:
        return child.run(self.codec, "encode", data, 4 * len(data) + 4096, dtype=dtype, error=self.error)


@dataclass(frozen=True)
class Blosc(Stage):
    """blosc2: bytes of one significance together, then a general-purpose compressor.

    Parameters
    ----------
    typesize : int
        Bytes of a value.
    filter, codec, level
        As the library's.
    """

    id = "blosc"
    needs = ("blosc2",)
    takes, gives = BYTES, BYTES
    foreign: ClassVar[Foreign] = Foreign("blosc", "blosc2", "blosc")

    typesize: int = 4
    filter: Literal["SHUFFLE", "BITSHUFFLE"] = "SHUFFLE"
    codec: Literal["ZSTD", "LZ4", "ZLIB"] = "ZSTD"
    level: int = 9

    def __post_init__(self) -> None:
        if not (1 <= self.typesize <= 255 and 0 <= self.level <= 9):
            raise UsageError("blosc takes values of 1 to 255 bytes and a level from 0 to 9")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        data = bytes(value)
        if not data:
            return Coded(b"")
        settings = {"typesize": self.typesize, "filter": self.filter, "codec": self.codec, "level": self.level}
        return Coded(child.run(self.foreign, "encode", data, 2 * len(data) + 4096, **settings))

    def decode(self, coded: Coded, context: Context) -> bytes:
        if not len(coded.data):
            return b""
        return _decode(self.foreign, coded.data, most_bytes(context))
