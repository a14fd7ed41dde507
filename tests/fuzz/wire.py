"""Targets for the wire form of federated learning: updates and downlinks under checksums that are right."""

from __future__ import annotations

import contextlib
import functools

import numpy as np

import nearzip as nz
from nearzip.digests import digest
from nearzip.errors import Error
from nearzip.federated import Client, Server
from nearzip.federated.coding import as_model, model_id
from nearzip.tensors import Checkpoint

_METHODS = ("nearzip", "lossless", "topk", "sbc", "stc", "skcompress", "deepreduce", "qsgd", "qd-compressor", "zstd")
_LIMITS = nz.Limits(output_bytes=32 << 20)


@functools.cache
def model() -> dict[str, np.ndarray]:
    """What both sides hold."""
    rng = np.random.default_rng(3)
    return {
        "a": rng.normal(size=(40, 30)).astype(np.float32),
        "b": rng.normal(size=7).astype(np.float16),
        "c": np.arange(3),
        "d": np.float32(1.5).reshape(()),
    }


@functools.cache
def messages() -> tuple[bytes, ...]:
    """A good update of every method."""
    rng = np.random.default_rng(4)
    trained = {
        name: (value + 0.01 * rng.normal(size=value.shape)).astype(value.dtype) for name, value in model().items()
    }
    found = []
    for method in _METHODS:
        client = Client(method)
        client.receive(Server(model()).broadcast("a"))
        found.append(client.send(trained))
    return tuple(found)


@functools.cache
def downlinks() -> tuple[bytes, ...]:
    """A keyframe, one update, several, and nothing new."""
    server, late = Server(model()), Server(model())
    found = [server.broadcast("a")]
    for node in (server, late):
        Client().receive(node.broadcast("a"))
    for turn in range(3):
        moved = {name: value + value.dtype.type(0.01 * (turn + 1)) for name, value in server.model.items()}
        server.confirm("a")
        server.update(moved)
        if turn == 0:
            server.broadcast("b")
            server.confirm("b")
        found.append(server.broadcast("a"))
    found += [server.broadcast("b"), server.broadcast("c")]
    return tuple(found)


def _changed(data: bytes, seeds: tuple[bytes, ...], tail: int) -> bytes:
    """A good message, without its checksum, changed as the fuzz input says."""
    if not data:
        return seeds[0][:-tail]
    body = bytearray(seeds[data[0] % len(seeds)][:-tail])
    at = 1
    while at + 3 <= len(data):
        where = int.from_bytes(data[at : at + 2], "little") % len(body)
        action = data[at + 2]
        if action < 200:
            body[where] = data[at + 2] if at + 3 >= len(data) else data[at + 3]
        elif action < 228:
            del body[where : where + action - 199]
        else:
            body[where:where] = data[at + 3 : at + 3 + action - 227]
        at += 4
        if not body:
            break
    return bytes(body)


@functools.cache
def _held() -> tuple[Checkpoint, bytes]:
    held = as_model(model())
    return held, model_id(held)


def update(data: bytes) -> None:
    """A server accepts it or names an error, and can go on."""
    body = _changed(data, messages(), 16)
    server = Server(model())
    server.broadcast("a")
    with contextlib.suppress(Error):
        found = server.accept("a", body + digest(_held()[1], body))
        for name, value in found.items():
            spec = model()[name]
            assert (value.dtype, value.shape) == (spec.dtype, spec.shape)
            assert value.dtype.kind != "f" or np.isfinite(value).all()
        server.average({"a": 1.0})
    assert server.round in (0, 1)


def downlink(data: bytes) -> None:
    """A client receives it or names an error and holds what it held."""
    body = _changed(data, downlinks(), 8)
    client = Client()
    client.receive(downlinks()[0])
    before = client.model_id
    try:
        client.receive(body + digest(body)[:8], _LIMITS)
    except Error:
        assert client.model_id == before
