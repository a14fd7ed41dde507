"""How updates travel between clients and a server: through `nearzip.federated`, or through a rival's codec."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.lab.peers.updates import CODECS, UpdateCodec

Arrays = dict[str, np.ndarray]


class Link(ABC):
    """Both directions of a federation."""

    @abstractmethod
    def start(self, model: Arrays, n_clients: int) -> None:
        """Before round 1."""

    @abstractmethod
    def down(self, node: int) -> tuple[int, Arrays]:
        """Bytes sent to a client, and the model that it gets."""

    @abstractmethod
    def up(self, node: int, trained: Arrays, is_lost: bool) -> int:
        """Bytes that a client sends; the server gets them unless they are lost."""

    @abstractmethod
    def average(self, weights: Mapping[int, float]) -> None:
        """The next model."""

    @abstractmethod
    def model(self) -> Arrays:
        """What clients hold after the next broadcast."""

    def residual_bytes(self) -> float:
        """Mean bytes that a client keeps between rounds."""
        return 0.0

    def seconds_elsewhere(self) -> float:
        """Processor seconds of all coding so far that other processes did."""
        return 0.0

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let other processes go."""

    @abstractmethod
    def restart(self) -> None:
        """Server and clients go on from what they stored."""

    @abstractmethod
    def reset(self, node: int) -> None:
        """A client has lost what it stored."""


class Ours(Link):
    """`nearzip.federated`: `up` and `down` are the arguments of `Client` and `Server`."""

    def __init__(self, up: Mapping[str, Any], down: Mapping[str, Any]) -> None:
        self._up, self._down = dict(up), dict(down)

    def start(self, model: Arrays, n_clients: int) -> None:
        from nearzip.federated import Client, Server

        self.server = Server(model, **self._down)
        self.clients = [Client(**self._seeded(node)) for node in range(n_clients)]

    def _seeded(self, node: int) -> dict[str, Any]:
        """QSGD's random numbers differ between clients."""
        if self._up.get("method") != "qsgd":
            return self._up
        return {**self._up, "options": {**self._up.get("options", {}), "seed": node}}

    def down(self, node: int) -> tuple[int, Arrays]:
        data = self.server.broadcast(node)
        return len(data), self.clients[node].receive(data)

    def up(self, node: int, trained: Arrays, is_lost: bool) -> int:
        data = self.clients[node].send(trained)
        if not is_lost:
            self.server.accept(node, data)
        return len(data)

    def average(self, weights: Mapping[int, float]) -> None:
        self.server.average(weights)

    def model(self) -> Arrays:
        return self.server.model

    def residual_bytes(self) -> float:
        return float(np.mean([client.residual_bytes for client in self.clients]))

    def restart(self) -> None:
        from nearzip.federated import Client, Server

        self.server = Server.from_bytes(self.server.to_bytes())
        self.clients = [Client.from_bytes(client.to_bytes()) for client in self.clients]

    def reset(self, node: int) -> None:
        from nearzip.federated import Client

        self.server.forget(node)
        self.clients[node] = Client(**self._seeded(node))


class Plain(Link):
    """A codec for single updates, with float32 residuals if `feedback`; raw values down, or the same codec.

    Buffers and small tensors are for the codec to decide; integers travel raw and are averaged.
    """

    def __init__(self, codec: str, feedback: bool, down: str = "fp32", **options: Any) -> None:
        self._codec: UpdateCodec = CODECS[codec](**options)
        self._down: UpdateCodec = CODECS[down]()
        self._feedback = feedback

    def start(self, model: Arrays, n_clients: int) -> None:
        self._held = copy.deepcopy(model)
        self._floats = [name for name, value in model.items() if value.dtype == np.float32]
        self._residuals: list[Arrays] = [{} for _ in range(n_clients)]
        self._updates: dict[int, Arrays] = {}
        self._integers: dict[int, Arrays] = {}
        self._n_down = 4 * sum(model[name].size for name in self._floats)
        self._turn = 0

    def down(self, node: int) -> tuple[int, Arrays]:
        return self._n_down, {name: value.copy() for name, value in self._held.items()}

    def up(self, node: int, trained: Arrays, is_lost: bool) -> int:
        left = self._residuals[node]
        update = {n: trained[n] - self._held[n] + left.get(n, np.float32(0)) for n in self._floats}
        self._turn += 1
        data = self._codec.encode(update, self._turn)
        decoded = self._codec.decode(data, {n: update[n].shape for n in self._floats})
        if self._feedback:
            self._residuals[node] = {n: update[n] - decoded[n] for n in self._floats}
        if not is_lost:
            self._updates[node] = decoded
            self._integers[node] = {n: v for n, v in trained.items() if n not in decoded}
        return len(data) + sum(v.nbytes for n, v in trained.items() if n not in decoded)

    def average(self, weights: Mapping[int, float]) -> None:
        total = sum(weights.values())
        mean = {
            n: sum(weights[k] / total * self._updates[k][n].astype(np.float64) for k in weights) for n in self._floats
        }
        data = self._down.encode({n: np.asarray(v, np.float32) for n, v in mean.items()}, self._turn)
        step = self._down.decode(data, {n: self._held[n].shape for n in self._floats})
        self._n_down = len(data)
        for n in self._floats:
            self._held[n] = self._held[n] + step[n]
        for n in self._held:
            if n not in step:
                mean_of = sum(weights[k] / total * self._integers[k][n].astype(np.float64) for k in weights)
                self._held[n] = np.rint(mean_of).astype(self._held[n].dtype)

    def model(self) -> Arrays:
        return self._held

    def residual_bytes(self) -> float:
        return float(np.mean([sum(v.nbytes for v in left.values()) for left in self._residuals]))

    def seconds_elsewhere(self) -> float:
        return self._codec.seconds + self._down.seconds

    def close(self) -> None:
        self._codec.close()
        self._down.close()

    def restart(self) -> None:
        return  # nothing is coded

    def reset(self, node: int) -> None:
        self._residuals[node] = {}
