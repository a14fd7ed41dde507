"""Sorted values as a curve with few coefficients, and the order that they had: DeepReduce's Fit-Poly and Fit-DExp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.stages.base import BYTES, FLOATS, Coded, Context, Stage
from nearzip.stages.bits import pack_bits, unpack_bits
from nearzip.stages.quantize import refuse_exact, require_rounded
from nearzip.tensors import Array

__all__ = ["FitCurve"]

_MAX_SEGMENTS, _DEGREE = 1024, 5


@dataclass(frozen=True)
class FitCurve(Stage):
    """Values sorted and replaced by a curve through them; the curve's coefficients and the permutation are stored.

    "poly" (Xu et al., NeurIPS 2021, Fit-Poly): decreasing values in `segments` pieces of equal length, each a
    polynomial of degree 5 over -1 .. 1. "dexp" (Fit-DExp): decreasing magnitudes as a p^j + c q^j for j = 0, 1, 2 ...
    with 0 <= p, q <= 1, and a bit of sign for each value. Nothing is promised. Values that are not finite count as
    zero.

    Bytes: coefficients in float64, constant first (for "dexp" a, p, c, q, then the signs); then for each value in the
    order of the curve its index, in as many bits as the largest needs.

    Parameters
    ----------
    curve : "poly" or "dexp"
    segments : int
        1 to 1024, of "poly".

    Examples
    --------
    >>> x = np.linspace(1, 2, 100, dtype=np.float32)
    >>> stage = FitCurve(segments=1)
    >>> coded = stage.encode(x, Context.of(x))
    >>> len(coded.data), bool(np.abs(stage.decode(coded, Context.of(x)) - x).max() < 1e-6)
    (136, True)
    """

    id = "fit-curve"
    takes, gives = FLOATS, BYTES

    curve: Literal["poly", "dexp"] = "poly"
    segments: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.segments <= _MAX_SEGMENTS:
            raise UsageError(f"a curve has 1 to {_MAX_SEGMENTS} segments, not {self.segments}")

    def encode(self, value: Any, context: Context | None = None) -> Coded:
        refuse_exact(value.dtype)
        with np.errstate(invalid="ignore"):
            wide = np.nan_to_num(value.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        order = np.argsort(-(wide if self.curve == "poly" else np.abs(wide)), kind="stable")
        if self.curve == "poly":
            head = b"".join(_fit(wide[order[a:b]]).tobytes() for a, b in self._pieces(wide.size))
        else:
            signs = np.packbits((wide[order] < 0).astype(np.uint8)).tobytes()
            head = _fit_exponentials(np.abs(wide[order])).tobytes() + signs
        return Coded(head + pack_bits(order, _width(wide.size)))

    def decode(self, coded: Coded, context: Context) -> Array:
        require_rounded(context)
        n, data = context.n, coded.data
        n_head = 48 * len(self._pieces(n)) if self.curve == "poly" else 32 + -(-n // 8)
        if len(data) < n_head:
            raise CorruptError("fit-curve: stream ends early")
        with np.errstate(over="ignore", invalid="ignore"):
            curve = self._polynomials(data, n) if self.curve == "poly" else _exponentials(data, n)
        if not np.isfinite(curve).all():
            raise CorruptError("fit-curve: a value is not finite")
        order = unpack_bits(data[n_head:], n, _width(n))
        if n and (int(order.max()) >= n or np.bincount(order, minlength=n).max() > 1):
            raise CorruptError("fit-curve: the order is no permutation")
        out = np.empty(n, np.float64)
        out[order] = curve
        return out

    def _pieces(self, n: int) -> list[tuple[int, int]]:
        n_pieces = min(self.segments, n)
        return [(i * n // n_pieces, (i + 1) * n // n_pieces) for i in range(n_pieces)]

    def _polynomials(self, data: bytes, n: int) -> Array:
        pieces = self._pieces(n)
        coefficients = np.frombuffer(data, "<f8", 6 * len(pieces)).reshape(-1, _DEGREE + 1)
        out = np.empty(n, np.float64)
        for (a, b), own in zip(pieces, coefficients, strict=True):
            at = _positions(b - a)
            total = np.full(b - a, own[-1])
            for coefficient in own[-2::-1]:
                total = total * at
                total = total + coefficient
            out[a:b] = total
        return out


def _width(n: int) -> int:
    return max(0, n - 1).bit_length()


def _positions(n: int) -> Array:
    """-1 to 1 in equal steps."""
    return np.arange(n) * 2.0 / max(1, n - 1) - 1.0


def _fit(values: Array) -> Array:
    """Coefficients of the polynomial nearest to the values, by least squares."""
    found = np.zeros(_DEGREE + 1)
    largest = float(np.abs(values).max())
    if largest:  # scaled, so that squares stay finite
        degree = min(_DEGREE, values.size - 1)
        found[: degree + 1] = np.polynomial.polynomial.polyfit(_positions(values.size), values / largest, degree)
    with np.errstate(over="ignore"):
        bounded = np.nan_to_num(found * largest)
    return bounded.astype("<f8")


def _fit_exponentials(values: Array) -> Array:
    """a, p, c, q for decreasing values of one sign, by integrals (Jacquelin) and then least squares."""
    n, largest = values.size, float(values.max()) if values.size else 0.0
    if n < 8 or not largest:
        return np.array([values.mean() if n else 0.0, 1.0, 0.0, 0.0], "<f8")
    y, t = values / largest, np.arange(n) / n
    once = np.concatenate([[0.0], np.cumsum((y[1:] + y[:-1]) / 2)]) / n
    twice = np.concatenate([[0.0], np.cumsum((once[1:] + once[:-1]) / 2)]) / n
    a, b, *_ = np.linalg.lstsq(np.stack([twice, once, t, np.ones(n)], 1), y, rcond=None)[0]
    root = np.sqrt(max(b * b + 4 * a, 0.0))
    rates = np.clip(np.array([(b + root) / 2, (b - root) / 2]) / n, -30.0, 0.0)
    bases = np.exp(rates)
    powers = np.stack([np.power(base, np.arange(n)) for base in bases], 1)
    first, second = np.linalg.lstsq(powers, y, rcond=None)[0] * largest
    return np.array([first, bases[0], second, bases[1]], "<f8")


def _exponentials(data: bytes, n: int) -> Array:
    """a p^j + c q^j with the signs, shape (n,). Powers by repeated squaring: the same bits everywhere."""
    a, p, c, q = np.frombuffer(data, "<f8", 4)
    if not (0 <= p <= 1 and 0 <= q <= 1):
        raise CorruptError("fit-curve: a base lies outside 0 to 1")
    signs = np.unpackbits(np.frombuffer(data, np.uint8, -(-n // 8), 32))[:n]
    curve = a * _powers(p, n)
    curve = curve + c * _powers(q, n)
    values: Array = np.where(signs == 1, -curve, curve)
    return values


def _powers(base: float, n: int) -> Array:
    exponents, found, square = np.arange(n), np.ones(n), float(base)
    while exponents.any():
        found = np.where(exponents & 1, found * square, found)
        exponents, square = exponents >> 1, square * square
    return found
