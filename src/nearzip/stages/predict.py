"""Subtract what the receiver already has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip._core as _core
from nearzip.buffers import buffer_for
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, FLOATS, SYMBOLS, Coded, Context, Stage, check_booleans
from nearzip.stages.entropy import Rans
from nearzip.stages.quantize import QuantizeDelta, UniformStep, refuse_exact, require_rounded
from nearzip.tensors import Array, bits_of, is_float, mantissa_bits

__all__ = ["ContextDelta", "OrderedBits", "OrderedDelta", "SubtractBase"]


@dataclass(frozen=True)
class SubtractBase(Stage):
    """The difference to the base, in float64 (shape and order stay).

    Examples
    --------
    >>> x, base = np.array([1.0, 2.0], np.float32), np.array([0.5, 2.5], np.float32)
    >>> SubtractBase().encode(x, Context.of(x, base)).floats
    array([ 0.5, -0.5])
    """

    id = "subtract-base"
    takes, gives = FLOATS, FLOATS

    @property
    def needs_base(self) -> bool:
        return True

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        if context is None:
            raise UsageError("subtract-base needs a base")
        refuse_exact(value.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            return Coded(value.astype(np.float64) - context.require_base().astype(np.float64))

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        base = context.require_base()
        if coded.floats.shape != base.shape:
            raise CorruptError("stream holds another number of values")
        with np.errstate(invalid="ignore", over="ignore"):
            total: Array = base.astype(np.float64) + coded.floats
        return total

    def without_base(self) -> tuple[Stage, ...]:
        return ()

    def fuse(self, after: Stage) -> Stage | None:
        return QuantizeDelta(after.step, after.spacing) if isinstance(after, UniformStep) else None


def _folded(ordered: Array) -> Array:
    """Zigzag: signed integers (as unsigned bits) so that those near zero are small."""
    signed = ordered.view(f"i{ordered.itemsize}")
    folded: Array = ((signed << 1) ^ (signed >> (8 * ordered.itemsize - 1))).view(ordered.dtype)
    return folded


def _unfolded(folded: Array) -> Array:
    one = folded.dtype.type(1)
    unfolded: Array = (folded >> one) ^ (folded.dtype.type(0) - (folded & one))
    return unfolded


def _require_unsigned(coded: Coded, like: np.dtype[Any]) -> Array:
    if coded.symbols.dtype != like:
        raise CorruptError(f"symbols are {coded.symbols.dtype}, not {like}")
    return coded.symbols


def _bits_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return bits_of(np.empty(0, dtype)).dtype


@dataclass(frozen=True)
class OrderedDelta(Stage):
    """Bit-exact difference to the base: of the integers that sort like the floats, modulo 2^bits, zigzag coded.

    Neighbouring floats differ by 1 whatever their exponent, so small updates give small symbols. Symbols are unsigned,
    as wide as the values; complex numbers count as two.

    Examples
    --------
    >>> x = np.array([1.0, 1.0], np.float32)
    >>> OrderedDelta().encode(x, Context.of(x, np.nextafter(x, np.float32([2, 0])))).symbols
    array([1, 2], dtype=uint32)
    """

    id = "ordered-delta"
    takes, gives = FLOATS, SYMBOLS

    @property
    def needs_base(self) -> bool:
        return True

    def without_base(self) -> tuple[Stage, ...]:
        return (OrderedBits(),)

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        if context is None:
            raise UsageError("ordered-delta needs a base")
        bits = bits_of(np.ascontiguousarray(value))
        symbols = buffer_for(bits.size, bits.dtype)
        floats = is_float(context.dtype) or context.dtype.kind == "c"
        _core.ordered_delta(bits, bits_of(context.require_base()), floats, symbols)
        return Coded(symbols)

    def decode(self, coded: Coded, context: Context) -> Array:
        base = bits_of(context.require_base())
        symbols = _require_unsigned(coded, base.dtype)
        if symbols.size != base.size:
            raise CorruptError("stream holds another number of values")
        out = buffer_for(symbols.size, symbols.dtype)
        floats = is_float(context.dtype) or context.dtype.kind == "c"
        _core.undo_ordered_delta(symbols, base, floats, out)
        check_booleans(out, context.dtype)
        return out.view(context.dtype)


@dataclass(frozen=True)
class ContextDelta(Stage):
    """As `OrderedDelta`, entropy coded under tables that the base chooses.

    An update of one size is many steps of a small float and few of a large one, so the exponent of the base's value,
    beside the size of the differences around it, says how large a difference to expect. Integers and booleans have no
    exponent, and complex numbers count as two.

    Examples
    --------
    >>> x = np.linspace(1, 2, 1000, dtype=np.float32)
    >>> len(ContextDelta().encode(x, Context.of(x, x)).data)
    1
    """

    id = "context-delta"
    takes, gives = FLOATS, BYTES

    @property
    def needs_base(self) -> bool:
        return True

    def without_base(self) -> tuple[Stage, ...]:
        return OrderedBits(), Rans("planes")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        if context is None:
            raise UsageError("context-delta needs a base")
        bits = bits_of(np.ascontiguousarray(value))
        base = bits_of(context.require_base())
        return Coded(_core.encode_contexts(bits, base, *_value_kind(context.dtype), context.doubled_parts))

    def decode(self, coded: Coded, context: Context) -> Array:
        base = bits_of(context.require_base())
        out = bits_of(context.buffer(context.dtype))
        data = np.frombuffer(coded.data, np.uint8)
        try:
            _core.decode_contexts(data, base, *_value_kind(context.dtype), context.doubled_parts, out)
        except ValueError as error:
            raise CorruptError(str(error)) from None
        check_booleans(out, context.dtype)
        return out.view(context.dtype)


def _value_kind(dtype: np.dtype[Any]) -> tuple[bool, int]:
    """Whether values have sign and exponent, and how many bits are below the exponent."""
    return (True, mantissa_bits(dtype)) if is_float(dtype) or dtype.kind == "c" else (False, 0)


@dataclass(frozen=True)
class OrderedBits(Stage):
    """The bits of values without a base, arranged to compress: a float's sign moves below its mantissa, so that the
    exponent is at the top; signed integers are zigzag coded; the others stay.

    Examples
    --------
    >>> [hex(s) for s in OrderedBits().encode(np.array([1.0, -1.0], np.float32)).symbols]
    ['0x7f000000', '0x7f000001']
    """

    id = "ordered-bits"
    takes, gives = FLOATS, SYMBOLS

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        bits = bits_of(np.ascontiguousarray(value))
        if is_float(value.dtype) or value.dtype.kind == "c":
            turned = buffer_for(bits.size, bits.dtype)
            _core.turn(bits, True, turned)
            return Coded(turned)
        return Coded(_folded(bits) if value.dtype.kind == "i" else bits.copy())

    def decode(self, coded: Coded, context: Context) -> Array:
        symbols = _require_unsigned(coded, _bits_type(context.dtype))
        if symbols.nbytes != context.n * context.dtype.itemsize:
            raise CorruptError("stream holds another number of values")
        if is_float(context.dtype) or context.dtype.kind == "c":
            bits = buffer_for(symbols.size, symbols.dtype)
            _core.turn(symbols, False, bits)
        else:
            bits = _unfolded(symbols) if context.dtype.kind == "i" else symbols
        check_booleans(bits, context.dtype)
        return bits.view(context.dtype)
