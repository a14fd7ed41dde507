"""Image files as arrays, by Pillow. Every kind of image that has no plain meaning as an array gets one clear line."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError, missing_extra
from nearzip.tensors import Array

__all__ = ["MODES", "decode_image", "encode_image", "pillow", "read_image"]

#: Modes that images can be converted to, and their channels.
MODES = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
#: Pixels of one image; Pillow's own limit warns at 89 million.
_MAX_PIXELS = 178_956_970


def pillow() -> Any:
    """Pillow's module `Image`. Raises MissingExtraError."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("Pillow", "datasets", "reading images") from None
    return Image


def read_image(data: bytes, name: str, mode: str | None = None) -> Array:
    """An image file as (height, width, channels) uint8, or (height, width) uint16 for 16 bits a pixel.

    Parameters
    ----------
    data : bytes
        Any format that Pillow reads.
    name : str
        For messages.
    mode : str
        Convert to "L", "LA", "RGB" or "RGBA". Without it images stay what they are; palettes become the colours that
        they mean, black and white 0 and 255.

    Raises
    ------
    UsageError
        An animation, CMYK or another mode that needs a conversion, a mode that is not known.
    CorruptError
        No image, or one that is cut short or damaged.
    """
    if mode is not None and mode not in MODES:
        raise UsageError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    module = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = module.open(io.BytesIO(data))
            if image.width * image.height > _MAX_PIXELS:
                raise UsageError(f"{name}: {image.width} x {image.height} pixels are more than {_MAX_PIXELS}")
            if getattr(image, "n_frames", 1) > 1:
                raise UsageError(f"{name}: is an animation of {image.n_frames} frames; store its frames as images")
            image.load()
        except UsageError:
            raise
        except module.UnidentifiedImageError:
            raise CorruptError(f"{name}: is no image that Pillow reads, or is damaged at its begin") from None
        except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged files
            raise CorruptError(f"{name}: cannot be decoded ({str(error)[:120]}); it is cut short or damaged") from None
        return _as_array(image, name, mode)


def _as_array(image: Any, name: str, mode: str | None) -> Array:
    if mode is not None:
        image = image.convert(mode)
    elif image.mode in _SIXTEEN:
        return np.asarray(image).astype(np.uint16)
    elif image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode not in MODES:
        raise UsageError(f"{name}: has the mode {image.mode}; give mode='RGB' or mode='L' to convert it")
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_image(data: bytes | memoryview, shape: tuple[int, ...], formats: tuple[str, ...]) -> Array:
    """Pixels of a stored image. Raises CorruptError unless they have this shape."""
    module = pillow()
    try:
        image = module.open(io.BytesIO(data), formats=formats)
        if (image.height, image.width) != shape[:2] or getattr(image, "n_frames", 1) > 1:
            raise CorruptError("image: has another size than the index says")
        wanted = next(mode for mode, channels in MODES.items() if channels == shape[2])
        # A copy: what Pillow shows of its own memory cannot be written to.
        pixels = np.array(image if image.mode == wanted else image.convert(wanted))
    except CorruptError:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged files
        raise CorruptError(f"image: cannot be decoded ({str(error)[:120]})") from None
    return pixels.reshape(shape)


def encode_image(pixels: Array, format: str, **options: Any) -> bytes:
    """An image file of (height, width, channels) uint8."""
    out = io.BytesIO()
    shown = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    pillow().fromarray(np.ascontiguousarray(shown)).save(out, format, **options)
    return out.getvalue()
