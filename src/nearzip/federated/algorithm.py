"""Algorithm 2 of QD-Compressor: sparse updates whose rest is kept, compressed, until its client's next turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearzip.errors import UsageError
from nearzip.federated.client import Client
from nearzip.federated.server import Server
from nearzip.tensors import Array

__all__ = ["Round", "residual_accumulation"]

#: From the model to the trained one.
Train = Callable[[dict[str, Array]], Mapping[str, Any]]


@dataclass(frozen=True)
class Round:
    """One round of `residual_accumulation`.

    Attributes
    ----------
    model : mapping of str to array
        W after the round.
    update_bytes : dict of int to int
        Length of the message of each client that took part.
    residual_bytes : dict of int to int
        What each of them keeps: QR.
    """

    model: MutableMapping[str, Array]
    update_bytes: dict[int, int]
    residual_bytes: dict[int, int]


def residual_accumulation(
    model: Mapping[str, Any],
    clients: Sequence[Train],
    rounds: int,
    *,
    weights: Sequence[float] | None = None,
    method: str = "topk",
    options: Mapping[str, Any] | None = None,
    residual: str | None = "qd-compressor",
    residual_options: Mapping[str, Any] | None = None,
    per_round: int | None = None,
    seed: int = 0,
) -> Iterator[Round]:
    """Jin et al., IEEE TPDS 2023, section 5.1 and Algorithm 2; one `Round` at a time.

    In each round every client trains from W; its update plus its residual R is filtered by `method`; what the message
    left out is the new R, float32, and is stored by `residual` while the message travels. The server adds the weighted
    mean of the messages to W. A client that does not take part keeps its R, which goes stale, as the paper calls it.

    Parameters
    ----------
    model : mapping of str to array
        W before round 1.
    clients : sequence of callables
        Each trains: a dict of arrays to a mapping of the same names, shapes and dtypes.
    weights : sequence of float
        Of the clients, such as their numbers of samples; equal by default.
    method, options
        Topk of the paper: "topk", "sbc", "skcompress", "deepreduce" ..; {"keep": 0.01} for "topk" by default.
    residual : str or None
        QD-Compress of the paper: "qd-compressor", "lc-checkpoint", "nearzip", "exact" (raw), or None (dropped).
    per_round : int
        How many clients take part in a round, drawn at random by `seed`; all by default.

    Examples
    --------
    >>> def train(model):
    ...     return {"w": model["w"] + np.linspace(0, 1, 1000, dtype=np.float32)}
    >>> rounds = residual_accumulation({"w": np.zeros(1000, np.float32)}, [train, train], 3)
    >>> [one.update_bytes[0] < 200 for one in rounds]
    [True, True, True]
    """
    chosen = dict(options if options is not None else {"keep": 0.01} if method == "topk" else {})
    shares = [1.0] * len(clients) if weights is None else list(weights)
    if len(shares) != len(clients) or not clients:
        raise UsageError(f"{len(clients)} clients need as many weights, not {len(shares)}")
    server = Server(model, "lossless")
    states = [
        Client(method, options=chosen, residual=residual, residual_options=residual_options) for _ in clients
    ]  # fmt: skip
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(rounds):
        nodes = list(range(len(clients)))
        if per_round is not None:
            nodes = sorted(rng.choice(len(clients), per_round, replace=False).tolist())
        sizes = {}
        for node in nodes:
            data = states[node].send(clients[node](states[node].receive(server.broadcast(node))))
            server.accept(node, data)
            sizes[node] = len(data)
        average = server.average({node: shares[node] for node in nodes})
        yield Round(average, sizes, {node: states[node].residual_bytes for node in nodes})
