"""The app in this process: its clients are called one after the other, without Flower's runtime.

python local.py [ROUNDS]
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import client_app
import numpy as np
import task
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app import Error as FlowerError
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy

from nearzip.flower import NearzipStrategy

with suppress(ImportError):
    # Since Flower 1.42 a message carries the identity of the task that made it; the runtime sets it.
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


class LocalGrid(Grid):
    """Calls the app of every node in turn, and counts bytes as Flower does."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        self._app, self.bytes_up = app, 0
        self._contexts = {
            i + 1: Context(run_id=1, node_id=i + 1, node_config={"partition-id": i}, state=RecordDict(), run_config={})
            for i in range(nodes)
        }

    def set_run(self, run_id: int) -> None:
        """Nothing: there is one run."""

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        replies = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            try:
                reply = self._app(message, self._contexts[message.metadata.dst_node_id])
                self.bytes_up += sum(record.count_bytes() for record in reply.content.array_records.values())
            except Exception as error:
                reply = Message(FlowerError(code=2, reason=repr(error)), reply_to=message)
            replies.append(reply)
        return replies


def run(strategy: Strategy, app: ClientApp, rounds: int) -> tuple[float, int]:
    """Accuracy after the rounds, and bytes that the clients sent."""
    grid = LocalGrid(app, task.CLIENTS)
    first = ArrayRecord({name: Array(value) for name, value in task.first_model().items()})
    result = strategy.start(grid=grid, initial_arrays=first, num_rounds=rounds)
    return task.accuracy({name: np.asarray(array.numpy()) for name, array in result.arrays.items()}), grid.bytes_up


def plain_app() -> ClientApp:
    """The same client without the mod."""
    app = ClientApp()
    app.train()(client_app.train)
    return app


def main(rounds: int) -> None:
    for label, strategy, app in (
        ("FedAvg", FedAvg(fraction_evaluate=0.0), plain_app()),
        ("nearzip", NearzipStrategy(FedAvg(fraction_evaluate=0.0)), client_app.app),
    ):
        accuracy, n_bytes = run(strategy, app, rounds)
        print(f"{label}: accuracy {accuracy:.3f}, {n_bytes:,} bytes up")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
