"""Codecs of samples by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from nearzip.datasets.codecs.base import SampleCodec, parsed
from nearzip.datasets.codecs.bounded import Bounded
from nearzip.datasets.codecs.cosine import Cosine
from nearzip.datasets.codecs.files import Avif, Jpeg, JpegXl, Png, WebP
from nearzip.datasets.codecs.lossless import Lossless
from nearzip.datasets.codecs.zfp import ZfpImages
from nearzip.datasets.samples import Spec
from nearzip.errors import CorruptError, UnknownMethodError, UsageError
from nearzip.strictjson import as_dict, text

__all__ = ["CODECS", "codec_from_json", "codec_of", "default_codec"]

CODECS: Mapping[str, type[SampleCodec]] = {
    kind.name: kind for kind in (Cosine, Lossless, Jpeg, WebP, Png, Avif, JpegXl, ZfpImages, Bounded)
}


def _kind(name: str) -> type[SampleCodec]:
    if name not in CODECS:
        raise UnknownMethodError(f"no codec {name[:80]!r} for data sets; there are {', '.join(CODECS)}")
    return CODECS[name]


def codec_of(given: Any) -> SampleCodec:
    """A codec from itself, or from a text such as "jpeg:75,chroma=4:4:4". Raises UnknownMethodError, UsageError.

    Examples
    --------
    >>> codec_of("jpeg:60,chroma=4:4:4")
    Jpeg(quality=60, chroma='4:4:4', tables='file')
    >>> str(codec_of("nearzip:24"))
    'nearzip:24'
    """
    if isinstance(given, SampleCodec):
        return given
    if not isinstance(given, str):
        raise UsageError(f"a codec is a text such as 'jpeg:75', or one of datasets.codecs, not {type(given).__name__}")
    name, _, rest = given.partition(":")
    return parsed(_kind(name), rest)


def codec_from_json(document: Any, where: str) -> SampleCodec:
    """Raises CorruptError, UnknownMethodError."""
    d = dict(as_dict(document, where))
    kind = _kind(text(d.pop("name", None), f"{where}, name"))
    if set(d) != {each.name for each in fields(kind)}:
        raise CorruptError(f"{where}: has other parameters than {kind.name}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in d.items()})
    except (UsageError, TypeError, ValueError) as error:
        raise CorruptError(f"{where}: {error}") from None


def default_codec(spec: Spec) -> SampleCodec:
    """What codes samples without loss in the fewest bytes."""
    return Lossless() if spec.is_image else Bounded()
