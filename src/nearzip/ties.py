"""Which tensors share their bytes: equal ones, as far as each keeps what is promised for it."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.bounds import Statistics, Tolerance
from nearzip.coding import Coding, Codings
from nearzip.tensors import Array, Checkpoint, mantissa_bits

__all__ = ["find_ties", "names_by_target"]

#: Bytes at either end of a tensor that are compared before all of it.
_END = 256


def find_ties(source: Checkpoint, codings: Codings, substitutes: Checkpoint | None = None) -> dict[str, str]:
    """Tensors that are not coded themselves: name to the name of the equal tensor that is.

    Tensors that are equal bit for bit share their bytes if they are coded alike, or if the promise made for one
    includes what is promised for the other. An exact copy of a rounded tensor is stored exactly and serves both.

    Parameters
    ----------
    source : Checkpoint
    codings : Codings
    substitutes : Checkpoint or None
        What the pipelines are given; tensors that share their bytes have equal ones.
    """

    @functools.cache
    def shapes() -> _Shapes:
        specs = source.specs
        return {
            coding: {name: specs[name].shape for name in names if specs[name].is_float}
            for coding, names in codings.distinct(specs).items()
        }

    ties: dict[str, str] = {}
    for names in _equal(source):
        ties.update(_shared(names, source, codings, shapes))
    if substitutes is None:
        return ties
    return {n: to for n, to in ties.items() if np.array_equal(_bytes(substitutes, n), _bytes(substitutes, to))}


def names_by_target(aliases: Mapping[str, str]) -> dict[str, list[str]]:
    """Aliases by the tensor that they stand for."""
    found: dict[str, list[str]] = {}
    for alias, target in aliases.items():
        found.setdefault(target, []).append(alias)
    return found


def _bytes(source: Checkpoint, name: str) -> Array:
    raw: Array = source.read(name).reshape(-1).view(np.uint8)
    return raw


def _equal(source: Checkpoint) -> Iterator[list[str]]:
    """Names of tensors of one dtype and shape that are equal bit for bit, several at a time, each in order."""
    groups: dict[tuple[object, ...], list[list[str]]] = {}
    counts = Counter((spec.dtype, spec.shape) for spec in source.specs.values())
    for spec in source.specs.values():
        # Most large tensors have a shape of their own and need not be read.
        if counts[spec.dtype, spec.shape] < 2 or not spec.n_elements:
            continue
        values = source.read(spec.name).ravel()
        # Cheap first: few equal tensors share their first and last bytes.
        n = max(1, _END // values.itemsize)
        key = (spec.dtype, spec.shape, values[:n].tobytes(), values[-n:].tobytes())
        alike = groups.setdefault(key, [])
        for group in alike:
            if np.array_equal(values.view(np.uint8), _bytes(source, group[0])):
                group.append(spec.name)
                break
        else:
            alike.append([spec.name])
    for alike in groups.values():
        yield from (group for group in alike if len(group) > 1)


@dataclass(frozen=True)
class _Alike:
    """Equal tensors that are coded alike, and what is promised; None if exact values would not do for them.

    `same`: whether the promise leaves no other value than the tensor's own, but for the sign of zeros.
    """

    names: tuple[str, ...]
    promise: Tolerance | None
    same: bool = False

    @property
    def strictness(self) -> tuple[int, float]:
        """Orders codings so that one comes before those whose promises it includes."""
        if self.promise is None:
            return len(_KINDS), 0.0
        if self.promise.kind == "exact":
            return 0, 0.0
        return 1 if self.same else 1 + _KINDS.index(self.promise.kind), self.promise.value

    def includes(self, other: _Alike) -> bool:
        """Whether what keeps this promise keeps the other's."""
        if self.promise is None or other.promise is None:
            return False
        if self.promise.kind == "exact":
            return True
        if self.same and other.promise.kind in ("absolute", "pointwise"):
            return True
        return self.promise.kind == other.promise.kind != "finite" and self.promise.value <= other.promise.value


_KINDS = ("exact", "absolute", "pointwise", "finite")

#: Shapes of all floating-point tensors of a coding, by name.
_Shapes = Mapping[Coding, Mapping[str, tuple[int, ...]]]


def _shared(names: list[str], source: Checkpoint, codings: Codings, shapes: Callable[[], _Shapes]) -> dict[str, str]:
    """Ties among equal tensors."""
    if not source.spec(names[0]).is_float:
        return dict.fromkeys(names[1:], names[0])  # exact under every method
    ties: dict[str, str] = {}
    kept: list[_Alike] = []
    for alike in sorted(_coded_alike(names, source, codings, shapes), key=lambda alike: alike.strictness):
        cover = next((other for other in kept if other.includes(alike)), alike)
        if cover is alike:
            kept.append(alike)
        ties.update({name: cover.names[0] for name in alike.names if name != cover.names[0]})
    return ties


def _coded_alike(names: list[str], source: Checkpoint, codings: Codings, shapes: Callable[[], _Shapes]) -> list[_Alike]:
    alike: dict[tuple[Coding, Hashable], list[str]] = {}
    for name in names:
        coding = codings[name]
        alike.setdefault((coding, coding.recipe.by_name(name, shapes()[coding])), []).append(name)
    if len(alike) == 1:
        return [_Alike(tuple(names), None)]
    values = source.read(names[0])
    statistics = Statistics.of(values)
    return [_alike(own, coding, values.dtype, statistics) for (coding, _), own in alike.items()]


def _alike(names: list[str], coding: Coding, dtype: np.dtype[Any], statistics: Statistics) -> _Alike:
    if coding.recipe.fallback == "restored":
        return _Alike(tuple(names), None)
    promise = coding.promise.tolerance(statistics)
    # Neighbouring values differ by more than this part of themselves.
    same = promise.kind == "pointwise" and promise.value < 2.0 ** -(mantissa_bits(dtype) + 2)
    return _Alike(tuple(names), promise, same)
