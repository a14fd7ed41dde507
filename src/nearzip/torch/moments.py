"""Optimizer state in few bits: moments as small integers, in the domain that matters for the next step.

Adam moves a weight by m / (sqrt(v) + eps), so that is what is rounded, and v in its logarithm:

* v is a power of two times a step: log2 v = step x (level + prediction), prediction by row and column;
* m = level x step x (sqrt(v') + eps) with v' as restored, where level x step is m / (sqrt(v) + eps) rounded;
* a momentum buffer (SGD) is rounded in units of its own root mean square.

Levels are integers, which archives keep exactly and code as differences to the version before where that pays. What
rounding cannot hold (not finite, negative, beyond the range) is kept as it was, beside the levels; so are tensors of
which that is much. Restoring takes +, x, sqrt and powers of two: the same bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import CorruptError, UsageError
from nearzip.tensors import Array, as_array, dtype_of, is_float, round_to

__all__ = ["Moments", "expand_moments", "shrink_moments"]

#: Second moments, by optimizer state key, and the first moments that are divided by their roots.
ROOTS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
MEANS = {"exp_avg": "exp_avg_sq"}
BUFFERS = ("momentum_buffer",)

#: A level that stands for zero.
_ZERO = {np.dtype(np.int8): -128, np.dtype(np.int16): -(1 << 15)}
#: Predictions are in sixteenths of a level.
_FINE = 4
#: With more than one value in so many that does not fit, a tensor is kept as it was.
_MANY = 64
#: What float64 arithmetic may add to a rounding error of half a step.
_SLACK = 1e-6
_BLOCK = 1 << 20
#: Adam's quotients rarely reach 4; one of a v that is nearly nothing is not to outweigh all others.
_USUAL = 16.0
_MOST_GAIN = 4.0

Node = dict[str, Any]
#: A node, its tensors, and the values that they restore.
Coded = tuple[Node, dict[str, Array], Array]


@dataclass(frozen=True)
class Moments:
    """How finely an optimizer's moments are kept.

    Parameters
    ----------
    mean : float
        Step of Adam's m / (sqrt(v) + eps): the error of what the next update is made of is at most half of it.
        `inf`: first moments are not stored and begin again at zero.
    variance : float
        Step of log2 v: a whole number, or 1/2, 1/4, .. 1/16. v is off by a factor of at most 2^(step / 2). `inf`: what
        has two axes or more is kept as the prediction by row and column alone, which promises nothing.
    momentum : float
        Step of SGD's momentum buffer in units of its root mean square. `inf`: not stored.
    unbiased : bool
        Adam's m as restored has the length along m that m has: what rounding to zero takes away of a tensor's next
        updates, its other values make up for. For a `mean` of 2 and more; single values are promised nothing then.

    Examples
    --------
    >>> Moments(mean=0.5, variance=1)
    Moments(mean=0.5, variance=1, momentum=0.5, unbiased=False)
    """

    mean: float = 1.0
    variance: float = 1.0
    momentum: float = 0.5
    unbiased: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "momentum"):
            if not getattr(self, name) > 0:
                raise UsageError(f"moments: the step of {name} is positive, not {getattr(self, name)!r}")
        if not (self.variance == math.inf or _is_variance_step(self.variance)):
            raise UsageError(
                f"moments: the step of variance is a whole number up to 64, or 1/2, 1/4, 1/8, 1/16, or inf, "
                f"not {self.variance!r}"
            )


def _is_variance_step(step: Any) -> bool:
    return isinstance(step, (int, float)) and (step in (1 / 2, 1 / 4, 1 / 8, 1 / 16) or step in range(1, 65))


# ---- to levels -------------------------------------------------------------------------------------------------


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
        The nodes that now stand for the state.
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
    by_rows = math.isinf(step) and value.ndim > 1
    step = 1.0 if math.isinf(step) else step
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log2(value.astype(np.float32)) * np.float32(1 / step)
    usable = np.isfinite(logs)
    if by_rows:
        rows, columns = _predict(logs, usable)
        shape, dtype = list(value.shape), value.dtype.name
        node = {"r": {"rows": f"{name}.rows", "columns": f"{name}.columns", "shape": shape, "dtype": dtype}}
        parts = {f"{name}.rows": rows, f"{name}.columns": columns}
        return node, parts, _by_rows(node["r"], parts)
    if name not in predictions or not _fits(predictions[name], value.shape):
        predictions[name] = _predict(logs, usable)
    rows, columns = predictions[name]
    residual = np.where(usable, np.rint(np.where(usable, logs, 0)) - _predicted(rows, columns, value.shape), 0)
    levels = _levels(residual)
    if levels is None:
        return None
    levels[(value == 0) & ~np.signbit(value)] = _ZERO[levels.dtype]
    node = {"v": {"levels": f"{name}.levels", "rows": f"{name}.rows", "columns": f"{name}.columns",
                        "step": step, "dtype": value.dtype.name}}  # fmt: skip
    found = {f"{name}.levels": levels, f"{name}.rows": rows, f"{name}.columns": columns}
    restored = _variance(node["v"], found)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        off = restored.astype(np.float64) / value.astype(np.float64)
    room = 2.0 ** (step / 2 + _SLACK)
    wrong = ~((off >= 1 / room) & (off <= room)) & (bits(restored) != bits(value))
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
        restored = _of_units(levels, step * gain, unit, value.dtype)
        off = np.abs(restored.astype(np.float64) / unit - ratio)
    # Rounding the result to the tensor's own type belongs to the type, not to the step.
    rounding = 2.0**-23 if value.dtype.itemsize == 4 else 2.0**-8
    room = step / 2 + _SLACK + rounding * np.where(finite, sizes, 0)
    if gain != 1:
        room += (1 + rounding) * step * abs(gain - 1) * np.abs(levels.astype(np.float64))
    wrong = ~(off <= room) & (bits(restored) != bits(value))
    return _patched(name, node, "m", found, value, restored, wrong)


def _gain(values: Array, levels: Array, step: float) -> float:
    """What levels are to be multiplied by, so that along `values` they are as long as `values` are."""
    values = np.where(np.abs(values) < _USUAL, values, 0)
    along = step * float(np.vdot(levels.astype(np.float64), values))
    gain = float(np.vdot(values, values)) / along if along > 0 else 1.0
    # A few values that alone reach a level are not to stand for all the others.
    return min(gain, _MOST_GAIN) if gain > 0 else 1.0


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
    restored = _scaled(node["s"], found)
    with np.errstate(invalid="ignore"):
        off = np.abs(restored.astype(np.float64) - working)
    room = unit / 2 * (1 + _SLACK) + np.abs(np.where(finite, working, 0)) * 2**-8 * (value.dtype.itemsize < 4)
    return _patched(name, node, "s", found, value, restored, ~(off <= room))


def bits(values: Array) -> Array:
    """The values' bits, to tell -0.0 from 0.0 and one NaN from another."""
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _levels(values: Array) -> Array | None:
    """As the smallest integers that hold them with room for the zero; None if there are none."""
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
    return {"z": content}, {}, _zeros(content)


def _predict(logs: Array, usable: Array) -> tuple[Array, Array]:
    """Rows and columns whose sums come near to `logs`, in sixteenths: of the first axis and of all the others.

    What has one axis or none gets one number.
    """
    if logs.ndim < 2:
        mean = float(logs[usable].mean()) if usable.any() else 0.0
        return np.array([round(mean * (1 << _FINE))], np.int16), np.zeros(1, np.int16)
    table, mask = (part.reshape(logs.shape[0], -1) for part in (np.where(usable, logs, 0), usable))
    weight = mask.sum(axis=1), mask.sum(axis=0)
    rows = table.sum(axis=1, dtype=np.float64) / np.maximum(weight[0], 1)
    rest = np.where(mask, table - rows[:, None].astype(table.dtype), 0)
    columns = rest.sum(axis=0, dtype=np.float64) / np.maximum(weight[1], 1)
    # Empty rows get the mean, so that what appears there later is near.
    if mask.any():
        rows[weight[0] == 0] = rows[weight[0] > 0].mean()
    as_fine = [np.rint(np.clip(part * (1 << _FINE), -32000, 32000)).astype(np.int16) for part in (rows, columns)]
    return as_fine[0], as_fine[1]


def _fits(parts: tuple[Array, Array], shape: tuple[int, ...]) -> bool:
    n_rows, n_columns = (1, 1) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
    return parts[0].shape == (n_rows,) and parts[1].shape == (n_columns,)


def _predicted(rows: Array, columns: Array, shape: tuple[int, ...]) -> Array:
    """Whole levels, shape `shape`."""
    total = (rows.astype(np.int32)[:, None] + columns.astype(np.int32)[None, :]) >> _FINE
    if len(shape) < 2:
        return np.broadcast_to(total.reshape(-1)[0], shape)
    predicted: Array = total.reshape(shape)
    return predicted


# ---- and back --------------------------------------------------------------------------------------------------


def expand_moments(node: Mapping[str, Any], tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The state of one parameter by key, arrays where levels stood; other nodes stay. Raises CorruptError."""
    out = dict(node)
    roots: dict[str, Array] = {}
    for key in ROOTS:
        if _content(node.get(key), "v") is not None or _content(node.get(key), "r") is not None:
            out[key] = roots[key] = _second(node[key], tensors)
    for key in (*MEANS, *BUFFERS):
        if (content := _content(node.get(key), "z")) is not None:
            out[key] = _zeros(content)
        elif (content := _content(node.get(key), "s")) is not None:
            out[key] = _scaled(content, tensors)
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
    """A second moment, from levels or from rows and columns alone."""
    ((kind, content),) = node.items()
    return _variance(content, tensors) if kind == "v" else _by_rows(content, tensors)


def _by_rows(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    shape, dtype = _shape(content), _dtype(content)
    rows, columns = (_get(content, key, tensors, "i", 1) for key in ("rows", "columns"))
    if len(shape) < 2 or not _fits((rows, columns), shape):
        raise CorruptError("training state: second moments are damaged")
    out = np.empty((rows.size, columns.size), dtype)
    for i, row in enumerate(rows.astype(np.int32)):
        out[i] = round_to(dtype, _powers_of_two(row + columns.astype(np.int32), 1 / (1 << _FINE)))
    return out.reshape(shape)


def _variance(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    levels = _get(content, "levels", tensors, "i")
    rows, columns = (_get(content, key, tensors, "i", 1) for key in ("rows", "columns"))
    step = _number(content, "step")
    if not _is_variance_step(step) or levels.dtype not in _ZERO or not _fits((rows, columns), levels.shape):
        raise CorruptError("training state: second moments are damaged")
    dtype = _dtype(content)
    out = np.empty(levels.size, dtype)
    predicted, flat = _predicted(rows, columns, levels.shape).reshape(-1), levels.reshape(-1)
    for part in _blocks(levels.size):
        powers = _powers_of_two(flat[part].astype(np.int32) + predicted[part], step)
        out[part] = round_to(dtype, np.where(flat[part] == _ZERO[levels.dtype], 0.0, powers))
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
            out[part] = _of_units(flat[part], step, unit, dtype)
    return _apply_patch(content, tensors, out).reshape(levels.shape)


def _of_units(levels: Array, step: float, unit: Array, dtype: np.dtype[Any]) -> Array:
    """First moments of levels of m / (sqrt(v) + eps), where `unit` is sqrt(v) + eps."""
    return round_to(dtype, levels.astype(np.float64) * step * unit)


def _scaled(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> Array:
    levels, unit, dtype = _get(content, "levels", tensors, "i"), _number(content, "unit"), _dtype(content)
    out = round_to(dtype, levels.astype(np.float64) * unit).reshape(-1)
    return _apply_patch(content, tensors, out).reshape(levels.shape)


def _shape(content: Mapping[str, Any]) -> tuple[int, ...]:
    shape = content.get("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32:
        raise CorruptError("training state: moments are damaged")
    return tuple(shape)


def _zeros(content: Mapping[str, Any]) -> Array:
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
