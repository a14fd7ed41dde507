"""Any schedule of rounds: every client holds, bit for bit, a model that the server recorded."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nearzip.errors import WrongBaseError
from nearzip.federated import Client, Server
from tests.federated.test_rounds import same, trained


class Rounds(RuleBasedStateMachine):
    """Clients that miss rounds, lose replies or broadcasts, get old ones, restart, or lose their state, in any order.

    Whatever the order, every client holds a model that the server recorded, bit for bit.
    """

    def __init__(self):
        super().__init__()
        self.clients = {i: Client() for i in range(3)}
        self.current: set[int] = set()
        self.broadcasts: list[bytes] = []
        self.recorded: dict[str, dict] = {}
        self.seed = 0

    @initialize(
        method=st.sampled_from(["nearzip", "topk", "stc", "lossless"]),
        history=st.sampled_from([None, 0, 3000]),
        catch_up=st.sampled_from([1, 16, 10**9]),
    )
    def begin(self, method, history, catch_up):
        self.catch_up = catch_up
        model = {"w": np.full((20, 20), 0.1, np.float32), "b": np.zeros(5, np.float32), "n": np.array(0)}
        self.server = Server(model, method, max_history_bytes=history)
        self.server._catch_up = catch_up
        self.record()

    def record(self):
        self.recorded[self.server._held_id.hex()] = self.server.model

    @rule(node=st.integers(0, 2))
    def receive(self, node):
        data = self.server.broadcast(node)
        try:
            model = self.clients[node].receive(data)
        except WrongBaseError:
            self.server.forget(node)
            data = self.server.broadcast(node)
            model = self.clients[node].receive(data)
        assert same(model, self.server.model)
        self.broadcasts.append(data)
        self.current.add(node)

    @rule(node=st.integers(0, 2))
    def lose_broadcast(self, node):
        self.server.broadcast(node)

    @precondition(lambda self: self.broadcasts)
    @rule(node=st.integers(0, 2), data=st.data())
    def receive_an_old_one(self, node, data):
        """Late, or meant for another client."""
        old = data.draw(st.sampled_from(self.broadcasts))
        with contextlib.suppress(WrongBaseError):
            self.clients[node].receive(old)
        if self.clients[node].model_id != self.server._held_id.hex():
            self.current.discard(node)

    @precondition(lambda self: self.current)
    @rule(lost=st.booleans(), data=st.data())
    def reply(self, lost, data):
        node = data.draw(st.sampled_from(sorted(self.current)))
        self.seed += 1
        reply = self.clients[node].send(trained(self.clients[node].model, self.seed))
        if not lost and node not in self.server._replies:
            self.server.broadcast(node)
            self.server.accept(node, reply)

    @precondition(lambda self: self.server._replies)
    @rule()
    def average(self):
        self.server.average(dict.fromkeys(self.server._replies, 1.0))
        self.current.clear()
        self.record()

    @rule()
    def restart_server(self):
        self.server = Server.from_bytes(self.server.to_bytes())
        self.server._catch_up = self.catch_up

    @rule(node=st.integers(0, 2))
    def restart_client(self, node):
        self.clients[node] = Client.from_bytes(self.clients[node].to_bytes())

    @rule(node=st.integers(0, 2))
    def lose_client(self, node):
        self.clients[node] = Client()
        self.current.discard(node)

    @invariant()
    def every_client_holds_what_the_server_recorded(self):
        for client in self.clients.values():
            if client.model_id:
                assert same(client.model, self.recorded[client.model_id])

    @invariant()
    def residuals_are_finite(self):
        assert all(np.isfinite(value).all() for value in self.server._left.values())


TestRounds = Rounds.TestCase
TestRounds.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
