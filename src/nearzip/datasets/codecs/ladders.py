"""Settings of a codec from the coarsest to the finest: what `tune` searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nearzip.datasets.codecs.base import SampleCodec, parsed
from nearzip.datasets.codecs.registry import CODECS, codec_of
from nearzip.errors import UsageError

__all__ = ["ladder"]

_QUALITIES = range(1, 101)
_STEPS = [round(512 / 2 ** (i / 6), 2) for i in range(6 * 9 + 1)]
_RATES = [0.5625, 0.625, 0.75, 0.875, *(1 + i / 4 for i in range(17)), *range(6, 17)]
#: Values of each knob, by codec and name.
_LADDERS: dict[tuple[str, str], Sequence[Any]] = {
    ("nearzip", "step"): _STEPS,
    ("jpeg", "quality"): _QUALITIES,
    ("webp", "quality"): range(101),
    ("avif", "quality"): range(0, 101, 2),
    ("jxl", "quality"): range(0, 101, 2),
    ("zfp", "precision"): range(1, 20),
    ("zfp", "rate"): _RATES,
    ("zfp", "accuracy"): [2.0**i for i in range(7, -6, -1)],
    ("bounded", "bound"): [*(f"rel:{2.0**-i:g}" for i in range(1, 21)), "lossless"],
}


def ladder(given: str | SampleCodec, knob: str | None, fixed: str = "") -> list[SampleCodec]:
    """All settings of a codec that differ in its knob. Raises UsageError, UnknownMethodError.

    Examples
    --------
    >>> [str(codec) for codec in ladder("zfp", "rate", "values=int32")][:2]
    ['zfp:rate=0.5625,values=int32', 'zfp:rate=0.625,values=int32']
    """
    if isinstance(given, SampleCodec):
        name = given.name
        knob = knob or given.knob
        if knob is None:
            return [given]
        return [replace(given, **{knob: value}) for value in _values(name, knob)]
    kind = type(codec_of(given)) if given not in CODECS else CODECS[given]
    knob = knob or kind.knob
    if knob is None:
        return [parsed(kind, fixed)]
    values = _values(given, knob)
    return [parsed(kind, ",".join(part for part in (f"{knob}={value}", fixed) if part)) for value in values]


def _values(name: str, knob: str) -> Sequence[Any]:
    if (name, knob) not in _LADDERS:
        known = ", ".join(k for n, k in _LADDERS if n == name) or "none"
        raise UsageError(f"{name} has no setting {knob!r} to search; it has {known}")
    return _LADDERS[name, knob]
