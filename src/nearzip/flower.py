"""Compressed rounds for Flower: a client mod and a strategy wrapper that leave app and strategy as they are.

::

    app = ClientApp(mods=[NearzipMod()])
    result = NearzipStrategy(FedAvg()).start(grid=grid, initial_arrays=arrays, num_rounds=3)

Needs the extra `flower` (flwr 1.22 or later, Python 3.11). docs/federated.md is the guide.
"""

from __future__ import annotations

import io
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any, cast

import numpy as np

from nearzip.bounds import Bound
from nearzip.errors import Error, UsageError, WrongBaseError, missing_extra
from nearzip.federated import Client, Server, Update
from nearzip.federated.coding import EXACT_NAMES
from nearzip.tensors import Array as NumPyArray

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.app import Error as FlowerError
    from flwr.serverapp.strategy import Strategy
except ImportError:
    raise missing_extra("flwr", "flower", "nearzip.flower") from None

__all__ = ["NearzipMod", "NearzipStrategy", "RoundBytes"]

log = getLogger("nearzip")

#: The one Array of a message, and its serialization type: Flower takes it for opaque bytes.
_NAME, _STYPE = "nearzip", "nearzip.v1"
#: Flower's code for an error inside a ClientApp.
_CLIENT_ERROR = 2
#: In the reason of an error reply: the client lost what it held.
_NEEDS_KEYFRAME = "nearzip: needs a keyframe"


def _packed(data: bytes) -> ArrayRecord:
    """One Array for all tensors: Flower adds some 340 bytes to each."""
    return ArrayRecord({_NAME: Array("uint8", (len(data),), _STYPE, data)})


def _unpacked(record: Any) -> bytes:
    """The bytes of a record made by `_packed`. Raises UsageError for any other."""
    if set(record) != {_NAME} or record[_NAME].stype != _STYPE or not isinstance(record[_NAME].data, bytes):
        raise UsageError("holds no update of nearzip; use NearzipMod on the clients and NearzipStrategy on the server")
    return cast(bytes, record[_NAME].data)


def _only(content: RecordDict) -> tuple[str, Any]:
    """Key and record of the one ArrayRecord. Raises UsageError."""
    records = list(content.array_records.items())
    if len(records) != 1:
        raise UsageError(f"holds {len(records)} array records; one is expected")
    return records[0]


def _with_record(content: RecordDict, key: str, record: ArrayRecord) -> RecordDict:
    """A copy with another array record: contents are shared between the messages to all clients."""
    return RecordDict({name: record if name == key else value for name, value in content.items()})


# ---- client ------------------------------------------------------------------------------------------------------


class NearzipMod:
    """Client side: `ClientApp(mods=[NearzipMod()])`. The app itself sees and returns plain arrays.

    Put it before mods that clip or add noise (`mods=[NearzipMod(), LocalDpMod(..)]`): the outermost mod compresses what
    leaves the client. Secure aggregation cannot be combined with it: compressed updates cannot be summed under masks.

    Parameters
    ----------
    method, bound, options, residual, residual_bound, residual_options, decay, exact
        As for `nearzip.federated.Client`.
    """

    def __init__(
        self,
        method: str = "nearzip",
        *,
        bound: str | Bound | None = None,
        options: Mapping[str, Any] | None = None,
        residual: str | None = "nearzip",
        residual_bound: str | Bound | None = None,
        residual_options: Mapping[str, Any] | None = None,
        decay: float = 1.0,
        exact: Sequence[str] = EXACT_NAMES,
    ) -> None:
        self._arguments: dict[str, Any] = {
            "method": method, "bound": bound, "options": options, "residual": residual,
            "residual_bound": residual_bound, "residual_options": residual_options, "decay": decay, "exact": exact,
        }  # fmt: skip
        Client(**self._arguments)  # so that mistakes show where the app is made

    def __call__(self, message: Message, context: Context, call_next: Any) -> Message:
        key, record = _only(message.content)
        client = self._client(message, context)
        try:
            model = client.receive(_unpacked(record))
        except WrongBaseError as error:
            return Message(FlowerError(_CLIENT_ERROR, f"{_NEEDS_KEYFRAME}: {error}"), reply_to=message)
        dense = ArrayRecord({name: Array(np.asarray(value)) for name, value in model.items()})
        message.content = _with_record(message.content, key, dense)
        reply = call_next(message, context)
        if not reply.has_error() and message.metadata.message_type.partition(".")[0] == "train":
            key, record = _only(reply.content)
            data = client.send(_dense(record))
            reply.content = _with_record(reply.content, key, _packed(data))
        self._keep(client, message, context)
        return cast(Message, reply)

    def _client(self, message: Message, context: Context) -> Client:
        """The client of this node, as it was left in Flower's state for this run."""
        kept = context.state.config_records.get("nearzip")
        # A node's state outlives the run: a residual of another run belongs to another model.
        if kept is None or kept.get("run") != str(message.metadata.run_id):
            return Client(**self._arguments)
        try:
            return Client.from_bytes(cast(bytes, kept["state"]))
        except Error as error:
            log.warning("nearzip: the client's state cannot be read and is dropped: %s", error)
            return Client(**self._arguments)

    def _keep(self, client: Client, message: Message, context: Context) -> None:
        state = {"run": str(message.metadata.run_id), "state": client.to_bytes()}
        context.state["nearzip"] = ConfigRecord(cast(Any, state))


def _dense(record: Any) -> dict[str, NumPyArray]:
    """The trained tensors. Raises UsageError where another mod made something else of them."""
    for name, array in record.items():
        if array.stype != "numpy.ndarray":
            raise UsageError(f"array {name!r} is {array.stype!r}, not dense; put NearzipMod first in mods=[..]")
    return {name: array.numpy() for name, array in record.items()}


# ---- server ------------------------------------------------------------------------------------------------------


class _LazyArray(Array):
    """A client's tensor, decoded when a strategy asks for it; until then the reply stays compressed."""

    def __init__(self, update: Update, model: Mapping[str, NumPyArray], held: Mapping[str, NumPyArray], name: str):
        self._update, self._model, self._held_model, self._name = update, model, held, name
        self.dtype, self.shape, self.stype = str(model[name].dtype), model[name].shape, "numpy.ndarray"

    def numpy(self) -> NumPyArray:
        """The client's tensor: the server's exact model plus the update."""
        name = self._name
        trained = np.asarray(self._update[name])
        exact, held = np.asarray(self._model[name]), np.asarray(self._held_model[name])
        if trained.dtype.kind in "biu" or np.array_equal(exact, held):
            return trained
        return np.asarray(exact + (trained.astype(np.float64) - held.astype(np.float64)), exact.dtype)

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """As Flower serializes NumPy arrays."""
        stream = io.BytesIO()
        np.save(stream, self.numpy(), allow_pickle=False)
        return stream.getvalue()


@dataclass
class RoundBytes:
    """Bytes of one round of training or evaluation: of the updates themselves, and as Flower counts its records."""

    round: int
    kind: str
    down: int = 0
    up: int = 0
    flower_down: int = 0
    flower_up: int = 0
    rejected: int = 0


class NearzipStrategy(Strategy):
    """Server side: wraps any strategy. The inner one sees plain arrays, and replies that passed all checks.

    Replies that are damaged, hostile, late or not finite are dropped by name and the round goes on; it fails only where
    no reply is left. What compression left out of the downlink goes into the next round.

    Parameters
    ----------
    strategy : flwr.serverapp.strategy.Strategy
        FedAvg, FedAdam, Krum, the differential-privacy wrappers ... . Wrap them, not the other way round.
    method, bound, options, exact
        Of the downlink, as for `nearzip.federated.Server`. "lossless" gives the inner strategy the same bits as
        without compression.
    max_weight : float
        The largest weight (number of examples) that a reply may claim.
    max_norm : float
        Replies whose update is more than so many times the median norm of the round are dropped.

    Attributes
    ----------
    report : list of RoundBytes
        One for each round of training and of evaluation in which messages were sent.
    """

    def __init__(
        self,
        strategy: Strategy,
        method: str = "nearzip",
        *,
        bound: str | Bound | None = None,
        options: Mapping[str, Any] | None = None,
        exact: Sequence[str] = EXACT_NAMES,
        max_weight: float = 1e9,
        max_norm: float = 10.0,
    ) -> None:
        self.strategy = strategy
        self._arguments: dict[str, Any] = {"method": method, "bound": bound, "options": options, "exact": exact}
        Server({"check": np.zeros(1, np.float32)}, **self._arguments)
        self._max_weight, self._max_norm = max_weight, max_norm
        self._server: Server | None = None
        self._record: ArrayRecord | None = None
        self._exact: dict[str, NumPyArray] = {}
        self.report: list[RoundBytes] = []

    def summary(self) -> None:
        """Log the settings of the inner strategy."""
        self.strategy.summary()

    def configure_train(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        """The inner strategy's messages, compressed."""
        messages = self.strategy.configure_train(server_round, arrays, config, grid)
        return self._sent(messages, arrays, RoundBytes(server_round, "train"))

    def configure_evaluate(self, server_round: int, arrays: Any, config: Any, grid: Any) -> Iterable[Message]:
        """The inner strategy's messages, compressed. Clients that hold the model already get a reference."""
        messages = self.strategy.configure_evaluate(server_round, arrays, config, grid)
        return self._sent(messages, arrays, RoundBytes(server_round, "evaluate"))

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[Any, Any]:
        """Check and decode replies, and let the inner strategy aggregate those that are left.

        Raises Error where all replies of the round were refused.
        """
        sent = self.report and (self.report[-1].round, self.report[-1].kind) == (server_round, "train")
        good = self._accepted(list(replies), self.report[-1] if sent else RoundBytes(server_round, "train"))
        result: tuple[Any, Any] = self.strategy.aggregate_train(server_round, good)
        return result

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
        """As the inner strategy's."""
        found = list(replies)
        for reply in found:
            self._note(reply)
        return self.strategy.aggregate_evaluate(server_round, found)

    # ---- down ----------------------------------------------------------------------------------------------------

    def _sent(self, messages: Iterable[Message], arrays: Any, report: RoundBytes) -> list[Message]:
        found = list(messages)
        if not found:
            return found
        self.report.append(report)
        server = self._advance(arrays)
        for message in found:
            key, _ = _only(message.content)
            data = server.broadcast(message.metadata.dst_node_id)
            message.content = _with_record(message.content, key, _packed(data))
            report.down += len(data)
            report.flower_down += message.content[key].count_bytes()
        return found

    def _advance(self, arrays: Any) -> Server:
        """The next model, if the inner strategy made one."""
        if self._server is not None and arrays is self._record:
            return self._server
        model = {name: array.numpy() for name, array in arrays.items()}
        server, lossless = self._server, self._arguments["method"] == "lossless"
        if server is not None and lossless and any(model[n].dtype != v.dtype for n, v in server.model.items()):
            server = None  # FedOpt turns float32 into float64: the same bits need the same types
        if server is None:
            self._server = server = Server(model, **self._arguments)
        else:
            server.update({name: model[name].astype(held.dtype) for name, held in server.model.items()})
        self._record, self._exact = arrays, model
        return server

    # ---- up ------------------------------------------------------------------------------------------------------

    def _note(self, reply: Message) -> None:
        """What a reply says of the model that its node holds."""
        if self._server is None:
            return
        node = reply.metadata.src_node_id
        if not reply.has_error():
            self._server.confirm(node)
        elif _NEEDS_KEYFRAME in str(reply.error.reason):
            self._server.forget(node)

    def _accepted(self, replies: list[Message], report: RoundBytes) -> list[Message]:
        server = self._server
        assert server is not None
        updates: list[tuple[Message, str, Update]] = []
        errors: list[Message] = []
        for reply in replies:
            if reply.has_error():
                self._note(reply)
                errors.append(reply)
                continue
            try:
                updates.append((reply, *self._checked(server, reply, report)))
            except Error as error:
                self._reject(reply, str(error), report)
        kept = list(self._agreeing(updates, report))
        if replies and not kept and len(errors) < len(replies):
            raise Error(f"round {report.round}: every reply was refused; the log names each with its reason")
        held = server.model
        for reply, key, update in kept:
            record = ArrayRecord()
            for name in self._exact:
                record[name] = _LazyArray(update, self._exact, held, name)
            reply.content = _with_record(reply.content, key, record)
        return [reply for reply, _, _ in kept] + errors

    def _checked(self, server: Server, reply: Message, report: RoundBytes) -> tuple[str, Update]:
        """Check what can be checked of one reply by itself. Raises a named error."""
        key, record = _only(reply.content)
        data = _unpacked(record)
        report.up += len(data)
        report.flower_up += record.count_bytes()
        metrics = list(reply.content.metric_records.values())
        if len(metrics) != 1:
            raise UsageError(f"holds {len(metrics)} metric records; one is expected")
        weight = metrics[0].get(getattr(self.strategy, "weighted_by_key", "num-examples"))
        if weight is not None and not (isinstance(weight, (int, float)) and 0 < weight <= self._max_weight):
            raise UsageError(f"claims the weight {weight!r}; it lies above 0 and up to {self._max_weight:g}")
        for name, value in metrics[0].items():
            values = value if isinstance(value, list) else [value]
            if not all(math.isfinite(number) for number in values):
                raise UsageError(f"metric {name!r} is not finite")
        return key, server.accept(reply.metadata.src_node_id, data)

    def _agreeing(
        self, updates: Sequence[tuple[Message, str, Update]], report: RoundBytes
    ) -> Iterator[tuple[Message, str, Update]]:
        """Those whose metrics have the names of the majority's and whose norms are no outliers."""
        if not updates:
            return
        names = Counter(_metric_names(reply) for reply, _, _ in updates).most_common(1)[0][0]
        median = statistics.median(update.norm for _, _, update in updates)
        for reply, key, update in updates:
            if _metric_names(reply) != names:
                self._reject(reply, f"its metrics are not {', '.join(sorted(names[1]))}", report)
            elif len(updates) > 2 and update.norm > self._max_norm * median:
                self._reject(reply, f"its update has norm {update.norm:.3g}, the median is {median:.3g}", report)
            else:
                yield reply, key, update

    def _reject(self, reply: Message, reason: str, report: RoundBytes) -> None:
        report.rejected += 1
        log.warning(
            "nearzip: round %s: the reply of node %s is dropped: %s", report.round, reply.metadata.src_node_id, reason
        )


def _metric_names(reply: Message) -> tuple[str, frozenset[str]]:
    [(key, record)] = cast("list[tuple[str, MetricRecord]]", list(reply.content.metric_records.items()))
    return key, frozenset(record)
