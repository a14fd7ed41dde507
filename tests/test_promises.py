"""Random pairs of checkpoints by every way in: each tensor within its bound, no archive larger than what is at hand."""

from __future__ import annotations

import pytest

from nearzip.testing.pairs import random_pair, usable_methods
from nearzip.testing.promises import ENTRANCES, check_pair


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_random_pairs(entrance):
    for seed in range(60 if entrance == "compress" else 15):
        check_pair(random_pair(seed), entrance)


@pytest.mark.parametrize("method", usable_methods())
def test_random_pairs_of_every_method(method):
    for seed in range(1000, 1008):
        check_pair(random_pair(seed, method))


@pytest.mark.parametrize("entrance", ["saver", "dcp"])
def test_random_pairs_of_trainings(entrance):
    pytest.importorskip("torch")
    from nearzip.testing.trainings import check_training

    for seed in range(12):
        check_training(random_pair(seed), entrance)


def test_a_pair_that_breaks_its_promise_is_named(monkeypatch):
    pair = next(pair for pair in map(random_pair, range(20)) if any(array.size for array in pair.tensors.values()))
    monkeypatch.setitem(ENTRANCES, "broken", lambda pair: ({}, None, 0))
    with pytest.raises(AssertionError, match=f"pair {pair.seed}, broken.*other names"):
        check_pair(pair, "broken")
    monkeypatch.setitem(ENTRANCES, "large", lambda pair: (pair.tensors, None, 10**9))
    with pytest.raises(AssertionError, match="1000000000 bytes"):
        check_pair(random_pair(0, "nearzip"), "large")
