"""What a stage is, and what it knows of the values that it codes.

A stage turns one kind of data into another and back: floats into symbols, symbols into bytes, or one of them into the
same kind. It is a small frozen value whose fields are its JSON. `decode` sees what `encode` gave, the context, and
nothing else: whatever more it needs, `encode` puts into `side`.
"""

from __future__ import annotations

import enum
import functools
import math
import sys
import typing
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nearzip.buffers import buffer_for
from nearzip.caching import cached_property
from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array

__all__ = [
    "BYTES",
    "FLOATS",
    "SYMBOLS",
    "Coded",
    "Context",
    "Grid",
    "Kind",
    "Nested",
    "SparseValues",
    "Stage",
    "get_varint",
    "put_varint",
]


class Compared(NamedTuple):
    """Decoded values, compared with others while they were decoded.

    Attributes
    ----------
    values : array, shape (n,)
    outside : sequence of int
        Indices of values that differ by more than the tolerance, or in ways that a tolerance does not cover.
    changes : sequence of tuples
        For each part the fields of a `changes.Change` against the base.
    """

    values: Array
    outside: Sequence[int]
    changes: Sequence[tuple[int, int, float, float]]


class _IndicesAndValues(NamedTuple):
    indices: Array
    values: Array


class SparseValues(_IndicesAndValues):
    """Values of a block that may differ from zero.

    Attributes
    ----------
    indices : array of int64, shape (m,)
        Increasing. Its name in release 0.1, `places`, still works, with a DeprecationWarning.
    values : array, shape (m,), the tensor's dtype

    Examples
    --------
    >>> SparseValues(np.array([0, 3]), np.float32([1.5, -2])).indices
    array([0, 3])
    """

    __slots__ = ()

    def __new__(
        cls, indices: Array | None = None, values: Array | None = None, *, places: Array | None = None
    ) -> SparseValues:
        if places is not None:
            warnings.warn("SparseValues: places= is now called indices=", DeprecationWarning, stacklevel=2)
            indices = places
        if indices is None or values is None:
            raise TypeError("SparseValues needs indices and values")
        return super().__new__(cls, indices, values)

    @property
    def places(self) -> Array:
        """The old name of `indices`."""
        warnings.warn("SparseValues.places is now called indices", DeprecationWarning, stacklevel=2)
        return self.indices


class Kind(enum.Enum):
    """What stages pass on: a tensor's values or differences of them, integers, or bytes."""

    FLOATS = "floats"
    SYMBOLS = "symbols"
    BYTES = "bytes"


FLOATS, SYMBOLS, BYTES = Kind.FLOATS, Kind.SYMBOLS, Kind.BYTES

#: Values; seven by seven is the largest kernel in wide use.
_LARGEST_KERNEL = 64


class Grid(NamedTuple):
    """A tensor seen as a matrix of cells, and where in it a part begins. All zero for fewer than two dimensions.

    Attributes
    ----------
    row : int
        Values of one output: a row of a matrix, or one filter of a convolution.
    cell : int
        Values of one output and one input: one, or a filter's kernel.
    width : int
        Values of a row of a cell.
    start : int
        Index of the part's first value in its tensor.
    """

    row: int
    cell: int
    width: int
    start: int

    @staticmethod
    @functools.lru_cache(maxsize=256)  # many tensors of a network have one shape
    def of(shape: tuple[int, ...], start: int = 0) -> Grid:
        """Of the part of a tensor that begins at value number `start`.

        Examples
        --------
        >>> Grid.of((64, 32, 3, 3))
        Grid(row=288, cell=9, width=3, start=0)
        >>> Grid.of((256, 128))
        Grid(row=128, cell=1, width=1, start=0)
        """
        if len(shape) < 2 or 0 in shape:
            return Grid(0, 0, 0, 0)
        cell = math.prod(shape[2:])
        if cell > _LARGEST_KERNEL:  # matrices in a stack
            return Grid(shape[-1], 1, 1, start)
        return Grid(shape[1] * cell, cell, shape[-1] if shape[2:] else 1, start)


@dataclass(frozen=True)
class Context:
    """What both directions know about a block of values.

    Parameters
    ----------
    dtype : numpy dtype
        Of the tensor's own values.
    parts : tuple of int
        Sizes of the tensors, or pieces of tensors, whose values follow each other in the block.
    base : array, shape (n,), or None
        The receiver's values at the same positions, in the tensor's dtype.
    grids : tuple of Grid
        Where each part lies in its tensor, or nothing.
    out : array, shape (n,), or None
        Memory for the decoded values, which a stage may use (`buffer`): the part of a whole tensor's array, so that
        blocks are not copied into it.
    """

    dtype: np.dtype[Any]
    parts: tuple[int, ...]
    base: Array | None = None
    grids: tuple[Grid, ...] = ()
    out: Array | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(values: Array, base: Array | None = None) -> Context:
        """For a block that is one whole tensor."""
        return Context(values.dtype, (values.size,), None if base is None else base.reshape(-1))

    @staticmethod
    def alone(values: Array, base: Array | None = None) -> Context:
        """The old name of `Context.of`."""
        warnings.warn("Context.alone is now called Context.of", DeprecationWarning, stacklevel=2)
        return Context.of(values, base)

    @property
    def n(self) -> int:
        return sum(self.parts)

    @cached_property
    def laid_parts(self) -> tuple[Any, ...]:
        """Parts as the native core takes them: with their grids, where these are known."""
        if len(self.grids) != len(self.parts) or self.dtype.kind == "c":
            return self.doubled_parts
        return tuple((part, *grid) for part, grid in zip(self.parts, self.grids, strict=True))

    @property
    def doubled_parts(self) -> tuple[int, ...]:
        """Parts in plain numbers: a complex one is two."""
        return tuple(2 * part for part in self.parts) if self.dtype.kind == "c" else self.parts

    def buffer(self, dtype: np.dtype[Any] | type[np.generic]) -> Array:
        """An uninitialised array for the block's decoded values, shape (n,); `out` if it is of this dtype."""
        if self.out is not None and self.out.dtype == dtype:
            return self.out
        return buffer_for(self.n, dtype)

    def without_out(self) -> Context:
        """The same for a trial, whose values must not overwrite those in `out`."""
        return self if self.out is None else replace(self, out=None)

    def require_base(self) -> Array:
        if self.base is None:
            raise UsageError("this pipeline needs a base")
        return self.base


@dataclass(frozen=True)
class Coded:
    """The result of a stage: an array or bytes, and what decoding needs besides."""

    value: Any
    side: bytes = b""

    @property
    def floats(self) -> Array:
        return typing.cast(Array, self.value)

    @property
    def symbols(self) -> Array:
        return typing.cast(Array, self.value)

    @property
    def data(self) -> bytes:
        return typing.cast(bytes, self.value)


class Nested(ABC):
    """Stages as a field of a stage: see `pipeline.Chain`."""

    @abstractmethod
    def to_json(self) -> list[dict[str, Any]]:
        """The list of the stages, each as its JSON."""


@dataclass(frozen=True)
class Stage(ABC):
    """One reversible step. Subclasses are frozen dataclasses of numbers, strings and booleans, and check them."""

    id: ClassVar[str]
    takes: ClassVar[Kind]
    gives: ClassVar[Kind]
    #: Whether bounds are measured against this stage's output instead of its input (pruning).
    changes_target: ClassVar[bool] = False
    #: Whether zeros may come back as something else, beyond rounding (a filter's false positives).
    errs_on_zeros: ClassVar[bool] = False
    #: Packages that an extra installs.
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def encode(self, value: Any, context: Context | None = None) -> Coded:
        """Forward. `value` is an array, shape (n,), or bytes; `context` may be left out where a stage needs none."""

    @abstractmethod
    def decode(self, coded: Coded, context: Context) -> Any:
        """Backward, from untrusted input: raises CorruptError where it cannot come from `encode`."""

    @property
    def needs_base(self) -> bool:
        return False

    def without_base(self) -> tuple[Stage, ...] | None:
        """Stages that do the same for values without a base; None: there are none."""
        return None if self.needs_base else (self,)

    def decode_sparse(self, coded: Coded, context: Context) -> SparseValues | None:
        """As `decode`, but only what may differ from zero; None from stages that do not keep these apart."""
        return None

    def decode_and_compare(self, coded: Coded, context: Context, values: Array, tolerance: float) -> Compared | None:
        """`decode` of what `encode` gave, compared with `values` in the same pass; None from stages that have none.

        The values are in the tensor's dtype, as the whole pipeline decodes them.
        """
        return None

    def fuse(self, after: Stage) -> Stage | None:
        """One stage that does this one and `after` in one pass over the data, bit for bit the same; or None.

        Only the last of the stages that are joined may have side data.
        """
        return None

    @property
    def label(self) -> str:
        """For messages: the id, and the stages nested in it."""
        return self.id

    def to_json(self) -> dict[str, Any]:
        """Id and fields; a field that has its default is left out. A chain is the list of its stages."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {"id": self.id, **{n: v.to_json() if isinstance(v, Nested) else v for n, v in values.items()}}

    @classmethod
    def from_json(cls, parameters: Mapping[str, Any], nested: Callable[[Any], Nested] | None = None) -> Stage:
        """From the parameters in a file (untrusted).

        `nested` makes a chain from its JSON; without it, `parameters` has chains as they are. Raises UsageError, and
        what `nested` raises.
        """
        known = cls.hints()
        needed = {f.name for f in fields(cls) if f.default is MISSING}
        if not needed <= set(parameters) <= set(known):
            raise UsageError(f"stage {cls.id!r} takes {sorted(known)}, not {repr(sorted(parameters))[:200]}")
        values = {}
        for name, value in parameters.items():
            is_chain = nested is not None and type(value) is list and _is_nested(known[name])
            values[name] = nested(value) if is_chain else _checked(cls.id, name, known[name], value)  # type: ignore[misc]
        return cls(**values)

    def check_numbers(self) -> None:
        """Raise UsageError for a number or truth value given as anything else: no file would be written or read."""
        for name, hint in _numbers(type(self)):
            value = getattr(self, name)
            fits = isinstance(value, (int, float)) and type(value) is not bool if hint is float else type(value) is hint
            if not fits:
                raise UsageError(f"stage {self.id!r}: {name} is {_SAID[hint]}, not {repr(value)[:80]}")

    @classmethod
    def hints(cls) -> Mapping[str, Any]:
        """Type of each field."""
        return _hints_of(cls)


@functools.cache
def _hints_of(kind: type[Stage]) -> Mapping[str, Any]:
    # Evaluating annotations takes longer than all else that is done to read a stage.
    hints = typing.get_type_hints(kind)
    return MappingProxyType({f.name: hints[f.name] for f in fields(kind)})


_SAID = {int: "an integer", float: "a float of Python", bool: "true or false"}


@functools.cache
def _numbers(kind: type[Stage]) -> tuple[tuple[str, type], ...]:
    return tuple((name, hint) for name, hint in _hints_of(kind).items() if hint in _SAID)


def _is_nested(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Nested)


def _checked(stage: str, name: str, hint: Any, value: Any) -> Any:
    if _is_nested(hint) and isinstance(value, hint):
        return value
    if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if typing.get_origin(hint) is typing.Literal and type(value) is str and value in typing.get_args(hint):
        return value
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise UsageError(f"stage {stage!r}: {name} cannot be {repr(value)[:80]}")


def check_booleans(bits: Array, dtype: np.dtype[Any]) -> None:
    """Raise CorruptError for bytes of booleans that are neither 0 nor 1."""
    if dtype.kind == "b" and bits.size and int(bits.max()) > 1:
        raise CorruptError("a boolean is neither 0 nor 1")


def put_varint(value: int) -> bytes:
    """Little-endian base 128, seven bits a byte.

    Examples
    --------
    >>> put_varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def get_varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and the position after it. Raises CorruptError; only the shortest encoding is accepted."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            raise CorruptError("stream ends early")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if shift and not byte:
                break
            return value, at
    raise CorruptError("malformed integer")
