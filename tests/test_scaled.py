"""Token streams whose tables the place in a tensor chooses, against readers in plain Python."""

from __future__ import annotations

import numpy as np
import pytest
import twins
from hypothesis import example, given
from hypothesis import strategies as st

import nearzip as nz
from nearzip import _core
from nearzip.stages import Context, Grid, Rans

seeds = st.integers(0, 2**32 - 1)
SHAPES = [
    (40, 33),
    (16, 3, 3, 3),
    (12, 16, 5),
    (200,),
    (9, 8, 2, 2, 2),
    (2, 500),
    (300, 2),
    (64, 1, 3, 3),
    (3, 20, 100),
]


def layer(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Whole numbers whose sizes differ by row and column, alike within a kernel."""
    if len(shape) < 2:
        return np.rint(rng.normal(scale=2, size=shape))
    scale = np.exp2(rng.normal(size=(shape[0], 1)) + rng.normal(size=(1, shape[1])))
    scale = scale.reshape(shape[:2] + (1,) * (len(shape) - 2))
    return np.rint(scale * (rng.normal(size=shape[:2] + (1,) * (len(shape) - 2)) + 0.3 * rng.normal(size=shape)))


def tokens_of(values: np.ndarray) -> np.ndarray:
    folded = np.where(values >= 0, 2 * values, -2 * values - 1)
    return np.minimum(folded.reshape(-1), 255).astype(np.uint8)


def decoded(data: bytes, parts: list[tuple[int, ...]]) -> bytes:
    out = np.empty(sum(part[0] for part in parts), np.uint8)
    _core.decode_tokens(np.frombuffer(data, np.uint8), parts, out)
    return out.tobytes()


def stream(rng: np.random.Generator, shapes: list[tuple[int, ...]]) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Tokens of layers, each a piece of a tensor, and their parts."""
    pieces, parts = [], []
    for shape in shapes:
        tokens = tokens_of(layer(rng, shape))
        start = int(rng.integers(0, tokens.size // 2)) if rng.random() < 0.5 else 0
        pieces.append(tokens[start:])
        parts.append((tokens.size - start, *Grid.of(shape, start)))
    return np.concatenate(pieces), parts


@given(seed=seeds, shapes=st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
@example(seed=1, shapes=[(40, 33)])
@example(seed=2, shapes=[(12, 16, 5)])
@example(seed=3, shapes=[(64, 64, 3, 3)])
def test_streams_read_as_the_format_says(seed, shapes):
    rng = np.random.default_rng(seed)
    tokens, parts = stream(rng, shapes)
    data = _core.encode_tokens(tokens, parts)
    sizes, grids = [part[0] for part in parts], [part[1:] for part in parts]
    assert twins.decode_tokens(data, sizes, grids) == tokens.tobytes()
    assert decoded(data, parts) == tokens.tobytes()


@pytest.mark.parametrize("vectors", [False, True])
@pytest.mark.parametrize(("shape", "neighbours"), [((256, 300), False), ((32, 48, 3, 3), True), ((64, 40, 7), True)])
def test_rows_columns_and_neighbours_save_bits(shape, neighbours, vectors):
    rng = np.random.default_rng(5)
    tokens = tokens_of(layer(rng, shape))
    parts = [(tokens.size, *Grid.of(shape))]
    had = _core.allow_vectors(vectors)
    try:
        data = _core.encode_tokens(tokens, parts)
        assert decoded(data, parts) == tokens.tobytes()
    finally:
        _core.allow_vectors(True)
    assert had or not vectors
    assert data[0] == 128
    assert bool(data[1] & 64) == neighbours
    assert len(data) < 0.95 * len(_core.encode_tokens(tokens, [tokens.size]))
    assert twins.decode_tokens(data, [tokens.size], [Grid.of(shape)]) == tokens.tobytes()


def test_masks_of_sparse_updates_are_scaled_too():
    rng = np.random.default_rng(6)
    values = layer(rng, (256, 400)) * (rng.random((256, 400)) < 0.3 * rng.random((256, 1)) ** 4)
    tokens = tokens_of(values)
    parts = [(tokens.size, *Grid.of((256, 400)))]
    data = _core.encode_tokens(tokens, parts)
    assert data[0] == 64
    at = twins.read_varint(data, 1)[1]
    assert data[at] == 128
    assert decoded(data, parts) == tokens.tobytes()
    assert twins.decode_tokens(data, [tokens.size], [Grid.of((256, 400))]) == tokens.tobytes()


def is_refused(data: bytes, parts: list[tuple[int, ...]]) -> bool:
    try:
        return len(decoded(data, parts)) != parts[0][0]
    except ValueError:
        return True


@pytest.mark.parametrize("shape", [(64, 128), (32, 24, 3, 3)])
def test_damaged_streams_are_refused_or_read_whole(shape):
    rng = np.random.default_rng(7)
    tokens = tokens_of(layer(rng, shape))
    parts = [(tokens.size, *Grid.of(shape))]
    data = _core.encode_tokens(tokens, parts)
    assert data[0] == 128
    cut = [data[:i] for i in range(len(data))]
    bent = [data[:i] + bytes([data[i] ^ 1 << rng.integers(0, 8)]) + data[i + 1 :] for i in range(len(data))]
    refused = [is_refused(each, parts) for each in cut + bent]
    assert all(refused[: len(cut)])
    assert sum(refused) > 1.5 * len(data)


def test_scales_without_rows_are_refused():
    rng = np.random.default_rng(8)
    tokens = tokens_of(layer(rng, (64, 100)))
    data = _core.encode_tokens(tokens, [(tokens.size, *Grid.of((64, 100)))])
    with pytest.raises(ValueError, match="rows that are not known"):
        _core.decode_tokens(np.frombuffer(data, np.uint8), [tokens.size], np.empty(tokens.size, np.uint8))
    for grid in [(100, 0, 1, 0), (100, 3, 1, 0), (100, 10, 3, 0), (100, 1, 0, 0), (100, 1, 1, 2**63 + 1)]:
        with pytest.raises(ValueError, match="rows that no tensor has"):
            decoded(data, [(tokens.size, *grid)])


def test_a_tensor_in_several_blocks_keeps_its_rows():
    rng = np.random.default_rng(9)
    shapes = {"conv": (300, 500, 3, 3), "matrix": (1500, 1100)}
    new = {name: (layer(rng, shape) / 100).astype(np.float32) for name, shape in shapes.items()}
    archive = nz.compress(new, bound=nz.Absolute(0.005))
    flat = nz.compress({name: x.reshape(-1) for name, x in new.items()}, bound=nz.Absolute(0.005))
    assert archive.nbytes < 0.95 * flat.nbytes
    restored = nz.decompress(archive)
    assert all(restored[name].tobytes() == archive.restored[name].tobytes() for name in new)


def test_complex_numbers_have_no_rows():
    values = np.arange(64).reshape(8, 8) + 0j
    context = Context(values.dtype, (64,), None, (Grid.of(values.shape),))
    assert context.laid_parts == (128,)
    symbols = np.zeros(128, np.int32)
    assert Rans().decode(Rans().encode(symbols, context), context).tobytes() == symbols.tobytes()
