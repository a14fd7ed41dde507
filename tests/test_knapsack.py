"""DeepSZ's two algorithms: what is assessed, and what is chosen from it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearzip.budget.deepsz.assess import assess
from nearzip.budget.deepsz.knapsack import Option, best_accuracy, smallest
from nearzip.errors import BudgetError, UsageError


def network(knees):
    """Layers that lose nothing up to their knee and 1 % for each step beyond; sizes fall with the bound."""
    calls = []

    def test(layer, bound):
        calls.append((layer, bound))
        return max(0.0, bound / knees[layer] - 1) * 0.01, int(1000 / (1 + 100 * bound))

    return test, calls


def test_a_layer_is_assessed_from_a_tenth_of_the_first_distorting_bound_on():
    test, calls = network({"a": 3e-2})
    options = assess(["a"], test, 0.002)["a"]
    assert [o.bound for o in options] == [1e-3, 0.01, 0.02, 0.03, 0.04, 0.1]
    assert options[-2].loss > 0.002 >= options[-3].loss
    assert len(calls) == len(set(calls)), "no bound is tested twice"


def test_all_layers_are_assessed():
    """The printed `return` would leave after the first."""
    test, _ = network({"a": 3e-2, "b": 5e-3, "c": 2e-4})
    options = assess(["a", "b", "c"], test, 0.002)
    assert list(options) == ["a", "b", "c"]
    assert [o.bound for o in options["c"]] == [1e-4, 2e-4, 3e-4, 1e-3]


def test_the_assessment_of_a_layer_that_bears_everything_ends():
    options = assess(["a"], lambda layer, bound: (0.0, 10), 0.002, most_tests=20)["a"]
    assert len(options) == 20
    assert options[-1].bound > 0.1


def test_a_loss_that_is_no_number_ends_the_search():
    options = assess(["a"], lambda layer, bound: (float("nan"), 10), 0.002)["a"]
    assert len(options) == 2
    with pytest.raises(BudgetError):
        smallest({"a": options}, 0.002)


@pytest.mark.parametrize("starts", [(), (1e-2, 1e-3), (0.0,), (float("inf"),)])
def test_starts_that_make_no_sense_are_refused(starts):
    with pytest.raises(UsageError):
        assess(["a"], lambda layer, bound: (0.0, 10), 0.002, starts)


OPTION = st.builds(
    Option, st.floats(1e-4, 1e-1), st.sampled_from([0.0, -0.1, 0.01, 0.05, 0.1, 0.15, 0.2, 0.5]), st.integers(0, 300)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=4))
def test_the_smallest_choice_is_that_of_trying_all(layers):
    named = {str(i): options for i, options in enumerate(layers)}
    possible = [
        sum(o.n_bytes for o in choice)
        for choice in itertools.product(*layers)
        if sum(max(0.0, o.loss) for o in choice) <= 0.2 + 1e-12
    ]
    if not possible:
        with pytest.raises(BudgetError, match="assess smaller"):
            smallest(named, 0.2)
        return
    chosen = smallest(named, 0.2)
    assert sum(max(0.0, o.loss) for o in chosen.values()) <= 0.2 + 1e-12
    # All losses stand on the grid of 0.002.
    assert sum(o.n_bytes for o in chosen.values()) == min(possible)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 900))
def test_the_most_accurate_choice_fits(layers, most):
    named = {str(i): options for i, options in enumerate(layers)}
    least = sum(min(o.n_bytes for o in options) for options in layers)
    if least > most:
        with pytest.raises(BudgetError, match=f"smallest takes {least}"):
            best_accuracy(named, most)
        return
    # Sizes are rounded up to the grid, a step for each layer at most.
    if least <= most * (1 - len(layers) / 4096):
        assert sum(o.n_bytes for o in best_accuracy(named, most).values()) <= most


def test_losses_are_rounded_up_to_the_grid():
    options = {name: [Option(1e-3, 0.0, 10), Option(1e-2, 0.1001, 1)] for name in "ab"}
    assert sum(o.n_bytes for o in smallest(options, 0.2).values()) == 11
    exact = {name: [Option(1e-3, 0.0, 10), Option(1e-2, 0.1, 1)] for name in "ab"}
    assert sum(o.n_bytes for o in smallest(exact, 0.2).values()) == 2


def test_the_zero_loss_setting_takes_gains():
    options = [Option(1e-3, 0.0, 10), Option(1e-2, -0.2, 5), Option(2e-2, 1e-9, 1)]
    assert smallest({"a": options}, 0.0)["a"].bound == 1e-2


def test_layers_without_options_and_negative_budgets_are_refused():
    with pytest.raises(UsageError, match="'a'"):
        smallest({"a": []}, 0.1)
    for call in (smallest, best_accuracy):
        with pytest.raises(UsageError, match="budget"):
            call({"a": [Option(1e-3, 0.0, 1)]}, -1)
    assert smallest({}, 0.1) == {}
