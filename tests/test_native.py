"""The native core against its plain twins, and its streams against the entropy of what they hold."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import twins
from hypothesis import example, given
from hypothesis import strategies as st

import nearzip as nz
from nearzip import _core

FLOATS = [np.float32, np.float64]
UNSIGNED = [np.uint8, np.uint16, np.uint32, np.uint64]
SYMBOLS = [np.int32, *UNSIGNED]

seeds = st.integers(0, 2**32 - 1)


def floats_of(rng: np.random.Generator, n: int, dtype: type) -> np.ndarray:
    """Values of every kind: random bits, near neighbours, integers, extremes."""
    bits = {4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    pools = [
        rng.integers(0, np.iinfo(bits).max, n, dtype=bits, endpoint=True).view(dtype),
        rng.normal(0, 10.0 ** rng.integers(-40 if dtype is np.float64 else -6, 7), n).astype(dtype),
        rng.integers(-4, 5, n).astype(dtype) / dtype(4),
        np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).max, -np.finfo(dtype).max, 1.0], dtype)[
            rng.integers(0, 8, n)
        ],
        np.finfo(dtype).smallest_subnormal * rng.integers(-5, 6, n).astype(dtype),
    ]
    return np.ascontiguousarray(np.choose(rng.integers(0, len(pools), n), pools).astype(dtype))


def bits_equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


# ---- passes over values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, n=st.integers(0, 70), with_base=st.booleans(), log_step=st.integers(-30, 10))
def test_quantize_is_its_twin(dtype, seed, n, with_base, log_step):
    rng = np.random.default_rng(seed)
    x, base = floats_of(rng, n, dtype), floats_of(rng, n, dtype) if with_base else None
    step = math.ldexp(rng.choice([1.0, 1.3]), log_step)
    symbols = np.empty(n, np.int32)
    _core.quantize(x, base, step, symbols)
    assert bits_equal(symbols, twins.quantize(x, base, step))
    if step == math.ldexp(1.0, log_step) and base is None:  # division by a power of two is exact
        for value, symbol in zip(x.tolist(), symbols.tolist(), strict=True):
            if math.isfinite(value) and abs(value) < step * 2**30:
                assert symbol == round(Fraction(value) / Fraction(step))


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, n=st.integers(0, 70), with_base=st.booleans(), log_step=st.integers(-1080, 1020))
def test_dequantize_is_its_twin(dtype, seed, n, with_base, log_step):
    rng = np.random.default_rng(seed)
    base = floats_of(rng, n, dtype) if with_base else None
    symbols = rng.integers(-(2**31), 2**31, n, dtype=np.int32) >> rng.integers(0, 31, n, dtype=np.int32)
    step = math.ldexp(rng.uniform(0.5, 1), log_step)
    out = np.empty(n, dtype)
    _core.dequantize(symbols, base, step, out)
    expected = twins.dequantize(symbols, base, step, dtype)
    # The payload of a NaN that arithmetic passes on is not part of the format: the codec patches it.
    assert np.array_equal(np.isnan(out), np.isnan(expected))
    assert bits_equal(np.nan_to_num(out, nan=1.0), np.nan_to_num(expected, nan=1.0))


@pytest.mark.parametrize("dtype", UNSIGNED)
@given(seed=seeds, n=st.integers(0, 70), floats=st.booleans(), spread=st.integers(0, 63))
def test_ordered_delta_is_its_twin_and_can_be_undone(dtype, seed, n, floats, spread):
    rng = np.random.default_rng(seed)
    top = np.iinfo(dtype).max
    base = rng.integers(0, top, n, dtype=dtype, endpoint=True)
    x = base ^ (rng.integers(0, top, n, dtype=dtype, endpoint=True) >> dtype(spread % (8 * base.itemsize)))
    symbols = np.empty(n, dtype)
    _core.ordered_delta(x, base, floats, symbols)
    assert bits_equal(symbols, twins.ordered_delta(x, base, floats))
    restored = np.empty(n, dtype)
    _core.undo_ordered_delta(symbols, base, floats, restored)
    assert bits_equal(restored, x)
    assert bits_equal(twins.undo_ordered_delta(symbols, base, floats), x)


@pytest.mark.parametrize("dtype", UNSIGNED)
@given(seed=seeds, n=st.integers(0, 70), left=st.booleans())
def test_turn_is_its_twin(dtype, seed, n, left):
    x = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, n, dtype=dtype, endpoint=True)
    out = np.empty_like(x)
    _core.turn(x, left, out)
    assert bits_equal(out, twins.turn(x, left))


def test_ordered_integers_sort_like_the_floats():
    x = np.sort(np.random.default_rng(1).normal(0, 1e-30, 1000).astype(np.float32)).view(np.uint32)
    zero = np.zeros_like(x)
    symbols = np.empty_like(x)
    _core.ordered_delta(x[1:].copy(), x[:-1].copy(), True, symbols[1:])
    assert (symbols[1:] % 2 == 0).all(), "every difference to a smaller float is positive"
    _core.ordered_delta(x, zero, True, symbols)
    assert (symbols % 2 == (x.view(np.float32) < 0)).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("relative", [False, True])
@given(seed=seeds, n=st.integers(0, 60), tie=st.booleans(), log_tolerance=st.integers(-300, 5))
def test_outside_is_exact(dtype, relative, seed, n, tie, log_tolerance):
    rng = np.random.default_rng(seed)
    x = floats_of(rng, n, dtype)
    y = np.where(rng.random(n) < 0.4, x, floats_of(rng, n, dtype))
    with np.errstate(all="ignore"):
        near = (x * dtype(1 + 2.0**-10)).astype(dtype)
    y = np.where(rng.random(n) < 0.4, near, y)
    tolerance = 10.0 ** rng.uniform(log_tolerance - 1, log_tolerance)
    if tie and n:  # a tolerance that one pair meets exactly, or misses by the rounding of the difference
        with np.errstate(all="ignore"):
            distance = abs(float(x[0]) - float(y[0])) / (abs(float(x[0])) if relative and x[0] else 1.0)
        if 0 < distance < 1e300:
            tolerance = distance * float(rng.choice([1.0, 1 - 2.0**-53, 1 + 2.0**-52]))
    found = list(_core.outside(x, y, tolerance, relative))
    expected = twins.outside(x, y, tolerance, relative)
    if relative:  # may call out the last place of a product, never miss
        assert set(expected) <= set(found)
        wrongly = [i for i in found if i not in expected]
        # Just below the bound in the last places is the only excuse.
        slack = Fraction(tolerance) * (1 - Fraction(1, 2**50))
        for i in wrongly:
            difference = abs(Fraction(float(x[i])) - Fraction(float(y[i])))
            assert difference > slack * abs(Fraction(float(x[i]))) - Fraction(2) ** -1073
    else:
        assert found == expected


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, parts=st.lists(st.integers(0, 80), min_size=1, max_size=4), finite=st.booleans())
def test_changes_are_those_of_the_twin(dtype, seed, parts, finite):
    rng = np.random.default_rng(seed)
    n = sum(parts)
    tolerance = 10.0 ** rng.uniform(-6, 2)
    if finite:
        x = rng.normal(0, 1, n).astype(dtype)
        base = np.where(rng.random(n) < 0.3, x, x + rng.normal(0, tolerance * 10.0 ** rng.uniform(-9, 9), n)).astype(
            dtype
        )
    else:
        x, base = floats_of(rng, n, dtype), floats_of(rng, n, dtype)
    with np.errstate(all="ignore"):
        y = np.where(rng.random(n) < 0.4, base, (x + rng.uniform(-1, 1, n) * tolerance).astype(dtype))
    found, rows = _core.outside_and_changes(x, y, base, tolerance, False, parts)
    assert found == _core.outside(x, y, tolerance, False)
    at = 0
    for part, (n_changed, n_kept, squares, error) in zip(parts, rows, strict=True):
        piece = slice(at, at + part)
        expected = twins.change(x[piece], y[piece], base[piece])
        at += part
        assert (n_changed, n_kept) == expected[:2]
        for ours, exact in ((squares, expected[2]), (error, expected[3])):
            # Squares of single precision lose digits only where they are far below what can be kept of them at all.
            if 1e-280 < exact < 1e300:
                assert ours == pytest.approx(float(exact), rel=1e-4)


def test_changes_beyond_one_stretch_and_what_is_not_finite():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, 20_000).astype(np.float32)
    base = x + rng.normal(0, 1e-3, x.size).astype(np.float32)
    y = x + np.float32(1e-4)
    x[100], base[5000], y[12_000] = np.nan, np.inf, -np.inf
    found, [row] = _core.outside_and_changes(x, y, base, 1e-3, False, [x.size])
    assert found == [100, 12_000]
    changed, kept, squares, error = twins.change(x, y, base)
    assert row[:2] == (changed, kept)
    assert row[2:] == pytest.approx((float(squares), float(error)), rel=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
@given(
    seed=seeds, parts=st.lists(st.integers(0, 9000), min_size=1, max_size=3), scale=st.sampled_from([0.1, 3, 1e9, 1e14])
)
def test_decoding_and_comparing_at_once_are_both(dtype, seed, parts, scale):
    """Few symbols that are not zero, many, and steps so fine that symbols are split by byte planes."""
    rng = np.random.default_rng(seed)
    n, step = sum(parts), 1e-3
    base = rng.normal(0, 1, n).astype(dtype)
    x = (base + rng.normal(0, scale * step, n)).astype(dtype)
    data = np.frombuffer(_core.encode_quantized(x, base, step, parts), np.uint8)
    alone, together = np.empty(n, dtype), np.empty(n, dtype)
    _core.decode_quantized(data, base, step, parts, alone)
    found, rows = _core.decode_and_compare(data, base, step, parts, x, step / 2, together)
    assert together.tobytes() == alone.tobytes()
    expected, expected_rows = _core.outside_and_changes(x, alone, base, step / 2, False, parts)
    assert found == expected
    assert [row[:2] for row in rows] == [row[:2] for row in expected_rows]
    for row, other in zip(rows, expected_rows, strict=True):
        assert row[2:] == pytest.approx(other[2:], rel=1e-4)


@given(
    seed=seeds,
    step=st.floats(1e-44, 1e38),
    spread=st.sampled_from([0.1, 1, 30, 150]),
    kind=st.sampled_from(["any", "halves", "outliers", "not finite", "no base"]),
)
@example(seed=0, step=1e-3, spread=1, kind="halves")
@example(seed=1, step=1e-3, spread=30, kind="halves")
def test_symbols_are_those_of_double_precision(seed, step, spread, kind):
    """Encoding looks at single precision first, but takes nothing uncertain from it, as near halves."""
    rng = np.random.default_rng(seed)
    n = 2000
    wide = rng.normal(0, 10.0 ** rng.uniform(-2, 4) * step, n).clip(-3e38, 3e38)
    base = None if kind == "no base" else wide.astype(np.float32)
    steps = rng.normal(0, spread, n)
    if kind == "halves":
        steps = np.round(steps) + rng.choice([0.5, 0.5 - 1e-6, 0.5 + 1e-6], n)
    if kind == "outliers":
        steps[rng.integers(0, n, 3)] *= 1e5
    with np.errstate(over="ignore"):  # steps near the largest float
        x = ((0 if base is None else base.astype(np.float64)) + steps * step).astype(np.float32)
    if kind == "not finite":
        x[rng.integers(0, n, 3)] = [np.nan, np.inf, -np.inf]
        base[rng.integers(0, n)] = np.inf
    symbols = np.empty(n, np.int32)
    _core.quantize(x, base, step, symbols)
    assert _core.encode_quantized(x, base, step, [n]) == _core.encode_symbols(symbols, [n], False)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64])
@given(seed=seeds, n=st.integers(0, 2000), kinds=st.sampled_from([1, 2, 100, 256]))
def test_entropy_is_that_of_the_counts(dtype, seed, n, kinds):
    words = np.random.default_rng(seed).integers(0, kinds, n).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    counts = np.unique(words, return_counts=True)[1] / max(1, n)
    expected = float(-(counts * np.log2(counts)).sum())
    assert _core.entropy(words) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, enough=st.integers(0, 70), stride=st.integers(1, 9))
def test_nearness_counts_every_look(dtype, seed, enough, stride):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, 64 * stride).astype(dtype)
    base = np.where(rng.random(x.size) < 0.5, x, rng.normal(0, 1, x.size)).astype(dtype)
    one, other = (values[::stride].astype(np.float32) for values in (x, base))
    n_near = np.count_nonzero(np.abs(one - other) <= np.float32(0.1) * np.abs(one))
    assert _core.is_near(x, base, stride, 64, 0.1, enough) == (n_near > enough)


def test_looks_stay_within_the_values():
    x = np.zeros(100, np.float32)
    with pytest.raises(ValueError, match="looks go beyond"):
        _core.is_near(x, x, 3, 34, 0.1, 1)


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, n=st.integers(0, 400), with_base=st.booleans())
def test_sampled_levels_are_those_of_numpy(dtype, seed, n, with_base):
    rng = np.random.default_rng(seed)
    x, base = floats_of(rng, n, dtype), floats_of(rng, n, dtype)
    total, known = _core.sampled_levels(x, base if with_base else None, 0.01, 4, 16, 1e5)
    picked = np.arange(n)
    if n > 64:
        picked = np.concatenate([np.arange(16) + i * (n - 16) // 3 for i in range(4)])
    with np.errstate(all="ignore"):
        moved = x.astype(np.float64) - (base.astype(np.float64) if with_base else 0.0)
        levels = np.abs(np.rint(moved[picked] / 0.01))
    levels = levels[levels < 1e5]
    assert (total, known) == (levels.sum(), levels.size)


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, n=st.integers(0, 5000))
def test_difference_is_that_of_the_twin(dtype, seed, n):
    rng = np.random.default_rng(seed)
    x, base = floats_of(rng, n, dtype), floats_of(rng, n, dtype)
    with np.errstate(all="ignore"):
        differences = x.astype(np.float64) - base.astype(np.float64)
    finite = differences[np.isfinite(differences)]
    n_finite, squares = _core.difference(x, base)
    assert n_finite == finite.size
    with np.errstate(all="ignore"):
        exact = math.fsum(np.square(finite)) if (np.square(finite) < 1e300).all() else math.inf
    if 1e-280 < exact < math.inf:
        assert squares == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, n=st.integers(0, 3000), constant=st.booleans())
def test_pair_sums_are_numpys(dtype, seed, n, constant):
    rng = np.random.default_rng(seed)
    a = np.full(n, 0.1, dtype) if constant else rng.normal(1, 2, n).astype(dtype)
    b = (0.5 * a + rng.normal(0, 0.1, n)).astype(dtype)
    a[rng.random(n) < 0.05], b[rng.random(n) < 0.05] = np.nan, np.inf
    x, y = a.astype(np.float64), b.astype(np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    n_finite, odd, found = _core.pair_sums(a, b)
    assert n_finite == both.sum()
    assert odd == (~both & ~((x == y) | (np.isnan(x) & np.isnan(y)))).sum()
    if not n_finite:
        return
    x, y = x[both], y[both]
    d, p, q = y - x, x - x.mean(), y - y.mean()
    of = np.abs(x[x != 0])
    expected = [
        np.abs(d).max(), (np.abs(d[x != 0]) / of).max(initial=0), d.sum(), np.abs(d).sum(), d @ d, x.mean(), y.mean(),
        p @ p, q @ q, p @ q, min(x.min(), y.min()), max(x.max(), y.max()),
    ]  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    if constant:
        assert found[7] == 0, "what does not vary has no variance"


def test_outside_finds_places_in_every_stretch():
    x = np.zeros(20_000, np.float32)
    y = x.copy()
    places = [0, 1, 4095, 4096, 12_345, 19_999]
    y[places] = 1
    assert list(_core.outside(x, y, 0.5, False)) == places
    assert list(_core.outside(x, y, 1.0, False)) == []


@pytest.mark.parametrize("dtype", FLOATS)
@given(seed=seeds, n=st.integers(0, 300))
def test_statistics_are_those_of_the_finite_values(dtype, seed, n):
    x = floats_of(np.random.default_rng(seed), n, dtype)
    finite, low, high, squares = _core.statistics(x)
    expected = twins.statistics(x)
    assert (finite, low, high) == expected[:3]
    largest = Fraction(np.finfo(np.float64).max.item())
    if expected[3] < largest * (1 - Fraction(1, 2**40)):
        error = abs(Fraction(squares) - expected[3])
        assert error <= expected[3] * Fraction(max(1, n), 2**52) + Fraction(n, 2**1074)


# ---- streams ---------------------------------------------------------------------------------------------------


def parts_of(rng: np.random.Generator, n: int) -> list[int]:
    cuts = np.sort(rng.integers(0, n + 1, rng.integers(0, 5)))
    return np.diff(np.concatenate([[0], cuts, [n]])).astype(int).tolist()


def tokens_of(rng: np.random.Generator, n: int) -> np.ndarray:
    kinds = [
        lambda m: np.full(m, rng.integers(0, 256)),
        lambda m: rng.integers(0, rng.integers(1, 257), m),
        lambda m: np.abs(rng.normal(0, rng.uniform(0.1, 30), m)).clip(0, 255),
        lambda m: np.where(rng.random(m) < 0.999, 3, 200),
    ]
    pieces = [kinds[rng.integers(0, len(kinds))](m) for m in parts_of(rng, n)]
    return np.concatenate(pieces).astype(np.uint8)


def decoded_tokens(data: bytes, parts: list[int]) -> bytes:
    out = np.empty(sum(parts), np.uint8)
    _core.decode_tokens(np.frombuffer(data, np.uint8), parts, out)
    return out.tobytes()


@given(seed=seeds, n=st.one_of(st.integers(0, 100), st.integers(0, 12_000)))
@example(seed=1, n=100_000)
def test_token_streams_read_as_the_format_says(seed, n):
    rng = np.random.default_rng(seed)
    tokens, parts = tokens_of(rng, n), parts_of(rng, n)
    data = _core.encode_tokens(tokens, parts)
    assert twins.decode_tokens(data, parts) == tokens.tobytes()
    assert decoded_tokens(data, parts) == tokens.tobytes()
    assert len(data) <= n + 8 + 40


def test_noise_is_stored_and_what_only_looks_like_it_is_not():
    rng = np.random.default_rng(4)
    noise = rng.integers(0, 256, 200_000).astype(np.uint8)
    assert len(_core.encode_tokens(noise, [noise.size])) == noise.size + 1
    assert len(_core.encode_tokens(noise | 1, [noise.size])) < 0.88 * noise.size
    steps = (noise[: 1 << 16] >> 2) + np.repeat([0, 64, 128, 192], 1 << 14).astype(np.uint8)
    assert len(_core.encode_tokens(steps, [steps.size])) < 0.77 * steps.size


@pytest.mark.parametrize("share", [0.001, 0.02, 0.11])
def test_zeros_stand_apart_where_there_are_many(share):
    rng = np.random.default_rng(3)
    n = 70_001
    tokens = (rng.integers(1, 256, n) * (rng.random(n) < share)).astype(np.uint8)
    parts = [3, 0, 30_000, 1, n - 30_004]
    data = _core.encode_tokens(tokens, parts)
    assert data[0] == 64 or share < 0.01
    assert twins.decode_tokens(data, parts) == tokens.tobytes()
    assert decoded_tokens(data, parts) == tokens.tobytes()


@given(seed=seeds, parts=st.lists(st.integers(0, 70), min_size=1, max_size=4))
def test_masks_are_as_the_format_says(seed, parts):
    """Streams that our encoder thinks too short; and masks that say too much are refused."""
    rng = np.random.default_rng(seed)
    n = sum(parts)
    tokens = (rng.integers(0, 256, n) * (rng.random(n) < 0.3)).astype(np.uint8)
    starts = np.cumsum([0, *parts])
    pieces = [tokens[start : start + part] for start, part in zip(starts, parts, strict=False)]
    padded = [np.pad(piece, (0, -piece.size % 4)).reshape(-1, 4) != 0 for piece in pieces]
    masks = np.concatenate([(flags * [1, 2, 4, 8]).sum(axis=1) for flags in padded]).astype(np.uint8)
    body = b"\0" + tokens[tokens != 0].tobytes()

    def stream(masks: np.ndarray) -> bytes:
        return b"\x40" + twins.varint(1 + masks.size) + b"\0" + masks.tobytes() + body

    assert twins.decode_tokens(stream(masks), parts) == tokens.tobytes()
    assert decoded_tokens(stream(masks), parts) == tokens.tobytes()
    for i in range(min(8, masks.size)):
        bent = masks.copy()
        bent[i] ^= 1 << rng.integers(0, 8)
        with pytest.raises(ValueError, match=r"mask out of range|another length"):
            decoded_tokens(stream(bent), parts)
    if body[1:]:
        body = body[:-1] + b"\0"
        with pytest.raises(ValueError, match="a zero among"):
            decoded_tokens(stream(masks), parts)


@given(
    seed=seeds,
    n=st.integers(1, 3000),
    scale=st.integers(8, 16),
    chunk_log=st.integers(6, 24),
    lanes=st.sampled_from([twins.LANES, twins.MANY_LANES]),
)
def test_every_stream_that_the_format_allows_can_be_read(seed, n, scale, chunk_log, lanes):
    """Scales, chunk sizes and numbers of tables that our own encoder does not choose."""
    rng = np.random.default_rng(seed)
    tokens, parts = tokens_of(rng, n), parts_of(rng, n)
    used = np.unique(tokens)[: 1 << (scale - 1)]
    tokens = used[rng.integers(0, used.size, n)].astype(np.uint8)
    tables = []
    for _ in range(rng.integers(1, 17)):
        share = rng.dirichlet(np.full(used.size, 0.5))
        freqs = np.zeros(256, np.int64)
        freqs[used] = 1 + np.floor(share * ((1 << scale) - used.size)).astype(np.int64)
        freqs[rng.choice(used)] += (1 << scale) - freqs.sum()
        tables.append(freqs.tolist())
    table_of = rng.integers(0, len(tables), len(twins.chunk_sizes(parts, chunk_log))).tolist()
    if len(tables) == 1:
        table_of = [0] * len(table_of)
    data = twins.encode_tokens(tokens.tobytes(), parts, scale, chunk_log, tables, table_of, lanes)
    assert twins.decode_tokens(data, parts) == tokens.tobytes()
    assert decoded_tokens(data, parts) == tokens.tobytes()


@pytest.mark.parametrize("value", [1.0, 3.3, -1e4])
def test_large_numbers_that_are_alike_cost_next_to_nothing(value):
    x = np.full(40_000, value, np.float32)
    x[::1000] = 0
    archive = nz.compress({"x": x}, bound=nz.Absolute(1e-3))
    assert archive.nbytes < 1500
    assert nz.decompress(archive)["x"].tobytes() == archive.restored["x"].tobytes()
    symbols = np.full(5000, 123_456, np.int32)
    data = _core.encode_symbols(symbols, [5000], False)
    assert len(data) < 100
    assert bits_equal(twins.decode_symbols(data, [5000], np.int32), symbols)


def symbols_of(rng: np.random.Generator, n: int, dtype: type) -> np.ndarray:
    info = np.iinfo(dtype)
    whole = rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True)
    shift = rng.integers(0, 8 * whole.itemsize, n).astype(dtype)
    return [
        np.zeros(n, dtype),
        whole,
        whole >> shift,
        whole >> dtype(max(0, 8 * whole.itemsize - 9)),
        np.where(rng.random(n) < 0.02, whole, dtype(1)).astype(dtype),
        np.where(rng.random(n) < 0.5, dtype(info.min), dtype(info.max)).astype(dtype),
    ][rng.integers(0, 6)]


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("dtype", SYMBOLS)
@given(seed=seeds, n=st.one_of(st.integers(0, 100), st.integers(0, 6000)))
def test_symbol_streams_read_as_the_format_says(dtype, planes, seed, n):
    rng = np.random.default_rng(seed)
    symbols, parts = symbols_of(rng, n, dtype), parts_of(rng, n)
    data = _core.encode_symbols(symbols, parts, planes)
    assert bits_equal(twins.decode_symbols(data, parts, dtype), symbols)
    out = np.empty(n, dtype)
    _core.decode_symbols(np.frombuffer(data, np.uint8), parts, out)
    assert bits_equal(out, symbols)


@pytest.mark.parametrize("dtype", FLOATS)
@given(
    seed=seeds,
    n=st.one_of(st.integers(0, 70), st.integers(0, 6000)),
    with_base=st.booleans(),
    log_step=st.integers(-30, 10),
)
def test_coding_quantized_values_in_one_pass_is_coding_them_in_two(dtype, seed, n, with_base, log_step):
    rng = np.random.default_rng(seed)
    x, base = floats_of(rng, n, dtype), floats_of(rng, n, dtype) if with_base else None
    parts, step = parts_of(rng, n), math.ldexp(rng.uniform(1, 2), log_step)
    symbols = twins.quantize(x, base, step)
    data = _core.encode_quantized(x, base, step, parts)
    assert data == _core.encode_symbols(symbols, parts, False)
    out = np.empty(n, dtype)
    _core.decode_quantized(np.frombuffer(data, np.uint8), base, step, parts, out)
    expected = twins.dequantize(twins.decode_symbols(data, parts, np.int32), base, step, dtype)
    assert np.array_equal(np.isnan(out), np.isnan(expected))
    assert bits_equal(np.nan_to_num(out, nan=1.0), np.nan_to_num(expected, nan=1.0))


MANTISSA_BITS = {np.uint8: (2, 3), np.uint16: (7, 10), np.uint32: (23,), np.uint64: (52,)}


def versions_of(rng: np.random.Generator, n: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """A base of any bits, or of floats of like size, and a version of it: near, equal in stretches, or anything."""
    top, width = np.iinfo(dtype).max, 8 * np.dtype(dtype).itemsize
    anything = rng.integers(0, top, n, dtype=dtype, endpoint=True)
    middle = anything & dtype(top >> 3) | dtype(1 << (width - 3))
    base = [anything, middle][rng.integers(0, 2)]
    noise = rng.integers(0, top, n, dtype=dtype, endpoint=True) >> dtype(rng.integers(0, width))
    x = [base + noise, base - (noise & dtype(3)), anything[::-1].copy()][rng.integers(0, 3)]
    same = rng.random(n) < rng.choice([0, 0.5, 0.99, 0.999, 1])
    stretches = (np.arange(n) // 700 % 2 == 0) & (rng.random() < 0.5)
    return base, np.where(same | stretches, base, x).astype(dtype)


@pytest.mark.parametrize("dtype", UNSIGNED)
@given(seed=seeds, n=st.one_of(st.integers(0, 100), st.integers(0, 6000)), floats=st.booleans())
@example(seed=8, n=50_000, floats=True)
def test_context_streams_read_as_the_format_says(dtype, seed, n, floats):
    rng = np.random.default_rng(seed)
    base, x = versions_of(rng, n, dtype)
    parts = parts_of(rng, n)
    kind = (floats, int(rng.choice(MANTISSA_BITS[dtype])) if floats else 0)
    data = _core.encode_contexts(x, base, *kind, parts)
    assert len(data) <= 1 + x.nbytes
    assert bits_equal(twins.decode_contexts(data, base, *kind, parts), x)
    out = np.empty_like(x)
    _core.decode_contexts(np.frombuffer(data, np.uint8), base, *kind, parts, out)
    assert bits_equal(out, x)


def test_an_unchanged_block_is_one_byte():
    x = np.arange(100_000, dtype=np.uint32)
    assert len(_core.encode_contexts(x, x, True, 23, [x.size])) == 1


def test_only_mantissas_that_exist():
    x = np.zeros(4, np.uint32)
    for bits in (-1, 33, 19, 2**31 - 1):
        with pytest.raises(ValueError, match="mantissa bits"):
            _core.encode_contexts(x, x, True, bits, [4])
        with pytest.raises(ValueError, match="mantissa bits"):
            _core.decode_contexts(np.zeros(1, np.uint8), x, True, bits, [4], x)


def test_contexts_come_near_the_entropy_within_them():
    """Updates of one size to values of many exponents: order-0 coding pays for not knowing which is which."""
    rng = np.random.default_rng(5)
    n = 400_000
    base = (rng.normal(0, 1, n) * 2.0 ** rng.integers(-7, 1, n)).astype(np.float32)
    x = (base + rng.laplace(0, 1e-4, n)).astype(np.float16).view(np.uint16)
    base = base.astype(np.float16).view(np.uint16)
    symbols = np.empty_like(x)
    _core.ordered_delta(x, base, True, symbols)
    alone = len(_core.encode_symbols(symbols, [n], False))
    coded = len(_core.encode_contexts(x, base, True, 10, [n]))
    bits = 0.0
    for e in np.unique(base >> 10):  # sign and exponent
        counts = np.unique(symbols[base >> 10 == e], return_counts=True)[1]
        bits += float((counts * np.log2(counts.sum() / counts)).sum())
    assert coded < 0.85 * alone
    assert coded < 1.04 * bits / 8


@pytest.mark.parametrize("seed", range(8))
def test_vectors_change_no_byte(seed):
    if not _core.allow_vectors(True):
        pytest.skip("this processor or build has no AVX2 loops")
    rng = np.random.default_rng(seed)
    n = 80_000
    tokens = np.abs(rng.normal(0, 10.0 ** (seed / 4), n)).clip(0, 255).astype(np.uint8)
    base, x = versions_of(rng, n, np.uint16)
    parts = parts_of(rng, n)
    try:
        made = []
        for allowed in (False, True):
            _core.allow_vectors(allowed)
            made.append((_core.encode_tokens(tokens, parts), _core.encode_contexts(x, base, True, 7, parts)))
        assert made[0] == made[1]
        for allowed in (False, True):
            _core.allow_vectors(allowed)
            assert decoded_tokens(made[0][0], parts) == tokens.tobytes()
            out = np.empty_like(x)
            _core.decode_contexts(np.frombuffer(made[0][1], np.uint8), base, True, 7, parts, out)
            assert bits_equal(out, x)
            half = np.frombuffer(made[0][0], np.uint8)[:-10_000]
            with pytest.raises(ValueError, match=r"ends early|too long|does not close"):
                decoded_tokens(half, parts)
    finally:
        _core.allow_vectors(True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_base", [False, True])
def test_quantized_values_that_are_mostly_zero(dtype, with_base):
    """The decoder goes from masks to values directly; long tokens, -0.0 and what is not finite included."""
    rng = np.random.default_rng(9)
    n = 90_003
    base = floats_of(rng, n, dtype) if with_base else None
    moves = np.where(rng.random(n) < 0.1, rng.laplace(0, 40, n), 0.0)
    with np.errstate(all="ignore"):
        x = ((base if with_base else np.zeros(n)) + moves).astype(dtype)
    parts = [1, 0, 50_001, 3, n - 50_005]
    data = _core.encode_quantized(x, base, 0.5, parts)
    assert data == _core.encode_symbols(twins.quantize(x, base, 0.5), parts, False)
    size, at = twins.read_varint(data, 2)
    assert data[at] == 64, "zeros stand apart"
    out = np.empty(n, dtype)
    _core.decode_quantized(np.frombuffer(data, np.uint8), base, 0.5, parts, out)
    expected = twins.dequantize(twins.decode_symbols(data, parts, np.int32), base, 0.5, dtype)
    assert np.array_equal(np.isnan(out), np.isnan(expected))
    assert bits_equal(np.nan_to_num(out, nan=1.0), np.nan_to_num(expected, nan=1.0))
    for cut in (1, 5, size // 2):
        with pytest.raises(ValueError, match=r"."):
            _core.decode_quantized(np.frombuffer(data, np.uint8)[:-cut], base, 0.5, parts, out)


def test_chunks_do_not_span_parts():
    """Two parts of one chunk each, told apart: their tables differ, so neither pays for the other."""
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 4, 2000), rng.integers(100, 104, 2000)
    tokens = np.concatenate([one, two]).astype(np.uint8)
    header = twins.read_token_header(_core.encode_tokens(tokens, [2000, 2000]), [2000, 2000])
    assert header is not None
    assert header.chunks == [2000, 2000]
    assert header.table_of in ([0, 1], [1, 0])


def test_parts_must_add_up():
    tokens = np.zeros(10, np.uint8)
    for parts in ([], [9], [11], [5, 6], [2**64 - 1, 11], [2**63, 2**63, 10]):
        with pytest.raises(ValueError, match="parts do not add up"):
            _core.encode_tokens(tokens, parts)
        with pytest.raises(ValueError, match="parts do not add up"):
            _core.decode_tokens(tokens, parts, np.empty(10, np.uint8))


def test_arrays_must_be_of_one_size():
    x, short = np.zeros(4, np.float32), np.zeros(3, np.float32)
    symbols = np.zeros(4, np.int32)
    calls = [
        lambda: _core.quantize(short, None, 1.0, symbols),
        lambda: _core.quantize(x, short, 1.0, symbols),
        lambda: _core.dequantize(symbols, short, 1.0, x),
        lambda: _core.dequantize(symbols, None, 1.0, short),
        lambda: _core.outside(x, short, 1.0, False),
        lambda: _core.outside_and_changes(x, x, short, 1.0, False, [4]),
        lambda: _core.difference(x, short),
        lambda: _core.is_near(x, short, 1, 3, 0.1, 1),
        lambda: _core.sampled_levels(x, short, 1.0, 1, 1, 1.0),
        lambda: _core.decode_and_compare(np.zeros(1, np.uint8), short, 1.0, [4], x, 1.0, x),
        lambda: _core.decode_and_compare(np.zeros(1, np.uint8), x, 1.0, [4], short, 1.0, x),
        lambda: _core.pair_sums(x, short),
        lambda: _core.ordered_delta(symbols.view(np.uint32), short.view(np.uint32), True, x.view(np.uint32)),
        lambda: _core.encode_contexts(symbols.view(np.uint32), short.view(np.uint32), True, 23, [4]),
        lambda: _core.decode_contexts(
            np.zeros(1, np.uint8), short.view(np.uint32), True, 23, [4], symbols.view(np.uint32)
        ),
        lambda: _core.undo_ordered_delta(symbols.view(np.uint32), x.view(np.uint32), True, short.view(np.uint32)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="differ in size"):
            call()


def test_arrays_are_never_converted():
    """A converted copy would be rounded to float32, or take the output in place of the caller's array."""
    x, y = np.array([-5e-324, 1.0]), np.zeros(2)
    assert list(_core.outside(x, y, np.float64(0.999), True)) == [0, 1]
    out = np.full(2, 7.0)
    _core.dequantize(np.array([1, -1], np.int32), None, np.int64(1), out)
    assert out.tolist() == [1.0, -1.0]
    with pytest.raises(TypeError):
        _core.dequantize(np.array([1, -1], np.int64), None, 1.0, out)
    with pytest.raises(TypeError):
        _core.quantize(x, y, 1.0, np.empty(2, np.int64))
    with pytest.raises(TypeError):
        _core.ordered_delta(np.zeros(2, np.int32), np.zeros(2, np.uint32), False, np.zeros(2, np.uint32))


# ---- how close to the entropy ----------------------------------------------------------------------------------


def _rounded(values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
    return np.rint(values).astype(dtype)


def _skewed(zero: float, n: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    symbols = np.zeros(n, np.int32)
    places = np.flatnonzero(rng.random(n, np.float32) >= zero)
    symbols[places] = _rounded(rng.laplace(0, 1.5, places.size))
    return symbols


DISTRIBUTIONS = {
    "laplace, width 0.3": lambda r: _rounded(r.laplace(0, 0.3, 1_000_000)),
    "laplace, width 1": lambda r: _rounded(r.laplace(0, 1, 400_000)),
    "laplace, width 10": lambda r: _rounded(r.laplace(0, 10, 400_000)),
    "laplace, width 100": lambda r: _rounded(r.laplace(0, 100, 1_000_000)),
    "gaussian, width 0.5": lambda r: _rounded(r.normal(0, 0.5, 800_000)),
    "gaussian, width 5": lambda r: _rounded(r.normal(0, 5, 400_000)),
    "gaussian, width 300": lambda r: _rounded(r.normal(0, 300, 1_000_000)),
    # One-sided ones as unsigned symbols: with signed ones, the sign bit of values over 128 would be sent raw.
    "uniform, 0 to 99": lambda r: r.integers(0, 100, 400_000, np.uint8),
    "uniform, 0 to 1999": lambda r: r.integers(0, 2000, 1_000_000, np.uint16),
    "uniform, -700 to 700": lambda r: r.integers(-700, 701, 1_000_000, np.int32),
    "uniform, 0 to 40 000": lambda r: r.integers(0, 40_001, 3_000_000, np.uint32),
    "zeros, 90 %": lambda r: _skewed(0.9, 1_000_000),
    "zeros, 99 %": lambda r: _skewed(0.99, 8_000_000),
    "zeros, 99.9 %": lambda r: _skewed(0.999, 24_000_000),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_stream_costs_little_more_than_its_entropy(name):
    symbols = DISTRIBUTIONS[name](np.random.default_rng(7))
    low = int(symbols.min())
    counts = np.bincount(symbols - symbols.dtype.type(low))
    counts = counts[counts > 0]
    bits = float((counts * np.log2(symbols.size / counts)).sum())
    assert counts.size < symbols.size / 50, "otherwise the entropy of the sample says too little"
    data = _core.encode_symbols(symbols, [symbols.size], False)
    at = 2
    size, at = twins.read_varint(data, at)
    tables = twins.table_bytes(data[at : at + size])
    assert len(data) >= 32_000
    # Frequencies are multiples of 2^-16: many kinds of symbols that are rarer than that cost more than they should.
    share = 1.035 if name == "zeros, 99.9 %" else 1.005
    assert len(data) <= share * bits / 8 + tables + 64


# ---- huffman ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), st.integers(1, 40))
def test_huffman_codes_are_read_from_anywhere(data, starts, stretch):
    """Wherever a stretch is said to begin; beyond the data stand zeros."""
    n = stretch * (len(starts) - 1) + 1
    lengths = np.random.default_rng(7).integers(1, 17, 1 << 16).astype(np.uint32)
    table = np.arange(1 << 16, dtype=np.uint32) | lengths << 16
    out, stops = np.empty(n, np.uint16), np.empty(len(starts), np.uint64)
    _core.decode_huffman(np.frombuffer(data, np.uint8), np.array(starts, np.uint64), stretch, table, out, stops)
    bits = "".join(f"{byte:08b}" for byte in data)
    for k, start in enumerate(starts):
        at = start
        for i in range(k * stretch, min(n, (k + 1) * stretch)):
            at = min(at, len(bits))
            window = int(bits[at : at + 16].ljust(16, "0"), 2)
            assert out[i] == window
            at += int(lengths[window])
        assert stops[k] == at


def test_huffman_arrays_must_fit_together():
    data, table = np.zeros(4, np.uint8), np.full(1 << 16, 1 << 16, np.uint32)
    starts, out = np.zeros(2, np.uint64), np.empty(5, np.uint16)
    for arguments in (
        (data, starts, 5, table, out, starts.copy()),
        (data, starts, 0, table, out, starts.copy()),
        (data, starts, 3, table[:-1], out, starts.copy()),
        (data, starts, 3, table, out, np.zeros(1, np.uint64)),
    ):
        with pytest.raises(ValueError, match=r"begins somewhere|every window|differ in size"):
            _core.decode_huffman(*arguments)
