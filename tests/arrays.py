"""Random tensors of every dtype and kind of trouble, many at a time and from one seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearzip.tensors import DTYPES

Array = NDArray[Any]

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
_SHAPES: tuple[tuple[int, ...], ...] = ((), (0,), (1,), (3, 0, 2), (7,), (33,), (4, 9), (2, 3, 5), (1, 1, 1), (200,))


def _unsigned(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"u{dtype.itemsize}")


def _cast(values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return values.astype(np.float32).astype(dtype) if dtype.itemsize < 4 else values.astype(dtype)


def random_bits(rng: np.random.Generator, n: int, dtype: np.dtype[Any]) -> Array:
    """Every bit pattern: NaNs with payloads, infinities, subnormals, both zeros, huge ranges."""
    return rng.integers(0, 256, n * dtype.itemsize, np.uint8).view(dtype)


def _weights(rng: np.random.Generator, n: int, dtype: np.dtype[Any]) -> Array:
    return _cast(rng.normal(0, 10.0 ** rng.uniform(-6, 2), n), dtype)


def _subnormal(rng: np.random.Generator, n: int, dtype: np.dtype[Any]) -> Array:
    bits = rng.integers(0, 8, n).astype(_unsigned(dtype))
    return (bits | (rng.integers(0, 2, n).astype(bits.dtype) << bits.dtype.type(8 * dtype.itemsize - 1))).view(dtype)


def _ties(rng: np.random.Generator, n: int, dtype: np.dtype[Any]) -> Array:
    return _cast(rng.integers(-20, 21, n) * 2.0 ** rng.integers(-12, 3), dtype)


def _wide(rng: np.random.Generator, n: int, dtype: np.dtype[Any]) -> Array:
    top = {8: 300, 4: 37}.get(dtype.itemsize, 4)
    return _cast(rng.normal(0, 1, n) * 10.0 ** rng.uniform(-top, top, n), dtype)


def _constant(rng: np.random.Generator, n: int, dtype: np.dtype[Any]) -> Array:
    return _cast(np.full(n, rng.choice([0.0, -0.0, 1.0, 0.1, -3e-5])), dtype)


_CALM = (_weights, _weights, _weights, _ties, _constant)
_WILD = (_weights, _weights, random_bits, _subnormal, _ties, _wide, _constant)


def with_special_values(rng: np.random.Generator, values: Array) -> Array:
    """Some values replaced by NaN, infinities, zeros of both signs, the largest and smallest."""
    out = values.copy()
    if out.size:
        pool = _cast(np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 448.0, 6e4, -1e30]), out.dtype)
        places = rng.integers(0, out.size, 1 + out.size // 8)
        out[places] = pool[rng.integers(0, pool.size, places.size)]
    return out


def _disguised(rng: np.random.Generator, array: Array) -> Array:
    """The same values as a strided view, in Fortran order or in the other byte order."""
    kind = rng.integers(0, 6)
    if kind == 0 and array.ndim:
        room = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        room[..., ::2] = array
        return room[..., ::2]
    if kind == 1:
        return np.asfortranarray(array).reshape(array.shape, order="A")
    if kind == 2 and array.dtype.kind in "fiuc":
        return array.astype(array.dtype.newbyteorder(">"))
    if kind == 3 and array.ndim:
        return np.ascontiguousarray(array[::-1])[::-1]
    return array


def random_tensor(rng: np.random.Generator, dtype_name: str, wild: bool = True) -> Array:
    dtype = DTYPES[dtype_name]
    shape = _SHAPES[rng.integers(0, len(_SHAPES))]
    n = math.prod(shape)
    if dtype_name in FLOATS:
        makers = _WILD if wild else _CALM
        flat = makers[rng.integers(0, len(makers))](rng, n, dtype)
        if rng.random() < (0.4 if wild else 0.01):
            flat = with_special_values(rng, flat)
    elif dtype_name == "bool":
        flat = rng.random(n) < rng.random()
    elif dtype.kind == "c":
        part = np.dtype(f"f{dtype.itemsize // 2}")
        flat = np.concatenate([random_bits(rng, n, part), _weights(rng, n, part)]).view(dtype)
    elif rng.random() < 0.5 or dtype.names is not None:
        flat = random_bits(rng, n, dtype)
    else:
        flat = rng.integers(0, 100, n).astype(dtype)
    return _disguised(rng, np.ascontiguousarray(flat).reshape(shape))


def _base_for(rng: np.random.Generator, array: Array, wild: bool) -> Array:
    """What a reader may hold: close by, equal, unrelated, full of NaN, zero, or of another shape or dtype."""
    dtype = array.dtype.newbyteorder("=")
    kind = rng.integers(0, 8) if wild or rng.random() < 0.1 else 7
    if kind == 0:
        return array.copy()
    if kind == 1:
        return random_bits(rng, array.size, dtype).reshape(array.shape) if dtype.kind != "b" else ~array
    if kind == 2:
        return np.zeros(array.shape, dtype)
    if kind == 3:
        return np.zeros((*array.shape, 2), dtype)
    if dtype.kind in "biuc" or dtype not in (DTYPES[name] for name in FLOATS):
        if kind == 4 and dtype.kind == "c":
            return np.full(array.shape, np.nan, dtype)
        return np.roll(array, 1)
    if kind == 4:
        return _cast(np.full(array.shape, np.nan), dtype)
    with np.errstate(all="ignore"):
        wide = array.astype(np.float64)
        return _cast(wide * (1 + rng.normal(0, 10.0 ** rng.uniform(-5, 0), array.shape)), dtype)


def random_network(
    rng: np.random.Generator, n: int, dtypes: tuple[str, ...] = FLOATS, with_base: bool = True
) -> tuple[dict[str, Array], dict[str, Array] | None]:
    """`n` tensors and what the reader holds.

    Half of the networks are calm: trouble is rare enough that the codec does not give up and keep every bit.
    """
    wild = bool(rng.random() < 0.5)
    tensors = {f"t{i}": random_tensor(rng, dtypes[rng.integers(0, len(dtypes))], wild) for i in range(n)}
    if not with_base:
        return tensors, None
    base = {name: _base_for(rng, array, wild) for name, array in tensors.items() if rng.random() < 0.9}
    return tensors, base
