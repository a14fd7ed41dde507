"""One block of values to bytes and back, with the bound checked and kept. The only place that knows the bound.

A block is a run of values of one dtype: pieces of one large tensor, or several small tensors one after the other. Its
bytes are the pipeline's, and a patch: places and exact values of what decoding would leave outside the bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nearzip import _core
from nearzip.bounds import EXACT, Tolerance, violations
from nearzip.errors import BoundError, CorruptError
from nearzip.stages import Context, ContextDelta, OrderedBits, Pipeline, Rans
from nearzip.stages.base import check_booleans, get_varint, put_varint
from nearzip.tensors import Array, bits_of

__all__ = ["EncodedBlock", "decode_block", "encode_block", "exact_pipeline"]

#: With more patches than one in this many values, coding the block exactly is tried as well.
_MANY_PATCHES = 64


def exact_pipeline(with_base: bool) -> Pipeline:
    """Bit-exact coding of any dtype: differences of order-preserving integers, or exponents and mantissas apart."""
    if with_base:
        return Pipeline((ContextDelta(),))
    return Pipeline((OrderedBits(), Rans("planes")))


@dataclass(frozen=True)
class EncodedBlock:
    """What `encode_block` gives: the bytes, the pipeline that made them, what they decode to, and how many patches."""

    payload: bytes
    pipeline: Pipeline
    restored: Array
    n_patched: int


def encode_block(values: Array, context: Context, pipeline: Pipeline, tolerances: Sequence[Tolerance]) -> EncodedBlock:
    """Encode, decode in memory, compare, patch.

    Parameters
    ----------
    values : array, shape (n,)
    context : Context
        dtype, parts and base of the block.
    pipeline : Pipeline
    tolerances : sequence of Tolerance
        One for each of `context.parts`.

    Raises
    ------
    BoundError
        If the patched block is still outside (a fault in a stage, never the data's).
    """
    first = _encode(values, context, pipeline, tolerances)
    if first.n_patched * _MANY_PATCHES <= context.n:
        return first
    exact = _encode(values, context, exact_pipeline(pipeline.needs_base), [EXACT] * len(context.parts))
    return min(first, exact, key=lambda block: len(block.payload))


def _encode(values: Array, context: Context, pipeline: Pipeline, tolerances: Sequence[Tolerance]) -> EncodedBlock:
    body = pipeline.encode(values, context)
    restored = pipeline.decode(body, context)
    places = _outside(values, restored, context, tolerances)
    patch = b""
    if places.size:
        patch = _encode_patch(places, bits_of(values), values)
        if not restored.flags.writeable:
            restored = restored.copy()
        _apply_patch(patch, restored)
        if _outside(values, restored, context, tolerances).size:
            raise BoundError("a patched block is outside its bound; please report this as a fault")
    return EncodedBlock(put_varint(len(patch)) + patch + body, pipeline, restored, places.size)


def decode_block(payload: bytes | memoryview, context: Context, pipeline: Pipeline) -> Array:
    """The values of a block, shape (n,). Raises CorruptError on bytes that no encoder wrote."""
    view = memoryview(payload)
    size, at = get_varint(view, 0)
    if size > len(view) - at:
        raise CorruptError("block ends early")
    values = pipeline.decode(view[at + size :], context)
    if size:
        if not values.flags.writeable:
            values = values.copy()
        _apply_patch(view[at : at + size], values)
    return values


def _stretches(context: Context, tolerances: Sequence[Tolerance]) -> Iterator[tuple[int, int, Tolerance]]:
    """Runs of values with one tolerance."""
    start = at = 0
    for i, (part, tolerance) in enumerate(zip(context.parts, tolerances, strict=True)):
        at += part
        if i + 1 == len(tolerances) or tolerances[i + 1] != tolerance:
            yield start, at, tolerance
            start = at


def _outside(values: Array, restored: Array, context: Context, tolerances: Sequence[Tolerance]) -> Array:
    found = [
        violations(values[start:stop], restored[start:stop], tolerance) + start
        for start, stop, tolerance in _stretches(context, tolerances)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _encode_patch(places: Array, bits: Array, values: Array) -> bytes:
    """Count, gaps between places, exact values."""
    gaps = np.diff(places, prepend=-1).astype(np.uint32) - np.uint32(1)
    n = int(places.size)
    coded_gaps = _core.encode_symbols(gaps, [n], False)
    exact = np.ascontiguousarray(bits.reshape(values.size, -1)[places]).reshape(-1)
    coded_values = _core.encode_symbols(exact, [exact.size], True)
    return put_varint(n) + put_varint(len(coded_gaps)) + coded_gaps + coded_values


def _apply_patch(patch: bytes | memoryview, values: Array) -> None:
    view = memoryview(patch)
    n, at = get_varint(view, 0)
    size, at = get_varint(view, at)
    if not 0 < n <= values.size or size > len(view) - at:
        raise CorruptError("malformed patch")
    gaps = np.empty(n, np.uint32)
    bits = bits_of(values).reshape(values.size, -1)
    exact = np.empty(n * bits.shape[1], bits.dtype)
    try:
        _core.decode_symbols(np.frombuffer(view[at : at + size], np.uint8), [n], gaps)
        _core.decode_symbols(np.frombuffer(view[at + size :], np.uint8), [exact.size], exact)
    except ValueError as error:
        raise CorruptError(f"patch: {error}") from None
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if places[-1] >= values.size:
        raise CorruptError("patch reaches beyond its block")
    check_booleans(exact, values.dtype)
    bits[places] = exact.reshape(n, -1)
