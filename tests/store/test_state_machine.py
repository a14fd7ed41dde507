"""A store against a plain dict."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import nearzip as nz
from store.helpers import memory_url, network, same, updated

POLICIES = st.sampled_from(["forward", "backward", "hop", "hop:2", "hop:3"])


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.url = memory_url()
        self.store = nz.Store(self.url, create=True, bound="abs:1e-2")
        self.truth: dict[int, dict[str, np.ndarray]] = {}
        self.metrics: dict[int, float] = {}
        self.tags: dict[int, str] = {}
        self.n = 0
        self.tensors = network(0, 60)

    @rule(
        seed=st.integers(0, 50),
        metric=st.integers(0, 5),
        tag=st.sampled_from(["", "a", "b"]),
        size=st.sampled_from([0, 0.02]),
    )
    def commit(self, seed, metric, tag, size):
        self.tensors = updated(self.tensors, seed, size)
        number = self.store.commit(
            self.tensors, metrics={"m": metric}, tags=[tag] if tag else [], step=number_step(self.n)
        )
        assert number == self.n
        self.n += 1
        restored = self.store.checkout(number)
        assert np.abs(restored["weight"] - self.tensors["weight"]).max() <= 1e-2
        self.truth[number], self.metrics[number], self.tags[number] = restored, metric, tag

    @rule(name=st.sampled_from(["weight", "bias", "extra"]), shape=st.integers(0, 4))
    def reshape(self, name, shape):
        self.tensors = {**self.tensors, name: np.full((shape, 2), 0.5, np.float32)}
        if shape == 0 and name != "weight":
            del self.tensors[name]
        self.tensors.setdefault("weight", np.zeros(3, np.float32))

    @precondition(lambda self: self.truth)
    @rule(last=st.integers(1, 4), every=st.integers(1, 4), tagged=st.booleans())
    def prune(self, last, every, tagged):
        live = sorted(self.truth)
        keep = set(live[-last:]) | {n for n in live if n % every == 0} | {n for n in live if tagged and self.tags[n]}
        size = self.store.stat().n_stored
        report = self.store.prune(f"last:{last} every:{every}" + (" tagged" if tagged else ""))
        assert set(report.kept) == keep
        assert self.store.stat().n_stored <= size
        for number in set(live) - keep:
            del self.truth[number], self.metrics[number], self.tags[number]

    @rule(policy=POLICIES)
    def configure(self, policy):
        self.store.configure(policy=policy)

    @rule()
    def reopen(self):
        self.store = nz.Store(self.url)

    @precondition(lambda self: self.truth)
    @rule()
    def select(self):
        best = max(self.metrics.values())
        assert self.store.resolve("best:m") == max(n for n, m in self.metrics.items() if m == best)
        for tag in {tag for tag in self.tags.values() if tag}:
            assert self.store.resolve(f"tag:{tag}") == max(n for n, t in self.tags.items() if t == tag)
        assert self.store.resolve() == max(self.truth)

    @rule()
    def verify(self):
        report = self.store.verify("deep")
        assert report.ok
        assert set(report.readable) == set(self.truth)

    @invariant()
    def everything_is_as_it_was(self):
        assert [row.number for row in self.store.log()] == sorted(self.truth)
        assert len(self.store) == self.n
        for number, tensors in self.truth.items():
            assert same(self.store.checkout(number), tensors)


def number_step(n: int) -> int:
    return 10 * n


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=8, stateful_step_count=10, deadline=None)
