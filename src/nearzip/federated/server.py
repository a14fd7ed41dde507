"""The server of federated learning: what every client holds, replies from anybody, and the next model."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nearzip.api import compress
from nearzip.blocks import Block
from nearzip.bounds import Bound
from nearzip.digests import digest
from nearzip.errors import BoundError, CorruptError, Error, LimitError, UsageError
from nearzip.federated.coding import (
    EXACT_NAMES,
    UpdateCoding,
    advanced,
    applied,
    as_model,
    check_same,
    exact_delta,
    model_id,
    updates,
)
from nearzip.federated.downlink import Part, put_downlink
from nearzip.federated.message import Group, Message, pack, read_message
from nearzip.federated.state import below, read_state
from nearzip.limits import Limits
from nearzip.tensors import Array, Checkpoint, is_float

__all__ = ["Server", "Update"]

Node = str | int

_STATE = "nearzip federated server 1"
#: Updates between that come to less than this part of the model are sent as they are.
_CATCH_UP = 16


class Update(Mapping[str, Array]):
    """A reply that passed all checks: a mapping of names to the client's tensors, decoded when asked for.

    Attributes
    ----------
    norm : float
        Euclidean norm of the update over all floats.
    n_bytes : int
        Length of the reply.
    """

    def __init__(self, message: Message, held: Checkpoint, norm: float, n_bytes: int) -> None:
        self._message, self._held = message, held
        self.norm, self.n_bytes = norm, n_bytes

    def __getitem__(self, name: str) -> Array:
        group = next(group for group in self._message.groups if any(spec.name == name for spec in group.tensors))
        decoded = dict(self._decoded(group))
        one = Checkpoint({name: self._held.spec(name)}, self._held.read)
        return applied(one, decoded, frozenset(decoded) if group.exact else frozenset())[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held.specs)

    def __len__(self) -> int:
        return len(self._held.specs)

    def _decoded(self, group: Any) -> Iterator[tuple[str, Array]]:
        blocks = [
            self._message.decode_block(group, block, payload)
            for of, block, payload in self._message.work() if of is group
        ]  # fmt: skip
        whole = np.concatenate(blocks)
        at = 0
        for spec in group.tensors:
            yield spec.name, whole[at : at + spec.n_elements].reshape(spec.shape)
            at += spec.n_elements


class Server:
    """The server: `broadcast` to each client, `accept` replies, `average` them into the next model.

    The downlink is compressed too, in a closed loop: every client holds, bit for bit, what the server records as held,
    and what the last update left out goes into the next one.

    Parameters
    ----------
    model : mapping of str to array
        The first model.
    method, bound, options, exact
        Of the downlink, as for `Client`.
    max_weight : float
        The largest weight that `average` takes.
    max_norm : float
        Updates whose norm is more than so many times the median of the round's are left out.
    max_history_bytes : int or None
        Updates kept for clients that missed rounds; None: as many bytes as the model takes uncompressed.

    Attributes
    ----------
    round : int
        Models made so far.
    rejected : dict of node to str
        Of the last round: whose updates were left out, and why.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        method: str = "nearzip",
        *,
        bound: str | Bound | None = None,
        options: Mapping[str, Any] | None = None,
        exact: Sequence[str] = EXACT_NAMES,
        max_weight: float = 1e6,
        max_norm: float = 10.0,
        max_history_bytes: int | None = None,
    ) -> None:
        self._coding = UpdateCoding(method, bound, dict(options or {}), tuple(exact))
        self._max_weight, self._max_norm, self._max_history = max_weight, max_norm, max_history_bytes
        self._held = as_model(model)
        self._held_id = model_id(self._held)
        for name in self._held.specs:
            if self._held.spec(name).is_float and not np.isfinite(self._held.read(name).astype(np.float32)).all():
                raise UsageError(f"tensor {name!r} of the first model is not finite")
        #: What the last updates left out: true model minus held model, float32, of rounded tensors.
        self._left: dict[str, Array] = {}
        self._history: list[Part] = []
        #: The model that the history starts from: what clients that missed rounds hold is made from it.
        self._oldest, self._first = self._held, self._held_id
        #: Exact differences from older models to the newest, by identity.
        self._exact: dict[bytes, Part] = {}
        self._keyframe: bytes | None = None
        self._catch_up = _CATCH_UP
        self._confirmed: dict[Node, bytes] = {}
        self._sent: dict[Node, bytes] = {}
        self._replies: dict[Node, Update] = {}
        #: Digests of the replies that went into a model, by the model that they were made against: a client hears of
        #: its reply with its next broadcast, however many rounds later that is.
        self._acks: dict[bytes, list[bytes]] = {}
        #: Digests of the replies of this round.
        self._accepted: dict[Node, bytes] = {}
        self.round = 0
        self.rejected: dict[Node, str] = {}

    @property
    def model(self) -> dict[str, Array]:
        """The current model, as clients hold it after the last broadcast. Evaluate this one."""
        return {name: np.array(self._held.read(name)) for name in self._held.specs}

    # ---- down ----------------------------------------------------------------------------------------------------

    def broadcast(self, node: Node) -> bytes:
        """Bytes that bring a client to the newest model: updates since what it confirmed, the exact difference to that
        model, or a keyframe, whichever is smallest.

        The same bytes for all clients that hold the same version.
        """
        known = self._confirmed.get(node, b"")
        parts = self._route(known)
        self._sent[node] = self._held_id
        # Of replies made against the model that the client holds: its own is one of them, or was not accepted.
        acks = [*self._acks.get(known, ()), *(self._accepted.values() if known == self._held_id else ())]
        takes = known if not parts or not parts[0].is_keyframe else b""
        return put_downlink(takes, parts, acks, self._held_id)

    def forget(self, node: Node) -> None:
        """Record that a client lost its model: the next broadcast sends it a keyframe."""
        self._confirmed.pop(node, None)

    def confirm(self, node: Node) -> None:
        """Record that a client holds the model of the last broadcast. `accept` does this by itself."""
        if self._sent.get(node) == self._held_id:
            self._confirmed[node] = self._held_id

    def _route(self, known: bytes) -> list[Part]:
        """The smallest list of messages from a model to the newest."""
        chain = self._chain(known)
        # An exact difference or keyframe is never much smaller than this; making them takes longer than all else.
        if chain is not None and _size(chain) * self._catch_up <= self._held.n_bytes:
            return chain
        routes = [[Part(True, self._held_id, self._key())]]
        if chain is not None:
            routes = [chain, [self._exact_from(known)], *routes]
        return min(routes, key=_size)

    def _chain(self, known: bytes) -> list[Part] | None:
        """Updates from a model to the newest; None where they are not all kept."""
        if known == self._held_id:
            return []
        starts = [self._first, *(part.gives for part in self._history)]
        if not known or known not in starts:
            return None
        return self._history[starts.index(known) :]

    def _exact_from(self, known: bytes) -> Part:
        """The exact difference to the newest model from one of the history."""
        if known not in self._exact:
            old, old_id = self._oldest, self._first
            for part in self._history:
                if old_id == known:
                    break
                old, old_id = advanced(old, old_id, part.data), part.gives
            self._exact[known] = Part(False, self._held_id, exact_delta(self._held, old, old_id))
        return self._exact[known]

    def _key(self) -> bytes:
        if self._keyframe is None:
            self._keyframe = compress({name: self._held.read(name) for name in self._held.specs}).to_bytes()
        return self._keyframe

    # ---- up ------------------------------------------------------------------------------------------------------

    def accept(self, node: Node, data: bytes) -> Update:
        """Check a reply and keep it for `average`. If it raises, the server's state is unchanged.

        Raises
        ------
        UsageError
            The node was sent nothing, or replied already.
        WrongBaseError
            The reply was made against another model than the node was sent this round (an old or replayed one).
        CorruptError, TruncatedError, NewerFormatError, LimitError
            The bytes were not written by `Client.send`, or were damaged.
        BoundError
            The reply holds NaN or infinities.
        """
        if self._sent.get(node) != self._held_id:
            raise UsageError(f"node {node!r} was sent no model in this round; broadcast to it first")
        if node in self._replies:
            raise UsageError(f"node {node!r} replied already in this round")
        # A lossless update is hardly larger than the model: no valid reply is longer.
        allowed = 2 * self._held.n_bytes + 65536
        if len(data) > allowed:
            raise LimitError(f"the update of node {node!r} has {len(data)} bytes; the limit is {allowed}")
        data = bytes(data)
        message = read_message(data, self._held, self._held_id)
        update = Update(message, self._held, _checked_norm(message, self._held), len(data))
        self._replies[node] = update
        self._confirmed[node] = self._held_id
        self._accepted[node] = digest(data)
        return update

    def average(self, weights: Mapping[Node, float]) -> dict[str, Array]:
        """Make the next model: the weighted mean of the accepted replies. Clients get it with the next broadcast.

        Summed in the order of the nodes' names, in float64: the result does not depend on who replied first. Updates of
        outlying norm are left out and named in `rejected`.

        Raises UsageError for weights that are not positive and finite, or nodes without an accepted reply, and Error if
        no update is left.
        """
        for node, weight in weights.items():
            if node not in self._replies:
                raise UsageError(f"node {node!r} has no accepted reply in this round")
            if not (math.isfinite(weight) and 0 < weight <= self._max_weight):
                raise UsageError(
                    f"the weight of node {node!r} is {weight!r}; it lies above 0 and up to {self._max_weight:g}"
                )
        chosen = self._within_norm(sorted(weights, key=str))
        if not chosen:
            raise Error("no update is left to average; see Server.rejected")
        # Those that nobody asked for are not part of the model: their clients send them again.
        self._accepted = {node: tag for node, tag in self._accepted.items() if node in weights}
        total = math.fsum(weights[node] for node in chosen)
        shares = {node: weights[node] / total for node in chosen}
        sums, values = self._summed(shares)
        return self._advance(sums, values)

    def update(self, model: Mapping[str, Any]) -> dict[str, Array]:
        """Set the next model from another aggregation than `average`. Clients get it with the next broadcast.

        Raises UsageError for other names, shapes or dtypes than the model's, or values that are not finite.
        """
        given = Checkpoint.of(model)
        check_same(given, self._held)
        rounded = [spec.name for spec in self._held.specs.values() if not self._coding.is_exact(spec)]
        wanted = {name: update.astype(np.float64) for name, update in updates(given, self._held, rounded).items()}
        exact = {name: np.array(given.read(name)) for name in given.specs if name not in wanted}
        self._left = {}
        return self._advance(wanted, exact)

    def _within_norm(self, nodes: Sequence[Node]) -> list[Node]:
        self.rejected = {}
        median = statistics.median(self._replies[node].norm for node in nodes) if nodes else 0.0
        limit = self._max_norm * median
        for node in nodes:
            norm = self._replies[node].norm
            if norm > limit and len(nodes) > 2:
                self.rejected[node] = (
                    f"its update has norm {norm:.3g}, more than {self._max_norm:g} times the median {median:.3g}"
                )
        return [node for node in nodes if node not in self.rejected]

    def _summed(self, shares: Mapping[Node, float]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Weighted means: updates of rounded tensors in float64, and values of those that all replies sent exactly."""
        replies = {node: self._replies[node]._message for node in shares}
        always = frozenset.intersection(*(
            frozenset(spec.name for group in message.groups if group.exact for spec in group.tensors)
            for message in replies.values()
        ))  # fmt: skip
        sums = {name: np.zeros(spec.n_elements) for name, spec in self._held.specs.items()}
        for node, share in shares.items():
            for group, block, payload in replies[node].work():
                values = replies[node].decode_block(group, block, payload).astype(np.float64)
                at = 0
                for spec, part in zip(group.tensors, block.parts, strict=True):
                    start = block.start if len(group.tensors) == 1 else 0
                    piece = values[at : at + part]
                    if group.exact and spec.name not in always:
                        held = self._held.read(spec.name).reshape(-1)[start : start + part]
                        piece = piece - held.astype(np.float64)
                    sums[spec.name][start : start + part] += share * piece
                    at += part
        shaped = {name: total.reshape(self._held.spec(name).shape) for name, total in sums.items()}
        exact = {name: self._cast(name, shaped.pop(name)) for name in always}
        return shaped, exact

    def _cast(self, name: str, mean: Array) -> Array:
        dtype = self._held.read(name).dtype
        return (np.rint(mean) if dtype.kind in "biu" else mean).astype(dtype)

    def _advance(self, wanted: dict[str, Array], exact: dict[str, Array]) -> dict[str, Array]:
        """Encode the step to the next model, and keep that model as clients will restore it."""
        rounded: dict[str, Array] = {}
        for name in list(wanted):
            update = wanted.pop(name)
            spec = self._held.spec(name)
            if self._coding.is_exact(spec):
                exact[name] = self._cast(name, self._held.read(name).astype(np.float64) + update)
            else:
                rounded[name] = np.array(update + self._left.pop(name, 0.0), np.float32)
        for name in [name for name in exact if not self._coding.is_exact(self._held.spec(name))]:
            # Clients sent it exactly; the downlink rounds it.
            new, old = exact.pop(name), self._held.read(name)
            update = new.astype(np.float64) - old.astype(np.float64)
            rounded[name] = np.array(update + self._left.pop(name, 0.0), np.float32)
        _require_finite({**rounded, **exact})
        source = Checkpoint.of({name: rounded[name] for name in sorted(rounded)})
        values = Checkpoint.of({name: exact[name] for name in self._held.specs if name in exact})
        data, decoded = pack(self._coding.groups(source, self._held), source, values, self._held, self._held_id)
        # In place, and tensor by tensor: a server holds few networks at once.
        for name, update in rounded.items():
            np.subtract(update, decoded[name], out=update)
        self._left = rounded
        self._acks.setdefault(self._held_id, []).extend(self._accepted.values())
        self._held = Checkpoint.of(applied(self._held, decoded, frozenset(exact), consume=True))
        self._held_id = model_id(self._held)
        self._keyframe, self._exact = None, {}
        self._history.append(Part(False, self._held_id, data))
        self._trim()
        confirmed = set(self._confirmed.values())
        self._acks = {held: tags for held, tags in self._acks.items() if tags and held in confirmed}
        self._accepted = {}
        self._replies, self._sent = {}, {}
        self.round += 1
        return self.model

    def _trim(self) -> None:
        """Forget the oldest updates beyond the bytes that may be kept."""
        limit = self._max_history if self._max_history is not None else self._held.n_bytes
        while self._history and _size(self._history) > limit:
            part = self._history.pop(0)
            self._oldest, self._first = advanced(self._oldest, self._first, part.data), part.gives

    # ---- state ---------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The server's state as an archive, to continue from after a restart.

        Replies of an unfinished round are not part of it: clients send them again with their next update.
        """
        tensors = {f"model/{name}": self._held.read(name) for name in self._held.specs}
        tensors.update({f"left/{name}": value for name, value in self._left.items()})
        if self._history:
            tensors.update({f"oldest/{name}": self._oldest.read(name) for name in self._oldest.specs})
        tensors.update({f"update/{i}": np.frombuffer(part.data, np.uint8) for i, part in enumerate(self._history)})
        state = {
            "kind": _STATE, "coding": self._coding.to_json(), "round": self.round, "held": self._held_id.hex(),
            "first": self._first.hex(), "gives": [part.gives.hex() for part in self._history],
            "acks": [[held.hex(), [tag.hex() for tag in tags]] for held, tags in self._acks.items()],
            "max_weight": self._max_weight, "max_norm": self._max_norm, "max_history_bytes": self._max_history,
            "confirmed": [[node, held.hex()] for node, held in self._confirmed.items()],
        }  # fmt: skip
        return compress(tensors, metadata={"federated": json.dumps(state)}).to_bytes()

    @staticmethod
    def from_bytes(data: bytes, limits: Limits | None = None) -> Server:
        """A server from the bytes of `to_bytes`. Raises CorruptError and the like."""
        state, tensors = read_state(data, "server state", _STATE, limits)
        try:
            server = Server(below(tensors, "model/"))
            server._coding = UpdateCoding.from_json(state["coding"])
            server.round = int(state["round"])
            server._first = bytes.fromhex(state["first"])
            server._history = [
                Part(False, bytes.fromhex(gives), tensors[f"update/{i}"].tobytes())
                for i, gives in enumerate(state["gives"])
            ]
            server._acks = {bytes.fromhex(held): list(map(bytes.fromhex, tags)) for held, tags in state["acks"]}
            server._confirmed = {node: bytes.fromhex(held) for node, held in state["confirmed"]}
            server._max_weight, server._max_norm = float(state["max_weight"]), float(state["max_norm"])
            server._max_history = state["max_history_bytes"]
            held = bytes.fromhex(state["held"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"server state: {error}") from None
        server._left = below(tensors, "left/")
        if server._history:
            server._oldest = as_model(below(tensors, "oldest/"))
            if model_id(server._oldest) != server._first:
                raise CorruptError("server state: its history starts from another model than it says")
        if held != server._held_id:
            raise CorruptError("server state: holds another model than it says")
        return server


def _size(parts: Sequence[Part]) -> int:
    return sum(len(part.data) for part in parts)


def _require_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind not in "biu" and not np.isfinite(array.astype(np.float32)).all():
            raise UsageError(f"the next model's tensor {name!r} is not finite")


def _square(group: Group, block: Block, values: Array, held: Checkpoint) -> float:
    """Squared norm of what a block adds to the model held."""
    wide = values.astype(np.float64)
    if group.exact:
        at = 0
        for spec, part in zip(group.tensors, block.parts, strict=True):
            start = block.start if len(group.tensors) == 1 else 0
            wide[at : at + part] -= held.read(spec.name).reshape(-1)[start : start + part].astype(np.float64)
            at += part
    return float(np.dot(wide, wide))


def _checked_norm(message: Message, held: Checkpoint) -> float:
    """The norm of a reply, decoded block by block without keeping the values. Raises CorruptError, BoundError."""
    total = 0.0
    for group, block, values in message.decoded():
        if not is_float(values.dtype):
            continue
        with np.errstate(invalid="ignore", over="ignore"):  # of hostile NaN and infinities
            square = _square(group, block, values, held)
        if not math.isfinite(square):
            raise BoundError(
                f"update: tensor {group.tensors[0].name!r} holds NaN, infinities, or values beyond any model"
            )
        total += square
    return math.sqrt(total)
