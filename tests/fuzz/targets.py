"""The Python targets of the fuzzer, and twins of the native ones: each takes bytes and raises only for a finding.

A decoder may give an answer or raise a named error (`nearzip.errors.Error`); anything else is a finding.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import wire

import nearzip as nz
from nearzip import _core
from nearzip.codec import decode_block
from nearzip.errors import Error, MissingExtraError
from nearzip.stages import (
    SYMBOLS,
    Chain,
    Coded,
    Context,
    ContextDelta,
    E8Step,
    Gzip,
    Huffman,
    LogStep,
    Lzma,
    OrderedBits,
    OrderedDelta,
    PackIntegers,
    Pipeline,
    Rans,
    RawBytes,
    RunLengths,
    Sparse,
    Stage,
    StepThenBits,
    SubtractBase,
    UniformStep,
    Zstd,
)
from nearzip.stages.bits import AdaptivePrefix, FixedBits, KeyHuffman
from nearzip.stages.bloom import BloomIndex
from nearzip.stages.curves import FitCurve
from nearzip.stages.golomb import Golomb
from nearzip.stages.min_max import MinMaxSketch
from nearzip.stages.qsgd import StochasticLevels
from nearzip.stages.quantiles import QuantileBuckets
from nearzip.stages.top_mean import TopMean
from nearzip.testing.sealing import seal, seal_columns, true_digests, unseal, unseal_columns

DTYPES = [np.dtype(t) for t in (
    "float32", "float64", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    "int8", "int64", "uint16", "bool", "complex64", "complex128",
)]  # fmt: skip
STAGES: list[Stage] = [
    RawBytes(), PackIntegers(), RunLengths(), Gzip(), Lzma(), Zstd(), Rans(), Rans("planes"), OrderedBits(),
    OrderedDelta(), UniformStep(0.01), LogStep(0.01, delta=True), LogStep(0.5, delta=False), SubtractBase(),
    ContextDelta(), StepThenBits(0.01, delta=True), StepThenBits(0.01), E8Step(0.01),
    Golomb(6), TopMean(0.01), StochasticLevels(7, 64, 0), QuantileBuckets(16), FixedBits(), AdaptivePrefix(),
    KeyHuffman(), FitCurve(), FitCurve("dexp"), BloomIndex(Chain((RawBytes(),))),
    BloomIndex(Chain((RawBytes(),)), policy="p2"),
    MinMaxSketch(Chain((AdaptivePrefix(),)), Chain((Huffman(),)), 16),
    Sparse(Chain((QuantileBuckets(16), Huffman())), Chain((AdaptivePrefix(),)), 32, False),
]  # fmt: skip
SYMBOL_TYPES = [np.dtype(t) for t in (np.int32, np.uint8, np.uint16, np.uint32, np.uint64)]
PIPELINES = [
    Pipeline((OrderedBits(), Rans("planes"))),
    Pipeline((OrderedDelta(), Rans())),
    Pipeline((SubtractBase(), UniformStep(0.01), Rans())),
    Pipeline((UniformStep(0.01), Rans())),
    Pipeline((LogStep(0.01, delta=True), Rans())),
    Pipeline((SubtractBase(), UniformStep(0.01), RunLengths(), Lzma())),
    Pipeline((UniformStep(0.01), RunLengths(), Zstd())),
    Pipeline((UniformStep(0.01), PackIntegers(), Gzip())),
    Pipeline((SubtractBase(), LogStep(0.5, delta=False), RunLengths())),
    Pipeline((ContextDelta(),)),
    Pipeline((StepThenBits(0.01, delta=True), Rans())),
    Pipeline((SubtractBase(), E8Step(0.01))),
    Pipeline((RawBytes(), Gzip())),
    Pipeline((RawBytes(), Zstd(), Lzma())),
    Pipeline((RawBytes(),)),
]


class Bytes:
    """Reads numbers from a fuzz input; zeros once it is used up."""

    def __init__(self, data: bytes):
        self.rest = data

    def take(self, n: int) -> bytes:
        taken, self.rest = self.rest[:n], self.rest[n:]
        return taken + bytes(n - len(taken))

    def number(self, below: int) -> int:
        return int.from_bytes(self.take(1 if below <= 256 else 2), "little") % below

    def pick(self, items: Any) -> Any:
        return items[self.number(len(items))]


def _parts(n: int, n_parts: int) -> list[int]:
    """As in input.hpp."""
    parts, left = [], n
    for i in range(1, n_parts):
        parts.append(0 if i % 3 == 2 else left // (n_parts - i + 1))
        left -= parts[-1]
    return [*parts, left]


# ---- twins of the native targets -------------------------------------------------------------------------------


def _head(data: bytes) -> tuple[list[int], int, np.ndarray] | None:
    if len(data) < 3:
        return None
    n = data[0] | data[1] << 8
    return _parts(n, 1 + (data[2] & 7)), data[2] >> 3, np.frombuffer(data, np.uint8)[3:]


def tokens(data: bytes) -> None:
    head = _head(data)
    if head is None:
        return
    parts, _, rest = head
    with contextlib.suppress(ValueError):  # what the native core raises; stages give it its name
        _core.decode_tokens(rest, parts, np.empty(sum(parts), np.uint8))


#: As in scaled.cpp.
GRIDS = [
    (40, 1, 1, 0), (27, 9, 3, 0), (64, 4, 2, 10), (0, 0, 0, 0),
    (16, 16, 4, 0), (1000, 1, 1, 60), (8, 2, 2, 0), (72, 9, 3, 5),
]  # fmt: skip


def scaled(data: bytes) -> None:
    head = _head(data)
    if head is None:
        return
    sizes, choice, rest = head
    parts = [(size, *GRIDS[(choice // 2 + p) % 8]) for p, size in enumerate(sizes)]
    out = np.empty(sum(sizes), np.uint8)
    with contextlib.suppress(ValueError):
        _core.decode_tokens(rest, parts, out)
    values = np.resize(rest, out.size) if rest.size else np.zeros_like(out)
    coded = np.frombuffer(_core.encode_tokens(values, parts), np.uint8)
    _core.decode_tokens(coded, parts, out)
    assert (out == values).all()


def symbols(data: bytes) -> None:
    head = _head(data)
    if head is None:
        return
    parts, choice, rest = head
    with contextlib.suppress(ValueError):
        _core.decode_symbols(rest, parts, np.empty(sum(parts), SYMBOL_TYPES[choice % 5]))


def contexts(data: bytes) -> None:
    head = _head(data)
    if head is None:
        return
    parts, choice, rest = head
    dtype = SYMBOL_TYPES[1 + (choice & 3)]
    kind = (not choice & 4, (3, 7, 23, 52)[choice & 3])
    base = np.resize(np.arange(1, 60_000, 7, dtype=np.uint64) * 0x9E3779B97F4A7C15, sum(parts)).astype(dtype)
    with contextlib.suppress(ValueError):
        _core.decode_contexts(rest, base, *kind, parts, np.empty_like(base))
    whole = rest[: rest.size // dtype.itemsize * dtype.itemsize].view(dtype)
    values = np.resize(whole, base.size) if whole.size else base
    coded = np.frombuffer(_core.encode_contexts(values, base, *kind, parts), np.uint8)
    back = np.empty_like(values)
    _core.decode_contexts(coded, base, *kind, parts, back)
    assert np.array_equal(back, values)


# As in images.cpp.
_MOST = (0, 64, 1024, 1 << 12)


class _Numbers:
    """The numbers of a seed, one after the other."""

    def __init__(self, seed: int):
        self.seed, self.i = seed, 0

    def next(self, n: int) -> np.ndarray:
        x = np.uint32(self.seed * 0x9E3779B9 & 0xFFFFFFFF) + np.arange(self.i, self.i + n, dtype=np.uint32)
        self.i += n
        x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
        return x ^ (x >> 16)

    def weights(self, n: int, most: int) -> np.ndarray:
        return (self.next(n) % (2 * most + 1)).astype(np.int64).astype(np.int16) - np.int16(most)

    def tables(self, n_contexts: int) -> tuple[np.ndarray, np.ndarray]:
        freqs = []
        for most in (370, 60, 1):
            others = 1 + self.next(_core.STATIC_TOKENS - 1) % most
            freqs += [(1 << 14) - int(others.sum()), *others.tolist()]
        return (self.next(n_contexts) % 3).astype(np.uint8), np.array(freqs, np.uint16)


@functools.lru_cache(maxsize=64)
def _image_model(pixels: bool, channels: int, color: bool, seed: int) -> Any:
    numbers, most = _Numbers(seed), _MOST[seed & 3]
    if pixels:
        sets = channels * _core.PIXEL_TEXTURES
        weights = (
            numbers.weights(sets * 15, 4 * most),
            numbers.weights(sets * 12, 4 * most),
            numbers.weights(channels, 511),
        )
        return _core.PixelModel(channels, color, *weights, *numbers.tables(_core.PIXEL_CONTEXTS))
    weights = tuple(
        numbers.weights(channels * n, k * most) for n, k in ((18 * 64, 4), (16 * 64, 1), (4 * 8, 4), (4 * 8, 1))
    )
    start = numbers.next(channels * 64).astype(np.uint8)
    steps, shifts = ((numbers.next(channels * n) & 0xFFFF).astype(np.uint16) for n in (64, 192))
    return _core.DctModel(channels, color, *weights, start, *numbers.tables(_core.DCT_CONTEXTS), steps, shifts)


def images(data: bytes) -> None:
    if len(data) < 7:
        return
    pixels, channels, given = bool(data[0] & 1), 1 + (data[0] >> 1 & 3), bool(data[0] & 16)
    height, width, n = 1 + data[1] % 12, 1 + data[2] % 12, 1 + data[3] % 19
    model = _image_model(pixels, channels, channels >= 3 and bool(data[0] & 8), data[4])
    blocks, rest = ((height + 7) // 8, (width + 7) // 8), np.frombuffer(data[7:] or b"\0", np.uint8)
    each = height * width * channels if pixels else blocks[0] * blocks[1] * channels * 64
    values = np.resize(rest, n * each)
    if not pixels:
        place = np.arange(n * each)
        small = np.trunc(values.view(np.int8) / np.where(place % 64 > 2, 16, 1)).astype(np.int16)
        values = np.where(place % 64 > values[place // 64 % n] % 64, 0, small).astype(np.int16)
    lengths = np.full(n, (len(data) - 7) // n, np.uint32)
    coded = data[7:] if given else model.encode(*((height, width) if pixels else blocks), values, lengths)
    for harmed in range(1 if given else 2):
        stream = np.frombuffer(coded, np.uint8).copy()
        if harmed:
            stream[(data[5] * 257 + data[6]) % stream.size] ^= data[6] | 1
        stops = np.cumsum(lengths, dtype=np.uint64)
        decode = [(model.decode, (height, width), height * width * channels, np.uint8)]
        if not pixels:
            decode.append((model.decode_levels, blocks, each, np.int16))
        outcomes = [_decoded_images(*how, stream, stops - lengths, stops) for how in decode]
        assert len({found is None for found in outcomes}) == 1
        if not given and not harmed:
            assert np.array_equal(outcomes[-1], values)


def _decoded_images(
    decode: Any, shape: tuple[int, ...], each: int, dtype: Any, data: np.ndarray, starts: np.ndarray, stops: np.ndarray
) -> np.ndarray | None:
    """What all streams give, side by side as alone; None if any is refused."""

    def values(some: slice) -> np.ndarray | None:
        out = np.empty(each * len(starts[some]), dtype)
        try:
            decode(*shape, data, starts[some], stops[some], out)
        except ValueError:
            return None
        return out

    together = values(slice(None))
    alone = [values(slice(i, i + 1)) for i in range(len(starts))]
    assert (together is None) == any(found is None for found in alone)
    assert together is None or np.array_equal(together, np.concatenate(alone))
    return together


def roundtrip(data: bytes) -> None:
    head = _head(data)
    if head is None:
        return
    parts, choice, rest = head
    dtype = SYMBOL_TYPES[choice % 5]
    whole = rest[: rest.size // dtype.itemsize * dtype.itemsize].view(dtype)
    values = np.resize(whole, sum(parts)) if whole.size else np.zeros(sum(parts), dtype)
    for planes in (False, True):
        coded = np.frombuffer(_core.encode_symbols(values, parts, planes), np.uint8)
        back = np.empty_like(values)
        _core.decode_symbols(coded, parts, back)
        assert np.array_equal(back, values)


# ---- Python targets --------------------------------------------------------------------------------------------


def _context(bytes_: Bytes, most: int = 4096) -> Context:
    dtype = bytes_.pick(DTYPES)
    parts = _parts(bytes_.number(most), 1 + bytes_.number(8))
    n = sum(parts)
    raw = np.arange(n * dtype.itemsize, dtype=np.uint64) * 2654435761 >> 11
    bits = raw.astype(np.uint8)
    base = (bits & 1 if dtype.kind == "b" else bits)[: n * dtype.itemsize].view(dtype)
    return Context(dtype, tuple(parts), base)


def _check_values(values: np.ndarray, context: Context) -> None:
    assert values.shape == (context.n,), "another number of values"
    assert values.dtype == context.dtype, "another dtype"
    if values.dtype.kind == "b" and values.size:
        assert int(values.view(np.uint8).max()) <= 1, "a boolean that is neither 0 nor 1"


def stages(data: bytes) -> None:
    """One stage's decode. What comes from an earlier decoder has its types, but any content."""
    bytes_ = Bytes(data)
    stage = bytes_.pick(STAGES)
    context = _context(bytes_)
    side = bytes_.take(bytes_.number(4))
    value: Any = bytes_.rest
    if stage.gives is SYMBOLS:
        dtype = bytes_.pick(SYMBOL_TYPES)
        n = context.n * (2 if context.dtype.kind == "c" else 1)
        raw = np.frombuffer(bytes_.rest, np.uint8)
        value = (np.resize(raw, n * dtype.itemsize) if raw.size else np.zeros(n * dtype.itemsize, np.uint8)).view(dtype)
    elif isinstance(stage, SubtractBase):
        value = np.resize(np.frombuffer(bytes_.rest + bytes(8), np.uint8), context.n * 8).view(np.float64)
    with contextlib.suppress(Error):
        stage.decode(Coded(value, side), context)


def blocks(data: bytes) -> None:
    """A whole block: patch, pipeline, rounding to the tensor's dtype."""
    bytes_ = Bytes(data)
    pipeline = bytes_.pick(PIPELINES)
    context = _context(bytes_)
    with contextlib.suppress(Error):
        _check_values(decode_block(bytes_.rest, context, pipeline), context)


def patch(data: bytes) -> None:
    """The patch decoder behind a body that always decodes."""
    bytes_ = Bytes(data)
    context = _context(bytes_, 512)
    pipeline = PIPELINES[-1]
    body = pipeline.encode(np.zeros(context.n, context.dtype), context)
    size = len(bytes_.rest)
    payload = (bytes([size & 127 | 128, size >> 7]) if size > 127 else bytes([size])) + bytes_.rest + body
    if size < 1 << 14:
        with contextlib.suppress(Error):
            _check_values(decode_block(payload, context, pipeline), context)


@functools.cache
def seeds() -> tuple[tuple[bytes, dict[str, np.ndarray] | None], ...]:
    """Good little archives of every method whose library is installed, with their bases."""
    rng = np.random.default_rng(7)
    old = {
        "a": rng.normal(size=(5, 7)).astype(np.float32),
        "b": rng.normal(size=11).astype(np.float16),
        "c": rng.normal(size=3),
        "d": np.arange(6, dtype=np.int32),
        "e": np.array([True, False, True]),
        "f": np.array([1 + 2j, 3], np.complex64),
        "g": np.float32(3.5),
        "h": np.zeros((0, 3), np.float32),
    }
    new = {name: (value + np.asarray(value, copy=True) * 0.01).astype(value.dtype) for name, value in old.items()
           if value.dtype.kind in "fc"} | {"d": old["d"] + 1, "e": ~old["e"]}  # fmt: skip
    new["a"][0, 0] = np.nan
    new["tied"] = new["a"].copy()
    found: list[tuple[bytes, dict[str, np.ndarray] | None]] = []
    for method in nz.methods():
        with contextlib.suppress(MissingExtraError):
            for base in (None, old):
                archive = nz.compress(new, base=base, method=method, threads=1, metadata={"k": "v"})
                found.append((archive.to_bytes(), base))
    found.append((nz.compress(new, base=old, bound=nz.Absolute(0.01), threads=1).to_bytes(), old))
    found.append((nz.compress(new, base=old, bound=nz.PointwiseRelative(0.01), threads=1).to_bytes(), old))
    return tuple(found)


_LIMITS = nz.Limits(output_bytes=32 << 20)


def _read(archive: bytes, base: dict[str, np.ndarray] | None) -> None:
    with contextlib.suppress(Error):
        with nz.open(archive, base=base, limits=_LIMITS, threads=1) as reader:
            reader.metadata()
            reader.tensor_reports()
            damaged = reader.damage()
            for name in reader:
                if name not in damaged:
                    spec = next(spec for spec in reader.index.tensors if spec.name == name)
                    array = reader[name]
                    assert (array.dtype.name, array.shape) == (spec.dtype, spec.shape)
                    _check_values(array.reshape(-1), Context.of(array.reshape(-1)))
        nz.decompress(archive, base=base, limits=_LIMITS, threads=1)


def archive(data: bytes) -> None:
    """A file as it is, checksums and all; or (first byte odd) an index and blocks under checksums that are right."""
    if len(data) < 4:
        return
    base = seeds()[-1][1]
    if data[0] & 1:
        n = int.from_bytes(data[1:4], "little") % (len(data) - 3)
        data = seal(data[4 : 4 + n], data[4 + n :])
        _read(data, base)
    else:
        _read(data[1:], base)


#: What a field of an index is replaced by.
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 255, 1 << 22, 1 << 31, (1 << 62) - 1, 1 << 62, 1 << 63, 10**40, 0.5, -0.0, 1e308,
    5e-324, math.inf, math.nan, "", "a", "d", "\ud800", "\x00", "../x", "__metadata__", [], [0], [[]], {}, {"0": 0},
    {"a": 1}, "float32", "bool", "complex64", "int64", "float8_e5m2", "AAAAAAAAAAAAAAAAAAAAAA", 16, 3, 64 << 20,
    *([stage.to_json()] for stage in STAGES), *(stage.to_json() for stage in STAGES),
    *(pipeline.to_json() for pipeline in PIPELINES),
]  # fmt: skip


def _nodes(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON document that can be replaced: its container and its key."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield document, key
        if isinstance(value, (dict, list)):
            yield from _nodes(value)


def sealed(data: bytes) -> None:
    """A good archive whose index and blocks are changed at will and then put under checksums that are right."""
    bytes_ = Bytes(data)
    good, base = bytes_.pick(seeds())
    document, payload = unseal(good)
    content = bytearray(payload)
    for _ in range(bytes_.number(5)):
        nodes = list(_nodes(document))
        if not nodes:
            return
        parent, key = nodes[bytes_.number(max(257, len(nodes))) % len(nodes)]
        action = bytes_.number(4)
        if action == 0:
            del parent[key]
        elif action == 1 and isinstance(parent, list):
            parent.insert(key, parent[bytes_.number(len(parent))])
        elif action == 2:
            other, other_key = nodes[bytes_.number(max(257, len(nodes))) % len(nodes)]
            still_there = other_key in (other if isinstance(other, dict) else range(len(other)))
            parent[key] = json.loads(json.dumps(other[other_key])) if still_there else 0
        else:
            parent[key] = json.loads(json.dumps(bytes_.pick(ODD)))
    for _ in range(bytes_.number(4)):
        if content:
            content[bytes_.number(max(257, len(content))) % len(content)] = bytes_.number(256)
    if bytes_.number(2) and bytes_.rest:
        at = bytes_.number(max(257, len(content) + 1)) % (len(content) + 1)
        content[at : at + bytes_.number(64)] = bytes_.rest
    with contextlib.suppress(Error, KeyError, TypeError, ValueError, IndexError, AttributeError):
        # An index that makes no sense keeps its old digests; what decoding raises is seen again below.
        true_digests(document, bytes(content), base)
    _read(seal(document, bytes(content)), base)


def columns(data: bytes) -> None:
    """A good archive whose index in columns is changed byte by byte and then put under checksums that are right."""
    bytes_ = Bytes(data)
    good, base = bytes_.pick(seeds())
    content, digests, blocks = unseal_columns(good)
    changed = bytearray(content)
    for _ in range(1 + bytes_.number(6)):
        at = bytes_.number(max(257, len(changed) + 1)) % (len(changed) + 1)
        action = bytes_.number(4)
        if action == 0:
            del changed[at : at + 1 + bytes_.number(8)]
        elif action == 1:
            changed[at:at] = bytes_.take(1 + bytes_.number(8))
        else:
            changed[at : at + 1] = bytes_.take(1)
    if bytes_.number(4) == 0:
        digests = digests[: bytes_.number(257)] + bytes_.take(bytes_.number(32))
    _read(seal_columns(bytes(changed), digests, blocks), base)


NATIVE: dict[str, Callable[[bytes], None]] = {
    "tokens": tokens, "scaled": scaled, "symbols": symbols, "contexts": contexts, "roundtrip": roundtrip,
    "images": images,
}  # fmt: skip
PYTHON: dict[str, Callable[[bytes], None]] = {
    "stages": stages, "blocks": blocks, "patch": patch, "archive": archive, "sealed": sealed,
    "columns": columns,
    "update": wire.update, "downlink": wire.downlink,
}  # fmt: skip
