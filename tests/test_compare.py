"""nearzip.compare: what it says about two networks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import nearzip as nz
from nearzip import figures, similarity
from nearzip.errors import CorruptError, NotFoundError, UsageError
from nearzip.similarity import ssim, ssim_within

rng = np.random.default_rng(7)


def ssim_by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al., equation 13, window by window."""
    x, y = (v.astype(np.float64).reshape(v.shape[0] if v.ndim > 1 else 1, -1) for v in (a, b))
    spread = max(x.max(), y.max()) - min(x.min(), y.min())
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    height, width = min(7, x.shape[0]), min(7, x.shape[1])
    values = []
    for i in range(x.shape[0] - height + 1):
        for j in range(x.shape[1] - width + 1):
            p, q = x[i : i + height, j : j + width], y[i : i + height, j : j + width]
            covariance = ((p - p.mean()) * (q - q.mean())).mean()
            values.append(
                (2 * p.mean() * q.mean() + c1) * (2 * covariance + c2)
                / ((p.mean() ** 2 + q.mean() ** 2 + c1) * (p.var() + q.var() + c2))
            )  # fmt: skip
    return float(np.mean(values))


# ---- ssim ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 12), (40,), (3, 5), (1,), (4, 3, 3, 3), (30, 2), (7, 7)])
def test_ssim_is_the_formula_window_by_window(shape):
    a = rng.normal(size=shape).astype(np.float32)
    b = a + rng.normal(0, 0.3, shape).astype(np.float32)
    assert ssim(a, b) == pytest.approx(ssim_by_hand(a, b), rel=1e-9)


def test_ssim_of_tiles_is_that_of_the_whole(monkeypatch):
    a = rng.normal(size=(23, 300)).astype(np.float32)
    b = a + rng.normal(0, 0.3, a.shape).astype(np.float32)
    whole = ssim(a, b)
    monkeypatch.setattr(similarity, "_PIECE", 640)
    assert ssim(a, b) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64])
def test_ssim_of_equal_arrays_is_exactly_one(dtype):
    a = (100 * rng.normal(size=(12, 9))).astype(dtype)
    assert ssim(a, a.copy()) == 1.0
    assert ssim(np.zeros((8, 8), dtype), np.zeros((8, 8), dtype)) == 1.0


def test_ssim_keeps_its_digits_far_from_zero():
    a = 1e6 + rng.normal(size=(20, 20))
    b = a + rng.normal(0, 0.5, a.shape)
    assert ssim(a, b) == pytest.approx(ssim_by_hand(a, b), rel=1e-6)


def test_ssim_leaves_out_windows_that_are_not_finite():
    a = rng.normal(size=(8, 30))
    b = a + rng.normal(0, 0.1, a.shape)
    b[3, 29] = np.nan
    spread = np.concatenate([a[np.isfinite(b)], b[np.isfinite(b)]])
    assert ssim(a, b) == pytest.approx(ssim_within(a[:, :29], b[:, :29], spread.min(), spread.max()))
    assert ssim(np.full(3, np.nan), np.zeros(3)) is None


# ---- figures ---------------------------------------------------------------------------------------------------


def test_identical_networks():
    a = {"w": rng.normal(size=(30, 20)).astype(np.float32), "n": np.array(3), "e": np.empty((0, 4), np.float32)}
    found = nz.compare(a, {name: value.copy() for name, value in a.items()})
    assert found.identical
    assert found.ratio == 1.0
    total = found.total
    assert (total.n_values, total.unchanged, total.max_abs_error, total.rms_error) == (601, 1.0, 0.0, 0.0)
    assert total.ssim == 1.0
    assert total.histogram == {}
    assert total.fit is not None
    assert (total.fit.slope, total.fit.r) == (pytest.approx(1), pytest.approx(1))


def test_the_fit_recovers_slope_intercept_and_correlation():
    a = {name: rng.normal(3, 2, size).astype(np.float64) for name, size in (("one", 4000), ("two", (50, 60)))}
    noise = {name: rng.normal(0, 0.5, value.shape) for name, value in a.items()}
    b = {name: 0.75 * value - 0.2 + noise[name] for name, value in a.items()}
    x, y = (np.concatenate([v.reshape(-1) for v in side.values()]) for side in (a, b))
    fit = nz.compare(a, b).total.fit
    assert fit is not None
    assert (fit.slope, fit.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)), rel=1e-9)
    assert fit.r == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    a = {"w": rng.normal(size=5000).astype(np.float32)}
    b = {"w": a["w"] + rng.normal(0, 0.01, 5000).astype(np.float32)}
    whole = nz.compare(a, b).total
    monkeypatch.setattr(figures, "_PIECE", 128)
    parts = nz.compare(a, b).total
    assert parts.fit is not None
    assert whole.fit is not None
    assert parts.fit.slope == pytest.approx(whole.fit.slope, rel=1e-12)
    assert parts.rms_error == pytest.approx(whole.rms_error, rel=1e-12)
    assert (parts.max_abs_error, parts.histogram) == (whole.max_abs_error, whole.histogram)


def test_figures_by_hand():
    a = {"w": np.array([1.0, 2.0, 0.0, -4.0, 5.0])}
    b = {"w": np.array([1.0, 2.5, 0.001, -4.0, 3.0])}
    figures = nz.compare(a, b).tensors["w"]
    assert figures.unchanged == pytest.approx(0.4)
    assert figures.max_abs_error == 2.0
    assert figures.mean_difference == pytest.approx((0.5 + 0.001 - 2) / 5)
    assert figures.rms_error == pytest.approx(math.sqrt((0.25 + 1e-6 + 4) / 5))
    assert figures.max_relative_error == pytest.approx(0.4)
    assert figures.histogram == {-3: 1, -1: 1, 0: 1}


def test_values_that_are_not_finite():
    a = {"w": np.array([np.nan, np.inf, -np.inf, 1.0, np.nan, 2.0], np.float32)}
    b = {"w": np.array([np.nan, np.inf, np.inf, np.inf, 0.0, 2.5], np.float32)}
    figures = nz.compare(a, b).tensors["w"]
    assert figures.n_nonfinite_mismatches == 3
    assert figures.n_unchanged == 2
    assert figures.max_abs_error == 0.5


def test_unchanged_means_the_bits():
    figures = nz.compare({"w": np.array([0.0, 1.0])}, {"w": np.array([-0.0, 1.0])}).total
    assert figures.unchanged == 0.5
    assert figures.max_abs_error == 0.0


def test_complex_numbers_count_once_and_compare_by_parts():
    figures = nz.compare({"w": np.array(1 + 2j)}, {"w": np.array(1 + 5j)}).total
    assert (figures.n_values, figures.n_unchanged, figures.max_abs_error) == (1, 0, 3.0)


def test_tensors_without_a_partner():
    a = {"same": np.zeros(3), "gone": np.zeros(2), "shape": np.zeros((2, 3)), "type": np.zeros(3, np.float32)}
    b = {"same": np.zeros(3), "new": np.zeros(2), "shape": np.zeros((3, 2)), "type": np.zeros(3, np.float16)}
    found = nz.compare(a, b)
    assert (found.only_in_a, found.only_in_b) == (("gone",), ("new",))
    assert list(found.tensors) == ["same"]
    assert found.mismatched == {
        "shape": "float64 [2, 3] in a, float64 [3, 2] in b",
        "type": "float32 [3] in a, float16 [3] in b",
    }
    assert not found.identical


def test_nothing_in_common_and_nothing_at_all():
    found = nz.compare({"a": np.zeros(3)}, {"b": np.zeros(3)})
    assert found.total.n_values == 0
    assert (found.anything_in_common, found.identical, found.reason) == (False, False, None)
    found = nz.compare({}, {})
    assert found.identical
    assert not found.anything_in_common
    assert found.total.fit is None


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (
            ["w", "b"],
            ["_orig_mod.w", "_orig_mod.b"],
            r"in b have '_orig_mod\.' .*torch\.compile.*save the unwrapped module",
        ),
        (["module.w"], ["w"], r"in a have 'module\.' .*DataParallel"),
        (["net.head.w"], ["net._orig_mod.head.w"], r"in b have '_orig_mod\.'"),
        (
            ["model.encoder.w", "model.encoder.b"],
            ["w", "b"],
            r"in a have 'model\.encoder\.' in them, those in b do not",
        ),
    ],
)
def test_names_that_differ_by_a_prefix_are_explained(a, b, says):
    found = nz.compare({name: np.ones(3) for name in a}, {name: np.ones(3) for name in b})
    assert not found.anything_in_common
    assert re.search(says, found.reason)
    some = nz.compare(
        {"same": np.ones(2), **dict.fromkeys(a, np.ones(3))}, {"same": np.ones(2), **dict.fromkeys(b, np.ones(3))}
    )
    assert some.anything_in_common
    assert re.search(says, some.reason)


@pytest.mark.parametrize("other", [np.ones((2, 3), np.float16), np.ones((3, 2), np.float32)])
def test_dtypes_and_shapes_that_differ_are_explained(other):
    found = nz.compare({"w": np.ones((2, 3), np.float32)}, {"w": other})
    assert not found.anything_in_common
    assert re.search(r"dtypes or shapes differ, as in 'w': float32 \[2, 3\] in a, .*convert", found.reason)


def test_large_tensors_are_sampled_unless_exact():
    rng = np.random.default_rng(0)
    a = {"w": rng.normal(size=(900, 500)).astype(np.float32), "v": rng.normal(size=400_000)}
    b = {name: w + rng.normal(0, 1e-3, w.shape).astype(w.dtype) for name, w in a.items()}
    quick, exact = nz.compare(a, b), nz.compare(a, b, exact=True)
    for name in (*a, None):
        one, two = (side.total if name is None else side.tensors[name] for side in (quick, exact))
        assert (one.max_abs_error, one.rms_error, one.fit, one.n_unchanged) == (
            two.max_abs_error, two.rms_error, two.fit, two.n_unchanged,
        )  # fmt: skip
        assert one.ssim == pytest.approx(two.ssim, abs=1e-3)
        for decade in (-3, -4):
            assert one.histogram[decade] == pytest.approx(two.histogram[decade], rel=0.05)
    assert sum(exact.total.histogram.values()) == exact.total.n_values - exact.total.n_unchanged


def test_threads_make_no_difference():
    rng = np.random.default_rng(0)
    a = {f"w{i}": rng.normal(size=3000) for i in range(5)}
    b = {name: w + 1e-3 for name, w in a.items()}
    assert nz.compare(a, b, threads=1).total == nz.compare(a, b, threads=4).total


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float64, st.integers(0, 40), elements=st.floats(width=64)),
    st.randoms(use_true_random=False),
)
def test_any_floats_compare_without_a_warning(values, random):
    other = values.copy()
    random.shuffle(other)
    figures = nz.compare({"w": values}, {"w": other}).total
    assert 0 <= figures.unchanged <= 1
    assert figures.max_abs_error >= 0
    assert figures.fit is None or -1 <= figures.fit.r <= 1


def test_the_worst_error_of_an_archive_is_within_its_bound():
    a = {"w": rng.normal(size=(64, 64)).astype(np.float32)}
    restored = nz.compress(a, bound=nz.Absolute(0.01)).restored
    assert 0.005 < nz.compare(a, restored).total.max_abs_error <= 0.01


# ---- files -----------------------------------------------------------------------------------------------------


def test_files_of_different_kinds_and_their_ratio(tmp_path: Path):
    a = {"w": rng.normal(size=(64, 64)).astype(np.float32)}
    np.savez(tmp_path / "a.npz", **a)
    nz.compress(a, bound="abs:0.01").save(tmp_path / "b.nz")
    found = nz.compare(tmp_path / "a.npz", tmp_path / "b.nz")
    assert found.total.max_abs_error <= 0.01
    assert found.ratio == (tmp_path / "a.npz").stat().st_size / (tmp_path / "b.nz").stat().st_size


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"gone\.npz"):
        nz.compare(tmp_path / "gone.npz", {})
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 not really")
    with pytest.raises(CorruptError, match=r"bad\.npz"):
        nz.compare({}, tmp_path / "bad.npz")
    (tmp_path / "bad.txt").write_text("no tensors")
    with pytest.raises(UsageError, match=r"bad\.txt"):
        nz.compare(tmp_path / "bad.txt", {})


def test_progress_counts_values():
    calls = []
    tensors = {"a": np.zeros(3), "b": np.zeros(4)}
    nz.compare(tensors, tensors, progress=lambda *call: calls.append(call))
    assert calls == [(3, 7), (7, 7)]


def test_the_sample_is_bounded_and_spread():
    a = {"w": np.arange(200_000, dtype=np.float64)}
    x, y = nz.compare(a, a).sample
    assert 40_000 <= x.size <= 100_000
    assert np.array_equal(x, y)
    assert x[-1] > 199_000


def test_counters_are_no_parameters():
    weights = np.linspace(-1, 1, 100, dtype=np.float32)
    a = {"w": weights, "steps": np.array(100)}
    b = {"w": weights + np.float32(4), "steps": np.array(900)}
    found = nz.compare(a, b)
    assert found.total.max_abs_error == pytest.approx(4)
    assert found.total.n_values == 101
    assert found.total.n_unchanged == 0
    assert found.tensors["steps"].max_abs_error == 800
    assert nz.compare({"steps": a["steps"]}, {"steps": b["steps"]}).total.max_abs_error == 800


# ---- QD-Compressor's measures ----------------------------------------------------------------------------------


def test_mdm_and_corrcoef_are_equations_6_and_7():
    a, b = rng.normal(0, 1, (2, 5000)).astype(np.float32)
    b = a + b / 10
    found = nz.compare({"x": a}, {"x": b}).total
    assert found.mdm == pytest.approx(np.abs(b.astype(float) - a).mean(), rel=1e-12)
    assert found.corrcoef == pytest.approx(np.corrcoef(a.astype(float), b.astype(float))[0, 1], rel=1e-9)
    assert nz.compare({"x": np.ones(3)}, {"x": a[:3].astype(float)}).total.corrcoef is None


def test_values_are_compared_as_quantized_to_bits():
    a = {"x": np.array([0.0, 0.5, 1.0, np.nan], np.float32), "n": np.array([3, 5])}
    b = {"x": np.array([0.0, 0.9, 2.0, 0.0], np.float32), "n": np.array([3, 7])}
    found = nz.compare(a, b, bits=2)
    # 0, 1.5 to even, 3, 0 and 0, 1.35, 3, 0.
    assert found.tensors["x"].mdm == 0.25
    assert found.tensors["x"].n_unchanged == 3
    assert found.tensors["n"].mdm == 1.0
    for bits in (0, 17):
        with pytest.raises(UsageError, match="1 to 16 bits"):
            nz.compare(a, b, bits=bits)
