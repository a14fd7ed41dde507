"""Bit-exact coding of values that quantization made: multiples of a step, and what rounding did to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import nearzip._core as _core
from nearzip.buffers import buffer_for
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import FLOATS, SYMBOLS, Coded, Context, Stage
from nearzip.stages.quantize import QuantizeDelta, UniformStep, refuse_exact, require_rounded
from nearzip.tensors import Array, bits_of, round_to

__all__ = ["StepThenBits"]


@dataclass(frozen=True)
class StepThenBits(Stage):
    """Bit-exact: the nearest multiple of `step` (from the base, if `delta`), and how many floats the value is off it.

    Versions that were quantized with one step differ from each other by multiples of it but for the rounding of each
    addition. So the difference of any two of them costs little more than the lossy one, where differences of the
    values' bits would have to carry whole mantissas on their own. The side data has the multiples.

    Parameters
    ----------
    step : float
        Distance between neighbouring levels, > 0.
    delta : bool
        Whether multiples count from the base.

    Examples
    --------
    >>> base = np.array([1.0, 1.0, 1.0], np.float32)
    >>> x = np.array([1.0, 1.5, np.nextafter(np.float32(2), np.float32(3))], np.float32)
    >>> StepThenBits(0.5, delta=True).encode(x, Context.of(x, base)).symbols
    array([0, 0, 2], dtype=uint32)
    """

    id = "step-then-bits"
    takes, gives = FLOATS, SYMBOLS

    step: float
    delta: bool = False

    def __post_init__(self) -> None:
        UniformStep(self.step)

    @property
    def needs_base(self) -> bool:
        return self.delta

    def without_base(self) -> tuple[Stage, ...]:
        return (StepThenBits(self.step),)

    @property
    def _steps(self) -> UniformStep | QuantizeDelta:
        return QuantizeDelta(self.step, self.step) if self.delta else UniformStep(self.step)

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        context = context or Context.of(value)
        if self.delta and context.base is None:
            raise UsageError("step-then-bits needs a base")
        multiples = self._steps.encode(value, context).symbols
        bits = bits_of(np.ascontiguousarray(value))
        off = buffer_for(bits.size, bits.dtype)
        _core.ordered_delta(bits, bits_of(self._guess(multiples, context)), True, off)
        return Coded(off, _core.encode_symbols(multiples, context.laid_parts, False))

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        multiples = buffer_for(context.n, np.int32)
        try:
            _core.decode_symbols(np.frombuffer(coded.side, np.uint8), context.laid_parts, multiples)
        except ValueError as error:
            raise CorruptError(str(error)) from None
        guess = bits_of(self._guess(multiples, context))
        if coded.symbols.dtype != guess.dtype or coded.symbols.shape != guess.shape:
            raise CorruptError("stream holds other values")
        out = buffer_for(guess.size, guess.dtype)
        _core.undo_ordered_delta(coded.symbols, guess, True, out)
        return out.view(context.dtype)

    def _guess(self, multiples: Array, context: Context) -> Array:
        """The values of the multiples where finite, else the base's: machines differ in the NaN that they make."""
        guess = round_to(context.dtype, self._steps.decode(Coded(multiples), context))
        working = guess.astype(np.float32) if guess.dtype.itemsize < 4 else guess
        lost = ~np.isfinite(working)
        if lost.any():
            guess = guess.copy()
            bits_of(guess)[lost] = bits_of(context.require_base())[lost] if self.delta else 0
        return np.ascontiguousarray(guess)
