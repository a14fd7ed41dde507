"""ZFP (Lindstrom 2014) on images, as in section III of the paper on correctness-preserving compression; by zfpy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from nearzip.datasets.codecs.base import Coder, Pieces, SampleCodec, Shape, check_range
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError, UsageError, missing_extra
from nearzip.stages.foreign.child import CrashError, Foreign, run
from nearzip.tensors import Array

__all__ = ["ZfpImages"]

_ZFP = Foreign("zfp-images", "zfpy", "zfp")
_SIDE = 4
#: Bits of a block that the library needs at least: below, it overwrites memory.
_FEWEST_BITS = 9


@dataclass(frozen=True)
class ZfpImages(SampleCodec):
    """ZFP in one of its modes, every image a field of its own without a header.

    Parameters
    ----------
    precision : int or None
        Bit planes that are kept, 1 to 32.
    rate : float or None
        Bits for each value.
    accuracy : float or None
        Largest error, in grey levels; the library takes the power of two below. Only for "float32".
    values : str
        "float32": grey levels as floating-point numbers, as in the paper. "int32": as integers, which saves the
        exponent of every block.
    dimensions : int
        2: the channels below each other. 3: the channels as a dimension, of 4 values.
    """

    name: ClassVar[str] = "zfp"
    says: ClassVar[str] = "ZFP by precision, rate or accuracy (zfpy)"
    knob: ClassVar[str | None] = "precision"

    precision: int | None = None
    rate: float | None = None
    accuracy: float | None = None
    values: Literal["float32", "int32"] = "float32"
    dimensions: Literal[2, 3] = 2

    def __post_init__(self) -> None:
        given = [name for name in ("precision", "rate", "accuracy") if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError("zfp takes one of precision, rate and accuracy")
        if self.values not in ("float32", "int32") or self.dimensions not in (2, 3):
            raise UsageError("zfp: values are 'float32' or 'int32', dimensions 2 or 3")
        if self.precision is not None:
            check_range(self, "precision", 1, 32)
        if self.rate is not None:
            least = _FEWEST_BITS / _SIDE**self.dimensions
            if not least <= self.rate <= 32:
                raise UsageError(f"zfp: a rate below {least:g} bits crashes the library, one above 32 gains nothing")
        if self.accuracy is not None:
            check_range(self, "accuracy", 2**-20, 255)
            if self.values == "int32":
                raise UsageError("zfp ignores the accuracy of integers; take precision, rate, or values=float32")

    def check(self, spec: Spec) -> None:
        if spec.channels is None:
            raise UsageError(f"zfp codes images of 8 bits here, not {spec}; take 'bounded' for other arrays")
        try:
            import zfpy  # noqa: F401
        except ImportError:
            raise missing_extra("zfpy", "zfp", "the codec zfp") from None

    def coder(self, shared: bytes, spec: Spec) -> Coder:
        if shared:
            raise CorruptError("zfp shares nothing between images")
        return _ZfpCoder(self)

    @property
    def settings(self) -> dict[str, Any]:
        """What the library is called with."""
        mode = next(name for name in ("precision", "rate", "accuracy") if getattr(self, name) is not None)
        return {"dtype": self.values, "mode": "tolerance" if mode == "accuracy" else mode, "value": getattr(self, mode)}


class _ZfpCoder(Coder):
    def __init__(self, codec: ZfpImages):
        self._codec = codec

    def _field(self, pixels: Array) -> Array:
        height, width, channels = pixels.shape
        planes = pixels.transpose(2, 0, 1)
        if self._codec.dimensions == 3:
            field = np.pad(pixels, ((0, 0), (0, 0), (0, -channels % _SIDE)), mode="edge")
        else:  # rows of another channel never share a block
            field = np.pad(planes, ((0, 0), (0, -height % _SIDE), (0, 0)), mode="edge").reshape(-1, width)
        if self._codec.values == "float32":
            return field.astype(np.float32)
        return (field.astype(np.int32) - 128) << 23

    def _shape(self, shape: Shape) -> tuple[int, ...]:
        height, width, channels = shape
        if self._codec.dimensions == 3:
            return height, width, channels + -channels % _SIDE
        return channels * (height + -height % _SIDE), width

    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        fields = [np.ascontiguousarray(self._field(sample)) for sample in samples]
        shapes = json.dumps([field.shape for field in fields])
        data = b"".join(field.tobytes() for field in fields)
        packed = run(_ZFP, "encode", data, 4 * len(data) + 4096 * len(fields), shapes=shapes, **self._codec.settings)
        head = 4 * len(fields)
        lengths = np.frombuffer(packed[:head], "<u4").tolist()
        found, at = [], head
        for length in lengths:
            found.append(packed[at : at + length])
            at += length
        return found

    def decode(self, pieces: Pieces) -> list[Array]:
        fields = [self._shape(shape) for shape in pieces.shapes]
        streams = [bytes(data) for data, _ in pieces]
        most = sum(int(np.prod(field)) for field in fields) * 4
        settings = {"lengths": json.dumps([len(stream) for stream in streams]), **self._codec.settings}
        try:
            raw = run(_ZFP, "decode", b"".join(streams), most, shapes=json.dumps(fields), **settings)
        except CrashError as error:
            raise CorruptError(str(error)) from None
        if len(raw) != most:
            raise CorruptError("zfp: stream holds another number of values")
        values = np.frombuffer(raw, np.dtype(self._codec.values).newbyteorder("<"))
        found, at = [], 0
        for field, shape in zip(fields, pieces.shapes, strict=True):
            n = int(np.prod(field))
            found.append(self._pixels(values[at : at + n].reshape(field), shape))
            at += n
        return found

    def _pixels(self, field: Array, shape: Shape) -> Array:
        height, width, channels = shape
        if self._codec.values == "float32":
            with np.errstate(invalid="ignore"):
                rounded = np.rint(np.nan_to_num(field))
        else:
            rounded = ((field.astype(np.int64) + (1 << 22)) >> 23) + 128
        pixels = np.clip(rounded, 0, 255).astype(np.uint8)
        if self._codec.dimensions == 3:
            return np.ascontiguousarray(pixels[..., :channels])
        return np.ascontiguousarray(pixels.reshape(channels, -1, width)[:, :height].transpose(1, 2, 0))
