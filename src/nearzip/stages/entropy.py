"""Entropy coding of symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

import nearzip._core as _core
from nearzip.buffers import buffer_for
from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, SYMBOLS, Coded, Context, Stage
from nearzip.tensors import Array

__all__ = ["Rans", "symbol_code", "symbol_type"]

#: The number for int32 symbols in a file; for unsigned ones it is their width.
SIGNED = b"i"
_TYPES = {SIGNED: np.dtype(np.int32), **{bytes([w]): np.dtype(f"u{w}") for w in (1, 2, 4, 8)}}
_CODES = {dtype: code for code, dtype in _TYPES.items()}


def symbol_code(dtype: np.dtype[Any]) -> bytes:
    """The byte that names a type of symbols. Raises UsageError for others than int32 and unsigned integers."""
    if dtype not in _CODES:
        raise UsageError(f"symbols are {dtype}; entropy coders take int32 and unsigned integers")
    return _CODES[dtype]


def symbol_type(code: bytes) -> np.dtype[Any]:
    """The type of symbols that a byte names. Raises CorruptError."""
    if code not in _TYPES:
        raise CorruptError("symbols of an unknown type")
    return _TYPES[code]


@dataclass(frozen=True)
class Rans(Stage):
    """Interleaved range asymmetric numeral systems (Duda, arXiv:1311.2540) with tables chosen chunk by chunk.

    Parameters
    ----------
    split : "magnitude" or "planes"
        How wide symbols become byte tokens. "magnitude": values near zero are tokens, larger ones a token for the
        leading bits and the rest raw (differences). "planes": one token stream for each byte (unrelated
        values).

    Examples
    --------
    >>> x = np.zeros(100_000, np.int32)
    >>> len(Rans().encode(x, Context.of(x)).data)
    7
    """

    id = "rans"
    takes, gives = SYMBOLS, BYTES

    split: Literal["magnitude", "planes"] = "magnitude"

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        parts = _parts(context, value.size)
        symbols = np.ascontiguousarray(value)
        code = symbol_code(symbols.dtype)
        return Coded(_core.encode_symbols(symbols, parts, self.split == "planes"), code)

    def decode(self, coded: Coded, context: Context) -> Array:
        dtype = symbol_type(coded.side)
        n = context.n * (2 if context.dtype.kind == "c" else 1)
        out = buffer_for(n, dtype)
        try:
            _core.decode_symbols(np.frombuffer(coded.data, np.uint8), _parts(context, n), out)
        except ValueError as error:
            raise CorruptError(str(error)) from None
        return out


def _parts(context: Context | None, n: int) -> tuple[Any, ...]:
    # Complex numbers are two symbols each.
    return (n,) if context is None else context.laid_parts
