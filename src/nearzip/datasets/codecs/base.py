"""What a codec of samples is: values with parameters, which learn from all samples and then code each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_args

from nearzip.datasets.samples import Spec
from nearzip.errors import UsageError
from nearzip.tensors import Array

__all__ = ["Coder", "Pieces", "SampleCodec", "Shape", "check_range", "parsed"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pieces:
    """Bytes of samples: `data[starts[i]:stops[i]]` are those of one of the shape `shapes[i]`."""

    data: memoryview
    starts: Sequence[int]
    stops: Sequence[int]
    shapes: Sequence[Shape]

    def __iter__(self) -> Iterator[tuple[memoryview, Shape]]:
        for begin, end, shape in zip(self.starts, self.stops, self.shapes, strict=True):
            yield self.data[begin:end], shape


class Coder(ABC):
    """Codes samples with what was learned from all of them. One for each open file and thread."""

    #: Samples of a group share their bytes, which belong to its first one.
    in_groups: ClassVar[bool] = False

    @abstractmethod
    def encode(self, samples: Sequence[Array]) -> list[bytes]:
        """The bytes of each; of codecs that code groups, of the first one, and nothing for the others."""

    @abstractmethod
    def decode(self, pieces: Pieces) -> list[Array]:
        """Samples from their bytes. Raises CorruptError."""


@dataclass(frozen=True)
class SampleCodec(ABC):
    """A codec of samples and its parameters. The dataclass fields are the parameters; `to_json` stores them."""

    name: ClassVar[str]
    #: One line for people.
    says: ClassVar[str]
    #: The parameter that sets the quality when a codec is written "jpeg:75".
    knob: ClassVar[str | None] = None

    @abstractmethod
    def check(self, spec: Spec) -> None:
        """Check that the codec can be used. Raises UsageError for samples that it cannot code, MissingExtraError if a
        package that it needs is not installed."""

    def learn(self, chunks: Iterable[Sequence[Array]], spec: Spec) -> bytes:
        """Fit what all samples share, such as tables, and return it as bytes for the file.

        `chunks` can be iterated several times.
        """
        return b""

    @abstractmethod
    def coder(self, shared: bytes, spec: Spec) -> Coder:
        """The encoder and decoder of samples, given the bytes of `learn`. Raises CorruptError for other bytes."""

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **{each.name: _plain(getattr(self, each.name)) for each in fields(self)}}

    def __str__(self) -> str:
        said = [
            f"{each.name}={value}"
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default
            and each.name != self.knob
            and not isinstance(value, tuple)
        ]
        quality = [] if self.knob is None or getattr(self, self.knob) is None else [f"{getattr(self, self.knob)}"]
        return ":".join([self.name, ",".join(quality + said)]) if quality or said else self.name


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_range(codec: SampleCodec, name: str, low: float, high: float) -> None:
    """Raises UsageError for a parameter out of range."""
    value = getattr(codec, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise UsageError(f"{codec.name}: {name} lies between {low:g} and {high:g}, not {value!r}")


def parsed(kind: type[SampleCodec], text: str) -> SampleCodec:
    """A codec from "75,chroma=4:2:0". Raises UsageError."""
    known = {each.name: each for each in fields(kind)}
    given: dict[str, Any] = {}
    for i, part in enumerate(p for p in text.split(",") if p):
        name, equals, value = part.partition("=")
        if not equals:
            if i or kind.knob is None:
                raise UsageError(f"{kind.name} takes NAME=VALUE, not {part!r}")
            name, value = kind.knob, part
        if name not in known:
            raise UsageError(f"{kind.name} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
        given[name] = _value(known[name].default, value, f"{kind.name}: {name}")
    return kind(**given)


def _value(default: Any, text: str, where: str) -> Any:
    if isinstance(default, bool):
        return text.lower() in ("1", "true", "yes")
    if isinstance(default, (int, float)) or default is None:
        try:
            return int(text) if text.lstrip("-").isdecimal() else float(text)
        except ValueError:
            raise UsageError(f"{where} is a number, not {text!r}") from None
    return text


def choices(kind: Any) -> tuple[str, ...]:
    """The texts of a Literal."""
    return get_args(kind)
