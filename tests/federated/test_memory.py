"""What a server holds: few networks and compressed replies, whatever the number of clients."""

from __future__ import annotations

import copy
import itertools
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

import nearzip as nz
from nearzip.federated import Client, Server, server
from nearzip.federated.downlink import read_downlink
from nearzip.federated.older import Old, Older
from nearzip.tensors import Checkpoint

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_]


def same_bits(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shares", list(itertools.product([0.0, 0.02, 0.5, 1.0], repeat=2)))
def test_an_older_tensor_comes_back_bit_for_bit(dtype, shares):
    rng = np.random.default_rng(0)
    versions = [rng.normal(0, 1, (40, 25)).astype(dtype)]
    for share in shares:
        later = versions[-1].copy()
        mask = rng.random(later.shape) < share
        later[mask] = rng.normal(0, 1, mask.sum()).astype(dtype)
        if later.dtype.kind == "f":
            later[0, :3] = np.nan, -0.0, np.inf
        versions.append(later)
    first, second, third = versions
    old, later = Old.of(first, second), Old.of(second, third)
    assert same_bits(old.restored(second), first)
    merged = old.before(later, third)
    assert same_bits(merged.restored(third), first)
    for one in (old, later, merged):
        assert one.values.nbytes + (0 if one.mask is None else one.mask.nbytes) <= first.nbytes + 126


def test_an_older_model_is_told_from_the_newest():
    models = [Checkpoint.of({"w": np.arange(9.0) ** i, "n": np.array(i)}) for i in range(3)]
    older = Older()
    for before, after in itertools.pairwise(models):
        older.moved({name: Old.of(before.read(name), after.read(name)) for name in after.specs}, after)
    back = older.model(models[-1])
    assert all(same_bits(back.read(name), models[0].read(name)) for name in back.specs)


def trained(model, seed):
    rng = np.random.default_rng(seed)
    return {name: value + rng.laplace(0, 1e-3, value.shape).astype(value.dtype) for name, value in model.items()}


NODES = range(12)


def round_of(it, replies):
    for node in NODES:
        it.broadcast(node)
        it.accept(node, bytes(bytearray(replies[node % len(replies)])))
    it.average(dict.fromkeys(NODES, 1.0))


@pytest.mark.parametrize("threads", ["1", "2", "16"])
def test_a_server_takes_three_networks_and_the_replies(threads, monkeypatch):
    """In every round: of what Python and NumPy ask for, without the native coder's buffers."""
    monkeypatch.setenv("NEARZIP_THREADS", threads)
    rng = np.random.default_rng(0)
    model = {f"layer{i}": rng.normal(0, 0.05, 3 << 19).astype(np.float32) for i in range(5)}
    n_bytes = sum(value.nbytes for value in model.values())
    it, clients, replies = Server(model), [Client(residual=None) for _ in range(2)], []
    for turn in range(2):
        replies.append(
            [client.send(trained(client.receive(it.broadcast(i)), 2 * turn + i)) for i, client in enumerate(clients)]
        )
        round_of(it, replies[-1])
    tracemalloc.start()
    try:
        it = Server(model)
        for one in replies:
            tracemalloc.reset_peak()
            round_of(it, one)
            _, peak = tracemalloc.get_traced_memory()
            assert peak < 3 * n_bytes + sum(len(one[node % 2]) for node in NODES)
    finally:
        tracemalloc.stop()


def test_one_message_serves_all_clients_of_a_version():
    it = Server({"w": np.zeros((300, 400), np.float32)})
    data = it.broadcast("a")
    assert it.broadcast("b") is data
    [part] = read_downlink(data).parts
    assert bytes(part.data) == nz.compress(it.model).to_bytes()
    client = Client()
    client.receive(data)
    it.accept("a", client.send(trained(client.model, 0)))
    assert it.broadcast("a") != data
    assert it.broadcast("b") == data


def test_a_model_given_out_is_the_callers():
    it = Server({"w": np.zeros(5, np.float32), "n": np.array(1)})
    model = it.model
    model["w"][0] = 7
    model["n"] = np.array(2)
    assert (model["w"][0], int(model["n"]), len(model), list(model)) == (7, 2, 2, ["w", "n"])
    del model["n"]
    assert list(model) == ["w"]
    assert it.model["w"][0] == 0
    assert int(it.model["n"]) == 1
    assert list(reversed(model)) == ["w"]
    zeros = np.zeros(2, np.float32)
    assert [type(one) for one in (model | {"b": zeros}, {"b": zeros} | model)] == [dict, dict]
    assert list({"b": zeros} | model) == ["b", "w"]
    for own in (model.copy(), copy.copy(model)):
        own["w"] = np.ones(1, np.float32)
        assert model["w"][0] == 7
    assert repr(model) == repr(dict(model))


@pytest.mark.parametrize("method", ["nearzip", "lossless"])
@pytest.mark.parametrize("n_taken", [0, 1, 2])
def test_a_server_that_ran_out_of_memory_holds_what_it_held(method, n_taken, monkeypatch):
    model = {name: np.zeros((200, 300), np.float32) for name in "abc"}
    it, client = Server(model, method), Client()

    def reply(seed):
        it.accept("a", client.send(trained(client.receive(it.broadcast("a")), seed)))

    reply(0)
    it.average({"a": 1.0})
    reply(1)
    before, pack = dict(it.model), server.pack_into

    def fails(take, *arguments):
        n = 0

        def counted(name, decoded):
            nonlocal n
            if n == n_taken:
                raise MemoryError
            n += 1
            take(name, decoded)

        return pack(counted, *arguments)

    monkeypatch.setattr(server, "pack_into", fails)
    with pytest.raises(MemoryError):
        it.average({"a": 1.0})
    monkeypatch.undo()
    assert all(same_bits(it.model[name], before[name]) for name in before)
    assert not read_downlink(it.broadcast("a")).acks  # the reply is lost: its client sends it again
    it.update(trained(it.model, 3))
    model = client.receive(it.broadcast("a"))
    assert all(same_bits(model[name], it.model[name]) for name in model)
