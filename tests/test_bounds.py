"""The promise: no value of any tensor is outside its bound, by an oracle that shares nothing with the codec."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from arrays import FLOATS, random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import judge

import nearzip as nz
from nearzip.bounds import Statistics, Tolerance, parse_bound, violations
from nearzip.tensors import DTYPES

KINDS = {
    "lossless": nz.Lossless,
    "abs": nz.Absolute,
    "rel": nz.Relative,
    "pwrel": nz.PointwiseRelative,
    "rms": nz.Rms,
}
WAYS = [
    *(("nearzip", kind, {}) for kind in KINDS),
    ("delta-dnn", "abs", {"mode": "absolute"}),
    ("delta-dnn", "pwrel", {"mode": "relative"}),
    ("zstd", "abs", {"level": 1}),
]
IDS = [f"{method}, {kind}" for method, kind, _ in WAYS]

seeds = st.integers(0, 2**32 - 1)


def bound_of(kind: str, value: float) -> nz.Bound:
    return nz.Lossless() if kind == "lossless" else KINDS[kind](value)


def same_bits(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@pytest.mark.parametrize(("method", "kind", "options"), WAYS, ids=IDS)
@settings(max_examples=max(100, settings.default.max_examples))
@given(seed=seeds, log_value=st.floats(-8, 0.5), with_base=st.booleans())
def test_no_value_is_outside_its_bound(method, kind, options, seed, log_value, with_base):
    rng = np.random.default_rng(seed)
    tensors, base = random_network(rng, 20, tuple(DTYPES), with_base)
    value = 10.0**log_value
    archive = nz.compress(tensors, base=base, method=method, bound=bound_of(kind, value), options=options, threads=1)
    for name, array in tensors.items():
        verdict = judge(array, archive.restored[name], kind, value)
        assert not verdict.broken, f"{name}: {array.dtype} {array.shape}: {array!r}"
    assert same_bits(nz.decompress(archive.to_bytes(), base=base, threads=1), archive.restored)


@pytest.mark.parametrize(("method", "kind", "options"), WAYS, ids=IDS)
@given(seed=seeds)
def test_the_bytes_do_not_depend_on_the_number_of_threads(method, kind, options, seed):
    rng = np.random.default_rng(seed)
    tensors, base = random_network(rng, 12, tuple(DTYPES))
    archives = [
        nz.compress(tensors, base=base, method=method, bound=bound_of(kind, 1e-3), options=options, threads=threads)
        for threads in (1, 2, 5)
    ]
    assert len({archive.to_bytes() for archive in archives}) == 1
    for threads in (2, 5):
        assert same_bits(nz.decompress(archives[0], base=base, threads=threads), archives[0].restored)


@pytest.mark.parametrize("value", [1e-300, 5e-324, 1e300, 1.7e308], ids=str)
@pytest.mark.parametrize(("method", "kind", "options"), WAYS[1:], ids=IDS[1:])
def test_extreme_bounds_are_kept(method, kind, options, value):
    rng = np.random.default_rng(5)
    tensors, base = random_network(rng, 30, FLOATS)
    archive = nz.compress(tensors, base=base, method=method, bound=bound_of(kind, value), options=options)
    for name, array in tensors.items():
        assert not judge(array, archive.restored[name], kind, value).broken


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lossless"])
def test_rounding_to_the_dtype_is_part_of_the_error(dtype, kind):
    """Bounds near the spacing of the dtype's values, where the rounding of the result is most of the error."""
    rng = np.random.default_rng(11)
    base = {"w": rng.normal(0, 1, 3000).astype(np.float32).astype(DTYPES[dtype])}
    new = {"w": (base["w"].astype(np.float32) * 1.01 + rng.normal(0, 0.01, 3000)).astype(DTYPES[dtype])}
    spacing = {"float64": 1e-16, "float32": 6e-8, "float16": 5e-4, "bfloat16": 4e-3}.get(dtype, 0.06)
    for factor in (0.3, 1.0, 3.0, 10.0):
        archive = nz.compress(new, base=base, bound=bound_of(kind, factor * spacing))
        assert not judge(new["w"], archive.restored["w"], kind, factor * spacing).broken


def test_the_textbook_quantizer_breaks_its_bound_and_ours_does_not():
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, 100_000).astype(np.float32)
    step = np.float32(2e-7)
    textbook = np.rint(x / step) * step
    assert len(judge(x[:2000], textbook[:2000], "abs", 1e-7).broken) > 20
    archive = nz.compress({"x": x}, bound=nz.Absolute(1e-7))
    assert not judge(x, archive.restored["x"], "abs", 1e-7).broken


# ---- how a bound becomes a tolerance ---------------------------------------------------------------------------


@given(seed=seeds)
def test_a_relative_tolerance_is_never_above_the_exact_product(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        low, high = np.sort(rng.normal(0, 1, 2) * 10.0 ** rng.uniform(-320, 300, 2)).tolist()
        value = float(10.0 ** rng.uniform(-12, 2))
        tolerance = nz.Relative(value).tolerance(Statistics(2, low, high, 0.0))
        assert Fraction(tolerance.value) <= Fraction(value) * (Fraction(high) - Fraction(low))


def test_an_rms_tolerance_is_never_above_the_exact_one():
    value = 0.01
    for x in (
        np.full(3_000_000, np.float32(0.1)),  # every addition rounds the same way
        np.full(1000, 1.7e-162),  # squares below the smallest double
        np.full(1000, 3e-155),
        np.array([1e-170] * 1000 + [2e-160]),
        np.full(7, 1e160),
    ):
        tolerance = nz.Rms(value).tolerance(Statistics.of(x))
        values, counts = np.unique(x.astype(np.float64), return_counts=True)
        mean = sum(Fraction(v) ** 2 * n for v, n in zip(values.tolist(), counts.tolist(), strict=True)) / x.size
        assert Fraction(tolerance.value) ** 2 <= Fraction(value) ** 2 * mean


def test_rms_counts_finite_values_only():
    x = np.array([3.0, 4.0, np.nan, np.inf, -np.inf])
    expected = 0.1 * math.sqrt(12.5)
    assert nz.Rms(0.1).tolerance(Statistics.of(x)).value == pytest.approx(expected, rel=1e-9)
    assert nz.Relative(0.1).tolerance(Statistics.of(x)).value == pytest.approx(0.1, rel=1e-9)


@pytest.mark.parametrize("kind", ["rel", "rms"])
def test_a_tensor_without_a_size_is_exact(kind):
    for x in (np.zeros(5), np.full(3, np.nan), np.empty(0), np.array([np.inf])):
        assert bound_of(kind, 0.1).tolerance(Statistics.of(x)).kind == "exact"


def test_zeros_stay_zeros_under_a_pointwise_bound():
    x = np.array([0.0, -0.0, 1.0, 5e-324], np.float64)
    restored = nz.compress({"x": x}, base={"x": x + 1}, bound=nz.PointwiseRelative(0.5)).restored["x"]
    assert restored[0] == restored[1] == 0


@pytest.mark.parametrize("method", ["nearzip", "delta-dnn"])
def test_zeros_cost_nothing_under_a_pointwise_bound(method):
    x = np.zeros(1_000_000, np.float32)
    x[::1000] = 0.5
    for base in (None, {"x": np.ones_like(x)}):
        assert nz.compress({"x": x}, base, method, nz.PointwiseRelative(0.01)).nbytes < 6000


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1e-3x", None, [1]])
@pytest.mark.parametrize("bound", [nz.Absolute, nz.Relative, nz.PointwiseRelative, nz.Rms])
def test_a_bound_is_positive_and_finite(bound, value):
    with pytest.raises(nz.errors.UsageError):
        bound(value)


@pytest.mark.parametrize("text", ["", "abs", "abs:", "abs:x", "lossless:1", "max:1", "abs:0", "rms:-1", "rel:nan"])
def test_a_bound_that_cannot_be_read_is_refused(text):
    with pytest.raises(nz.errors.UsageError):
        parse_bound(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_reads_back_as_it_is_spelled(kind):
    assert parse_bound(str(bound_of(kind, 0.25))) == bound_of(kind, 0.25)


@pytest.mark.parametrize("method", ["delta-dnn"])
def test_a_bound_that_a_method_cannot_promise_is_refused(method):
    for bound in (nz.Lossless(), nz.Rms(0.1), nz.Relative(0.1)):
        with pytest.raises(nz.errors.UsageError, match="cannot promise"):
            nz.compress({"x": np.ones(3)}, method=method, bound=bound)
    with pytest.raises(nz.errors.UsageError):
        nz.compress({"x": np.ones(3)}, method=method, bound=nz.Absolute(1), options={"mode": "relative"})


def test_violations_are_places():
    x = np.array([1.0, np.nan, 2.0, np.inf], np.float16)
    y = np.array([1.5, np.nan, 2.0, -np.inf], np.float16)
    assert violations(x, y, Tolerance("absolute", 0.25)).tolist() == [0, 3]
    z = np.array([1 + 1j, 2, 3], np.complex64)
    assert violations(z, z + np.complex64(1j), Tolerance("absolute", 10.0)).tolist() == [0, 1, 2]
