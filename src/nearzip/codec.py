"""One block of values to bytes and back, with the bound checked and kept. The only place that knows the bound.

A block is a run of values of one dtype: pieces of one large tensor, or several small tensors one after the other. Its
bytes are the pipeline's, and a patch: indices and exact values of what decoding would leave outside the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

import nearzip._core as _core
from nearzip.bounds import EXACT, Tolerance, broken, violations, violations_and_changes
from nearzip.changes import Change
from nearzip.choice import REPEATS, STORED, exact_pipeline, exact_pipelines, may_repeat, promising
from nearzip.errors import BoundError, CorruptError
from nearzip.stages import Coded, Context, DecodeTimes, Pipeline, Sparse, SparseValues
from nearzip.stages.base import check_booleans, get_varint, put_varint
from nearzip.tensors import Array, bits_of, is_float

__all__ = ["EncodedBlock", "decode_block", "decode_sparse_block", "encode_block", "exact_pipeline", "time_block"]

#: With more patches than one in this many values, coding the block exactly is tried as well.
_MANY_PATCHES = 64
#: Bytes that another coding has to save: its stages take bytes of the index.
_MARGIN = 32
#: Where the length of the patch is.
_NO_PATCH = b"\0"


@dataclass(frozen=True)
class EncodedBlock:
    """What `encode_block` gives: the bytes, cut somewhere to save a copy, the pipeline that made them, what they decode
    to, how many patches, how many zeros came back as something else, and what became of the change against the base:
    one for each part, None where there is no base or the part is exact."""

    pieces: tuple[bytes, bytes]
    pipeline: Pipeline
    restored: Array
    n_patched: int
    n_false: int = 0
    changes: tuple[Change | None, ...] = ()

    @property
    def payload(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def n_bytes(self) -> int:
        return sum(map(len, self.pieces))


def encode_block(
    values: Array,
    context: Context,
    pipeline: Pipeline,
    tolerances: Sequence[Tolerance],
    substitute: Array | None = None,
    without: Pipeline | None = None,
    fallback: Literal["values", "restored", "never"] = "never",
    before: Array | None = None,
) -> EncodedBlock:
    """Encode, decode in memory, compare, patch; keep the smallest of the codings that may be taken.

    Values are compared with the pipeline's target: the values themselves, or what is left of them after pruning.

    Parameters
    ----------
    values : array, shape (n,)
    context : Context
        dtype, parts and base of the block.
    pipeline : Pipeline
    tolerances : sequence of Tolerance
        One for each of `context.parts`.
    substitute : array, shape (n,), or None
        What the pipeline is given in place of `values`, from a calibration for example. The tolerances are kept against
        `values` all the same.
    without : Pipeline or None
        Does what `pipeline` does, without a base.
    fallback : "values", "restored" or "never"
        What may be coded exactly where that is smaller: the target; what the pipeline restores; neither.
    before : array, shape (n,), or None
        What the reader has had so far, for a block that is coded without it: changes count from it.

    Raises
    ------
    BoundError
        If the patched block is still outside (a fault in a stage, never the data's).
    """
    target = pipeline.target(values, context)
    before = context.base if before is None else before
    given = target if substitute is None else substitute
    first = _checked(pipeline.encode_apart(given, context), target, context, pipeline, tolerances, before)
    if context.out is not None:
        context = context.without_out()  # what `first` restores stays there
    if first.n_patched * _MANY_PATCHES > values.size:
        exact = _encode(target, context, exact_pipeline(pipeline.needs_base), _exact_parts(context))
        if exact.n_bytes < first.n_bytes:
            first = replace(exact, changes=_exactly(first.changes))
    if not values.size or first.n_bytes <= _MARGIN:
        return first
    wanted = first.restored if fallback == "restored" else target
    others = [] if fallback == "never" else exact_pipelines(context.base is not None, is_float(context.dtype))
    if without is not None and substitute is None:
        others = [without, *(other for other in others if other != without)]
    best = first
    for other in promising(wanted, context, first.pipeline, first.n_bytes, others):
        kept = tolerances if other is without else _exact_parts(context)
        best = _smaller(best, first, other, wanted, context, kept, before)
    return best if fallback == "never" else _or_stored(best, wanted, context)


def _smaller(
    best: EncodedBlock,
    first: EncodedBlock,
    pipeline: Pipeline,
    values: Array,
    context: Context,
    tolerances: Sequence[Tolerance],
    before: Array | None = None,
) -> EncodedBlock:
    """`best`, or values under another pipeline in place of `first` if that is smaller."""
    apart = pipeline.encode_apart(values, context)
    # Most are not smaller: they need not be decoded and compared.
    if sum(map(len, apart)) + len(_NO_PATCH) + _MARGIN >= best.n_bytes:
        return best
    block = _checked(apart, values, context, pipeline, tolerances, before)
    if block.n_bytes + _MARGIN >= best.n_bytes:
        return best
    return _instead_of(first, block, values) if all(each == EXACT for each in tolerances) else block


def _or_stored(block: EncodedBlock, values: Array, context: Context) -> EncodedBlock:
    """`block`, or values by their repeats or as raw bytes if that is smaller."""
    best = block
    if may_repeat(values, best.n_bytes):
        best = _smaller(best, block, REPEATS, values, context, _exact_parts(context))
    if best.n_bytes > values.nbytes + _MARGIN:
        best = _instead_of(block, _encode(values, context, STORED, _exact_parts(context)), values)
    return best


def _instead_of(block: EncodedBlock, exact: EncodedBlock, values: Array) -> EncodedBlock:
    """`exact`, which codes values exactly, with the counts and changes of `block`."""
    changes = block.changes if values is block.restored else _exactly(block.changes)
    return replace(exact, n_false=block.n_false, changes=changes)


def _exact_parts(context: Context) -> list[Tolerance]:
    return [EXACT] * len(context.parts)


def _exactly(changes: tuple[Change | None, ...]) -> tuple[Change | None, ...]:
    """The same changes, stored without an error."""
    return tuple(change and change.exactly() for change in changes)


def _encode(values: Array, context: Context, pipeline: Pipeline, tolerances: Sequence[Tolerance]) -> EncodedBlock:
    return _checked(pipeline.encode_apart(values, context), values, context, pipeline, tolerances)


def _checked(
    apart: tuple[bytes, bytes],
    values: Array,
    context: Context,
    pipeline: Pipeline,
    tolerances: Sequence[Tolerance],
    before: Array | None = None,
) -> EncodedBlock:
    """What a pipeline made of a block, decoded, compared with `values`, and patched."""
    sides, body = apart
    restored, indices, changes = _decoded(sides, body, pipeline, values, before, context, tolerances)
    head = _NO_PATCH
    if indices.size:
        patch = _encode_patch(indices, bits_of(values), values)
        head = put_varint(len(patch)) + patch
        if not restored.flags.writeable:
            restored = restored.copy()
        _apply_patch(patch, restored)
        left, changes = _outside(values, restored, before, context, tolerances)
        if left.size:
            raise BoundError("a patched block is outside its bound; please report this as a fault")
    n_false = int(((values == 0) & (restored != 0)).sum()) if pipeline.errs_on_zeros else 0
    return EncodedBlock((head + sides, body), pipeline, restored, indices.size, n_false, changes)


def decode_block(payload: bytes | memoryview, context: Context, pipeline: Pipeline) -> Array:
    """The values of a block, shape (n,). Raises CorruptError on bytes that no encoder wrote."""
    view = memoryview(payload)
    if view[:1] == _NO_PATCH:
        return pipeline.decode(view[1:], context)
    size, at = get_varint(view, 0)
    if size > len(view) - at:
        raise CorruptError("block ends early")
    values = pipeline.decode(view[at + size :], context)
    if not values.flags.writeable:
        values = values.copy()
    _apply_patch(view[at : at + size], values)
    return values


def decode_sparse_block(payload: bytes | memoryview, context: Context, pipeline: Pipeline) -> SparseValues:
    """The values of a block that may differ from zero. Raises CorruptError as `decode_block`.

    No dense array is made where the pipeline keeps the values sparse; otherwise its zeros are left out.
    """
    view = memoryview(payload)
    size, at = get_varint(view, 0)
    if size > len(view) - at:
        raise CorruptError("block ends early")
    sparse = pipeline.decode_sparse(view[at + size :], context)
    if sparse is None:
        return _without_zeros(decode_block(payload, context, pipeline))
    return _patch_sparse(view[at : at + size], sparse, context) if size else sparse


def time_block(payload: bytes | memoryview, context: Context, pipeline: Pipeline) -> DecodeTimes | None:
    """How long the parts of decoding a sparse block take; None for blocks that are not. Raises CorruptError."""
    last = pipeline.stages[-1]
    if not isinstance(last, Sparse):
        return None
    size, at = get_varint(payload, 0)
    sides, body = pipeline.read_sides(memoryview(payload)[at + size :])
    return last.decode_times(Coded(body, sides[-1]), context)


def _without_zeros(values: Array) -> SparseValues:
    indices = np.flatnonzero(values != 0)
    return SparseValues(indices, values[indices])


def _patch_sparse(patch: memoryview, sparse: SparseValues, context: Context) -> SparseValues:
    indices, exact = _read_patch(patch, context.n, context.dtype)
    untouched = ~np.isin(sparse.indices, indices)
    all_indices = np.concatenate([sparse.indices[untouched], indices])
    values = np.concatenate([sparse.values[untouched], exact.reshape(-1).view(context.dtype)])
    order = np.argsort(all_indices)
    return SparseValues(all_indices[order], values[order])


def _stretches(context: Context, tolerances: Sequence[Tolerance]) -> Iterator[tuple[int, int, int, Tolerance]]:
    """Runs of parts with one tolerance: where their values start and stop, and the number of parts."""
    start = at = n_parts = 0
    for i, (part, tolerance) in enumerate(zip(context.parts, tolerances, strict=True)):
        at += part
        n_parts += 1
        following = tolerances[i + 1] if i + 1 < len(tolerances) else None
        if following is not tolerance and following != tolerance:
            yield start, at, n_parts, tolerance
            start, n_parts = at, 0


def _decoded(
    sides: bytes,
    body: bytes,
    pipeline: Pipeline,
    values: Array,
    before: Array | None,
    context: Context,
    tolerances: Sequence[Tolerance],
) -> tuple[Array, Array, tuple[Change | None, ...]]:
    """What was encoded, decoded again, and as `_outside`: in one pass over memory where a stage has one."""
    tolerance = tolerances[0] if tolerances else EXACT
    is_shared = tolerance.kind == "absolute" and tolerances.count(tolerance) == len(tolerances)
    if is_shared and before is not None and before is context.base:
        compared = pipeline.decode_and_compare(sides, context, body, values, tolerance.value)
        if compared is not None:
            outside = broken(compared.outside, values, compared.values)
            return compared.values, outside, tuple(Change(*row) for row in compared.changes)
    restored = pipeline.decode(sides, context, body)
    return restored, *_outside(values, restored, before, context, tolerances)


def _outside(
    values: Array, restored: Array, before: Array | None, context: Context, tolerances: Sequence[Tolerance]
) -> tuple[Array, tuple[Change | None, ...]]:
    """Indices of values outside their tolerance, and what became of each part's change since `before`."""
    found: list[Array] = []
    changes: list[Change | None] = []
    for start, stop, n_parts, tolerance in _stretches(context, tolerances):
        ours, theirs = values[start:stop], restored[start:stop]
        if before is None or tolerance.kind == "exact" or not is_float(values.dtype):
            found.append(violations(ours, theirs, tolerance) + start)
            changes += [None] * n_parts
            continue
        parts = context.parts[len(changes) : len(changes) + n_parts]
        outside, more = violations_and_changes(ours, theirs, before[start:stop], tolerance, parts)
        found.append(outside + start)
        changes += more
    return np.concatenate(found) if found else np.empty(0, np.int64), tuple(changes)


def _encode_patch(indices: Array, bits: Array, values: Array) -> bytes:
    """Count, gaps between indices, exact values."""
    gaps = np.diff(indices, prepend=-1).astype(np.uint32) - np.uint32(1)
    n = int(indices.size)
    coded_gaps = _core.encode_symbols(gaps, [n], False)
    exact = np.ascontiguousarray(bits.reshape(values.size, -1)[indices]).reshape(-1)
    coded_values = _core.encode_symbols(exact, [exact.size], True)
    return put_varint(n) + put_varint(len(coded_gaps)) + coded_gaps + coded_values


def _apply_patch(patch: bytes | memoryview, values: Array) -> None:
    indices, exact = _read_patch(patch, values.size, values.dtype)
    bits_of(values).reshape(values.size, -1)[indices] = exact


def _read_patch(patch: bytes | memoryview, n_values: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Increasing indices, shape (n,), and the exact bits there, shape (n, integers a value). Raises CorruptError."""
    view = memoryview(patch)
    n, at = get_varint(view, 0)
    size, at = get_varint(view, at)
    if not 0 < n <= n_values or size > len(view) - at:
        raise CorruptError("malformed patch")
    gaps = np.empty(n, np.uint32)
    per_value = 2 if dtype.kind == "c" else 1
    exact = np.empty(n * per_value, bits_of(np.empty(0, dtype)).dtype)
    try:
        _core.decode_symbols(np.frombuffer(view[at : at + size], np.uint8), [n], gaps)
        _core.decode_symbols(np.frombuffer(view[at + size :], np.uint8), [exact.size], exact)
    except ValueError as error:
        raise CorruptError(f"patch: {error}") from None
    indices = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if indices[-1] >= n_values:
        raise CorruptError("patch reaches beyond its block")
    check_booleans(exact, dtype)
    return indices, exact.reshape(n, per_value)
