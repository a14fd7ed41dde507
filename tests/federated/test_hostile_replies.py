"""One of ten clients is hostile: its reply is refused by name, and the next model is the other nine's, bit for bit.

Checksums are right wherever the payload is not about them, so that what is behind them is reached.
"""

from __future__ import annotations

import gzip
import io
import lzma
import pickle
import tracemalloc

import numpy as np
import pytest
import zstandard

import nearzip as nz
from nearzip.digests import digest
from nearzip.errors import (
    BoundError,
    CorruptError,
    Error,
    LimitError,
    NewerFormatError,
    TruncatedError,
    UsageError,
    WrongBaseError,
)
from nearzip.federated import Client, Server
from nearzip.federated.coding import UpdateCoding, as_model, model_id
from nearzip.federated.message import MAGIC, VERSION, _put_stages, pack
from nearzip.stages.base import put_varint
from nearzip.tensors import Checkpoint

MODEL = {
    "a.weight": np.random.default_rng(0).normal(0, 0.05, (60, 50)).astype(np.float32),
    "b.count": np.array(7),
    "c.bias": np.zeros(60, np.float32),
    "d.half": np.ones(40, np.float16),
}
HELD = as_model(MODEL)
ID = model_id(HELD)
NODES = [f"node{i}" for i in range(9)]
WEIGHTS = {node: 10.0 + i for i, node in enumerate(NODES)}


def trained(seed):
    rng = np.random.default_rng(seed)
    return {
        name: value + 1 if value.dtype.kind == "i" else (value + rng.laplace(0, 1e-3, value.shape)).astype(value.dtype)
        for name, value in MODEL.items()
    }


@pytest.fixture(scope="module")
def honest():
    """Replies of nine clients, and what comes of them."""
    server, replies = Server(MODEL), {}
    for i, node in enumerate(NODES):
        client = Client()
        client.receive(server.broadcast(node))
        replies[node] = client.send(trained(i))
        server.accept(node, replies[node])
    return replies, server.average(WEIGHTS)


def lossless(model, base=HELD):
    """A reply that a client's own checks would not let out."""
    none = Checkpoint.of({})
    groups = UpdateCoding("lossless").groups(none, base)
    return pack(groups, none, Checkpoint.of(model), base, model_id(base))[0]


def changed(name, make):
    model = {n: np.array(v) for n, v in MODEL.items()}
    model[name] = make(model[name])
    return model


def put(array, index, value):
    array.reshape(-1)[index] = value
    return array


def sealed(body, head=None):
    head = MAGIC + bytes([VERSION]) + ID[:2] + b"tag!" if head is None else head
    return head + body + digest(ID, head, body)


GOLOMB = [{"id": "top-mean", "keep": 0.01}, {"id": "golomb", "bits": 0}]
STEP = [{"id": "uniform-step", "step": 0.01}, {"id": "rans"}]
RAW = [{"id": "raw-bytes"}]


def message(pipelines=(STEP, RAW), kinds=(0, 5, 5, 5), members=(0, 1, 2, 3), lengths=(0, 0, 0), blocks=b""):
    """A message by hand: pipelines as JSON, group kinds, the group of each tensor, lengths, blocks."""
    heads = [_put_stages(p) if isinstance(p, list) else p for p in pipelines]
    body = put_varint(len(heads)) + b"".join(heads) + put_varint(len(kinds)) + b"".join(map(put_varint, kinds))
    return sealed(body + b"".join(map(put_varint, members)) + b"".join(map(put_varint, lengths)) + blocks)


def one_block(stages, sides, payload, exact=True):
    """All of `a.weight` in one block with these stages; the other tensors in raw bytes."""
    own = b"".join(put_varint(len(side)) + side for side in sides) + payload
    blocks = [b"\0" + own, *(b"\0\0" + MODEL[name].tobytes() for name in ("b.count", "c.bias", "d.half"))]
    lengths = [len(block) for block in blocks[:-1]]
    return message((stages, RAW), (int(exact), 5, 5, 5), (0, 1, 2, 3), lengths, b"".join(blocks))


ZEROS = bytes(1 << 26)


def bombs():
    """64 MB in a few kilobytes, for a block of 12 kB."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    packed = {
        "gzip": gzip.compress(ZEROS)[10:-8],
        "lzma": lzma.compress(ZEROS, lzma.FORMAT_RAW, filters=filters),
        "zstd": zstandard.ZstdCompressor().compress(ZEROS),
    }
    for name, data in packed.items():
        yield f"{name} bomb", one_block([*RAW, {"id": name}], [b"", b""], data)


def npy_bomb():
    stream = io.BytesIO()
    np.save(stream, np.zeros(2, np.float32))
    return stream.getvalue().replace(b"(2,), ", b"(9999999999,), ")


def sparse(gaps):
    """Values behind gaps that lead anywhere."""
    stages = [{"id": "sparse", "values": RAW, "gaps": [{"id": "symbol-bytes"}], "gap_bits": 32, "fill": False}]
    values, distances = b"\0" + bytes(4 * len(gaps)), b"\1\4" + np.array(gaps, "<u4").tobytes()
    streams = b"".join(put_varint(len(gaps)) + put_varint(len(data)) + data for data in (values, distances))
    return one_block(stages, [b""], streams, exact=False)


#: Of the research: what stock FedAvg dies of or is poisoned by, as bytes, and what a packing of our own could hold.
KNOWN = {
    "empty": lambda h: b"",
    "random": lambda h: np.random.default_rng(1).bytes(800),
    "NaN": lambda h: lossless(changed("a.weight", lambda a: put(a, 7, np.nan))),
    "infinity": lambda h: lossless(changed("c.bias", lambda a: put(a, 0, np.inf))),
    "minus infinity in float16": lambda h: lossless(changed("d.half", lambda a: put(a, 0, -np.inf))),
    "shape (1,)": lambda h: lossless(
        changed("c.bias", lambda a: a[:1]), as_model(changed("c.bias", lambda a: a[:1]))
    ),
    "wrong shape": lambda h: lossless(
        changed("a.weight", lambda a: a.T), as_model(changed("a.weight", lambda a: a.T))
    ),
    "extra tensor": lambda h: lossless({**MODEL, "e": np.ones(3)}, as_model({**MODEL, "e": np.ones(3)})),
    "missing tensor": lambda h: lossless(
        {n: MODEL[n] for n in ("a.weight", "c.bias")}, as_model({n: MODEL[n] for n in ("a.weight", "c.bias")})
    ),
    "int64": lambda h: lossless(
        changed("c.bias", lambda a: a.astype(int)), as_model(changed("c.bias", lambda a: a.astype(int)))
    ),
    "float64": lambda h: lossless(
        changed("c.bias", lambda a: a.astype(float)), as_model(changed("c.bias", lambda a: a.astype(float)))
    ),
    "complex": lambda h: lossless(
        changed("c.bias", lambda a: a.astype("c8")), as_model(changed("c.bias", lambda a: a.astype("c8")))
    ),
    "another base": lambda h: lossless(trained(1), as_model(trained(2))),
    "a flipped byte": lambda h: h[:90] + bytes([h[90] ^ 16]) + h[91:],
    "cut": lambda h: h[:-1],
    "cut in half": lambda h: h[: len(h) // 2],
    "bytes behind": lambda h: h + b"\0",
    "an archive of nearzip": lambda h: nz.compress(trained(3)).to_bytes(),
    "a .npy header of 40 GB": lambda h: npy_bomb(),
    "a pickle": lambda h: pickle.dumps(trained(3)),
    "all of it twice": lambda h: h + h,
    "longer than any update": lambda h: h + bytes(1 << 20),
}  # fmt: skip

#: Our own: what stands behind a checksum that is right.
OWN = {
    "a version of tomorrow": lambda h: sealed(h[9:-16], MAGIC + b"\xff" + ID[:2] + b"tag!"),
    "another tag of the content": lambda h: sealed(h[9:-16]),
    "no pipelines": lambda h: sealed(b"\0"),
    "2^62 pipelines": lambda h: sealed(b"\xff" * 8 + b"\x3f"),
    "a number that never ends": lambda h: sealed(b"\xff" * 64),
    "no groups": lambda h: message(kinds=(), members=(0, 0, 0, 0)),
    "more groups than tensors": lambda h: message(kinds=(5,) * 9),
    "a group of no pipeline": lambda h: message(kinds=(0, 5, 400, 5)),
    "a tensor in no group": lambda h: message(members=(0, 1, 2, 77)),
    "a group of no tensor": lambda h: message(members=(0, 1, 2, 2)),
    "two dtypes in one group": lambda h: message((RAW, RAW), (1, 5, 5), (0, 1, 2, 0)),
    "integers as an update": lambda h: message(kinds=(0, 4, 5, 5)),
    "lengths beyond the end": lambda h: message(lengths=(1 << 40, 0, 0)),
    "blocks of nothing": lambda h: message(),
    "a stage of nobody": lambda h: one_block([{"id": "os.system"}], [b""], b""),
    "a stage too deep": lambda h: message((b"\1" + bytes([4 * 6 + 1, 8 * 3 + 6, 1]) * 40, RAW)),
    "a word of a gigabyte": lambda h: message((b"\x01\xfc" + put_varint(1 << 30), RAW)),
    "a parameter twice": lambda h: message((b"\x01\x02" + (b"\x03" + bytes(4)) * 2, RAW)),
    "a base where there is none": lambda h: one_block([{"id": "subtract-base"}, *STEP], [b""] * 3, b"", False),
    "a step of infinity": lambda h: one_block([{"id": "uniform-step", "step": float("inf")}, STEP[1]], [b""] * 2, b""),
    "a gap beyond the end": lambda h: sparse([1 << 31]),
    "gaps that add up beyond the end": lambda h: sparse([2000, 2000]),
    "ones without an end": lambda h: one_block(
        GOLOMB, [bytes(4), put_varint(99) + b"\1"], b"\xff" * 900,
        exact=False,
    ),
    "a filter that lets all pass": lambda h: one_block(
        [{"id": "bloom-index", "values": RAW}], [b"\1\x08\xff"], b"\1\5\0\0\0\0\0", exact=False
    ),
    "a mean of NaN": lambda h: one_block(
        GOLOMB, [np.float32(np.nan).tobytes(), put_varint(1) + b"\1"], b"\0", exact=False
    ),
    "values of 1e38 each": lambda h: lossless(changed("a.weight", lambda a: np.full_like(a, 3e38) * -1)),
    **{name: lambda h, data=data: data for name, data in bombs()},
}  # fmt: skip
#: These pass alone and are left out because of the others' norms.
OUTLIERS = {
    "finite 1e30": lambda h: lossless(changed("a.weight", lambda a: put(a, 3, 1e30))),
    "values of 1e38 each": OWN.pop("values of 1e38 each"),
    "a thousand times the update": lambda h: lossless(
        {n: (v + 1000 * (trained(5)[n] - v)).astype(v.dtype) if v.dtype == np.float32 else v for n, v in MODEL.items()}
    ),
}  # fmt: skip


def same(one, other):
    return all(np.array_equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in other) and len(one) == len(
        other
    )


def round_with(honest, data, refused):
    """A round of nine honest clients and this reply in the middle of them."""
    replies, _ = honest
    server = Server(MODEL)
    for node in [*NODES[:5], "evil", *NODES[5:]]:
        server.broadcast(node)
        if node != "evil":
            server.accept(node, replies[node])
        elif refused:
            with pytest.raises(Error) as raised:
                server.accept(node, data)
            assert isinstance(
                raised.value,
                (BoundError, CorruptError, LimitError, NewerFormatError, TruncatedError, UsageError, WrongBaseError),
            )
            assert "\n" not in str(raised.value)
        else:
            server.accept(node, data)
    return server


@pytest.mark.parametrize("name", [*KNOWN, *OWN])
def test_it_is_refused_and_the_model_is_the_honest_ones(name, honest):
    data = (KNOWN | OWN)[name](honest[0][NODES[0]])
    server = round_with(honest, data, refused=True)
    assert same(server.average(WEIGHTS), honest[1])


@pytest.mark.parametrize("name", OUTLIERS)
def test_outliers_are_left_out_by_their_norm(name, honest):
    server = round_with(honest, OUTLIERS[name](b""), refused=False)
    assert same(server.average({**WEIGHTS, "evil": 1e6}), honest[1])
    assert list(server.rejected) == ["evil"]


@pytest.mark.parametrize("weight", [-1.0, 0.0, float("nan"), float("inf"), 1e30])
def test_no_weight_wins_outright(weight, honest):
    """The round can be averaged again without it."""
    server = round_with(honest, honest[0][NODES[0]], refused=False)
    with pytest.raises(UsageError, match="the weight of node 'evil'"):
        server.average({**WEIGHTS, "evil": weight})
    assert same(server.average(WEIGHTS), honest[1])


def test_nothing_is_taken_beyond_what_the_model_takes(honest):
    """Of all payloads, bombs among them."""
    payloads = {name: make(honest[0][NODES[0]]) for name, make in (KNOWN | OWN).items()}
    server = Server(MODEL)
    server.broadcast("evil")
    for name, data in payloads.items():
        tracemalloc.start()
        try:
            with pytest.raises(Error):
                server.accept("evil", data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # LZMA's dictionary alone takes 8 MB.
        assert peak < 3 * len(data) + 40 * HELD.n_bytes + (9 << 20), name


def test_a_second_reply_and_one_of_yesterday_are_refused(honest):
    replies, _ = honest
    server = round_with(honest, b"", refused=True)
    with pytest.raises(UsageError, match="replied already"):
        server.accept(NODES[0], replies[NODES[0]])
    server.average(WEIGHTS)
    with pytest.raises(UsageError, match="was sent no model"):
        server.accept(NODES[0], replies[NODES[0]])
    server.broadcast(NODES[0])
    with pytest.raises(WrongBaseError):
        server.accept(NODES[0], replies[NODES[0]])
