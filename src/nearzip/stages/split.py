"""One kind of data as several streams, each with stages of its own."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, Coded, Context, Kind, Stage, get_varint, put_varint
from nearzip.stages.pipeline import Chain

__all__ = ["Split", "Stream"]


@dataclass(frozen=True)
class Stream:
    """What one field of a `Split` takes: a kind, and the type of its values (None: the tensor's)."""

    kind: Kind
    dtype: np.dtype[Any] | None = None


@dataclass(frozen=True)
class Split(Stage):
    """A stage whose output is several streams. A subclass has one `Chain` field for each, and says which in `streams`.

    The streams follow each other in the order of `streams`, each as number of values, number of bytes, bytes.
    They have no base: a stage that needs one comes before the split. `split` and `join` see plain arrays.

    Attributes
    ----------
    streams : dict of str to Stream
        Field to what it takes.
    """

    gives = BYTES

    streams: ClassVar[dict[str, Stream]]

    def __post_init__(self) -> None:
        for name, stream in self.streams.items():
            chain = getattr(self, name)
            if not isinstance(chain, Chain) or chain.takes is not stream.kind:
                raise UsageError(f"stage {self.id!r}: {name} is a chain of stages that takes {stream.kind.value}")
            if chain.needs_base:
                raise UsageError(f"stage {self.id!r}: {name} has no base to subtract")

    @abstractmethod
    def split(self, value: Any, context: Context) -> tuple[Sequence[Any], bytes]:
        """The streams, in the order of `streams` (arrays of shape (m,), each with an m of its own, or bytes), and side
        data."""

    @abstractmethod
    def join(self, streams: Sequence[Any], side: bytes, context: Context) -> Any:
        """What was split. The streams' lengths and values are untrusted: raises CorruptError."""

    def most_values(self, context: Context) -> int:
        """Most values that a stream of a block of `context.n` values has; a file that claims more is refused."""
        return context.n + 1024

    @property
    def label(self) -> str:
        return f"{self.id}({'; '.join(f'{name}: {getattr(self, name).label}' for name in self.streams)})"

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        context = context or Context.of(value)
        streams, side = self.split(value, context)
        out = []
        for name, stream in zip(self.streams, streams, strict=True):
            data = getattr(self, name).encode(stream, self._context(name, len(stream), context))
            out += [put_varint(len(stream)), put_varint(len(data)), data]
        return Coded(b"".join(out), side)

    def decode(self, coded: Coded, context: Context) -> Any:
        return self.join(self.read_streams(coded, context), coded.side, context)

    def read_streams(self, coded: Coded, context: Context, seconds: dict[str, float] | None = None) -> list[Any]:
        """The streams of untrusted bytes, decoded. Raises CorruptError. `seconds` gets how long each took."""
        view = memoryview(coded.data)
        at = 0
        streams = []
        for name in self.streams:
            n, at = get_varint(view, at)
            size, at = get_varint(view, at)
            if n > self.most_values(context) or size > len(view) - at:
                raise CorruptError(f"stream of {name} is longer than it can be")
            begin = time.perf_counter()
            streams.append(getattr(self, name).decode(view[at : at + size], self._context(name, n, context)))
            if seconds is not None:
                seconds[name] = time.perf_counter() - begin
            at += size
        if at != len(view):
            raise CorruptError("extra bytes after the last stream")
        return streams

    def _context(self, name: str, n: int, context: Context) -> Context:
        return Context(self.streams[name].dtype or context.dtype, (n,))
