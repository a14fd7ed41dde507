"""Image files as codecs: JPEG, WebP, PNG, AVIF and JPEG XL, as Pillow writes and reads them."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from nearzip.datasets.codecs.base import Coder, Pieces, SampleCodec, Shape, check_range, choices
from nearzip.datasets.images import decode_image, encode_image, pillow
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError, UsageError, missing_extra
from nearzip.tensors import Array

__all__ = ["Avif", "Jpeg", "JpegXl", "Png", "WebP"]

Chroma = Literal["4:2:0", "4:2:2", "4:4:4"]


class _Files(Coder):
    """Whole files of one format."""

    def __init__(self, format: str, options: dict[str, Any]):
        self._format, self._options = format, options

    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        return [encode_image(sample, self._format, **self._options) for sample in samples]

    def decode(self, pieces: Pieces) -> list[Array]:
        return [decode_image(data, shape, (self._format,)) for data, shape in pieces]


@dataclass(frozen=True)
class _FileCodec(SampleCodec):
    format: ClassVar[str]
    channels: ClassVar[tuple[int, ...]] = (1, 3)
    #: The package to install where Pillow lacks the codec.
    package: ClassVar[str] = "Pillow"

    def check(self, spec: Spec) -> None:
        if spec.channels not in self.channels:
            raise UsageError(f"{self.name} codes images of {' or '.join(map(str, self.channels))} channels, not {spec}")
        module = pillow()
        module.init()
        if self.format not in module.SAVE or self.format not in module.OPEN:
            raise missing_extra(self.package, "datasets", f"the codec {self.name}")

    def coder(self, shared: bytes, spec: Spec) -> Coder:
        if shared:
            raise CorruptError(f"{self.name} shares nothing between images")
        return _Files(self.format, self.options())

    def options(self) -> dict[str, Any]:
        """Arguments for Pillow's `save`."""
        return {}


@dataclass(frozen=True)
class WebP(_FileCodec):
    """WebP files, with loss. Grey images are stored in colour, which takes next to nothing."""

    name: ClassVar[str] = "webp"
    says: ClassVar[str] = "WebP files (Pillow, method 6)"
    knob: ClassVar[str | None] = "quality"
    format: ClassVar[str] = "WEBP"
    channels: ClassVar[tuple[int, ...]] = (1, 3, 4)

    quality: int = 80

    def __post_init__(self) -> None:
        check_range(self, "quality", 0, 100)

    def options(self) -> dict[str, Any]:
        return {"quality": self.quality, "method": 6}


@dataclass(frozen=True)
class Avif(_FileCodec):
    """AVIF files, where Pillow was built with them."""

    name: ClassVar[str] = "avif"
    says: ClassVar[str] = "AVIF files (Pillow, speed 6)"
    knob: ClassVar[str | None] = "quality"
    format: ClassVar[str] = "AVIF"
    channels: ClassVar[tuple[int, ...]] = (1, 3, 4)

    quality: int = 75

    def __post_init__(self) -> None:
        check_range(self, "quality", 0, 100)

    def options(self) -> dict[str, Any]:
        return {"quality": self.quality, "speed": 6}


@dataclass(frozen=True)
class JpegXl(_FileCodec):
    """JPEG XL files, where a plug-in of Pillow's that writes them is installed (pillow-jxl-plugin)."""

    name: ClassVar[str] = "jxl"
    says: ClassVar[str] = "JPEG XL files (pillow-jxl-plugin)"
    knob: ClassVar[str | None] = "quality"
    format: ClassVar[str] = "JXL"
    channels: ClassVar[tuple[int, ...]] = (1, 3, 4)
    package: ClassVar[str] = "pillow-jxl-plugin"

    quality: int = 90

    def __post_init__(self) -> None:
        check_range(self, "quality", 0, 100)

    def check(self, spec: Spec) -> None:
        _load_jxl()
        super().check(spec)

    def coder(self, shared: bytes, spec: Spec) -> Coder:
        _load_jxl()
        return super().coder(shared, spec)

    def options(self) -> dict[str, Any]:
        return {"quality": self.quality}


def _load_jxl() -> None:
    try:
        import pillow_jxl  # noqa: F401
    except ImportError:
        raise missing_extra("pillow-jxl-plugin", "datasets", "the codec jxl") from None


@dataclass(frozen=True)
class Png(_FileCodec):
    """PNG files: without loss."""

    name: ClassVar[str] = "png"
    says: ClassVar[str] = "PNG files, without loss"
    format: ClassVar[str] = "PNG"
    channels: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    def options(self) -> dict[str, Any]:
        return {"optimize": True}


# ---- JPEG ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jpeg(_FileCodec):
    """JPEG files.

    Parameters
    ----------
    quality : int
        Pillow's, 1 to 100.
    chroma : str
        Subsampling: "4:2:0" (Pillow's default), "4:2:2" or "4:4:4".
    tables : str
        "file": every file has Huffman tables of its own, optimized for it. "shared": the standard tables, and
        everything in front of an image's own bits is stored once for all images in which it is the same.
    """

    name: ClassVar[str] = "jpeg"
    says: ClassVar[str] = "JPEG files (Pillow)"
    knob: ClassVar[str | None] = "quality"
    format: ClassVar[str] = "JPEG"

    quality: int = 75
    chroma: Chroma = "4:2:0"
    tables: Literal["file", "shared"] = "file"

    def __post_init__(self) -> None:
        check_range(self, "quality", 1, 100)
        if self.chroma not in choices(Chroma):
            raise UsageError(f"jpeg: chroma is one of {', '.join(choices(Chroma))}, not {self.chroma!r}")
        if self.tables not in ("file", "shared"):
            raise UsageError(f"jpeg: tables is 'file' or 'shared', not {self.tables!r}")

    def options(self) -> dict[str, Any]:
        return {"quality": self.quality, "subsampling": self.chroma, "optimize": self.tables == "file"}

    def learn(self, chunks: Iterable[Sequence[Array]], spec: Spec) -> bytes:
        if self.tables == "file":
            return b""
        heads: Counter[bytes] = Counter()
        shapes: set[Shape] = set()
        for chunk in chunks:
            for sample in chunk:
                # With standard tables only the size of an image tells in its header.
                if sample.shape not in shapes and len(shapes) < _MAX_HEADS:
                    shapes.add(sample.shape)
                    heads[_head(encode_image(sample, self.format, **self.options()))] += 1
        return b"".join(struct.pack("<I", len(head)) + head for head in heads)

    def coder(self, shared: bytes, spec: Spec) -> Coder:
        if self.tables == "file":
            return super().coder(shared, spec)
        return _SharedTables(self.options(), shared)


_MAX_HEADS = 255


def _head(data: bytes) -> bytes:
    """Everything up to the bits of the image."""
    at = 2
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        at += 2 + length
        if marker == 0xFFDA:  # start of scan
            return data[:at]
    raise CorruptError("image: is no JPEG file")


class _SharedTables(Coder):
    """Each image: the number of its header (0: its own follows, with its length), and its bits."""

    def __init__(self, options: dict[str, Any], shared: bytes):
        self._options = options
        self._heads: list[bytes] = []
        at = 0
        while at < len(shared):
            length = struct.unpack_from("<I", shared, at)[0] if at + 4 <= len(shared) else -1
            head = shared[at + 4 : at + 4 + length]
            if len(head) != length or len(self._heads) == _MAX_HEADS:
                raise CorruptError("jpeg: shared tables are malformed")
            self._heads.append(head)
            at += 4 + length

    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        found = []
        for sample in samples:
            data = encode_image(sample, "JPEG", **self._options)
            head = _head(data)
            if head in self._heads:
                found.append(
                    bytes([self._heads.index(head) + 1]) + data[len(head) : -2]
                )  # the end mark is always the same
            else:
                found.append(b"\0" + data)
        return found

    def decode(self, pieces: Pieces) -> list[Array]:
        return [self._decoded(data, shape) for data, shape in pieces]

    def _decoded(self, data: memoryview, shape: Shape) -> Array:
        if not len(data) or data[0] > len(self._heads):
            raise CorruptError("image: has no header")
        number, rest = data[0], bytes(data[1:])
        whole = self._heads[number - 1] + rest + b"\xff\xd9" if number else rest
        return np.asarray(decode_image(whole, shape, ("JPEG",)))
