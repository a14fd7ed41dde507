"""A client of federated learning: the model it holds, the update it sends, and the residual it keeps."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.api import compress, decompress
from nearzip.bounds import Bound
from nearzip.digests import digest
from nearzip.errors import CorruptError, UsageError, WrongBaseError
from nearzip.federated.coding import EXACT_NAMES, UpdateCoding, advanced, as_model, check_same, model_id, updates
from nearzip.federated.downlink import read_downlink
from nearzip.federated.message import pack, read_message
from nearzip.federated.residual import Residual
from nearzip.federated.state import below, read_state
from nearzip.limits import Limits
from nearzip.tensors import Array, Checkpoint

__all__ = ["Client"]

_STATE = "nearzip federated client 1"


@dataclass
class _Pending:
    """An update that was sent and not acknowledged: its bytes, its digest, and the model it was made against."""

    data: bytes
    tag: bytes
    held: bytes


class Client:
    """One client: `receive` what the server sends, train, `send` the update.

    What an update loses to compression is kept as the residual and added to the next update ("error feedback" of the
    federated literature; `nearzip.torch.ErrorFeedback` is another thing: QD-Compressor's training on restored weights).
    The residual counts what was decoded, and an update counts as sent only when the server acknowledges it: the update
    of a reply that was lost stays in the residual.

    Parameters
    ----------
    method : str
        "nearzip" (default), "lossless", or a method of `nearzip.methods()` such as "topk", "sbc", "stc".
    bound : str or Bound, optional
        For "nearzip": "rms:2" by default, twice the root mean square of the whole update.
    options : mapping, optional
        The method's own, such as {"keep": 0.01}. A `seed` (QSGD) should differ between clients; in each round other
        random numbers are drawn.
    residual : str or None
        How the residual is stored between rounds: "exact" (float32), a method such as "nearzip", "qd-compressor" or
        "lc-checkpoint", or None: it is dropped.
    residual_bound, residual_options
        For that method.
    decay : float
        Factor of the residual in each round, 0 to 1 (no paper here decays it).
    exact : sequence of str
        Names or patterns of tensors that are sent exactly, besides integers.

    Examples
    --------
    >>> import numpy as np
    >>> from nearzip.federated import Client, Server
    >>> server = Server({"w": np.zeros((64, 64), np.float32)})
    >>> client = Client()
    >>> model = client.receive(server.broadcast("a"))
    >>> trained = {"w": model["w"] + np.eye(64, dtype=np.float32)}
    >>> reply = client.send(trained)
    >>> _ = server.accept("a", reply)
    >>> bool(np.abs(server.average({"a": 1.0})["w"] - trained["w"]).max() < 0.3)
    True
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
        if not 0 <= decay <= 1:
            raise UsageError(f"decay is a factor from 0 to 1, not {decay!r}")
        self._coding = UpdateCoding(method, bound, dict(options or {}), tuple(exact))
        self._residual = Residual(residual, residual_bound, dict(residual_options or {}))
        self._decay = decay
        self._held: Checkpoint | None = None
        self._held_id = b""
        self._pending: _Pending | None = None
        self._worker: threading.Thread | None = None
        self._n_sent = 0

    @property
    def model(self) -> dict[str, Array]:
        """The model that the server sent last. Raises UsageError before the first `receive`."""
        held = self._require_held()
        return {name: np.array(held.read(name)) for name in held.specs}

    @property
    def model_id(self) -> str:
        """Identity of the model held, 32 hexadecimal digits; empty before the first `receive`."""
        return self._held_id.hex()

    @property
    def residual_bytes(self) -> int:
        """Bytes of the stored residual between rounds."""
        self._join()
        return self._residual.n_bytes

    def receive(self, data: bytes, limits: Limits | None = None) -> dict[str, Array]:
        """Apply a broadcast of the server. Returns the model as a dict of arrays, bit for bit as the server records it.

        Nothing changes if an error is raised.

        Raises
        ------
        WrongBaseError
            It needs a model that this client does not hold; ask the server for a keyframe (`Server.forget`).
        CorruptError, TruncatedError, NewerFormatError, LimitError
            Not what a server sent.
        """
        downlink = read_downlink(data)
        held, held_id = self._held, self._held_id
        for part in downlink.parts_after(held_id):
            if part.is_keyframe:
                held = _keyframe(bytes(part.data), limits)
            else:
                if held is None:
                    raise WrongBaseError(
                        "the server sent an update, but this client holds no model; ask for a keyframe"
                    )
                held = advanced(held, held_id, part.data)
            held_id = model_id(held)
            if not held_id.startswith(part.gives):
                raise CorruptError("the model received is not the one that the server recorded")
        if held is None or held_id != downlink.gives:
            raise WrongBaseError("what the server sent starts from another model than the one held; ask for a keyframe")
        self._settle(downlink.acknowledges)
        self._held, self._held_id = held, held_id
        return self.model

    def send(self, trained: Mapping[str, Any]) -> bytes:
        """The update from the model received to the trained one, with the residual, as bytes for the server.

        Raises UsageError for tensors of other names, shapes or dtypes than the model's, or that are not finite.
        """
        held = self._require_held()
        model = Checkpoint.of(trained)
        check_same(model, held)
        # Sending again means that the last update is lost or replaced: its mass goes back into the residual.
        self._settle(lambda tag: False)
        rounded = sorted(spec.name for spec in held.specs.values() if not self._coding.is_exact(spec))
        wanted = updates(model, held, rounded)
        for name, left in self._residual.load(wanted).items():
            wanted[name] += np.float32(self._decay) * left
        _check_finite(wanted)
        source = Checkpoint.of(wanted)
        coding = self._coding.numbered(self._n_sent)
        data, decoded = pack(coding.groups(source, held), source, model, held, self._held_id)
        self._n_sent += 1
        self._pending = _Pending(data, digest(data), self._held_id)
        residual = {name: wanted[name] - decoded[name] for name in rounded}
        # Beside the upload, not before it: the bytes are returned at once.
        self._worker = threading.Thread(target=self._residual.store, args=(residual,))
        self._worker.start()
        return data

    def to_bytes(self) -> bytes:
        """The client's state as an archive, to continue from after a restart: model, residual, pending update."""
        self._join()
        held = self._held
        tensors: dict[str, Array] = {} if held is None else {f"model/{n}": held.read(n) for n in held.specs}
        tensors.update({f"residual/{name}": value for name, value in self._residual.parts().items()})
        pending = self._pending
        if pending is not None:
            tensors["pending"] = np.frombuffer(pending.data, np.uint8)
        state = {
            "kind": _STATE, "coding": self._coding.to_json(), "residual": self._residual.to_json(),
            "decay": self._decay, "held": self._held_id.hex(), "n_sent": self._n_sent,
            "pending": None if pending is None else pending.held.hex(),
        }  # fmt: skip
        return compress(tensors, metadata={"federated": json.dumps(state)}).to_bytes()

    @staticmethod
    def from_bytes(data: bytes, limits: Limits | None = None) -> Client:
        """A client from the bytes of `to_bytes`, which are not trusted. Raises CorruptError and the like."""
        state, tensors = read_state(data, "client state", _STATE, limits)
        client = Client(residual=None)
        try:
            client._coding = UpdateCoding.from_json(state["coding"])
            client._residual = Residual.from_json(state["residual"], below(tensors, "residual/"))
            client._decay, client._n_sent = float(state["decay"]), int(state["n_sent"])
            client._held_id = bytes.fromhex(state["held"])
            pending = state["pending"]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"client state: {error}") from None
        if client._held_id:
            client._held = as_model(below(tensors, "model/"))
            if model_id(client._held) != client._held_id:
                raise CorruptError("client state: holds another model than it says")
        if pending is not None:
            sent = tensors["pending"].tobytes()
            client._pending = _Pending(sent, digest(sent), bytes.fromhex(pending))
        return client

    def _require_held(self) -> Checkpoint:
        if self._held is None:
            raise UsageError("this client holds no model yet; give receive() what the server broadcast")
        return self._held

    def _join(self) -> None:
        if self._worker is not None:
            self._worker.join()
            self._worker = None
            self._residual.check()

    def _settle(self, acknowledges: Any) -> None:
        """Drop the last update if it was acknowledged; else add it to the residual, to be sent again."""
        self._join()
        pending, held = self._pending, self._held
        if pending is None:
            return
        if not acknowledges(pending.tag):
            if held is None or pending.held != self._held_id:
                raise CorruptError("client state: the pending update is of another model")
            message = read_message(pending.data, held, pending.held)
            sent = message.arrays()
            back = [spec.name for group in message.groups if not group.exact for spec in group.tensors]
            left = self._residual.load(back)
            self._residual.store({name: left[name] + sent[name] if name in left else sent[name] for name in back})
            self._residual.check()
        self._pending = None


def _check_finite(arrays: Mapping[str, Array]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UsageError(f"the update of tensor {name!r} is not finite; the training diverged")


def _keyframe(data: bytes, limits: Limits | None) -> Checkpoint:
    return as_model(decompress(data, limits=limits))
