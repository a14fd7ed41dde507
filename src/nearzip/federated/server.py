"""The server of federated learning: what every client holds, replies from anybody, and the next model."""

from __future__ import annotations

import io
import itertools
import json
import math
import operator
import statistics
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from nearzip.api import compress
from nearzip.blocks import Block
from nearzip.bounds import Bound
from nearzip.buffers import release_buffers
from nearzip.coding import Codings
from nearzip.digests import digest
from nearzip.errors import BoundError, CorruptError, Error, LimitError, UsageError
from nearzip.federated.coding import (
    EXACT_NAMES,
    Copies,
    UpdateCoding,
    advanced,
    applied,
    as_model,
    check_same,
    exact_delta,
    model_id,
    moved,
)
from nearzip.federated.downlink import TAG_BYTES, Part, put_downlink
from nearzip.federated.message import Group, Message, pack_into, read_message
from nearzip.federated.older import Old, Older
from nearzip.federated.state import below, read_state
from nearzip.limits import Limits
from nearzip.parallel import default_threads
from nearzip.tensors import Array, Checkpoint, is_float
from nearzip.writing import write_archive

__all__ = ["Server", "Update"]

Node = str | int

_STATE = "nearzip federated server 1"
_ZERO = np.float32(0)
#: Values that are converted at once.
_PART = 1 << 15
#: Bytes of the model for each thread that codes a keyframe: a thread works in a few blocks, beside three networks.
_THREAD = 32 << 20
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

    Memory: the model, what the last update left out, the replies as they came, and what differs in the model that the
    slowest client holds, at most a third model; while it averages, a tensor more.

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
        self._older, self._first = Older(), self._held_id
        #: Exact differences from older models to the newest, by identity.
        self._exact: dict[bytes, Part] = {}
        self._keyframe: bytes | memoryview | None = None
        #: The last message down, and what it was made of: the same for all clients that hold the same version.
        self._blob: tuple[Any, bytes] = (None, b"")
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
    def model(self) -> MutableMapping[str, Array]:
        """The current model, as clients hold it after the last broadcast. Evaluate this one.

        Arrays by name, each copied when it is asked for: writing to them changes nothing here.
        """
        return Copies(self._held)

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
        is_keyframe = bool(parts) and parts[0].is_keyframe
        takes = b"" if is_keyframe else known
        key = (takes, frozenset(acks), tuple((part.is_keyframe, part.gives) for part in parts))
        if self._blob[0] != key:
            self._blob = (key, put_downlink(takes, parts, acks, self._held_id))
            if is_keyframe:
                self._share_keyframe(self._blob[1])
        return self._blob[1]

    def _share_keyframe(self, data: bytes) -> None:
        """Keep the keyframe where it is in a message, instead of beside it."""
        size = len(self._key())
        self._keyframe = memoryview(data)[-size - TAG_BYTES : -TAG_BYTES]

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
            old, old_id = self._older.model(self._held), self._first
            for part in self._history:
                if old_id == known:
                    break
                old, old_id = advanced(old, old_id, part.data), part.gives
            self._exact[known] = Part(False, self._held_id, exact_delta(self._held, old, old_id))
        return self._exact[known]

    def _key(self) -> bytes | memoryview:
        if self._keyframe is None:
            stream = io.BytesIO()
            threads = max(1, min(default_threads(), self._held.n_bytes // _THREAD))
            write_archive(self._held, None, Codings.of("nearzip", None, {}), stream, threads=threads)
            self._keyframe = stream.getvalue()
            release_buffers()
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

    def average(self, weights: Mapping[Node, float]) -> MutableMapping[str, Array]:
        """Make the next model: the weighted mean of the accepted replies. Clients get it with the next broadcast.

        Summed in the order of the nodes' names, in float64: the result does not depend on who replied first. Updates of
        outlying norm are left out and named in `rejected`.

        Raises UsageError for weights that are not positive and finite, nodes without an accepted reply, or a model that
        would not be finite, and Error if no update is left. Whatever fails, the model stays the one that clients hold;
        once the replies are summed they are gone, and clients send theirs again.
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
        total = math.fsum(weights[node] for node in chosen)
        shares = {node: weights[node] / total for node in chosen}
        self._let_go()
        rounded, exact = self._averaged(shares)
        # Those that nobody asked for are not part of the model: their clients send them again.
        self._accepted = {node: tag for node, tag in self._accepted.items() if node in weights}
        return self._advance(rounded, exact)

    def update(self, model: Mapping[str, Any]) -> MutableMapping[str, Array]:
        """Set the next model from another aggregation than `average`. Clients get it with the next broadcast.

        Raises UsageError for other names, shapes or dtypes than the model's, or values that are not finite.
        """
        given = Checkpoint.of(model)
        check_same(given, self._held)
        # Before anything is let go of: there is no memory for what was left out beside all updates.
        for name, spec in self._held.specs.items():
            new = given.read(name)
            _require_finite(name, new if self._coding.is_exact(spec) else self._step_to(name, new))
        self._let_go()
        rounded: dict[str, Array] = {}
        exact: dict[str, Array] = {}
        self._left = {}
        for name, spec in self._held.specs.items():
            new = given.read(name)
            if self._coding.is_exact(spec):
                exact[name] = np.array(new)
            else:
                rounded[name] = self._step_to(name, new)
        return self._advance(rounded, exact)

    def _step_to(self, name: str, new: Array) -> Array:
        """The float32 update from the model held; zero is added as what was left out: minus zero becomes zero."""
        with np.errstate(invalid="ignore", over="ignore"):  # refused by the caller
            return np.asarray(new.astype(np.float32) - self._held.read(name).astype(np.float32) + _ZERO)

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

    def _averaged(self, shares: Mapping[Node, float]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Weighted means, plus what the last update left out of them: float32 updates of tensors that the downlink
        rounds, and values of the others.

        Summed in float64, one tensor or block over all replies at a time; the updates take the place of what was left.
        """
        messages = {node: self._replies[node]._message for node in shares}
        always = frozenset.intersection(*(
            frozenset(spec.name for group in message.groups if group.exact for spec in group.tensors)
            for message in messages.values()
        ))  # fmt: skip
        left, self._left = self._left, {}
        rounded: dict[str, Array] = {}
        exact: dict[str, Array] = {}
        for spec in self._held.specs.values():
            if self._coding.is_exact(spec):
                exact[spec.name] = np.empty(spec.shape, spec.numpy_dtype)
            else:
                rounded[spec.name] = left.pop(spec.name) if spec.name in left else np.zeros(spec.shape, np.float32)
        for pieces in self._sums(shares, messages, always):
            for name, start, total in pieces:
                held = self._held.read(name).reshape(-1)[start : start + total.size]
                if name in exact:
                    mean = total if name in always else held.astype(np.float64) + total
                    into = exact[name].reshape(-1)[start : start + total.size]
                    into[...] = _cast(mean, into.dtype)
                else:
                    if name in always:  # clients sent it exactly; the downlink rounds it
                        total = _cast(total, held.dtype).astype(np.float64) - held.astype(np.float64)
                    into = rounded[name].reshape(-1)[start : start + total.size]
                    total += into
                    into[...] = total
                _require_finite(name, into)
        return rounded, exact

    def _sums(
        self, shares: Mapping[Node, float], messages: Mapping[Node, Message], always: frozenset[str]
    ) -> Iterator[list[tuple[str, int, Array]]]:
        """Weighted sums of all tensors: of one block, or of the tensors that share a block in any reply, at a time.

        Each as its name, where the piece starts, and the sum in float64: of updates, or of values for those in
        `always`.
        """
        work = {node: message.work_by_tensor() for node, message in messages.items()}
        for names in _together(self._held, messages.values()):
            found = {node: [one for name in names for one in work[node].get(name, ())] for node in shares}
            sizes = {name: self._held.spec(name).n_elements for name in names}
            starts = set.intersection(*({block.start for _, block, _ in blocks} for blocks in found.values()))
            end = max(sizes.values())
            for low, high in itertools.pairwise([*sorted(starts), end] if len(names) == 1 else [0, end]):
                sums = {name: np.zeros(min(size, high) - low) for name, size in sizes.items()}
                for node, share in shares.items():
                    for group, block, payload in found[node]:
                        if not low <= block.start < max(high, 1):
                            continue
                        values = messages[node].decode_block(group, block, payload)
                        for name, start, piece in _pieces(group, block, values):
                            is_model = group.exact and name not in always
                            held = self._held.read(name).reshape(-1)[start:] if is_model else None
                            _add(share, piece, held, sums[name][start - low :])
                yield [(name, low, total) for name, total in sums.items()]

    def _let_go(self) -> None:
        """Before the next model is made: what serves only the present one, and models that no client holds any more."""
        self._keyframe, self._blob, self._exact = None, (None, b""), {}
        if self._history and all(held == self._held_id for held in self._confirmed.values()):
            self._history, self._older, self._first = [], Older(), self._held_id
        release_buffers()

    def _advance(self, rounded: dict[str, Array], exact: dict[str, Array]) -> MutableMapping[str, Array]:
        """Encode the step to the next model, and keep that model as clients will restore it.

        `rounded`, float32 updates, becomes what is left of them. Tensor by tensor: a server holds few networks at once.
        """
        specs = self._held.specs
        source = Checkpoint.of({name: rounded[name] for name in sorted(rounded)})
        values = Checkpoint({name: spec for name, spec in specs.items() if name in exact}, exact.__getitem__)
        groups = self._coding.groups(source, self._held)
        self._replies = {}
        old = {name: self._held.read(name) for name in specs}
        self._held = Checkpoint(specs, old.__getitem__)
        new: dict[str, Array] = {}
        before: dict[str, Old] = {}

        def take(name: str, decoded: Array) -> None:
            if name in rounded:
                np.subtract(rounded[name], decoded, out=rounded[name])
                with np.errstate(over="ignore"):
                    value = moved(specs[name], old[name], decoded)
                _require_finite(name, value)
                new[name] = value
            else:
                new[name] = np.array(decoded)
                del exact[name]
            before[name] = Old.of(old.pop(name), new[name])

        try:
            data = pack_into(take, groups, source, values, self._held, self._held_id)
        except BaseException:  # no memory, a user's interrupt, or values that overflow
            was = {**old, **{name: before[name].restored(new[name]) for name in before}}
            self._held = Checkpoint(specs, was.__getitem__)
            self._accepted = {}  # the replies are gone: clients that are told of none send them again
            raise
        self._left = rounded
        self._acks.setdefault(self._held_id, []).extend(self._accepted.values())
        self._held = Checkpoint.of({name: new[name] for name in specs})
        self._older.moved(before, self._held)
        self._held_id = model_id(self._held)
        self._history.append(Part(False, self._held_id, data))
        self._trim()
        confirmed = set(self._confirmed.values())
        self._acks = {held: tags for held, tags in self._acks.items() if tags and held in confirmed}
        self._accepted = {}
        self._sent = {}
        self.round += 1
        release_buffers()
        return self.model

    def _trim(self) -> None:
        """Forget the oldest updates beyond the bytes that may be kept."""
        limit = self._max_history if self._max_history is not None else self._held.n_bytes
        if _size(self._history) <= limit:
            return
        oldest = self._older.model(self._held)
        while self._history and _size(self._history) > limit:
            part = self._history.pop(0)
            oldest, self._first = advanced(oldest, self._first, part.data), part.gives
        self._older = Older.of(oldest, self._held)

    # ---- state ---------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The server's state as an archive, to continue from after a restart.

        Replies of an unfinished round are not part of it: clients send them again with their next update.
        """
        tensors = {f"model/{name}": self._held.read(name) for name in self._held.specs}
        tensors.update({f"left/{name}": value for name, value in self._left.items()})
        if self._history:
            oldest = self._older.model(self._held)
            tensors.update({f"oldest/{name}": oldest.read(name) for name in oldest.specs})
        tensors.update({f"update/{i}": np.frombuffer(part.data, np.uint8) for i, part in enumerate(self._history)})
        state = {
            "kind": _STATE, "coding": self._coding.to_json(), "round": self.round, "held": self._held_id.hex(),
            "first": self._first.hex(), "gives": [part.gives.hex() for part in self._history],
            "acks": [[held.hex(), [tag.hex() for tag in tags]] for held, tags in self._acks.items()],
            "max_weight": self._max_weight, "max_norm": self._max_norm, "max_history_bytes": self._max_history,
            "confirmed": [[node, held.hex()] for node, held in self._confirmed.items()],
        }  # fmt: skip
        return compress(tensors, metadata={"federated": json.dumps(state, default=operator.index)}).to_bytes()

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
        for name, value in server._left.items():
            spec = server._held.specs.get(name)
            if spec is None or value.shape != spec.shape or value.dtype != np.float32 or not np.isfinite(value).all():
                raise CorruptError(f"server state: what was left of tensor {name!r} is not finite float32 of its shape")
        if server._history:
            oldest = as_model(below(tensors, "oldest/"))
            if model_id(oldest) != server._first or not _same_kinds(oldest, server._held):
                raise CorruptError("server state: its history starts from another model than it says")
            server._older = Older.of(oldest, server._held)
        if held != server._held_id:
            raise CorruptError("server state: holds another model than it says")
        return server


def _same_kinds(one: Checkpoint, other: Checkpoint) -> bool:
    return one.specs.keys() == other.specs.keys() and all(
        spec.same_kind(other.specs[name]) for name, spec in one.specs.items()
    )


def _size(parts: Sequence[Part]) -> int:
    return sum(len(part.data) for part in parts)


def _require_finite(name: str, values: Array) -> None:
    if values.dtype.kind not in "biu" and not np.isfinite(values.astype(np.float32, copy=False)).all():
        raise UsageError(f"the next model's tensor {name!r} is not finite")


def _cast(mean: Array, dtype: np.dtype[Any]) -> Array:
    return (np.rint(mean) if dtype.kind in "biu" else mean).astype(dtype)


def _pieces(group: Group, block: Block, values: Array) -> Iterator[tuple[str, int, Array]]:
    """The tensors of a block: name, index of the first value, and the values as a view."""
    at = 0
    for spec, part in zip(group.tensors, block.parts, strict=True):
        yield spec.name, block.start if len(group.tensors) == 1 else 0, values[at : at + part]
        at += part


def _add(share: float, values: Array, minus: Array | None, total: Array) -> None:
    """Add share * (values - minus) to the beginning of `total`, in float64."""
    for some, wide in _wide(values, minus):
        wide *= share
        total[some] += wide


def _together(held: Checkpoint, messages: Iterable[Message]) -> list[list[str]]:
    """Names of tensors that share a block in any message; most are by themselves."""
    sets = {name: [name] for name in held.specs}
    for message in messages:
        for group in message.groups:
            first = sets[group.tensors[0].name]
            for spec in group.tensors[1:]:
                other = sets[spec.name]
                if other is first:
                    continue
                if len(other) > len(first):
                    first, other = other, first
                first += other
                sets.update(dict.fromkeys(other, first))
    return list({id(names): names for names in sets.values()}.values())


def _square(group: Group, block: Block, values: Array, held: Checkpoint) -> float:
    """Squared norm of what a block adds to the model held."""
    total = 0.0
    for name, start, piece in _pieces(group, block, values):
        minus = held.read(name).reshape(-1)[start:] if group.exact else None
        for _, wide in _wide(piece, minus):
            total += float(np.dot(wide, wide))
    return total


def _wide(values: Array, minus: Array | None) -> Iterator[tuple[slice, Array]]:
    """values - minus in float64, in parts that stay in the cache: where each is, and its numbers."""
    for at in range(0, values.size, _PART):
        some = slice(at, min(at + _PART, values.size))
        wide = values[some].astype(np.float64)
        if minus is not None:
            wide -= minus[some].astype(np.float64)
        yield some, wide


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
