"""Which tensors are coded together, and in which blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nearzip.bounds import EXACT, Bound, Statistics, Tolerance
from nearzip.codec import exact_pipeline
from nearzip.digests import digest
from nearzip.parallel import ordered_map
from nearzip.recipes import Recipe, TensorPlan
from nearzip.stages import Context, Pipeline
from nearzip.tensors import Array, Checkpoint, TensorSpec, dtype_of, is_float, room_for

__all__ = ["Block", "Draft", "draft_segments", "find_ties", "read_block", "segment_blocks"]


@dataclass(frozen=True)
class Draft:
    """A segment before it is coded: its tensors, how, what is promised for each, and whether a base takes part."""

    tensors: tuple[TensorSpec, ...]
    pipeline: Pipeline
    tolerances: tuple[Tolerance, ...]
    with_base: bool
    block_bytes: int


@dataclass(frozen=True)
class Block:
    """The n-th block of a segment: values start .. stop of its tensors' values, one after the other."""

    tensors: tuple[TensorSpec, ...]
    start: int
    stop: int

    @property
    def parts(self) -> tuple[int, ...]:
        if len(self.tensors) == 1:
            return (self.stop - self.start,)
        return tuple(spec.n_elements for spec in self.tensors)


def segment_blocks(tensors: tuple[TensorSpec, ...], block_bytes: int) -> list[Block]:
    """The blocks of a segment. Several tensors share one; one tensor is cut every `block_bytes`."""
    n = sum(spec.n_elements for spec in tensors)
    size = n if len(tensors) > 1 else block_bytes // dtype_of(tensors[0].dtype).itemsize
    return [Block(tensors, at, min(n, at + size)) for at in range(0, max(1, n), max(1, size))]


def read_block(source: Checkpoint, block: Block) -> Array:
    """The values of a block, shape (n,); a view where the source allows it."""
    if len(block.tensors) == 1:
        return source.read(block.tensors[0].name).reshape(-1)[block.start : block.stop]
    dtype = dtype_of(block.tensors[0].dtype)
    values = room_for(block.stop - block.start, dtype)
    return np.concatenate([source.read(spec.name).reshape(-1) for spec in block.tensors], out=values)


def context_of(block: Block, base: Checkpoint | None) -> Context:
    """What both directions know about a block."""
    return Context(dtype_of(block.tensors[0].dtype), block.parts, None if base is None else read_block(base, block))


def find_ties(source: Checkpoint) -> dict[str, str]:
    """Tensors that equal an earlier one bit for bit: name to the earlier name. They are stored once."""
    seen: dict[tuple[object, ...], list[str]] = {}
    ties = {}
    for spec in source.specs.values():
        if not spec.n_elements:
            continue
        flat = source.read(spec.name).reshape(-1).view(np.uint8)
        # Cheap first: few equal tensors share their first and last bytes.
        key = (spec.dtype, spec.shape, digest(flat[:2048].data, flat[-2048:].data))
        for other in seen.setdefault(key, []):
            if np.array_equal(flat, source.read(other).reshape(-1).view(np.uint8)):
                ties[spec.name] = other
                break
        else:
            seen[key].append(spec.name)
    return ties


def _survey(source: Checkpoint, names: list[str], bound: Bound, threads: int) -> dict[str, Statistics]:
    if bound.tolerance(Statistics(1, -1.0, 1.0, 1.0)).kind == "exact":
        return {}
    return dict(zip(names, ordered_map(lambda name: Statistics.of(source.read(name)), names, threads), strict=True))


def draft_segments(
    source: Checkpoint, base: Checkpoint | None, names: list[str], recipe: Recipe, bound: Bound, threads: int
) -> Iterator[Draft]:
    """Decide how every tensor of `names` is coded. Small ones are gathered, in order, into groups of one kind."""
    rounded = [name for name in names if is_float(dtype_of(source.spec(name).dtype))]
    statistics = _survey(source, rounded, bound, threads)
    whole = sum(statistics.values(), Statistics())
    groups: dict[tuple[str, Pipeline, bool], list[tuple[TensorSpec, Tolerance]]] = {}
    sizes: dict[tuple[str, Pipeline, bool], int] = {}

    def draft(members: list[tuple[TensorSpec, Tolerance]], pipeline: Pipeline, with_base: bool) -> Draft:
        specs, tolerances = zip(*members, strict=True)
        return Draft(specs, pipeline, tolerances, with_base, recipe.group_bytes)

    for name in names:
        spec = source.spec(name)
        with_base = recipe.uses_base and base is not None and spec.same_kind(base.specs.get(name))
        plan = _plan(spec, with_base, recipe, bound, statistics.get(name, Statistics()), whole)
        member = (spec, plan.tolerance)
        n_bytes = spec.n_bytes
        if n_bytes >= recipe.group_bytes:
            yield draft([member], plan.pipeline, with_base)
            continue
        key = (spec.dtype, plan.pipeline, with_base)
        group = groups.setdefault(key, [])
        if group and sizes[key] + n_bytes > recipe.group_bytes:
            yield draft(group, plan.pipeline, with_base)
            group.clear()
            sizes[key] = 0
        group.append(member)
        sizes[key] = sizes.get(key, 0) + n_bytes
    for (_, pipeline, with_base), group in groups.items():
        if group:
            yield draft(group, pipeline, with_base)


def _plan(
    spec: TensorSpec, with_base: bool, recipe: Recipe, bound: Bound, own: Statistics, whole: Statistics
) -> TensorPlan:
    dtype = dtype_of(spec.dtype)
    if not is_float(dtype):
        return TensorPlan(recipe.exact_pipeline(with_base) or exact_pipeline(with_base), EXACT)
    return recipe.plan(dtype, with_base, bound, own, whole)
