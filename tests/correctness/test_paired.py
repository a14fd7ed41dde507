"""Intervals, tests and sample sizes against SciPy and by simulation."""

from __future__ import annotations

import math
import random

import pytest

from nearzip.correctness.paired import BROKEN, KEPT, NOT_SHOWN, Differences, Flips, Ratio, Test, holm, student_t_cdf


@pytest.mark.parametrize(("k", "n"), [(0, 0), (0, 7), (3, 10), (5, 10), (12, 19), (400, 1000), (49_000, 100_000)])
def test_mcnemar_is_scipys_exact_binomial_test(k, n):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(k, n).pvalue if n else 1.0
    assert Flips(n=200_000, n_right=150_000, lost=k, gained=n - k).p_mcnemar() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("df", [1, 2, 7, 50, 3_000, 99_999])
@pytest.mark.parametrize("t", [-40.0, -2.5, -1e-3, 0.0, 0.7, 1.96, 12.0])
def test_student_t_is_scipys(t, df):
    stats = pytest.importorskip("scipy.stats")
    assert student_t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), rel=1e-8, abs=1e-12)


def test_the_interval_is_bonett_and_prices():
    # By hand: (13 / 1002, 8 / 1002), z = 1.959964.
    lost, gained = 13 / 1002, 8 / 1002
    error = math.sqrt((lost + gained - (lost - gained) ** 2) / 1002)
    low, high = Flips(1000, 800, 12, 7).interval(0.95)
    assert low == pytest.approx(lost - gained - 1.959963985 * error)
    assert high == pytest.approx(lost - gained + 1.959963985 * error)


def test_the_upper_bound_covers_the_true_loss():
    rng, n, lost, gained = random.Random(3), 400, 0.03, 0.02
    covered = 0
    for _ in range(400):
        draws = [rng.random() for _ in range(n)]
        flips = Flips(n, 300, sum(d < lost for d in draws), sum(lost <= d < lost + gained for d in draws))
        covered += flips.interval(0.90)[1] >= lost - gained
    assert covered / 400 >= 0.93  # one-sided 95 %, less three standard errors of the simulation


def test_differences_are_scipys_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    rng = random.Random(5)
    before = [rng.random() for _ in range(60)]
    after = [value - 0.01 + rng.gauss(0, 0.05) for value in before]
    found = Differences([a - b for a, b in zip(before, after, strict=True)], 1.0)
    assert found.p_below(0.0) == pytest.approx(stats.ttest_rel(before, after, alternative="greater").pvalue, rel=1e-9)
    interval = stats.ttest_rel(before, after).confidence_interval(0.95)
    assert found.interval(0.95) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_no_difference_at_all_still_leaves_a_width():
    found = Differences([0.0] * 100, 1.0)
    assert found.interval(0.95)[1] == pytest.approx(1 - 0.025 ** (1 / 100))
    assert found.samples_needed(0.01, 0.95) == math.ceil(math.log(0.05) / math.log(0.99))


def test_the_ratio_weighs_documents_by_length():
    found = Ratio([2.0, 0.0, 4.0], 1.0, weights=[100.0, 100.0, 200.0])
    assert found.loss == pytest.approx(6 / 400)
    by_hand = [2 - 1.5, 0 - 1.5, 4 - 3.0]
    assert found.error == pytest.approx(math.sqrt(sum(e * e for e in by_hand) * 3 / 2) / 400)


def test_verdicts():
    assert Test(0.02, 0.04, 0.99, 0.95).verdict == KEPT
    assert Test(0.02, 0.99, 0.01, 0.95).verdict == BROKEN
    assert Test(0.02, 0.30, 0.70, 0.95).verdict == NOT_SHOWN


@pytest.mark.parametrize("limit", [0.002, 0.01, 0.03])
def test_the_samples_needed_are_the_fewest_that_do(limit):
    flips = Flips(100, 80, 0, 0)
    n = flips.samples_needed(limit, 0.95)
    assert Flips(n, n, 0, 0).p_above(limit) <= 0.05 < Flips(n - 1, n - 1, 0, 0).p_above(limit)


def test_no_number_of_samples_shows_a_loss_above_the_limit_to_be_kept():
    assert Flips(1000, 800, 30, 5).samples_needed(0.02, 0.95) is None


def test_holm_adjusts_in_the_given_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
