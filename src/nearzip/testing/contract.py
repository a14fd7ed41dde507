"""The contract of stages and recipes, ours or a plug-in's. A failure is an AssertionError that says what is wrong.

>>> from nearzip.stages import UniformStep
>>> check_stage(UniformStep(0.01))
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import numpy as np

from nearzip.archive import WriteReport
from nearzip.blocks import draft_segments
from nearzip.bounds import Absolute, Bound, Lossless, PointwiseRelative, Relative, Rms, Statistics, violations
from nearzip.coding import Codings
from nearzip.errors import CorruptError, Error, UnknownMethodError, UsageError
from nearzip.reading import Reader
from nearzip.recipes import Recipe
from nearzip.sources import BytesSource
from nearzip.stages import (
    BYTES,
    FLOATS,
    SYMBOLS,
    Chain,
    Coded,
    Context,
    Pipeline,
    RawBytes,
    Stage,
    SymbolBytes,
    Zstd,
    pipeline_from_json,
    stage_types,
)
from nearzip.stages.registry import chain_from_json
from nearzip.tensors import DTYPES, Array, Checkpoint, is_float
from nearzip.writing import write_archive

__all__ = ["check_recipe", "check_stage", "examples_of", "odd_layers", "trouble"]

T = TypeVar("T")

#: Bounds that a recipe is asked for; it may refuse some with a UsageError.
BOUNDS: tuple[Bound | None, ...] = (
    None, Lossless(), Absolute(1e-3), Absolute(1e30), Relative(1e-3), PointwiseRelative(0.01), Rms(0.01),
)  # fmt: skip


def examples_of(kind: type[T]) -> list[T]:
    """Instances of a stage or recipe type: every combination of a few values of its fields that it accepts."""
    hints = typing.get_type_hints(kind)
    choices = [_values(hints[f.name], f.default) for f in fields(kind)]  # type: ignore[arg-type]
    found = []
    for values in itertools.product(*choices):
        with contextlib.suppress(UsageError):
            found.append(kind(*values))
    if not found:
        raise AssertionError(f"{kind.__name__} accepts none of the values tried; give its fields defaults")
    return found


def _values(hint: Any, default: Any) -> list[Any]:
    kinds = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return list(kinds)
    if hint is bool:
        return [False, True]
    if hint is float:
        return [0.01, 1.0]
    if hint is Chain:
        # One for each kind that a stream can have; the stage refuses the others.
        return [Chain((stage,)) for stage in (RawBytes(), SymbolBytes(), Zstd())]
    if default is not MISSING:
        return [default]
    return [1] if hint is int else [""]


# ---- inputs ----------------------------------------------------------------------------------------------------


def trouble(dtype_name: str) -> dict[str, Array]:
    """One-dimensional arrays that have broken compressors, by what is the matter with them."""
    dtype = DTYPES[dtype_name]
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 2 if dtype.kind == "b" else 256, 64 * dtype.itemsize, np.uint8)
    arrays = {
        "empty": np.empty(0, dtype),
        "one value": np.ones(1, dtype),
        "all zero": np.zeros(40, dtype),
        "constant": np.ones(40, dtype),
        "every bit pattern": raw[: 64 * dtype.itemsize].view(dtype),
    }
    if is_float(dtype):
        arrays |= _floating_trouble(dtype, rng)
    long = np.resize(np.concatenate([a for a in arrays.values() if a.size]), 5000)
    return arrays | {"long": long, "not contiguous": np.repeat(long[:60], 2)[::2], "backwards": long[:60][::-1]}


def _floating_trouble(dtype: np.dtype[Any], rng: np.random.Generator) -> dict[str, Array]:
    def cast(*values: float) -> Array:
        with np.errstate(all="ignore"):
            typed: Array = np.array(values, np.float64).astype(dtype)
            return typed

    tiny = np.arange(1, 6).astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(all="ignore"):
        wide = cast(*(rng.normal(0, 1, 50) * 10.0 ** rng.uniform(-30, 30, 50)))
    return {
        "weights": cast(*rng.normal(0, 0.1, 200)),
        "NaN": cast(1, math.nan, 2, -math.nan, 3),
        "infinite": cast(1, math.inf, 2, -math.inf),
        "zeros of both signs": cast(0.0, -0.0, 1e-3, -0.0),
        "subnormal": np.concatenate([tiny, cast(1)]),
        "huge range": wide,
        "only NaN": cast(*[math.nan] * 5),
    }


def _symbol_arrays() -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(2)
    for name in ("int32", "uint8", "uint16", "uint32", "uint64"):
        info = np.iinfo(name)
        yield f"{name}, empty", np.empty(0, name)
        yield f"{name}, one value", np.full(1, info.max, name)
        yield f"{name}, zeros", np.zeros(3000, name)
        yield f"{name}, extremes", np.array([info.min, 0, info.max, 1, info.min], name)
        yield f"{name}, any", rng.integers(info.min, info.max, 3000, name, endpoint=True)
        yield f"{name}, small", rng.integers(0, 5, 6000).astype(name)[::2]


def _byte_strings() -> Iterator[tuple[str, bytes]]:
    rng = np.random.default_rng(3)
    yield "empty", b""
    yield "one byte", b"\xff"
    yield "zeros", bytes(2000)
    yield "noise", rng.bytes(2000)


def odd_layers() -> dict[str, Array]:
    """Matrices, for methods that treat layers otherwise than vectors: the troublesome, and two of equal entropy."""
    layers: dict[str, Array] = {f"matrix, {case}": array.reshape(-1, 1) for case, array in trouble("float32").items()}
    rng = np.random.default_rng(6)
    values = rng.normal(0, 0.1, (16, 24)).astype(np.float32)
    layers["equal entropies, one"] = values
    layers["equal entropies, another"] = rng.permutation(values.reshape(-1)).reshape(values.shape)
    layers["fewer values than clusters"] = np.array([[0.5, -0.25, 0.5], [-0.25, 1.0, 0.5]], np.float32)
    layers["convolution"] = rng.normal(0, 0.1, (6, 3, 3, 3)).astype(np.float32)
    return layers


# ---- stages ----------------------------------------------------------------------------------------------------


def check_stage(stage: Stage) -> None:
    """Put one stage through everything: its JSON, every kind of input, repetition, and garbage to decode."""
    _check_json(stage)
    _check_parameters(stage)
    if stage.takes is FLOATS:
        for dtype_name in DTYPES:
            for case, values in trouble(dtype_name).items():
                _check_values(stage, f"{dtype_name}, {case}", values)
        return
    inputs: Iterator[tuple[str, Any]] = _symbol_arrays() if stage.takes is SYMBOLS else _byte_strings()
    for case, value in inputs:
        _check_exact(stage, case, value)


def _require(condition: Any, stage: Any, case: str, message: str) -> None:
    if not condition:
        raise AssertionError(f"{stage!r}, {case}: {message}")


def _check_json(stage: Stage) -> None:
    document = stage.to_json()
    _require(document.get("id") == stage.id, stage, "JSON", "id is missing")
    read = json.loads(json.dumps(document, allow_nan=False))
    read.pop("id")
    _require(type(stage).from_json(read, chain_from_json) == stage, stage, "JSON", "does not read back as it was")
    hash(stage)
    if stage_types().get(stage.id) is type(stage) and stage.takes is FLOATS and stage.gives is BYTES:
        pipeline = pipeline_from_json([stage.to_json()])
        _require(pipeline.stages == (stage,), stage, "JSON", "does not read back from the registry")


def _check_parameters(stage: Stage) -> None:
    document = {name: value for name, value in stage.to_json().items() if name != "id"}
    wrong: list[dict[str, Any]] = [document | {"no such field": 1}]
    for f in fields(stage):
        nonsense: tuple[Any, ...] = (None, [1], {}, "no such value", math.nan, math.inf)
        wrong += [document | {f.name: value} for value in nonsense]
    for parameters in wrong:
        _raises(UsageError, functools.partial(type(stage).from_json, parameters), stage, f"parameters {parameters}")


def _raises(expected: type[Error], call: Callable[[], Any], stage: Any, case: str) -> None:
    try:
        call()
    except expected:
        return
    except Exception as error:
        raise AssertionError(f"{stage!r}, {case}: {type(error).__name__} instead of {expected.__name__}") from error
    raise AssertionError(f"{stage!r}, {case}: accepted")


def _contexts(stage: Stage, values: Array) -> Iterator[Context]:
    rng = np.random.default_rng(4)
    half = values.size // 2
    parts = (half, 0, values.size - half)
    if not stage.needs_base:
        yield Context(values.dtype, parts)
        return
    flat = np.ascontiguousarray(values)
    noise = rng.integers(0, 2 if flat.dtype.kind == "b" else 256, flat.nbytes, np.uint8).view(flat.dtype)
    for base in (flat, np.zeros_like(flat), noise, np.roll(flat, 1)):
        yield Context(values.dtype, parts, base)


def _encode(stage: Stage, value: Any, context: Context) -> Coded | None:
    """None where the stage refuses this type of input by name."""
    try:
        coded = stage.encode(value, context)
    except UsageError:
        return None
    again = stage.encode(value, context)
    _require(_equal(coded.value, again.value) and coded.side == again.side, stage, "twice", "other bytes")
    _require(type(coded.side) is bytes, stage, "side", "is not bytes")
    return coded


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        same_type = one.dtype == other.dtype and one.shape == other.shape
        return bool(same_type and one.tobytes() == other.tobytes())
    return bool(one == other)


def _check_values(stage: Stage, case: str, values: Array) -> None:
    before = values.tobytes()
    for context in _contexts(stage, values):
        coded = _encode(stage, values, context)
        if coded is None:
            _require(not is_float(values.dtype), stage, case, "refuses a floating-point dtype")
            continue
        _require(values.tobytes() == before, stage, case, "changed its input")
        decoded = stage.decode(coded, context)
        _require(decoded.shape == values.shape, stage, case, f"decodes to {decoded.shape} of {values.shape}")
        again = stage.decode(coded, context)
        _require(_equal(decoded, again), stage, case, "decodes to other values the second time")
        _check_garbage(stage, case, coded, context)


def _check_exact(stage: Stage, case: str, value: Any) -> None:
    n = len(value)
    # Bytes in the middle of a pipeline: as many values as could have made them.
    context = Context(np.dtype(np.float32), (n,), np.zeros(n, np.float32) if stage.needs_base else None)
    coded = _encode(stage, value, context)
    if coded is None:
        _require(isinstance(value, np.ndarray) and value.dtype != np.int32, stage, case, "refuses its kind of input")
        return
    decoded = stage.decode(coded, context)
    same = bytes(decoded) == bytes(value) if stage.takes is BYTES else _equal(decoded, np.ascontiguousarray(value))
    _require(same, stage, case, "comes back changed")
    _check_garbage(stage, case, coded, context)


def _check_garbage(stage: Stage, case: str, coded: Coded, context: Context) -> None:
    """Decoding what no encoder wrote raises CorruptError or gives some values, and nothing else."""
    for damaged in _damaged(coded):
        _decode_garbage(stage, case, damaged, context)


def _decode_garbage(stage: Stage, case: str, damaged: Coded, context: Context) -> None:
    try:
        stage.decode(damaged, context)
    except CorruptError:
        return
    except Exception as error:
        raise AssertionError(f"{stage!r}, {case}: garbage raises {type(error).__name__}: {error}") from error


def _damaged(coded: Coded) -> Iterator[Coded]:
    for side in {b"", b"\0", b"\xff" * 3, coded.side[:-1]} - {coded.side}:
        yield Coded(coded.value, side)
    if isinstance(coded.value, np.ndarray):
        array = coded.value
        if array.dtype.kind in "iu":
            for dtype in (np.int32, np.uint8, np.uint64):
                yield Coded(np.ones(array.size, dtype), coded.side)
            yield Coded(np.full(array.size, np.iinfo(array.dtype).max, array.dtype), coded.side)
        yield Coded(np.resize(array, array.size + 1), coded.side)
        yield Coded(array[:-1], coded.side)
        return
    data = bytes(coded.value)
    rng = np.random.default_rng(len(data))
    yield Coded(data + b"\0", coded.side)
    for at in {0, 1, len(data) // 2, len(data) - 1} & set(range(len(data))):
        yield Coded(data[:at], coded.side)
        yield Coded(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :], coded.side)
    yield Coded(rng.bytes(len(data)), coded.side)


# ---- recipes ---------------------------------------------------------------------------------------------------


def check_recipe(recipe: Recipe) -> None:
    """Put one recipe through every bound: refused by name, or kept for every dtype, with and without a base."""
    _require(recipe.summary(), recipe, "docstring", "has no first line")
    _require(recipe.options() == json.loads(json.dumps(recipe.options())), recipe, "options", "are no JSON")
    same = type(recipe).from_options({name: value for name, value in recipe.options().items() if value is not None})
    _require(same == recipe, recipe, "options", "do not make the recipe again")
    _raises(UsageError, lambda: type(recipe).from_options({"no such option": 1}), recipe, "an unknown option")
    promised = 0
    for bound in BOUNDS:
        try:
            resolved = recipe.resolve_bound(bound)
        except UsageError:
            continue
        promised += 1
        for tensors, base in _networks():
            _check_network(recipe, resolved, tensors, base)
    _require(promised, recipe, "bounds", "promises nothing")


def _networks() -> Iterator[tuple[dict[str, Array], dict[str, Array] | None]]:
    tensors = {f"{name}, {case}": a for name in DTYPES for case, a in trouble(name).items()}
    tensors |= {"0-d": np.array(1.5, np.float32), "no values": np.empty((2, 0), np.float64)}
    yield tensors, None
    yield tensors, {name: np.roll(array, 1) for name, array in tensors.items()}
    yield {}, None
    rng = np.random.default_rng(5)
    old = {f"layer.{i}": rng.normal(0, 0.1, (30, 20)).astype(np.float32) for i in range(4)}
    new = {name: a + rng.normal(0, 1e-3, a.shape).astype(np.float32) for name, a in old.items()}
    yield new, old | {"layer.0": old["layer.0"].T}
    odd = odd_layers()
    yield odd, None
    yield odd, {name: np.roll(array, 1) for name, array in odd.items()}
    yield {name: a.astype(DTYPES["bfloat16"]) for name, a in new.items()}, old


def _write(
    recipe: Recipe, bound: Bound, tensors: Mapping[str, Array], base: Mapping[str, Array] | None, threads: int
) -> tuple[bytes, dict[str, Array], WriteReport]:
    stream = io.BytesIO()
    kept: dict[str, Array] = {}
    source, reference = Checkpoint.of(tensors), None if base is None else Checkpoint.of(base)
    wanted = None if bound == recipe.resolve_bound(None) else bound
    report = write_archive(source, reference, Codings.of(recipe, wanted), stream, kept.__setitem__, threads)
    return stream.getvalue(), kept, report


def _check_network(
    recipe: Recipe, bound: Bound, tensors: Mapping[str, Array], base: Mapping[str, Array] | None
) -> None:
    case = f"{bound}, {'no base' if base is None else 'with a base'}"
    data, kept, report = _write(recipe, bound, tensors, base, 1)
    _require(_write(recipe, bound, tensors, base, 2)[0] == data, recipe, case, "other bytes with other threads")
    _require(recipe.uses_base or report.index.base_id is None, recipe, case, "needs a base that it does not use")
    pipelines = _planned(recipe, bound, tensors, base)
    for name, array in tensors.items():
        flat = np.ascontiguousarray(array).reshape(-1)
        # Promises of pruning methods count from what is left: a share of the tensor's values. The pipeline is the
        # recipe's: a block may be stored in another way that is smaller.
        pipeline = pipelines.get(report.index.aliases.get(name, name))
        target = flat if pipeline is None else pipeline.target(flat, Context.of(flat))
        outside = violations(target, kept[name].reshape(-1), _tolerance(bound, flat))
        _require(not outside.size, recipe, f"{case}, {name}", f"values {outside[:5].tolist()} are outside the bound")
    reference = None if report.index.base_id is None or base is None else Checkpoint.of(base)
    with Reader(BytesSource(data), reference) as reader:
        _require(list(reader) == list(tensors), recipe, case, "other names or another order")
        for name in reader:
            _require(_equal(reader[name], kept[name]), recipe, f"{case}, {name}", "decodes to something else")


def _planned(
    recipe: Recipe, bound: Bound, tensors: Mapping[str, Array], base: Mapping[str, Array] | None
) -> dict[str, Pipeline]:
    """The pipeline that the recipe chooses for each tensor."""
    source = Checkpoint.of(tensors)
    reference = Checkpoint.of(base) if base is not None and recipe.uses_base else None
    codings = Codings.of(recipe, None if bound == recipe.resolve_bound(None) else bound)
    drafts = draft_segments(source, reference, list(tensors), codings, 1)
    return {spec.name: draft.pipeline for draft in drafts for spec in draft.tensors}


def _tolerance(bound: Bound, values: Array) -> Any:
    return bound.tolerance(Statistics.of(values) if is_float(values.dtype) else Statistics())


def check_registered(name: str, types: Mapping[str, type[T]]) -> type[T]:
    """The registered type of that name, which must call itself so."""
    try:
        kind = types[name]
    except KeyError:
        raise UnknownMethodError(f"{name!r} is not registered") from None
    _require(getattr(kind, "id", getattr(kind, "name", None)) == name, kind, name, "calls itself otherwise")
    return kind
