"""Optimizer state in few bits: moments as small integers, in the domain that matters for the next step.

Adam moves a weight by m / (sqrt(v) + eps), so that is what is rounded, and v in its logarithm:

* v is a power of two times a step: log2 v = step x (level + prediction), prediction by row and column;
* m = level x step x (sqrt(v') + eps) with v' as restored, where level x step is m / (sqrt(v) + eps) rounded;
* a momentum buffer (SGD) is rounded in units of its own root mean square.

Levels are integers, which archives keep exactly and code as differences to the version before where that pays. What
rounding cannot hold (not finite, negative, beyond the range) is kept as it was, beside the levels; so are tensors of
which that is much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from nearzip.moments.expand import FINE, ZERO, by_rows, fits, of_units, predicted, scaled, variance, zeros
from nearzip.moments.settings import BUFFERS, MEANS, ROOTS, Moments
from nearzip.tensors import Array, as_array, is_float

__all__ = ["shrink_moments"]

#: With more than one value in so many that does not fit, a tensor is kept as it was.
_MANY = 64
#: What float64 arithmetic may add to a rounding error of half a step.
_SLACK = 1e-6
#: Adam's quotients rarely reach 4; one of a v that is nearly nothing is not to outweigh all others.
_USUAL = 16.0
_MAX_GAIN = 4.0

Node = dict[str, Any]
#: A node, its tensors, and the values that they restore.
Coded = tuple[Node, dict[str, Array], Array]


def shrink_moments(
    node: Mapping[str, Any],
    tensors: dict[str, Any],
    options: Mapping[str, Any],
    moments: Moments,
    predictions: dict[str, tuple[Array, Array]],
) -> dict[str, Any]:
    """Replace the moments of one parameter by levels.

    Parameters
    ----------
    node : mapping
        Nodes of the parameter's state by key, as `state` makes them.
    tensors : dict
        Named tensors; those that are replaced are taken out, levels are put in.
    options : mapping
        Of the parameter's group; `eps` is used.
    moments : Moments
    predictions : dict
        Rows and columns by the name of the second moment, kept from save to save, so that levels change only where the
        moments did.

    Returns
    -------
    dict
        The nodes that replace the state's values.
    """
    out = dict(node)
    eps = float(options.get("eps", 0.0))
    roots: dict[str, tuple[Array, Array]] = {}
    for key in ROOTS:
        name, value = _tensor_of(node.get(key), tensors)
        if value is None:
            continue
        coded = _shrink_variance(name, value, moments.variance, predictions)
        if coded is not None:
            out[key] = _replace(name, tensors, *coded)
            roots[key] = (value, coded[2])
    for key, root in MEANS.items():
        name, value = _tensor_of(node.get(key), tensors)
        if value is not None and root in roots:
            coded = _shrink_mean(name, value, *roots[root], eps, moments)
            if coded is not None:
                out[key] = _replace(name, tensors, *coded)
    for key in BUFFERS:
        name, value = _tensor_of(node.get(key), tensors)
        coded = None if value is None else _shrink_buffer(name, value, moments.momentum)
        if coded is not None:
            out[key] = _replace(name, tensors, *coded)
    return out


def _tensor_of(node: Any, tensors: Mapping[str, Any]) -> tuple[str, Array | None]:
    """Name and values of a floating-point tensor that `node` names."""
    name = node.get("t") if isinstance(node, dict) else None
    if name is None:
        return "", None
    value = np.asarray(as_array(name, tensors[name]), order="C")
    return name, value if is_float(value.dtype) and value.dtype.itemsize <= 4 and value.size else None


def _replace(name: str, tensors: dict[str, Any], node: Node, levels: dict[str, Array], restored: Array) -> Node:
    del tensors[name]
    tensors.update(levels)
    return node


def _shrink_variance(name: str, value: Array, step: float, predictions: dict[str, tuple[Array, Array]]) -> Coded | None:
    alone = math.isinf(step) and value.ndim > 1
    step = 1.0 if math.isinf(step) else step
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log2(value.astype(np.float32)) * np.float32(1 / step)
    usable = np.isfinite(logs)
    if alone:
        rows, columns = _predict(logs, usable)
        shape, dtype = list(value.shape), value.dtype.name
        node = {"r": {"rows": f"{name}.rows", "columns": f"{name}.columns", "shape": shape, "dtype": dtype}}
        parts = {f"{name}.rows": rows, f"{name}.columns": columns}
        return node, parts, by_rows(node["r"], parts)
    if name not in predictions or not fits(predictions[name], value.shape):
        predictions[name] = _predict(logs, usable)
    rows, columns = predictions[name]
    residual = np.where(usable, np.rint(np.where(usable, logs, 0)) - predicted(rows, columns, value.shape), 0)
    levels = _levels(residual)
    if levels is None:
        return None
    levels[(value == 0) & ~np.signbit(value)] = ZERO[levels.dtype]
    node = {"v": {"levels": f"{name}.levels", "rows": f"{name}.rows", "columns": f"{name}.columns",
                        "step": step, "dtype": value.dtype.name}}  # fmt: skip
    found = {f"{name}.levels": levels, f"{name}.rows": rows, f"{name}.columns": columns}
    restored = variance(node["v"], found)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        off = restored.astype(np.float64) / value.astype(np.float64)
    allowed = 2.0 ** (step / 2 + _SLACK)
    wrong = ~((off >= 1 / allowed) & (off <= allowed)) & (bits(restored) != bits(value))
    return _patched(name, node, "v", found, value, restored, wrong)


def _shrink_mean(
    name: str, value: Array, root: Array, root_restored: Array, eps: float, moments: Moments
) -> Coded | None:
    step = moments.mean
    if math.isinf(step):
        return _left_out(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = value.astype(np.float64) / (np.sqrt(root.astype(np.float64)) + eps)
        sizes = np.abs(ratio)
        finite = sizes < math.inf
        sound = np.where(finite, ratio, 0)
        levels = _levels(np.rint(sound / step))
        unit = np.sqrt(root_restored.astype(np.float64)) + eps
    if levels is None:
        return None
    gain = _gain(sound, levels, step) if moments.unbiased else 1.0
    # A reader knows of no gain: to it, the levels are that much farther apart.
    node: Node = {"m": {"levels": f"{name}.levels", "eps": eps, "step": step * gain, "dtype": value.dtype.name}}
    found = {f"{name}.levels": levels}
    with np.errstate(divide="ignore", invalid="ignore"):
        restored = of_units(levels, step * gain, unit, value.dtype)
        off = np.abs(restored.astype(np.float64) / unit - ratio)
    # Rounding the result to the tensor's own type belongs to the type, not to the step.
    rounding = 2.0**-23 if value.dtype.itemsize == 4 else 2.0**-8
    allowed = step / 2 + _SLACK + rounding * np.where(finite, sizes, 0)
    if gain != 1:
        allowed += (1 + rounding) * step * abs(gain - 1) * np.abs(levels.astype(np.float64))
    wrong = ~(off <= allowed) & (bits(restored) != bits(value))
    return _patched(name, node, "m", found, value, restored, wrong)


def _gain(values: Array, levels: Array, step: float) -> float:
    """What levels are to be multiplied by, so that along `values` they are as long as `values` are."""
    values = np.where(np.abs(values) < _USUAL, values, 0)
    along = step * float(np.vdot(levels.astype(np.float64), values))
    gain = float(np.vdot(values, values)) / along if along > 0 else 1.0
    # A few values that reach a level must not decide the coding of all others.
    return min(gain, _MAX_GAIN) if gain > 0 else 1.0


def _shrink_buffer(name: str, value: Array, step: float) -> Coded | None:
    if math.isinf(step):
        return _left_out(value)
    working = value.astype(np.float64)
    finite = np.isfinite(working)
    square = float(np.square(working, where=finite, out=np.zeros_like(working)).mean())
    unit = step * math.sqrt(square)
    if not 0 < unit < math.inf:
        return None
    levels = _levels(np.rint(np.where(finite, working, 0) / unit))
    if levels is None:
        return None
    node: Node = {"s": {"levels": f"{name}.levels", "unit": unit, "dtype": value.dtype.name}}
    found = {f"{name}.levels": levels}
    restored = scaled(node["s"], found)
    with np.errstate(invalid="ignore"):
        off = np.abs(restored.astype(np.float64) - working)
    allowed = unit / 2 * (1 + _SLACK) + np.abs(np.where(finite, working, 0)) * 2**-8 * (value.dtype.itemsize < 4)
    return _patched(name, node, "s", found, value, restored, ~(off <= allowed))


def bits(values: Array) -> Array:
    """The values' bits, to tell -0.0 from 0.0 and one NaN from another."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _levels(values: Array) -> Array | None:
    """As the smallest integers that hold them with a level for zero; None if there are none."""
    largest = float(np.abs(values).max(initial=0))
    if largest < 127:
        return np.asarray(values, np.int8)
    # What lies beyond is left to the patch.
    return np.asarray(np.clip(values, -32767, 32767), np.int16) if math.isfinite(largest) else None


def _patched(
    name: str, node: Node, kind: str, found: dict[str, Array], value: Array, restored: Array, wrong: Array
) -> Coded | None:
    places = np.flatnonzero(wrong)
    if places.size * _MANY > value.size:
        return None
    if places.size:
        node[kind]["places"], node[kind]["exact"] = f"{name}.places", f"{name}.exact"
        found[f"{name}.places"] = places.astype(np.int64)
        found[f"{name}.exact"] = value.reshape(-1)[places]
        flat = restored.reshape(-1)
        flat[places] = found[f"{name}.exact"]
        restored = flat.reshape(value.shape)
    return node, found, restored


def _left_out(value: Array) -> Coded:
    content = {"shape": list(value.shape), "dtype": value.dtype.name}
    return {"z": content}, {}, zeros(content)


def _predict(logs: Array, usable: Array) -> tuple[Array, Array]:
    """Rows and columns whose sums come near to `logs`, in sixteenths: of the first axis and of all the others.

    What has one axis or none gets one number.
    """
    if logs.ndim < 2:
        mean = float(logs[usable].mean()) if usable.any() else 0.0
        return np.array([round(mean * (1 << FINE))], np.int16), np.zeros(1, np.int16)
    table, mask = (part.reshape(logs.shape[0], -1) for part in (np.where(usable, logs, 0), usable))
    weight = mask.sum(axis=1), mask.sum(axis=0)
    rows = table.sum(axis=1, dtype=np.float64) / np.maximum(weight[0], 1)
    rest = np.where(mask, table - rows[:, None].astype(table.dtype), 0)
    columns = rest.sum(axis=0, dtype=np.float64) / np.maximum(weight[1], 1)
    # Empty rows get the mean, so that what appears there later is near.
    if mask.any():
        rows[weight[0] == 0] = rows[weight[0] > 0].mean()
    as_fine = [np.rint(np.clip(part * (1 << FINE), -32000, 32000)).astype(np.int16) for part in (rows, columns)]
    return as_fine[0], as_fine[1]
