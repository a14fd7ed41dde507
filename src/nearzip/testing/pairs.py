"""Random pairs of small checkpoints, a base and what follows it, with a method and bounds: material for `promises`.

>>> pair = random_pair(3)
>>> sorted(random_pair(3).tensors) == sorted(pair.tensors)
True
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nearzip.bounds import Absolute, Bound, Lossless, PointwiseRelative, Relative, Rms, Update
from nearzip.coding import Codings
from nearzip.errors import UsageError
from nearzip.recipes import recipe_type, recipe_types
from nearzip.recipes.pruning import PruningRecipe
from nearzip.tensors import DTYPES, Array, is_float

__all__ = ["Pair", "random_pair", "usable_methods"]


@dataclass(frozen=True)
class Pair:
    """What a random number generates: tensors, a base or None, a method, its options, a bound or bounds by name."""

    seed: int
    tensors: dict[str, Array]
    base: dict[str, Array] | None
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    bound: Bound | dict[str, Bound] | None = None

    @property
    def how(self) -> dict[str, Any]:
        """Keywords of `nearzip.compress`."""
        return {"method": self.method, "options": self.options or None, "bound": self.bound}


def usable_methods() -> list[str]:
    """Methods whose packages are installed."""
    return [
        name
        for name, recipe in recipe_types().items()
        if all(importlib.util.find_spec(package) for package in recipe.needs)
    ]


def random_pair(seed: int, method: str | None = None) -> Pair:
    """The same pair for the same arguments."""
    rng = np.random.default_rng(seed)
    tensors = _tensors(rng)
    base = _base(rng, tensors) if rng.random() < 0.75 else None
    methods = usable_methods()
    method = method or ("nearzip" if rng.random() < 0.4 else methods[rng.integers(len(methods))])
    options = _options(rng, method, tensors)
    return Pair(seed, tensors, base, method, options, _bounds(rng, method, options, tensors, base))


# ---- tensors ---------------------------------------------------------------------------------------------------


def _tensors(rng: np.random.Generator) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for i in range(int(rng.integers(1, 9))):
        name = f"layer{rng.integers(3)}.{'bias' if rng.random() < 0.3 else 'weight'}.{i}"
        kind = rng.random()
        earlier = list(tensors.values())
        if earlier and kind < 0.2:
            tensors[name] = earlier[rng.integers(len(earlier))].copy()
        elif earlier and kind < 0.3:
            tensors[name] = earlier[rng.integers(len(earlier))]
        else:
            tensors[name] = _values(rng, _dtype(rng), _shape(rng))
    return tensors


def _dtype(rng: np.random.Generator) -> np.dtype[Any]:
    names = list(DTYPES)
    common = ("float32", "float32", "bfloat16", "float16", "float8_e4m3fn")
    return DTYPES[common[rng.integers(len(common))] if rng.random() < 0.7 else names[rng.integers(len(names))]]


def _shape(rng: np.random.Generator) -> tuple[int, ...]:
    kind = rng.random()
    if kind < 0.1:
        return ((), (0, 3), (1,))[rng.integers(3)]
    if kind < 0.3:
        return (int(rng.integers(1, 300)),)
    if kind < 0.85:
        return tuple(int(n) for n in rng.integers(1, 90, 2))
    return (*(int(n) for n in rng.integers(1, 24, 2)), 3, 3)


def _values(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if not is_float(dtype):
        return _exact_values(rng, dtype, shape)
    values: Array = rng.normal(0, 10.0 ** rng.uniform(-4, 1), shape)
    kind = rng.random()
    if kind < 0.1:
        values = np.full(shape, rng.choice([0.0, 1.0, -0.5]))
    elif kind < 0.2:
        values = np.where(rng.random(shape) < 0.9, 0, values)
    elif kind < 0.3 and len(shape) > 1 and shape[0]:
        values = np.broadcast_to(values[:1], shape)
    elif kind < 0.4:
        values = np.round(values / (np.abs(values).max(initial=1e-3) / 60)) * 0.013
    with np.errstate(all="ignore"):
        typed: Array = np.array(values, np.float64).astype(dtype)
        if kind > 0.9 and typed.size > 4:
            typed.reshape(-1)[:4] = np.array([np.nan, np.inf, -np.inf, -0.0]).astype(dtype)
    return typed


def _exact_values(rng: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return rng.integers(0, int(rng.choice([2, 100])), shape).astype(dtype)


def _base(rng: np.random.Generator, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What a reader may hold: the same, close, of another training, of another shape or dtype, or nothing."""
    base = {}
    for name, array in tensors.items():
        kind = rng.random()
        if kind < 0.5 and is_float(array.dtype):
            with np.errstate(all="ignore"):
                wide = array.astype(np.float64)
                base[name] = (wide + rng.normal(0, 10.0 ** rng.uniform(-5, -1), wide.shape)).astype(array.dtype)
        elif kind < 0.6:
            base[name] = array.copy()
        elif kind < 0.8:
            base[name] = _values(rng, array.dtype, array.shape)
        elif kind < 0.87:
            base[name] = _values(rng, array.dtype, (*array.shape, 2))
        elif kind < 0.93:
            base[name] = _values(rng, _dtype(rng), array.shape)
    if rng.random() < 0.2:
        base["gone"] = _values(rng, DTYPES["float32"], (5,))
    return base


# ---- methods and bounds ----------------------------------------------------------------------------------------

_STEP = {"step": 1e-3}
_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "nearzip": ({}, {}, {}, {"finer": 0}, _STEP, {**_STEP, "unbiased": True}, {**_STEP, "lattice": True}),
    "delta-dnn": ({}, {"mode": "relative"}, {"backend": "rle+zstd"}),
    "qd-compressor": ({}, {"bits": 8}, {"variant": "delta-first"}, {"variant": "global"}),
    "lc-checkpoint": ({}, {"bits": 6}),
    "zstd": ({}, {"level": 3}),
}


def _options(rng: np.random.Generator, method: str, tensors: Mapping[str, Array]) -> dict[str, Any]:
    if issubclass(recipe_type(method), PruningRecipe):
        pruning: tuple[dict[str, Any], ...] = ({}, {"keep": 0.3}, {"keep": {next(iter(tensors)): 0.2, "*": 1.0}})
        return pruning[rng.integers(len(pruning))]
    some = _OPTIONS.get(method, ({},))
    return some[rng.integers(len(some))]


def _bounds(
    rng: np.random.Generator,
    method: str,
    options: Mapping[str, Any],
    tensors: Mapping[str, Array],
    base: Mapping[str, Array] | None,
) -> Bound | dict[str, Bound] | None:
    """One that the method can keep, or several by pattern and name."""
    recipe = recipe_type(method).from_options(options)
    able = []
    for _ in range(6):
        bound = _bound(rng, base is not None and recipe.uses_base)
        try:
            Codings.of(recipe, bound)
            able.append(bound)
        except UsageError:
            continue
    if not able or rng.random() < 0.15:
        return None
    if len(able) < 2 or rng.random() < 0.4:
        return able[0]
    own = list(tensors)[rng.integers(len(tensors))]
    several = {"*": able[0], own: able[-1]}
    return several | ({"*.bias.*": able[1]} if any(".bias." in name for name in tensors if name != own) else {})


def _bound(rng: np.random.Generator, with_base: bool) -> Bound:
    e = 10.0 ** rng.uniform(-7, -1)
    bounds: tuple[Bound, ...] = (Lossless(), Absolute(e), Absolute(e), Relative(e), PointwiseRelative(e), Rms(e))
    if with_base:
        bounds += (Update(10 * e), Update(10 * e, per="tensor"))
    return bounds[rng.integers(len(bounds))]
