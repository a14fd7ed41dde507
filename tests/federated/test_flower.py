"""Flower's own strategies over compressed rounds, with apps called in this process in place of Flower's runtime."""

from __future__ import annotations

import random
import uuid
from contextlib import suppress

import numpy as np
import pytest

pytest.importorskip("flwr.serverapp.strategy", reason="needs the extra flower: flwr >= 1.22")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app import Error as FlowerError
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedYogi,
    Krum,
)

from nearzip.errors import Error, UsageError
from nearzip.flower import NearzipMod, NearzipStrategy

with suppress(ImportError):
    # Since 1.42 a message carries the identity of the task that made it; the runtime sets it.
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class LocalGrid(Grid):
    """Calls the app of every node in turn; `hostile` makes the replies of some nodes."""

    def __init__(self, app, nodes=4, hostile=None):
        self.app, self.hostile, self.lost = app, hostile or {}, set()
        self.contexts = {
            i + 1: Context(run_id=1, node_id=i + 1, node_config={"partition-id": i}, state=RecordDict(), run_config={})
            for i in range(nodes)
        }

    def set_run(self, run_id):
        pass

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *args, **kwargs):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            is_train = message.metadata.message_type == "train"
            try:
                reply = self.app(message, self.contexts[node])
            except Exception as error:
                reply = Message(FlowerError(code=2, reason=repr(error)), reply_to=message)
            if is_train and node in self.hostile and not reply.has_error():
                reply = self.hostile[node](reply)
            if node not in self.lost:
                replies.append(reply)
        return replies


def make_app(*mods):
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        rng = np.random.default_rng(
            [int(context.node_config["partition-id"]), message.content["config"]["server-round"]]
        )
        arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
        new = {
            name: np.asarray(
                value + 1 if value.dtype.kind == "i" else value + rng.laplace(0, 1e-3, value.shape).astype(value.dtype)
            )
            for name, value in arrays.items()
        }
        metrics = MetricRecord({"num-examples": 10 * (1 + int(context.node_config["partition-id"])), "loss": 0.5})
        content = RecordDict({"arrays": ArrayRecord({n: Array(v) for n, v in new.items()}), "metrics": metrics})
        return Message(content=content, reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        total = sum(float(np.abs(array.numpy()).sum()) for array in message.content["arrays"].values())
        metrics = MetricRecord({"num-examples": 1, "total": total})
        return Message(content=RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial():
    rng = np.random.default_rng(0)
    model = {"w": rng.normal(0, 0.05, (60, 50)).astype("f4"), "b": np.zeros(60, "f4"), "scale": np.array(1.0, "f4")}
    return ArrayRecord({name: Array(value) for name, value in model.items()})


def run(strategy, *mods, rounds=3, **grid):
    random.seed(0)  # Flower draws the order of the nodes, in which it sums
    np.random.seed(0)  # noqa: NPY002 (and noise of the DP wrappers)
    local = LocalGrid(make_app(*mods), **grid)
    return strategy.start(grid=local, initial_arrays=initial(), num_rounds=rounds)


def same(one, other):
    return list(one) == list(other) and all(
        one[n].numpy().dtype == other[n].numpy().dtype and np.array_equal(one[n].numpy(), other[n].numpy()) for n in one
    )


STRATEGIES = {
    "FedAvg": FedAvg, "FedAdam": FedAdam, "FedYogi": FedYogi, "FedMedian": FedMedian,
    "Krum": lambda: Krum(num_malicious_nodes=1),
    "DP fixed": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 1.0, 4),
    "DP adaptive": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), 0.0, 4, clipped_count_stddev=1e-9
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_lossless_rounds_give_the_same_bits_as_none(name):
    plain = run(STRATEGIES[name]())
    wrapped = run(NearzipStrategy(STRATEGIES[name](), "lossless"), NearzipMod("lossless"))
    assert same(plain.arrays, wrapped.arrays)
    assert plain.evaluate_metrics_clientapp == wrapped.evaluate_metrics_clientapp


def test_coarse_rounds_stay_near_and_take_few_bytes():
    plain = run(FedAvg(), rounds=6)
    strategy = NearzipStrategy(FedAvg())
    coarse = run(strategy, NearzipMod(), rounds=6)
    apart = np.sqrt(np.mean((plain.arrays["w"].numpy() - coarse.arrays["w"].numpy()) ** 2))
    moved = np.sqrt(np.mean((plain.arrays["w"].numpy() - initial()["w"].numpy()) ** 2))
    assert apart < moved
    train = [one for one in strategy.report if one.kind == "train"]
    assert train[-1].up / 4 < 3060 / 8  # less than a bit a value, framing included
    assert train[-1].flower_up - train[-1].up < 4 * 700
    evaluate = [one for one in strategy.report if one.kind == "evaluate"]
    assert train[3].down < evaluate[2].down  # the model was sent for evaluation; training needs a reference


def replaced(make):
    def hostile(reply):
        reply.content = make(reply.content)
        return reply

    return hostile


def arrays_of(data, stype="nearzip.v1"):
    return ArrayRecord({"nearzip": Array("uint8", (len(data),), stype, data)})


def blob(content):
    return content["arrays"]["nearzip"].data


BOMB = Array("float32", (10**9, 250), "numpy.ndarray", b"\x93NUMPY")

HOSTILE = {
    "empty": lambda c: RecordDict({**c, "arrays": arrays_of(b"")}),
    "random": lambda c: RecordDict({**c, "arrays": arrays_of(bytes(range(256)))}),
    "cut": lambda c: RecordDict({**c, "arrays": arrays_of(blob(c)[:-3])}),
    "flipped": lambda c: RecordDict({**c, "arrays": arrays_of(blob(c)[:40] + b"\x55" + blob(c)[41:])}),
    "foreign type": lambda c: RecordDict({**c, "arrays": arrays_of(blob(c), "pickle")}),
    "npy bomb": lambda c: RecordDict({**c, "arrays": ArrayRecord({"w": BOMB})}),
    "plain arrays": lambda c: RecordDict({**c, "arrays": initial()}),
    "two records": lambda c: RecordDict({**c, "more": initial()}),
    "no arrays": lambda c: RecordDict({"metrics": c["metrics"]}),
    "no metrics": lambda c: RecordDict({"arrays": c["arrays"]}),
    "extra metric": lambda c: RecordDict({**c, "metrics": MetricRecord({**c["metrics"], "more": 1.0})}),
    "NaN metric": lambda c: RecordDict({**c, "metrics": MetricRecord({**c["metrics"], "loss": float("nan")})}),
    "weight -1": lambda c: RecordDict({**c, "metrics": MetricRecord({**c["metrics"], "num-examples": -1})}),
    "weight nan": lambda c: RecordDict({**c, "metrics": MetricRecord({**c["metrics"], "num-examples": float("nan")})}),
    "weight 1e30": lambda c: RecordDict({**c, "metrics": MetricRecord({**c["metrics"], "num-examples": 1e30})}),
    "nothing": lambda c: RecordDict({}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_round_survives_any_reply(name):
    """The result is the honest clients', bit for bit: as if the node's reply had been lost."""
    lost = LocalGrid(make_app(NearzipMod()))
    lost.lost.add(4)
    random.seed(0)
    honest = NearzipStrategy(FedAvg()).start(grid=lost, initial_arrays=initial(), num_rounds=1)
    hostile = NearzipStrategy(FedAvg())
    result = run(hostile, NearzipMod(), rounds=1, hostile={4: replaced(HOSTILE[name])})
    assert same(honest.arrays, result.arrays)
    assert hostile.report[0].rejected == 1


def test_a_round_without_a_good_reply_fails():
    hostile = {node: replaced(HOSTILE["random"]) for node in (1, 2, 3, 4)}
    with pytest.raises(Error, match="every reply was refused"):
        run(NearzipStrategy(FedAvg()), NearzipMod(), rounds=1, hostile=hostile)


def test_a_client_that_lost_its_state_is_back_after_one_round():
    grid = LocalGrid(make_app(NearzipMod()))
    strategy = NearzipStrategy(FedAvg())

    def lose(server_round, arrays):
        if server_round == 2:
            grid.contexts[1].state = RecordDict()

    result = strategy.start(grid=grid, initial_arrays=initial(), num_rounds=4, evaluate_fn=lose)
    assert "nearzip" in grid.contexts[1].state.config_records
    assert result.arrays is not None
    assert all(one.rejected == 0 for one in strategy.report)


def test_a_new_run_does_not_see_the_old_residual():
    grid = LocalGrid(make_app(NearzipMod()))
    NearzipStrategy(FedAvg()).start(grid=grid, initial_arrays=initial(), num_rounds=1)
    grid.contexts[1].state["nearzip"] = ConfigRecord({**grid.contexts[1].state["nearzip"], "run": "another"})
    result = NearzipStrategy(FedAvg()).start(grid=grid, initial_arrays=initial(), num_rounds=1)
    assert result.arrays is not None


def test_mods_in_the_wrong_order_are_named():
    def compressing(message, context, call_next):
        reply = call_next(message, context)
        reply.content = RecordDict({**reply.content, "arrays": arrays_of(b"x", "other")})
        return reply

    grid = LocalGrid(make_app(NearzipMod(), compressing))
    messages = NearzipStrategy(FedAvg()).configure_train(1, initial(), ConfigRecord({}), grid)
    replies = grid.send_and_receive(messages)
    assert all("put NearzipMod first" in reply.error.reason for reply in replies)


def test_wrong_options_show_where_the_app_is_made():
    with pytest.raises(UsageError):
        NearzipMod(bound="pwrel:0.1")
    with pytest.raises(UsageError):
        NearzipStrategy(FedAvg(), "lossless", bound="rms:1")
