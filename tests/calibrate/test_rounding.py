"""Rounding with the error carried on, against the plain definition, and what the native pass refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearzip import _core
from nearzip.calibrate.gram import Gram
from nearzip.calibrate.rounding import Factor, round_matrix, triangular

seeds = st.integers(0, 2**32 - 1)


def moments(rng: np.random.Generator, n: int) -> np.ndarray:
    x = rng.normal(size=(2 * n + 3, n)) @ (np.eye(n) + 0.6 * rng.normal(size=(n, n)) / np.sqrt(n))
    return x.T @ x / len(x)


def factor_of(matrix: np.ndarray, damping: float = 0.01) -> Factor:
    return triangular(Gram(torch.from_numpy(matrix.astype(np.float32))[None]), damping)[0]


def twin(target: np.ndarray, rows: Factor, columns: Factor, step: float, reach: float = np.inf) -> np.ndarray:
    """The definition: E = V^T R U, one remainder after the other."""
    v, u = rows.upper.astype(np.float64), columns.upper.astype(np.float64)
    ordered = target[rows.order][:, columns.order].astype(np.float32).astype(np.float64)
    levels, remainders = np.zeros(ordered.shape, int), np.zeros(ordered.shape)
    for j in range(ordered.shape[1]):
        for i in range(ordered.shape[0]):
            wanted = ordered[i, j] - v[:, i] @ remainders @ u[:, j]
            level = np.rint(wanted / step)
            if np.isfinite(reach):
                low, high = np.ceil((ordered[i, j] - reach) / step), np.floor((ordered[i, j] + reach) / step)
                level = min(max(level, low), high) if low <= high else np.rint(ordered[i, j] / step)
            levels[i, j] = level
            remainders[i, j] = (wanted - level * step) / (v[i, i] * u[j, j])
    found = np.empty_like(levels)
    found[np.ix_(rows.order, columns.order)] = levels
    return found


def test_factors_are_those_of_the_inverse():
    matrix = moments(np.random.default_rng(0), 7)
    factor = factor_of(matrix)
    damped = matrix.astype(np.float32)[factor.order][:, factor.order] + 0.01 * np.diag(matrix).mean() * np.eye(7)
    assert np.allclose(factor.upper.T @ factor.upper, np.linalg.inv(damped), rtol=1e-4, atol=1e-5)
    assert np.array_equal(factor.upper, np.triu(factor.upper))
    assert np.all(np.diff(np.diag(matrix)[factor.order]) >= 0)


@given(seed=seeds, n=st.integers(1, 9), m=st.integers(1, 9), reach=st.sampled_from([np.inf, 0.5, 0.8]))
def test_rounding_is_what_the_definition_says(seed, n, m, reach):
    rng = np.random.default_rng(seed)
    rows, columns = factor_of(moments(rng, n)), factor_of(moments(rng, m))
    target = rng.normal(0, 2, (n, m))
    found = round_matrix(target, rows, columns, 1.0, reach)
    expected = twin(target, rows, columns, 1.0, reach)
    # float32 and float64 part ways where a value lies in the middle between two levels, and go on differently.
    assert (found == expected).mean() > 0.6 or np.abs(found - expected).max() <= 1
    assert np.abs(found - target.astype(np.float32)).max() <= reach + 1e-6 or reach == np.inf


def test_tiles_carry_the_error_across_their_borders():
    """Large enough for several tiles either way; compared by what the errors cost."""
    rng = np.random.default_rng(1)
    n, m = 150, 200
    g, a = moments(rng, n), moments(rng, m)
    rows, columns = factor_of(g), factor_of(a)
    target = rng.normal(0, 3, (n, m))

    def cost(levels: np.ndarray) -> float:
        error = target - levels
        return float(np.trace(g @ error @ a @ error.T))

    found, plain = round_matrix(target, rows, columns, 1.0), np.rint(target)
    expected = twin(target, rows, columns, 1.0)
    assert cost(found) == pytest.approx(cost(expected), rel=0.05)
    assert cost(found) < 0.8 * cost(plain)


def test_only_one_side_carries():
    rng = np.random.default_rng(2)
    a = moments(rng, 70)
    flat = Factor(np.arange(5), np.ones(5, np.float32))
    columns = factor_of(a)
    target = rng.normal(0, 3, (5, 70))
    full = Factor(np.arange(5), np.eye(5, dtype=np.float32))
    assert np.array_equal(round_matrix(target, flat, columns, 0.5), round_matrix(target, full, columns, 0.5))
    turned = round_matrix(target.T.copy(), columns, flat, 0.5)
    assert np.abs(turned - target.T / 0.5).max() < 40
    assert np.array_equal(round_matrix(target, flat, flat_of(70), 0.5), np.rint(target.astype(np.float32) / 0.5))


def flat_of(n: int) -> Factor:
    return Factor(np.arange(n), np.ones(n, np.float32))


def test_moments_without_energy_are_rounded_plainly():
    factor = triangular(Gram(torch.zeros(1, 4, 4)), 0.1)[0]
    target = np.random.default_rng(3).normal(size=(4, 4))
    assert np.array_equal(round_matrix(target, factor, factor, 0.1), np.rint(target.astype(np.float32) / 0.1))


def test_wide_moments_keep_their_diagonal():
    vectors = torch.randn(1, 3, 9000)
    gram = Gram.of(vectors)
    assert gram.is_diagonal
    assert torch.allclose(gram.diagonal[0], vectors[0].square().sum(0))
    assert torch.allclose(gram.merge(gram, 1.0, 0.5).diagonal[0], 1.5 * vectors[0].square().sum(0))
    indices = Gram.of_indices(torch.tensor([1, 1, 3]), 5)
    assert indices.diagonal.tolist() == [[0, 2, 0, 1, 0]]
    both = indices.merge(Gram(torch.ones(1, 5, 5)), 1.0, 1.0)
    assert both.diagonal.tolist() == [[1, 3, 1, 2, 1]]


def call(**changes):
    arrays = {name: np.zeros(6, np.float32) for name in ("target", "from_rows", "from_columns")}
    arrays |= {"row_factor": np.eye(2, dtype=np.float32).ravel(), "column_factor": np.eye(3, dtype=np.float32).ravel()}
    outputs = {
        "levels": np.zeros(6, np.int32),
        "remainders": np.zeros(6, np.float32),
        "carried": np.zeros(6, np.float32),
    }
    _core.round_tile(**{**arrays, "rows": 2, "step": 1.0, "reach": np.inf, **outputs, **changes})
    return outputs


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 4},
        {"rows": 0},
        {"step": 0.0},
        {"step": float("nan")},
        {"row_factor": np.ones(3, np.float32)},
        {"column_factor": np.ones(4, np.float32)},
        {"from_rows": np.zeros(5, np.float32)},
        {"carried": np.zeros(7, np.float32)},
    ],
)
def test_tiles_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match=r"tile|differ"):
        call(**changes)


def test_values_that_no_level_holds_become_zero():
    outputs = call(target=np.array([np.inf, np.nan, 1e30, -1e30, 2.4, -2.6], np.float32))
    assert outputs["levels"][[0, 2, 3]].tolist() == [0, 0, 0]
