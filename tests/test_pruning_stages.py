"""Magnitude pruning, shared values, and the Bloomier filter with its plain twin."""

from __future__ import annotations

import numpy as np
import pytest
import twins
from hypothesis import given, settings
from hypothesis import strategies as st

from nearzip import _core
from nearzip.errors import CorruptError, MissingExtraError, UsageError, missing_extra
from nearzip.stages import Bloomier, Blosc, Codebook, Context, Prune, SmallestOf
from nearzip.stages.base import Coded
from nearzip.stages.bloomier import _packed, _unpacked
from nearzip.stages.codebook import cluster
from nearzip.stages.prune import largest
from nearzip.tensors import DTYPES

RNG = np.random.default_rng(0)


# ---- pruning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "n"), [(0, 0), (0.001, 0), (0.1, 10), (0.255, 26), (1, 99)])
def test_the_share_that_is_kept(keep, n):
    x = RNG.permutation(np.arange(100)).astype(np.float32)
    kept = largest(x, keep)
    assert kept.sum() == n
    assert set(x[kept]) == set(range(100 - n if n < 99 else 1, 100))


def test_equal_magnitudes_go_by_place():
    assert largest(np.array([1.0, -1, 1, -1]), 0.5).tolist() == [True, True, False, False]


def test_what_is_not_finite_is_kept_first():
    x = np.array([1, np.nan, 2, -np.inf, 3], np.float32)
    assert largest(x, 0.4).tolist() == [False, True, False, True, False]


def test_zeros_are_never_kept():
    assert not largest(np.zeros(10), 1.0).any()
    assert Prune(1.0).encode(np.array([0.0, -0.0])).floats.tobytes() == np.array([0.0, -0.0]).tobytes()


@pytest.mark.parametrize("keep", [-0.1, 1.1, float("nan")])
def test_shares_that_make_no_sense(keep):
    with pytest.raises(UsageError, match="between 0 and 1"):
        Prune(keep)


# ---- the smallest of several compressors -----------------------------------------------------------------------


def test_a_compressor_whose_extra_is_missing_takes_no_part(monkeypatch):
    def missing(*_):
        raise missing_extra("blosc2", "blosc", "blosc")

    monkeypatch.setattr(Blosc, "encode", missing)
    data = bytes(range(100)) * 5
    coded = SmallestOf("blosc zstd").encode(data, Context(np.dtype(np.uint8), (500,)))
    assert coded.side == b"\1"
    assert SmallestOf("blosc zstd").decode(coded, Context(np.dtype(np.uint8), (500,))) == data
    with pytest.raises(MissingExtraError, match=r"nearzip\[blosc\]"):
        SmallestOf("blosc").encode(data, Context(np.dtype(np.uint8), (500,)))


def test_the_smallest_is_taken():
    rng = np.random.default_rng(0)
    data = rng.geometric(0.1, 5000).clip(max=255).astype(np.uint8).tobytes()
    context = Context(np.dtype(np.uint8), (5000,))
    alone = [len(SmallestOf(name).encode(data, context).data) for name in ("gzip", "zstd", "blosc", "lzma")]
    assert len(SmallestOf("gzip zstd blosc lzma").encode(data, context).data) == min(alone)


@pytest.mark.parametrize("of", ["", "rar", "gzip gzip", "gzip  zstd"])
def test_compressors_that_do_not_exist(of):
    with pytest.raises(UsageError, match="smallest-of"):
        SmallestOf(of)


# ---- shared values ---------------------------------------------------------------------------------------------


def test_centroids_are_means_of_their_clusters():
    x = RNG.normal(0, 0.1, 5000)
    centroids = cluster(x, 16)
    assert centroids.size == 16
    numbers = np.abs(x[:, None] - centroids).argmin(axis=1)
    np.testing.assert_allclose([x[numbers == i].mean() for i in range(16)], centroids, atol=1e-12)


def test_clustering_begins_linearly():
    """Between smallest and largest: two clusters far apart get one centroid each, however uneven their sizes."""
    x = np.concatenate([RNG.normal(0, 0.01, 9999), [100.0]])
    assert cluster(x, 2)[1] == 100


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn"])
def test_more_clusters_than_values_keep_all_of_them(dtype):
    x = np.array([1, 0.5, -2, 0.5, 1, 0], np.float32).astype(DTYPES[dtype])
    coded = Codebook(100).encode(x, Context.of(x))
    assert len(coded.side) == 4 * x.itemsize
    assert Codebook(100).decode(coded, Context.of(x)).tobytes() == x.tobytes()


def test_values_at_the_end_of_the_range_are_clustered():
    big = np.finfo(np.float64).max
    assert cluster(np.array([-big, big, big / 2, 0.0]), 2).size == 2
    tiny = np.array([1, 2, 3, 100], np.uint64).view(np.float64)
    assert np.array_equal(cluster(tiny, 2).view(np.uint64), [2, 100])


def test_a_codebook_of_nothing_has_one_zero():
    for x in (np.empty(0), np.array([np.nan, np.inf])):
        assert cluster(x, 4).tolist() == [0]


@pytest.mark.parametrize("side", [b"", b"abc", np.float32(np.nan).tobytes(), bytes(4 * 65537)])
def test_codebooks_that_no_encoder_writes(side):
    with pytest.raises(CorruptError):
        Codebook(2).decode(Coded(np.zeros(2, np.int32), side), Context(np.dtype(np.float32), (2,)))


# ---- Bloomier filter -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2000), max_size=60, unique=True), st.integers(0, 2**64 - 1), st.integers(1, 16),
    st.integers(0, 30),
)  # fmt: skip
def test_the_native_filter_is_its_twin(keys, seed, bits, more):
    slots = 3 * (len(keys) // 2 + 1 + more)
    values = [k % (1 << bits) for k in keys]
    table = np.empty(slots, np.uint16)
    built = _core.build_bloomier(np.array(keys, np.uint64), np.array(values, np.uint16), seed, bits, table)
    expected = twins.build_bloomier(keys, values, seed, bits, slots)
    assert built == (expected is not None)
    if expected is None:
        return
    n_values = max(values, default=0) + 1
    out = np.empty(2001, np.uint16)
    _core.query_bloomier(table, seed, bits, n_values, out)
    assert out.tolist() == twins.query_bloomier(table.tolist(), seed, bits, n_values, out.size)
    # Two tables may differ where no key points; what they say of keys may not.
    assert [int(out[k]) for k in keys] == [v + 1 for v in values]


def test_a_filter_knows_every_weight_and_errs_on_few_zeros():
    x = np.zeros(100_000, np.float32)
    places = RNG.choice(x.size, 3000, replace=False)
    x[places] = RNG.choice([-2, -1, 1, 2], 3000)
    stage = Bloomier(4, 10)
    coded = stage.encode(x, Context.of(x))
    y = stage.decode(coded, Context.of(x))
    assert np.array_equal(y[places], x[places])
    wrong = (y != x).sum() / x.size
    assert 0.5 * 4 / 1024 < wrong < 1.5 * 4 / 1024
    assert len(coded.data) == pytest.approx(3000 * 1.23 * 10 / 8, rel=0.02)


def test_slots_are_packed_without_gaps():
    table = RNG.integers(0, 1 << 11, 33).astype(np.uint16)
    packed = _packed(table, 11)
    assert len(packed) == -(-33 * 11 // 8)
    assert int.from_bytes(packed, "little") == sum(int(v) << 11 * i for i, v in enumerate(table))
    assert np.array_equal(_unpacked(packed, 33, 11), table)


def test_filters_of_shapes_that_make_no_sense():
    for clusters, bits in ((0, 4), (16, 4), (4, 0), (4, 17)):
        with pytest.raises(UsageError):
            Bloomier(clusters, bits)
    for slots in (0, 4, 1 << 33):
        with pytest.raises(ValueError, match="multiple"):
            _core.query_bloomier(np.zeros(slots if slots < 10 else 0, np.uint16), 0, 4, 1, np.empty(3, np.uint16))
