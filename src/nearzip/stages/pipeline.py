"""Stages one after the other: from any kind to bytes, and back.

Bytes of a chain: the side data of each stage, with its length in front, then what the last stage gave.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nearzip.caching import cached_property
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import (
    BYTES,
    FLOATS,
    Coded,
    Compared,
    Context,
    Kind,
    Nested,
    SparseValues,
    Stage,
    get_varint,
    put_varint,
)
from nearzip.tensors import Array, round_to

__all__ = ["Chain", "Pipeline"]


@dataclass(frozen=True)
class Chain(Nested):
    """Stages that lead to bytes from any kind. The kinds of neighbours must match.

    A stage that splits what it takes into several streams has one as a field for each of them.

    Examples
    --------
    >>> import numpy as np
    >>> from nearzip.stages import Lzma, PackIntegers
    >>> chain = Chain((PackIntegers(), Lzma()))
    >>> context = Context(np.dtype(np.int32), (3,))
    >>> chain.decode(chain.encode(np.array([1, 2, 3], np.int32), context), context)
    array([1, 2, 3], dtype=int32)
    """

    stages: tuple[Stage, ...]
    # Computed at once: a chain is used for many tensors and blocks.
    takes: Kind = field(init=False, repr=False, compare=False)
    needs_base: bool = field(init=False, repr=False, compare=False)
    #: Whether zeros may come back as something else, beyond rounding.
    errs_on_zeros: bool = field(init=False, repr=False, compare=False)
    _steps: tuple[tuple[int, Stage], ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.stages or self.stages[-1].gives is not BYTES:
            raise UsageError("a chain of stages leads to bytes")
        for stage in self.stages:
            stage.check_numbers()
        for one, next_one in zip(self.stages, self.stages[1:], strict=False):
            if one.gives is not next_one.takes:
                raise UsageError(
                    f"{one.id!r} gives {one.gives.value}, but {next_one.id!r} takes {next_one.takes.value}"
                )
        self.__dict__.update(
            takes=self.stages[0].takes,
            needs_base=any(stage.needs_base for stage in self.stages),
            errs_on_zeros=any(stage.errs_on_zeros for stage in self.stages),
            _steps=_fused(self.stages),
            _hash=hash(self.stages),
        )

    # Compared and hashed once or more for each tensor and block; two that differ nearly always have other hashes.
    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not type(self):
            return NotImplemented
        return self._hash == other._hash and self.stages == other.stages

    @property
    def label(self) -> str:
        return " ".join(stage.label for stage in self.stages)

    def encode(self, value: Any, context: Context) -> bytes:
        """Bytes of `value`: an array, shape (n,), or n bytes. Floats have dtype `context.dtype`."""
        return b"".join(self.encode_apart(value, context))

    def encode_apart(self, value: Any, context: Context) -> tuple[bytes, bytes]:
        """As `encode`, cut in two: side data of each step, and the payload."""
        sides = []
        for n_stages, step in self._steps:
            coded = step.encode(value, context)
            value = coded.value
            side = put_varint(len(coded.side)) + coded.side if coded.side else b"\0"
            sides += [b"\0"] * (n_stages - 1) + [side]
        return b"".join(sides), value

    def decode(self, data: bytes | memoryview, context: Context, payload: bytes | None = None) -> Any:
        """The value again, n of them. `payload`: what follows `data`, if the two are apart.

        Raises CorruptError on bytes that no encoder wrote.
        """
        sides, value = self.read_sides(data)
        if payload is not None:
            value = payload
        for (_, step), side in zip(reversed(self._steps), reversed(sides), strict=True):
            value = step.decode(Coded(value, side), context)
        if len(value) != context.n:
            raise CorruptError("stream holds another number of values")
        if self.takes is FLOATS and value.dtype != context.dtype:
            return round_to(context.dtype, value)
        return value

    def read_sides(self, data: bytes | memoryview) -> tuple[list[bytes], Any]:
        """The side data of each step, and the payload. Raises CorruptError."""
        view = memoryview(data)
        sides = []
        at = 0
        for n_stages, _ in self._steps:
            for _ in range(n_stages):
                # Nearly all have the length 0 or 1.
                if at < len(view) and view[at] < 128:
                    length, at = view[at], at + 1
                else:
                    length, at = get_varint(view, at)
                if length > len(view) - at:
                    raise CorruptError("stream ends early")
                side = bytes(view[at : at + length])
                at += length
            sides.append(side)
        return sides, view[at:]

    def to_json(self) -> list[dict[str, Any]]:
        return [stage.to_json() for stage in self.stages]


@dataclass(frozen=True)
class Pipeline(Chain):
    """A chain from a tensor's values to bytes.

    Examples
    --------
    >>> import numpy as np
    >>> from nearzip.stages import Lzma, PackIntegers, UniformStep
    >>> pipeline = Pipeline((UniformStep(0.5), PackIntegers(), Lzma()))
    >>> x = np.array([0.0, 0.2, -1.3], np.float32)
    >>> pipeline.decode(pipeline.encode(x, Context.of(x)), Context.of(x))
    array([ 0. ,  0. , -1.5], dtype=float32)
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.takes is not FLOATS:
            raise UsageError("a pipeline leads from floats to bytes")

    # A dataclass that compares would make its own, over all fields.
    __hash__, __eq__ = Chain.__hash__, Chain.__eq__

    def encode(self, value: Array, context: Context) -> bytes:
        """Bytes of `value`, shape (n,), dtype `context.dtype`."""
        return super().encode(value, context)

    def decode(self, data: bytes | memoryview, context: Context, payload: bytes | None = None) -> Array:
        """The values, shape (n,), dtype `context.dtype`. Raises CorruptError on bytes that no encoder wrote."""
        values: Array = super().decode(data, context, payload)
        if values.ndim != 1:
            raise CorruptError("stream holds another number of values")
        return values

    def decode_and_compare(
        self, data: bytes, context: Context, payload: bytes, values: Array, tolerance: float
    ) -> Compared | None:
        """`decode` what was just encoded, and compare in the same pass; None where no stage does both.

        Parameters
        ----------
        data, payload : bytes
            As `encode_apart` gave them.
        context : Context
        values : array, shape (n,)
            What the decoded values are compared with.
        tolerance : float
            An absolute one, for all parts.
        """
        if len(self._steps) > 1:
            return None
        sides, _ = self.read_sides(data)
        return self._steps[0][1].decode_and_compare(Coded(payload, sides[0]), context, values, tolerance)

    def target(self, values: Array, context: Context) -> Array:
        """The array that the bound is measured against: `values` after pruning stages (`Stage.changes_target`)."""
        for stage in self.stages:
            if not stage.changes_target:
                break
            values = stage.encode(values, context).floats
        return values

    def without_base(self) -> Pipeline | None:
        """The same stages for values without a base; None where one of them has no such form."""
        return self._without_base

    @cached_property
    def _without_base(self) -> Pipeline | None:
        parts = [stage.without_base() for stage in self.stages]
        known = [part for part in parts if part is not None]
        return Pipeline(tuple(stage for part in known for stage in part)) if len(known) == len(parts) else None

    def decode_sparse(self, data: bytes | memoryview, context: Context) -> SparseValues | None:
        """As `decode`, but only what may differ from zero; None if the stages do not keep that apart."""
        if not all(stage.changes_target for stage in self.stages[:-1]):
            return None
        sides, payload = self.read_sides(data)
        return self.stages[-1].decode_sparse(Coded(payload, sides[-1]), context)


def _fused(stages: tuple[Stage, ...]) -> tuple[tuple[int, Stage], ...]:
    """The steps, and how many stages each does: neighbours that one pass can do are joined. The bytes stay the same."""
    steps = [(1, stages[0])]
    for stage in stages[1:]:
        n_stages, last = steps[-1]
        fused = last.fuse(stage)
        if fused is not None:
            steps[-1] = (n_stages + 1, fused)
        else:
            steps.append((1, stage))
    return tuple(steps)
