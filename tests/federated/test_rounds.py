"""Rounds between clients and a server: the same bits on both sides, nothing lost, small messages."""

from __future__ import annotations

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from nearzip.digests import digest
from nearzip.errors import CorruptError, Error, UsageError, WrongBaseError
from nearzip.federated import Client, Server, residual
from nearzip.federated.coding import as_model, carrying, model_id
from nearzip.federated.downlink import read_downlink
from nearzip.federated.message import read_message

METHODS = ["nearzip", "lossless", "qd-compressor", "zstd", "topk", "sbc", "stc", "qsgd", "skcompress", "deepreduce"]


def network(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        "fc1.weight": rng.normal(0, 0.05, (40, 60)).astype(dtype), "fc1.bias": rng.normal(0, 0.05, 40).astype(dtype),
        "bn.running_var": rng.random(40).astype(dtype), "bn.num_batches_tracked": np.array(7),
        "fc2.weight": rng.normal(0, 0.05, (40, 40)).astype(dtype), "fc2.bias": np.zeros(40, dtype),
    }  # fmt: skip


def trained(model, seed, scale=1e-3):
    rng = np.random.default_rng(seed)
    found = {}
    for name, value in model.items():
        if value.dtype.kind in "iu":
            found[name] = value + 1
        else:
            found[name] = (value.astype("f4") + rng.laplace(0, scale, value.shape).astype("f4")).astype(value.dtype)
    return found


def same(one, other):
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_every_client_holds_what_the_server_records(method, dtype):
    server = Server(network(dtype=dtype), method)
    clients = {f"c{i}": Client(method) for i in range(3)}
    for turn in range(4):
        for i, (node, client) in enumerate(clients.items()):
            model = client.receive(server.broadcast(node))
            assert same(model, server.model)
            server.accept(node, client.send(trained(model, 10 * turn + i)))
        server.average(dict.fromkeys(clients, 1.0))
    assert server.round == 4
    assert int(server.model["bn.num_batches_tracked"]) == 11


def test_lossless_is_the_plain_average():
    server = Server(network(), "lossless")
    weights = {"a": 3.0, "b": 1.0}
    sent = {}
    for i, node in enumerate(weights):
        client = Client("lossless")
        sent[node] = trained(client.receive(server.broadcast(node)), i)
        update = server.accept(node, client.send(sent[node]))
        assert same(dict(update), sent[node])
    model = server.average(weights)
    for name, value in model.items():
        mean = sum(weights[node] / 4 * sent[node][name].astype(np.float64) for node in weights)
        assert np.array_equal(
            value, np.rint(mean).astype(value.dtype) if value.dtype.kind == "i" else mean.astype("f4")
        )


def test_the_bound_holds_for_the_whole_update():
    server, client = Server(network()), Client(bound="rms:0.5", residual="exact")
    model = client.receive(server.broadcast("a"))
    wanted = trained(model, 1)
    update = server.accept("a", client.send(wanted))
    large = [name for name in model if name.endswith("weight")]
    changes = np.concatenate([(wanted[name] - model[name]).ravel() for name in large]).astype(np.float64)
    errors = np.concatenate([(wanted[name] - update[name]).ravel() for name in large])
    assert np.abs(errors).max() <= 0.5 * np.sqrt(np.mean(changes**2)) * 1.001
    assert np.array_equal(update["bn.running_var"], wanted["bn.running_var"])


@pytest.mark.parametrize("residual", ["exact", "nearzip", "qd-compressor", "lc-checkpoint"])
def test_what_one_update_leaves_out_comes_with_the_next(residual):
    """A constant small update is below the step of every round; its sum arrives all the same."""
    model = {"w": np.zeros((50, 50), np.float32)}
    server, client = Server(model, "lossless"), Client(bound="abs:0.01", residual=residual)
    for _ in range(40):
        held = client.receive(server.broadcast("a"))
        server.accept("a", client.send({"w": held["w"] + np.float32(0.001)}))
        server.average({"a": 1.0})
    assert abs(float(server.model["w"].mean()) - 0.04) < 0.015
    dropped_server, dropped = Server(model, "lossless"), Client(bound="abs:0.01", residual=None)
    for _ in range(40):
        held = dropped.receive(dropped_server.broadcast("a"))
        dropped_server.accept("a", dropped.send({"w": held["w"] + np.float32(0.001)}))
        dropped_server.average({"a": 1.0})
    assert float(np.abs(dropped_server.model["w"]).max()) == 0.0


@pytest.mark.parametrize("piece", [3, 10, 1 << 19])
def test_random_rounding_does_not_depend_on_how_it_is_divided(piece, monkeypatch):
    monkeypatch.setattr(residual, "_PIECE", piece)
    values = {name: np.full(shape, 3, np.float32) for name, shape in {"a": (5, 3), "b": (0,), "c": (), "d": 28}.items()}
    rng = np.random.Generator(np.random.PCG64(1))
    wanted = {n: v + np.float32(0.1) * (rng.random(v.shape, np.float32) - np.float32(0.5)) for n, v in values.items()}
    assert same(residual.Residual("nearzip")._dithered(values, 0.1), wanted)


def test_a_lost_reply_is_sent_again():
    model = {"w": np.zeros((50, 50), np.float32)}
    target = np.random.default_rng(0).laplace(0, 1e-3, (50, 50)).astype("f4")
    server, client = Server(model, "lossless"), Client(residual="exact")
    held = client.receive(server.broadcast("a"))
    client.send({"w": held["w"] + target})  # never arrives
    server.update(server.model)
    held = client.receive(server.broadcast("a"))
    server.accept("a", client.send(held))  # nothing learned since
    arrived = server.average({"a": 1.0})["w"] + client_residual(client)["w"]
    assert np.abs(arrived - target).max() < 1e-8


def client_residual(client):
    client.to_bytes()  # waits for the residual to be stored
    return client._residual.load(["w"])


def test_an_acknowledged_reply_is_not_sent_twice():
    model = {"w": np.zeros((50, 50), np.float32)}
    server, client = Server(model, "lossless"), Client(residual="exact")
    target = np.random.default_rng(0).laplace(0, 1e-3, (50, 50)).astype("f4")
    held = client.receive(server.broadcast("a"))
    server.accept("a", client.send({"w": held["w"] + target}))
    server.average({"a": 1.0})
    held = client.receive(server.broadcast("a"))
    left = client_residual(client)["w"]
    assert np.abs(held["w"] + left - target).max() < 1e-8


# ---- sizes -------------------------------------------------------------------------------------------------------


def test_the_frame_is_small():
    """At most 48 bytes and one byte a tensor beyond the blocks."""
    shapes = {
        "fc1.w": (300, 784),
        "fc1.b": (300,),
        "fc2.w": (100, 300),
        "fc2.b": (100,),
        "out.w": (10, 100),
        "out.b": (10,),
    }
    model = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    server, client = Server(model), Client()
    held = client.receive(server.broadcast("a"))
    data = client.send(trained(held, 0))
    base = as_model(held)
    message = read_message(data, base, model_id(base))
    payload = sum(len(block) for _, _, block in message.work())
    assert len(data) - payload <= 48 + len(shapes)


def test_a_coarse_update_takes_under_half_a_bit_a_value():
    model = {"w": np.zeros((512, 512), np.float32)}
    server, client = Server(model), Client(bound="rms:2")
    data = client.send(trained(client.receive(server.broadcast("a")), 0))
    assert 8 * len(data) / 512**2 < 0.45


# ---- catching up -------------------------------------------------------------------------------------------------


def test_a_client_that_missed_rounds_gets_the_updates_between():
    server, one, late = Server(network()), Client(), Client()
    late.receive(server.broadcast("late"))
    server.accept("late", late.send(late.model))
    for turn in range(3):
        held = one.receive(server.broadcast("one"))
        server.accept("one", one.send(trained(held, turn)))
        server.average({"one": 1.0})
    data = server.broadcast("late")
    assert len(data) < len(server.broadcast("stranger"))
    assert same(late.receive(data), server.model)


def test_a_client_that_missed_many_rounds_gets_the_exact_difference():
    """Where it is smaller than the updates between and than a keyframe: few values moved, in every round again."""
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(0, 0.05, (200, 200)).astype(np.float32)}
    server, one, late = Server(model, "topk", options={"keep": 0.01}), Client("lossless"), Client("lossless")
    for node, client in (("late", late), ("one", one)):
        server.accept(node, client.send(client.receive(server.broadcast(node))))
    server.average({"late": 1.0, "one": 1.0})
    server.accept("late", late.send(late.receive(server.broadcast("late"))))
    sizes = []
    for turn in range(12):
        held = one.receive(server.broadcast("one"))
        held["w"][3:5] += rng.normal(0, 1e-2, (2, 200)).astype(np.float32)
        server.accept("one", one.send(held))
        server.average({"one": 1.0})
        data = server.broadcast("late")
        sizes.append(len(data))
        fresh = Client.from_bytes(late.to_bytes())
        assert same(fresh.receive(data), server.model)
        if turn == 6:
            server = Server.from_bytes(server.to_bytes())
    part = read_downlink(data).parts
    assert len(part) == 1
    assert not part[0].is_keyframe
    assert sizes[-1] < sum(len(one.data) for one in server._history) < len(server._key())


def test_all_clients_of_one_version_get_the_same_bytes():
    server = Server(network())
    clients = {node: Client() for node in "abc"}
    for i, (node, client) in enumerate(clients.items()):
        server.accept(node, client.send(trained(client.receive(server.broadcast(node)), i)))
    server.average(dict.fromkeys(clients, 1.0))
    assert len({server.broadcast(node) for node in clients}) == 1


def test_a_client_without_its_state_asks_for_a_keyframe():
    server, client = Server(network()), Client()
    server.accept("a", client.send(trained(client.receive(server.broadcast("a")), 0)))
    server.average({"a": 1.0})
    fresh = Client()
    with pytest.raises(WrongBaseError, match="keyframe"):
        fresh.receive(server.broadcast("a"))
    server.forget("a")
    assert same(fresh.receive(server.broadcast("a")), server.model)


def test_state_survives_a_restart_in_another_process(tmp_path):
    server, client = Server(network()), Client(residual="qd-compressor")
    server.accept("a", client.send(trained(client.receive(server.broadcast("a")), 0)))
    server.average({"a": 1.0})
    (tmp_path / "server").write_bytes(server.to_bytes())
    (tmp_path / "client").write_bytes(client.to_bytes())
    code = (
        "from pathlib import Path; from nearzip.federated import Client, Server\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "server = Server.from_bytes((folder / 'server').read_bytes())\n"
        "client = Client.from_bytes((folder / 'client').read_bytes())\n"
        "model = client.receive(server.broadcast('a'))\n"
        "model['bn.num_batches_tracked'] = model['bn.num_batches_tracked'] + 1\n"
        "(folder / 'reply').write_bytes(client.send(model))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    model = client.receive(server.broadcast("a"))
    here = client.send({**model, "bn.num_batches_tracked": model["bn.num_batches_tracked"] + 1})
    assert (tmp_path / "reply").read_bytes() == here
    assert server.accept("a", here).n_bytes == len(here)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
def test_damaged_state_is_named(cut):
    client = Client()
    client.receive(Server(network()).broadcast("a"))
    state = client.to_bytes()
    with pytest.raises(CorruptError):
        Client.from_bytes(state[: int(cut * len(state))])


# ---- hostile replies ---------------------------------------------------------------------------------------------


def hostile(honest, held, rng):
    """Replies that nobody honest sends."""
    yield b""
    yield b"\0" * 100
    yield honest[:-1]
    yield honest[: len(honest) // 2]
    yield honest + b"\0"
    yield bytes(rng.integers(0, 256, 500, dtype=np.uint8))
    for at in rng.integers(0, len(honest), 30):
        flipped = bytearray(honest)
        flipped[at] ^= 1 << rng.integers(8)
        yield bytes(flipped)
    for bad in (np.nan, np.inf, -np.inf):
        poisoned = {name: np.array(value) for name, value in held.items()}
        poisoned["fc1.weight"][3, 5] = bad
        yield sent(held, poisoned)
    other = {**held, "fc1.weight": held["fc1.weight"] + 1}
    yield sent(other, other)


def sent(held, model):
    """A lossless reply made without the client's own checks."""
    from nearzip.federated.coding import UpdateCoding
    from nearzip.federated.message import pack
    from nearzip.tensors import Checkpoint

    base, none = as_model(held), Checkpoint.of({})
    return pack(UpdateCoding("lossless").groups(none, base), none, Checkpoint.of(model), base, model_id(base))[0]


def test_hostile_replies_are_named_and_change_nothing():
    rng = np.random.default_rng(0)
    clean, server = Server(network()), Server(network())
    honest = {}
    for i, node in enumerate("abc"):
        client = Client()
        honest[node] = client.send(trained(client.receive(clean.broadcast(node)), i))
        server.broadcast(node)
        clean.accept(node, honest[node])
    for data in hostile(honest["a"], server.model, rng):
        server.broadcast("evil")
        with pytest.raises(Error):
            server.accept("evil", data)
    for node, data in honest.items():
        server.accept(node, data)
    weights = dict.fromkeys("abc", 1.0)
    assert same(server.average(weights), clean.average(weights))


def test_an_update_whose_values_are_not_what_was_sent_is_refused():
    """The checksum is right and every block decodes; the digest of the decoded values tells."""
    server, client = Server(network()), Client()
    data = bytearray(client.send(trained(client.receive(server.broadcast("a")), 0)))
    data[5] ^= 1  # the content tag follows magic, version and the base's tag
    body = bytes(data[:-16])
    held = as_model(client.model)
    forged = body + digest(model_id(held), body)
    with pytest.raises(CorruptError, match="differ from what was sent"):
        server.accept("a", forged)
    assert server.accept("a", client.send(client.model)).n_bytes > 0


def test_a_finite_giant_is_left_out_by_its_norm():
    server = Server(network())
    for i, node in enumerate(["a", "b", "c", "evil"]):
        client = Client("lossless")
        model = trained(client.receive(server.broadcast(node)), i)
        if node == "evil":
            model["fc1.weight"] = model["fc1.weight"] + np.float32(1e30)
        server.accept(node, client.send(model))
    model = server.average(dict.fromkeys(["a", "b", "c", "evil"], 1.0))
    assert list(server.rejected) == ["evil"]
    assert np.abs(model["fc1.weight"]).max() < 1


def test_replays_and_strangers_are_refused():
    server, client = Server(network()), Client()
    with pytest.raises(UsageError, match="was sent no model"):
        server.accept("a", b"x")
    reply = client.send(trained(client.receive(server.broadcast("a")), 0))
    server.accept("a", reply)
    with pytest.raises(UsageError, match="replied already"):
        server.accept("a", reply)
    server.average({"a": 1.0})
    server.broadcast("a")
    with pytest.raises(WrongBaseError):
        server.accept("a", reply)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 1e30])
def test_weights_are_checked(weight):
    server, client = Server(network()), Client()
    server.accept("a", client.send(trained(client.receive(server.broadcast("a")), 0)))
    with pytest.raises(UsageError, match="the weight of node 'a'"):
        server.average({"a": weight})


def test_dtypes_without_arithmetic_are_refused_by_name():
    scales = np.zeros(4, np.uint8).view(ml_dtypes.float8_e8m0fnu)
    with pytest.raises(UsageError, match="'scale' has dtype float8_e8m0fnu"):
        Server({"w": np.zeros((4, 4), np.float32), "scale": scales})


def test_wrong_tensors_are_named():
    client = Client()
    model = client.receive(Server(network()).broadcast("a"))
    with pytest.raises(UsageError, match=r"tensor 'fc2\.bias' is missing"):
        client.send({name: value for name, value in model.items() if name != "fc2.bias"})
    with pytest.raises(UsageError, match=r"\[3\]; the model held has it as float32 \[40\]"):
        client.send({**model, "fc2.bias": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="is not finite"):
        client.send({**model, "fc2.weight": np.full((40, 40), np.nan, np.float32)})


@pytest.mark.parametrize("away", [0, 1, 5])
@pytest.mark.parametrize("restart", [False, True])
def test_a_reply_counts_once_however_late_its_client_comes_back(away, restart):
    """Acknowledged with its next broadcast, not only with that of the next round: else it would be sent twice."""
    start = {"w": np.zeros(4000, np.float32)}
    rng = np.random.default_rng(away)
    change = rng.laplace(0, 1e-2, 4000).astype(np.float32)
    server = Server(start, "lossless")
    client, others = Client("topk", options={"keep": 0.1}, residual="exact"), Client("lossless")
    reply = client.send({"w": client.receive(server.broadcast("a"))["w"] + change})
    server.accept("a", reply)
    held = client.receive(server.broadcast("a"))  # in the same round: it was accepted
    server.average({"a": 1})
    for _ in range(away):
        model = others.receive(server.broadcast("b"))
        server.accept("b", others.send({"w": model["w"] + np.float32(1e-3)}))
        server.average({"b": 1})
    if restart:
        server, client = Server.from_bytes(server.to_bytes()), Client.from_bytes(client.to_bytes())
    # Nothing more is learned: what arrives from now on is what the first reply left out.
    for _ in range(30):
        held = client.receive(server.broadcast("a"))
        server.accept("a", client.send(held))
        server.average({"a": 1})
    assert np.abs(server.model["w"] - change - np.float32(1e-3) * away).max() < 1e-6


def test_a_reply_that_was_not_averaged_is_sent_again():
    server = Server({"w": np.zeros(4000, np.float32)}, "lossless")
    clients = {node: Client("topk", options={"keep": 0.5}, residual="exact") for node in "ab"}
    for node, client in clients.items():
        model = client.receive(server.broadcast(node))
        server.accept(node, client.send({"w": model["w"] + np.float32(ord(node) - 96)}))
    server.average({"a": 1})
    before = server.model["w"].sum()
    for _ in range(3):
        server.accept("b", clients["b"].send(clients["b"].receive(server.broadcast("b"))))
        server.average({"b": 1})
    assert server.model["w"].sum() - before == pytest.approx(8000)


def after_a_round():
    server, client = Server(network()), Client()
    server.accept("a", client.send(trained(client.receive(server.broadcast("a")), 0)))
    server.average({"a": 1.0})
    return server


def test_an_update_that_is_refused_changes_nothing():
    server = after_a_round()
    before, model = server.to_bytes(), trained(server.model, 1)
    model["fc2.bias"][3] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        server.update(model)
    assert server.to_bytes() == before


def test_no_model_overflows_by_the_rounding_of_the_downlink():
    """The mean is finite; the nearest multiple of the downlink's step leads beyond float32."""
    server, client = Server({"w": np.full((40, 50), 3e38, np.float32)}, bound="abs:3e37"), Client("lossless")
    model = client.receive(server.broadcast("a"))
    server.accept("a", client.send({"w": model["w"] + np.float32(3.5e37)}))
    with pytest.raises(UsageError, match="not finite"):
        server.average({"a": 1.0})
    assert same(server.model, model)
    server.update(server.model)
    assert same(client.receive(server.broadcast("a")), server.model)


def test_replies_are_acknowledged_though_an_average_without_them_failed(monkeypatch):
    server, clients = Server(network()), {node: Client() for node in "ab"}
    sent = {}
    for i, (node, client) in enumerate(clients.items()):
        sent[node] = client.send(trained(client.receive(server.broadcast(node)), i))
        server.accept(node, sent[node])

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(Server, "_averaged", fails)
    with pytest.raises(MemoryError):
        server.average({"a": 1.0})
    monkeypatch.undo()
    server.average({"a": 1.0, "b": 1.0})
    for node in clients:
        assert read_downlink(server.broadcast(node)).acknowledges(digest(sent[node]))


def test_numbers_of_numpy_name_clients():
    server, client, node = Server(network()), Client(), np.int64(3)
    server.accept(node, client.send(trained(client.receive(server.broadcast(node)), 0)))
    again = Server.from_bytes(server.to_bytes())
    assert again.broadcast(3) == again.broadcast(node)


DRAWS = {
    "of one size": lambda rng, n: np.sign(rng.normal(size=n)),
    "uniform": lambda rng, n: rng.uniform(-1, 1, n),
    "normal": lambda rng, n: rng.normal(size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "few": lambda rng, n: rng.normal(size=n) * (rng.random(n) < 0.01),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("is_drift", [True, False])
@pytest.mark.parametrize("bound", [None, "rms:3"])
def test_nothing_is_left_for_ever(draw, is_drift, bound):
    """Whatever the updates look like, the server's model follows, and what is left stays within some updates."""
    rng, n, rounds = np.random.default_rng(0), 4000, 40
    server, client = Server({"w": np.zeros(n, np.float32)}, bound=bound), Client(bound=bound, residual="exact")
    step = DRAWS[draw](rng, n)
    true = np.zeros(n)
    for _ in range(rounds):
        held = client.receive(server.broadcast(0))
        step = step if is_drift else DRAWS[draw](rng, n)
        true += step
        server.accept(0, client.send({"w": (held["w"] + step).astype(np.float32)}))
        server.average({0: 1.0})
    apart = np.sqrt(np.mean((true - server.model["w"]) ** 2) / np.mean(step**2))
    assert apart < (20 if is_drift else 12)


@pytest.mark.parametrize(("bound", "scale"), [("rms:2", 1e38), ("rms:1e300", 1e9), ("abs:1e39", 1.0)])
def test_huge_values_and_bounds_end_and_take_a_step_of_float32(bound, scale):
    update = np.clip(np.random.default_rng(0).normal(0, 1, (50, 50)), -2, 2).astype(np.float32) * np.float32(scale)
    model = {"w": np.zeros((50, 50), np.float32)}
    server, client = Server(model), Client(bound=bound)
    client.receive(server.broadcast("a"))
    message = client.send({"w": update})
    held = as_model(model)
    sent = read_message(message, held, model_id(held)).arrays()["w"]
    left = update.astype(np.float64) - sent
    if bound.startswith("rms"):
        assert np.square(left / scale).sum() < 0.99 * np.square(update.astype(np.float64) / scale).sum()
    else:
        assert not sent.any()


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("half", [1.0, 2.0, 5.0, 100.0])
def test_a_step_carries_its_part_and_is_no_finer_than_it_must(draw, half):
    values = DRAWS[draw](np.random.default_rng(0), 4000)
    half *= np.sqrt(np.mean(values**2))

    def carried(half):
        rest = values - 2 * half * np.rint(values / (2 * half))
        return 1 - np.sum(rest**2) / np.sum(values**2)

    found = carrying(half, [values])
    assert found <= half
    assert carried(found) >= 0.02
    assert found == half or carried(min(half, found * 2**0.25)) < 0.02
