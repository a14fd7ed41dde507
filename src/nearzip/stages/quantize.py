"""Scalar quantization: floats to integers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

import nearzip._core as _core
from nearzip.buffers import buffer_for
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, FLOATS, SYMBOLS, Coded, Compared, Context, Stage
from nearzip.stages.entropy import SIGNED, Rans
from nearzip.tensors import Array, is_float

__all__ = ["LogStep", "QuantizeDelta", "UnbiasedStep", "UniformStep", "unbiased_gain"]

#: Levels farther from zero than that are left to the codec's patch where their number is doubled.
MAX_STEPS = 2**29


def check_step(step: float) -> None:
    """Raise UsageError unless positive and finite."""
    if not 0 < step < math.inf:
        raise UsageError(f"a quantization step is positive and finite, not {step!r}")


def _int32(coded: Coded, context: Context) -> Array:
    require_rounded(context)
    if coded.symbols.dtype != np.int32:
        raise CorruptError(f"symbols are {coded.symbols.dtype}, not int32")
    return coded.symbols


def require_rounded(context: Context) -> None:
    """Refuse a block of integers, booleans or complex numbers: no encoder of ours rounds them."""
    if not is_float(context.dtype):
        raise CorruptError(f"values of dtype {context.dtype} cannot have been rounded")


def refuse_exact(dtype: np.dtype[Any]) -> None:
    """Raise UsageError for types whose values are never rounded."""
    if not is_float(dtype):
        raise UsageError(f"values of dtype {dtype} are not rounded")


@dataclass(frozen=True)
class UniformStep(Stage):
    """Round to integer multiples of `step`, ties to even, in units of the tensor's values.

    What is not finite or lies beyond 2^30 steps becomes 0 and is left to the codec's patch.

    Parameters
    ----------
    step : float
        Distance between neighbouring levels, > 0. The rounding error is at most step / 2 in exact arithmetic;
        the codec patches what float32 makes of it.

    Examples
    --------
    >>> UniformStep(0.5).encode(np.array([0.0, 0.2, -1.3], np.float32)).symbols
    array([ 0,  0, -3], dtype=int32)
    """

    id = "uniform-step"
    takes, gives = FLOATS, SYMBOLS

    step: float

    def __post_init__(self) -> None:
        check_step(self.step)

    @property
    def spacing(self) -> float:
        """Values are rounded to multiples of this, restored as multiples of `step`."""
        return self.step

    def fuse(self, after: Stage) -> Stage | None:
        return QuantizeAndCode(self.step, self.spacing, False) if after == Rans() else None

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        return Coded(_quantize(value, None, self.spacing))

    def decode(self, coded: Coded, context: Context) -> Array:
        out = buffer_for(coded.symbols.size, np.float64)
        _core.dequantize(_int32(coded, context), None, self.step, out)
        return out


class Widened:
    """For stages that are written as `reads`, with a `step` that is `gain` times the one that the writer rounds to."""

    reads: ClassVar[type[Any]]
    step: float
    gain: float

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # what it is mixed into checks itself
        check_step(self.spacing)

    @property
    def spacing(self) -> float:
        return self.step / self.gain

    def to_json(self) -> dict[str, Any]:
        written: dict[str, Any] = self.reads(self.step).to_json()
        return written


@dataclass(frozen=True)
class UnbiasedStep(Widened, UniformStep):
    """`UniformStep` with a gain: see `unbiased_gain`. Values may be off by more than half a step."""

    reads = UniformStep
    gain: float = 1.0


def unbiased_gain(values: Array, base: Array | None, step: float) -> float:
    """|d|^2 / <d, q> for differences d and their nearest multiples q of `step`; 1 where all become zero.

    Multiplied by it, q reaches as far along d as d itself, instead of falling short where most differences are small
    and become zero: the scale of DRIVE (Vargaftik et al., NeurIPS 2021) and EDEN (ICML 2022), which unbiases
    their estimates.

    Parameters
    ----------
    values, base : array, floating point
        Of one shape; `base` may be None: zeros.
    step : float
    """
    flat = _working(values.reshape(-1)), None if base is None else _working(base.reshape(-1))
    itself, rounded = _core.projection(*flat, step)
    return itself / rounded if rounded > 0 else 1.0


@dataclass(frozen=True)
class QuantizeDelta(Stage):
    """`SubtractBase` and `UniformStep` in one pass over memory; never written to a file."""

    id = "subtract-base+uniform-step"
    takes, gives = FLOATS, SYMBOLS

    step: float
    spacing: float

    @property
    def needs_base(self) -> bool:
        return True

    def fuse(self, after: Stage) -> Stage | None:
        return QuantizeAndCode(self.step, self.spacing, True) if after == Rans() else None

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        if context is None:
            raise UsageError("subtract-base needs a base")
        return Coded(_quantize(value, context.require_base(), self.spacing))

    def decode(self, coded: Coded, context: Context) -> Array:
        symbols = _int32(coded, context)
        base = _working(context.require_base())
        if symbols.size != base.size:
            raise CorruptError("stream holds another number of values")
        out = buffer_for(base.size, base.dtype)
        _core.dequantize(symbols, base, self.step, out)
        return out


@dataclass(frozen=True)
class QuantizeAndCode(Stage):
    """`UniformStep`, on the difference to the base if `delta`, and `Rans` in one pass; never written to a file."""

    id = "quantize+rans"
    takes, gives = FLOATS, BYTES

    step: float
    spacing: float
    delta: bool

    @property
    def needs_base(self) -> bool:
        return self.delta

    def _base(self, context: Context) -> Array | None:
        return _working(context.require_base()) if self.delta else None

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        context = context or Context.of(value)
        data = _core.encode_quantized(_working(value), self._base(context), self.spacing, context.laid_parts)
        return Coded(data, SIGNED)

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        if coded.side != SIGNED:
            raise CorruptError("symbols of another type")
        out = context.buffer(np.float64 if context.dtype.itemsize == 8 else np.float32)
        try:
            _core.decode_quantized(
                np.frombuffer(coded.value, np.uint8), self._base(context), self.step, context.laid_parts, out
            )
        except ValueError as error:
            raise CorruptError(str(error)) from None
        return out

    def decode_and_compare(self, coded: Coded, context: Context, values: Array, tolerance: float) -> Compared | None:
        base = context.base
        if not self.delta or base is None or context.dtype.itemsize < 4:  # those are rounded again
            return None
        out = context.buffer(context.dtype)
        data = np.frombuffer(coded.value, np.uint8)
        outside, changes = _core.decode_and_compare(data, base, self.step, context.laid_parts, values, tolerance, out)
        return Compared(out, outside, changes)


def _working(values: Array) -> Array:
    """Contiguous; float32 for types below 32 bits, which holds all their values."""
    return values.astype(np.float32) if values.dtype.itemsize < 4 else np.ascontiguousarray(values)


def _quantize(values: Array, base: Array | None, step: float) -> Array:
    refuse_exact(values.dtype)
    symbols = buffer_for(values.size, np.int32)
    _core.quantize(_working(values), None if base is None else _working(base), step, symbols)
    return symbols


#: Symbol of a zero in LogStep.
_ZERO = np.int32(1)


def _powers(ratio: float, exponents: Array) -> Array:
    """ratio ** k for integers k by repeated squaring: multiplications only, the same bits on every machine."""
    result = np.ones(exponents.size, np.float64)
    left = np.abs(exponents.astype(np.int64))
    square = ratio
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        while left.any():
            result[(left & 1).astype(bool)] *= square
            square *= square
            left >>= 1
        result[exponents < 0] = 1.0 / result[exponents < 0]
    return result


#: Exponents within so many of each other get a table of all powers in between; sorting them takes far longer.
_TABLE = 1 << 16


def _powers_of_each(ratio: float, exponents: Array) -> Array:
    """ratio ** k for each k, each power computed once."""
    if not exponents.size:
        return np.ones(0, np.float64)
    low, high = int(exponents.min()), int(exponents.max())
    if high - low < _TABLE:
        levels, where = np.arange(low, high + 1), exponents - low
    else:
        levels, where = np.unique(exponents, return_inverse=True)
    each: Array = _powers(ratio, levels)[where.reshape(-1)]
    return each


@dataclass(frozen=True)
class LogStep(Stage):
    """Quantize the logarithm of magnitudes, signs and zeros apart, so that the error is relative to each value.

    A value is +-|reference| (1 + eps)^(2k) or zero; the symbol is 2k, plus 1 if its sign differs from the
    reference's, plus 1 if that is above 0: symbol 1 is zero. The reference is the base's value, or 1 where the base is
    zero, not finite or absent.

    Parameters
    ----------
    eps : float
        Largest relative error, > 0: |x - x'| <= eps |x| in exact arithmetic.
    delta : bool
        Whether the reference is the base.

    Examples
    --------
    >>> LogStep(0.5, delta=False).encode(np.array([1.0, -1.0, 0.0, 2.25], np.float32)).symbols
    array([0, 2, 1, 3], dtype=int32)
    """

    id = "log-step"
    takes, gives = FLOATS, SYMBOLS

    eps: float
    delta: bool

    def __post_init__(self) -> None:
        if not 0 < self.eps < math.inf:
            raise UsageError(f"a relative error is positive and finite, not {self.eps!r}")

    @property
    def needs_base(self) -> bool:
        return self.delta

    def without_base(self) -> tuple[Stage, ...]:
        return (LogStep(self.eps, delta=False),)

    def _reference(self, n: int, context: Context | None) -> Array:
        if not self.delta:
            return np.ones(n, np.float64)
        if context is None:
            raise UsageError("log-step needs a base")
        with np.errstate(invalid="ignore"):
            reference = context.require_base().astype(np.float64)
        reference[~np.isfinite(reference) | (reference == 0)] = 1.0
        return reference

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            x = value.astype(np.float64)
            reference = self._reference(x.size, context)
            steps = np.rint((np.log(np.abs(x)) - np.log(np.abs(reference))) / (2 * math.log1p(self.eps)))
            steps[~(np.abs(steps) < MAX_STEPS)] = 0
        flipped = np.signbit(x) != np.signbit(reference)
        symbols = (2 * steps.astype(np.int32) + flipped).astype(np.int32)
        symbols += symbols > 0
        symbols[x == 0] = _ZERO
        return Coded(symbols)

    def decode(self, coded: Coded, context: Context) -> Array:
        symbols = _int32(coded, context)
        reference = self._reference(symbols.size, context)
        if reference.size != symbols.size:
            raise CorruptError("stream holds another number of values")
        zero = symbols == _ZERO
        symbols = symbols - (symbols > 0)
        # (1 + eps)^2 as a product, like every other power here.
        scale = _powers_of_each((1 + self.eps) * (1 + self.eps), np.where(zero, 0, symbols >> 1))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            out: Array = reference * scale
        out[(symbols & 1).astype(bool)] *= -1
        out[zero] = 0
        return out
