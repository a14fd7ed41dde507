"""Moments from levels, as they are stored: +, x, sqrt and powers of two, the same bits on every machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nearzip.errors import CorruptError
from nearzip.moments.settings import BUFFERS, MEANS, ROOTS, is_variance_step
from nearzip.tensors import Array, dtype_of, round_to

__all__ = ["FINE", "ZERO", "by_rows", "expand_moments", "fits", "of_units", "predicted", "scaled", "variance", "zeros"]

#: The level of zero.
ZERO = {np.dtype(np.int8): -128, np.dtype(np.int16): -(1 << 15)}
#: Predictions are in fractions of a level: so many binary digits.
FINE = 4
_BLOCK = 1 << 20


def expand_moments(node: Mapping[str, Any], tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The state of one parameter by key, arrays where levels stood; other nodes stay. Raises CorruptError."""
    out = dict(node)
    roots: dict[str, Array] = {}
    for key in ROOTS:
        if _content(node.get(key), "v") is not None or _content(node.get(key), "r") is not None:
            out[key] = roots[key] = _second(node[key], tensors)
    for key in (*MEANS, *BUFFERS):
        if (content := _content(node.get(key), "z")) is not None:
            out[key] = zeros(content)
        elif (content := _content(node.get(key), "s")) is not None:
            out[key] = scaled(content, tensors)
        elif (content := _content(node.get(key), "m")) is not None:
            if MEANS.get(key) not in roots:
                raise CorruptError(f"training state: {key} without its second moment")
            out[key] = _mean(content, tensors, roots[MEANS[key]])
    return out


def _content(node: Any, kind: str) -> Any:
    if not isinstance(node, dict) or list(node) != [kind]:
        return None
    if not isinstance(node[kind], dict):
        raise CorruptError("training state: moments are damaged")
    return node[kind]


def _get(
    content: Mapping[str, Any], key: str, tensors: Mapping[str, Any], kinds: str, rank: int | None = None
) -> Array:
    name = content.get(key)
    array = tensors.get(name) if isinstance(name, str) else None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds or rank not in (None, array.ndim):
        raise CorruptError(f"training state: moments name {str(name)[:80]!r}, which does not serve as {key}")
    return array


def _number(content: Mapping[str, Any], key: str) -> float:
    value = content.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise CorruptError(f"training state: {key} of moments is {str(value)[:40]!r}")
    return float(value)


def _dtype(content: Mapping[str, Any]) -> np.dtype[Any]:
    name = content.get("dtype")
    if name not in ("float32", "float16", "bfloat16"):
        raise CorruptError(f"training state: moments of dtype {str(name)[:40]!r}")
    return dtype_of(name)


def _powers_of_two(levels: Array, step: float) -> Array:
    """2 ** (step * level): a table of at most 16 roots, and the exponent."""
    if step >= 1:
        whole: Array = np.ldexp(1.0, np.clip(levels * int(step), -2000, 2000))
        return whole
    per_octave = round(1 / step)
    smallest = 2.0
    for _ in range(per_octave.bit_length() - 1):
        smallest = math.sqrt(smallest)
    table = np.cumprod([1.0] + [smallest] * (per_octave - 1))
    powers: Array = np.ldexp(table[levels % per_octave], np.clip(levels // per_octave, -2000, 2000))
    return powers


def _second(node: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    """A second moment, from levels, or from rows and columns only."""
    ((kind, content),) = node.items()
    return variance(content, tensors) if kind == "v" else by_rows(content, tensors)


def by_rows(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    shape, dtype = _shape(content), _dtype(content)
    rows, columns = (_get(content, key, tensors, "i", 1) for key in ("rows", "columns"))
    if len(shape) < 2 or not fits((rows, columns), shape):
        raise CorruptError("training state: second moments are damaged")
    out = np.empty((rows.size, columns.size), dtype)
    for i, row in enumerate(rows.astype(np.int32)):
        out[i] = round_to(dtype, _powers_of_two(row + columns.astype(np.int32), 1 / (1 << FINE)))
    return out.reshape(shape)


def variance(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    levels = _get(content, "levels", tensors, "i")
    rows, columns = (_get(content, key, tensors, "i", 1) for key in ("rows", "columns"))
    step = _number(content, "step")
    if not is_variance_step(step) or levels.dtype not in ZERO or not fits((rows, columns), levels.shape):
        raise CorruptError("training state: second moments are damaged")
    dtype = _dtype(content)
    out = np.empty(levels.size, dtype)
    near, flat = predicted(rows, columns, levels.shape).reshape(-1), levels.reshape(-1)
    for part in _blocks(levels.size):
        powers = _powers_of_two(flat[part].astype(np.int32) + near[part], step)
        out[part] = round_to(dtype, np.where(flat[part] == ZERO[levels.dtype], 0.0, powers))
    return _apply_patch(content, tensors, out).reshape(levels.shape)


def _mean(content: Mapping[str, Any], tensors: Mapping[str, Any], root: Array) -> Array:
    levels = _get(content, "levels", tensors, "i")
    step, eps, dtype = _number(content, "step"), _number(content, "eps"), _dtype(content)
    if levels.shape != root.shape:
        raise CorruptError("training state: first and second moments differ in shape")
    out = np.empty(levels.size, dtype)
    flat, flat_root = levels.reshape(-1), root.reshape(-1)
    for part in _blocks(levels.size):
        with np.errstate(invalid="ignore"):
            unit = np.sqrt(flat_root[part].astype(np.float64)) + eps
            out[part] = of_units(flat[part], step, unit, dtype)
    return _apply_patch(content, tensors, out).reshape(levels.shape)


def of_units(levels: Array, step: float, unit: Array, dtype: np.dtype[Any]) -> Array:
    """First moments of levels of m / (sqrt(v) + eps), where `unit` is sqrt(v) + eps."""
    return round_to(dtype, levels.astype(np.float64) * step * unit)


def scaled(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    levels, unit, dtype = _get(content, "levels", tensors, "i"), _number(content, "unit"), _dtype(content)
    out = round_to(dtype, levels.astype(np.float64) * unit).reshape(-1)
    return _apply_patch(content, tensors, out).reshape(levels.shape)


def _shape(content: Mapping[str, Any]) -> tuple[int, ...]:
    shape = content.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise CorruptError("training state: moments are damaged")
    return tuple(shape)


def zeros(content: Mapping[str, Any]) -> Array:
    return np.broadcast_to(np.zeros((), _dtype(content)), _shape(content))


def _apply_patch(content: Mapping[str, Any], tensors: Mapping[str, Any], out: Array) -> Array:
    if "places" not in content:
        return out
    places = _get(content, "places", tensors, "i", 1)
    name = content.get("exact")
    exact = tensors.get(name) if isinstance(name, str) else None
    if (
        not isinstance(exact, np.ndarray)
        or exact.dtype != out.dtype
        or exact.shape != places.shape
        or (places.size and not 0 <= int(places.min()) <= int(places.max()) < out.size)
    ):
        raise CorruptError("training state: the patch of moments is damaged")
    out[places] = exact
    return out


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, _BLOCK):
        yield slice(start, min(n, start + _BLOCK))


def fits(parts: tuple[Array, Array], shape: tuple[int, ...]) -> bool:
    n_rows, n_columns = (1, 1) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
    return parts[0].shape == (n_rows,) and parts[1].shape == (n_columns,)


def predicted(rows: Array, columns: Array, shape: tuple[int, ...]) -> Array:
    """Whole levels, shape `shape`."""
    total = (rows.astype(np.int32)[:, None] + columns.astype(np.int32)[None, :]) >> FINE
    if len(shape) < 2:
        return np.broadcast_to(total.reshape(-1)[0], shape)
    levels: Array = total.reshape(shape)
    return levels
