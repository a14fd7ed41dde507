"""Which tensors are coded together, and in which blocks; and the tensors put together again from their blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nearzip.bounds import EXACT, Bound, NoPromise, Statistics, Tolerance
from nearzip.buffers import borrowed_buffer, buffer_for
from nearzip.choice import LEAST_APART, exact_pipeline, is_far, stands_out
from nearzip.coding import Coding, Codings
from nearzip.digests import PIECE_BYTES, join_all
from nearzip.errors import UsageError
from nearzip.parallel import ordered_map
from nearzip.recipes import Fallback, Recipe, TensorPlan, TensorView
from nearzip.recipes.steps import with_known_step
from nearzip.stages import Context, Grid, Pipeline
from nearzip.tensors import Array, Checkpoint, TensorSpec

__all__ = [
    "Assembler",
    "Block",
    "Draft",
    "block_context",
    "block_values",
    "draft_segments",
    "in_own_memory",
    "segment_blocks",
    "shares_of_work",
]


#: Small tensors in one block, at most: none of them is read without the others. Of 10,000 tensors of 64 bytes, with a
#: block for each 2,048, the first is there in a third of the time, for 0.1 to 1.2 % more bytes.
_MOST_MEMBERS = 2048
#: Bytes of small tensors that are looked at together; of more, some all over the network.
_MOST_TOGETHER = 1 << 20


@dataclass(frozen=True)
class Draft:
    """A segment before it is coded: its tensors, how, what is promised for each, and whether a base takes part.

    `without` and `fallback`: what else may code it; see `encode_block`. `uses_base`: whether the recipe does, and there
    is one.
    """

    tensors: tuple[TensorSpec, ...]
    pipeline: Pipeline
    tolerances: tuple[Tolerance, ...]
    with_base: bool
    block_bytes: int
    without: Pipeline | None
    fallback: Fallback
    uses_base: bool


@dataclass(frozen=True)
class Block:
    """The n-th block of a segment: values start .. stop of its tensors' values, one after the other."""

    tensors: tuple[TensorSpec, ...]
    start: int
    stop: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of values of each tensor, or of the piece of one."""
        if len(self.tensors) == 1:
            return (self.stop - self.start,)
        return tuple(spec.n_elements for spec in self.tensors)

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Where each part lies in its tensor."""
        return tuple(Grid.of(spec.shape, self.start) for spec in self.tensors)


def segment_blocks(tensors: tuple[TensorSpec, ...], block_bytes: int) -> list[Block]:
    """The blocks of a segment. Several tensors share one; one tensor is cut every `block_bytes`."""
    n = sum(spec.n_elements for spec in tensors)
    size = n if len(tensors) > 1 else block_bytes // tensors[0].numpy_dtype.itemsize
    return [Block(tensors, at, min(n, at + size)) for at in range(0, max(1, n), max(1, size))]


def block_values(source: Checkpoint, block: Block, borrowed: ExitStack) -> Array:
    """The values of a block, shape (n,); a view where the source allows it, else in memory that the next block uses
    once `borrowed` is closed.
    """
    if len(block.tensors) == 1:
        return source.read(block.tensors[0].name).reshape(-1)[block.start : block.stop]
    arrays = [source.read(spec.name).reshape(-1) for spec in block.tensors]
    buffer = borrowed.enter_context(borrowed_buffer(block.stop - block.start, block.tensors[0].numpy_dtype))
    return np.concatenate(arrays, out=buffer)


def block_context(block: Block, base: Checkpoint | None, borrowed: ExitStack, out: Array | None = None) -> Context:
    """What both directions know about a block, until `borrowed` is closed. `out`: where to decode it to."""
    values = None if base is None else block_values(base, block, borrowed)
    return Context(block.tensors[0].numpy_dtype, block.parts, values, block.grids, out)


def in_own_memory(values: Array, *others: Array | None) -> Array:
    """`values`, copied if they share memory with one of the others: that is used for the next block."""
    return values.copy() if any(o is not None and np.may_share_memory(values, o) for o in others) else values


class Assembler:
    """Puts blocks of one segment together: its arrays, and the digests of its tensors and of their base.

    `values`: memory for all blocks, where a block's values may already be.
    """

    def __init__(self, tensors: tuple[TensorSpec, ...], values: Array | None = None):
        self._tensors = tensors
        self._values = values
        self._n_values = 0
        self._pieces: list[list[bytes]] = []
        self._base_pieces: list[list[bytes]] = []

    def add(self, values: Array | None, pieces: list[list[bytes]], base_pieces: list[list[bytes]]) -> None:
        """The next block: its values, if they are wanted, and the digests of its pieces and of its base's, if any."""
        if values is not None:
            self._add_values(values)
        if not self._pieces:
            self._pieces, self._base_pieces = pieces, base_pieces
            return
        for mine, more in zip(self._pieces + self._base_pieces, pieces + base_pieces, strict=True):
            mine.extend(more)

    def digests(self) -> tuple[list[bytes], list[bytes]]:
        """Digests of the tensors, and of their base, once all blocks are there."""
        return join_all(self._pieces), join_all(self._base_pieces) if self._base_pieces else []

    def _add_values(self, values: Array) -> None:
        n = sum(spec.n_elements for spec in self._tensors)
        if values.size == n:
            self._values = values
            return
        if self._values is None:
            self._values = buffer_for(n, values.dtype)
        target = self._values[self._n_values : self._n_values + values.size]
        if not np.may_share_memory(values, target):
            target[:] = values
        self._n_values += values.size

    def tensors(self) -> list[tuple[str, Array]]:
        """The tensors, once all blocks are there."""
        assert self._values is not None
        found: list[tuple[str, Array]] = []
        at = 0
        for spec in self._tensors:
            end = at + spec.n_elements
            found.append((spec.name, self._values[at:end].reshape(spec.shape)))
            at = end
        return found


def _survey(source: Checkpoint, names: list[str], bound: Bound, threads: int) -> dict[str, Statistics]:
    if bound.tolerance(Statistics(1, -1.0, 1.0, 1.0)).kind == "exact":
        return {}

    def survey(some: list[str]) -> list[Statistics]:
        return [Statistics.of(source.read(name)) for name in some]

    found = ordered_map(survey, shares_of_work(source, names), threads)
    return dict(zip(names, itertools.chain.from_iterable(found), strict=True))


def shares_of_work(source: Checkpoint, names: list[str]) -> Iterator[list[str]]:
    """Tensors for one thread after another: handing over a small one takes longer than surveying it."""
    share, n_bytes = [], 0
    for name in names:
        share.append(name)
        n_bytes += source.specs[name].n_bytes
        if n_bytes >= PIECE_BYTES:
            yield share
            share, n_bytes = [], 0
    if share:
        yield share


def draft_segments(
    source: Checkpoint, base: Checkpoint | None, names: list[str], codings: Codings, threads: int
) -> Iterator[Draft]:
    """Decide how every tensor of `names` is coded. Small ones of one coding are gathered, in order, into groups of one
    kind."""
    for coding, members in codings.distinct(names).items():
        yield from _draft(source, base if coding.uses_base else None, members, coding, threads)


@dataclass
class _Group:
    """Small tensors that wait for more."""

    members: list[tuple[TensorSpec, Tolerance]] = field(default_factory=list)
    n_bytes: int = 0


def _draft(
    source: Checkpoint, base: Checkpoint | None, names: list[str], coding: Coding, threads: int
) -> Iterator[Draft]:
    recipe = coding.recipe
    apart = recipe.fallback == "values"
    gathered = partial(_gathered, recipe, base is not None)
    groups: dict[tuple[str, Pipeline, bool], _Group] = {}
    for spec, with_base, plan in _plans(source, base, names, coding, threads):
        member = (spec, plan.tolerance)
        n_bytes = spec.n_bytes
        whole = plan.own_block or (recipe.whole_tensors and spec.is_float)
        if whole or n_bytes >= recipe.group_bytes or (apart and _stands_out(source, spec)):
            cut = recipe.cut_tensors and not whole
            size = recipe.group_bytes if cut else _one_block(n_bytes)
            yield gathered([member], plan.pipeline, with_base, size)
            continue
        key = (spec.dtype, plan.pipeline, with_base)
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group()
        elif group.n_bytes + n_bytes > recipe.group_bytes or len(group.members) >= _MOST_MEMBERS:
            yield gathered(group.members, plan.pipeline, with_base, recipe.group_bytes)
            group.members, group.n_bytes = [], 0
        group.members.append(member)
        group.n_bytes += n_bytes
    for (_, pipeline, with_base), group in groups.items():
        yield gathered(group.members, pipeline, with_base, recipe.group_bytes)


def _gathered(
    recipe: Recipe,
    uses_base: bool,
    members: list[tuple[TensorSpec, Tolerance]],
    pipeline: Pipeline,
    with_base: bool,
    block_bytes: int,
) -> Draft:
    specs, tolerances = zip(*members, strict=True)
    without = recipe.without_base(pipeline) if pipeline.needs_base else None
    return Draft(specs, pipeline, tolerances, with_base, block_bytes, without, recipe.fallback, uses_base)


def _one_block(n_bytes: int) -> int:
    """The size of a block that holds so much: a multiple of a digest's pieces, like all sizes of blocks."""
    return max(1, -(-n_bytes // PIECE_BYTES)) * PIECE_BYTES


def _plans(
    source: Checkpoint, base: Checkpoint | None, names: list[str], coding: Coding, threads: int
) -> Iterator[tuple[TensorSpec, bool, TensorPlan]]:
    """Each tensor, whether a base takes part, and how it is coded."""
    recipe, bound = coding.recipe, coding.promise
    specs = source.specs
    rounded = [name for name in names if specs[name].is_float]
    statistics = _survey(source, rounded, bound, threads)
    none = Statistics()
    whole = Statistics.sum(statistics.values())
    near = set()
    if base is not None:
        near = {name for name in names if specs[name].same_kind(base.specs.get(name))}
        near -= _far(source, base, [name for name in rounded if name in near], coding)
    views = (_view(source, base if name in near else None, name, statistics.get(name, none), whole) for name in rounded)
    plans = recipe.plan_all(views, bound)
    is_rounded = frozenset(rounded)
    for name in names:
        spec, with_base = specs[name], name in near
        if name in is_rounded:
            plan, steps = next(plans), source.steps.get(name)
            yield spec, with_base, with_known_step(plan, steps) if steps else plan
        else:
            yield spec, with_base, TensorPlan(recipe.exact_pipeline(with_base) or exact_pipeline(with_base), EXACT)


def _far(source: Checkpoint, base: Checkpoint, names: list[str], coding: Coding) -> set[str]:
    """Tensors that share blocks and whose bases are of no use. In a block of its own, both ways are tried."""
    if coding.recipe.fallback == "restored" or isinstance(coding.promise, NoPromise):
        return set()
    sizes = range(LEAST_APART, coding.recipe.group_bytes)
    shared = [name for name in names if source.specs[name].n_bytes in sizes]
    far = {name for name in shared if is_far(source.read(name), base.read(name))}
    if shared and len(far) == len(shared):
        far |= _far_together(source, base, [name for name in names if source.specs[name].n_bytes < LEAST_APART])
    return far


def _far_together(source: Checkpoint, base: Checkpoint, names: list[str]) -> set[str]:
    """Tensors too small to be judged one by one, where those of their dtype are of no use on the whole. They then share
    blocks with others of that kind, as they do without a base.
    """
    far: set[str] = set()
    for dtype in {source.specs[name].dtype for name in names}:
        some = [name for name in names if source.specs[name].dtype == dtype]
        # All of them may be most of the network, which need not be in memory.
        some = some[:: 1 + sum(source.specs[name].n_bytes for name in some) // _MOST_TOGETHER]
        values, theirs = (np.concatenate([each.read(name).reshape(-1) for name in some]) for each in (source, base))
        if values.nbytes >= LEAST_APART and is_far(values, theirs):
            far.update(name for name in names if source.specs[name].dtype == dtype)
    return far


def _stands_out(source: Checkpoint, spec: TensorSpec) -> bool:
    return spec.n_bytes >= LEAST_APART and stands_out(source.read(spec.name))


def _view(source: Checkpoint, base: Checkpoint | None, name: str, own: Statistics, whole: Statistics) -> TensorView:
    spec = source.specs[name]
    read_base = partial(_no_base if base is None else base.read, name)
    read = partial(source.read, name)
    steps = source.steps.get(name, ())
    return TensorView(name, spec.numpy_dtype, spec.shape, base is not None, own, whole, read, read_base, steps)


def _no_base(name: str) -> Array:
    raise UsageError(f"tensor {name!r} has no base")
