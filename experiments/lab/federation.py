"""Federated learning in one process: data split over clients, local training, rounds, and what crosses the wire.

A task is a network and its data; a split says how uneven the clients' data are; a link says how updates travel
(`experiments.lab.links`). Every message is made, counted in bytes and decoded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from experiments.lab import data
from experiments.lab.links import Arrays, Link
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import CONTEXT, augment

_TEST_BATCH = 1000


@dataclass(frozen=True)
class Setting:
    """What a run is, apart from how updates travel.

    `samples`: of the training split, over all clients. `alpha`: of the Dirichlet distribution of labels over clients;
    0: independent and identically distributed. `taking_part`: share of the clients in each round. `lost`: share of the
    replies that never arrive. `optimizer`: "sgd" or "adam", new in each round. Faults: `away` clients take no part in
    rounds 5 to 14; server and clients are restored from their states every `restarts` rounds; in each round `resets`
    clients have lost their states.
    """

    network: str = "lenet-300-100"
    samples: int = 10_000
    clients: int = 10
    rounds: int = 40
    alpha: float = 0.3
    taking_part: float = 1.0
    lost: float = 0.0
    batch: int = 32
    lr: float = 0.05
    optimizer: str = "sgd"
    away: int = 0
    restarts: int = 0
    resets: int = 0


#: Rounds, counted from 0, in which clients are away.
_AWAY = range(4, 14)


@dataclass(frozen=True)
class Shard:
    """One client's samples."""

    inputs: torch.Tensor
    targets: torch.Tensor


def _dirichlet(targets: np.ndarray, setting: Setting, rng: np.random.Generator) -> list[np.ndarray]:
    """Indices for each client; every client has at least one batch."""
    while True:
        parts: list[list[np.ndarray]] = [[] for _ in range(setting.clients)]
        for label in np.unique(targets):
            own = rng.permutation(np.flatnonzero(targets == label))
            shares = rng.dirichlet(np.full(setting.clients, setting.alpha))
            for part, piece in zip(parts, np.split(own, (np.cumsum(shares)[:-1] * own.size).astype(int)), strict=True):
                part.append(piece)
        found = [np.concatenate(part) for part in parts]
        if min(one.size for one in found) >= setting.batch:
            return found


def shards(dataset: data.Dataset, setting: Setting, seed: int) -> list[Shard]:
    """The clients' data. Text is cut into consecutive pieces, which have different speakers."""
    rng = np.random.default_rng(seed)
    train = dataset.train
    if dataset.is_text:
        cuts = np.linspace(0, len(train), setting.clients + 1).astype(int)
        return [Shard(train.inputs[a:b], train.targets[a:b]) for a, b in itertools.pairwise(cuts)]
    train = train[: setting.samples]
    targets = train.targets.numpy()
    if setting.alpha:
        found = _dirichlet(targets, setting, rng)
    else:
        found = np.array_split(rng.permutation(len(targets)), setting.clients)
    return [Shard(train.inputs[own], train.targets[own]) for own in map(torch.from_numpy, found)]


def _batches(shard: Shard, setting: Setting, is_text: bool, generator: torch.Generator) -> Iterator[Any]:
    """One pass over a client's data; of text, as many windows as cover a tenth of it."""
    if is_text:
        for _ in range(max(1, len(shard.inputs) // (10 * CONTEXT * setting.batch))):
            starts = torch.randint(len(shard.inputs) - CONTEXT, (setting.batch, 1), generator=generator)
            places = starts + torch.arange(CONTEXT)
            yield shard.inputs[places], shard.targets[places]
        return
    order = torch.randperm(len(shard.inputs), generator=generator)
    for at in range(0, len(order) - setting.batch + 1, setting.batch):
        which = order[at : at + setting.batch]
        inputs = shard.inputs[which]
        yield augment(inputs, generator) if inputs.shape[1] == 3 else inputs, shard.targets[which]


class Federation:
    """A network and its clients' data, ready to train.

    Parameters
    ----------
    setting : Setting
    folder : path
        With the data.
    seed : int
        Of the split, the first weights, the batches and who takes part.
    """

    def __init__(self, setting: Setting, folder: str | Path | None, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.dataset = data.load(data_of(setting.network), folder, n_validation=0)
        self.shards = shards(self.dataset, setting, seed)
        torch.manual_seed(seed)
        self.network = NETWORKS[setting.network]()
        self.n_parameters = sum(p.numel() for p in self.network.parameters())
        self._first = self._state()

    def _state(self) -> Arrays:
        return {name: value.detach().numpy().copy() for name, value in self.network.state_dict().items()}

    def _load(self, model: Arrays) -> None:
        self.network.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in model.items()})

    def trained(self, model: Arrays, client: int, turn: int) -> Arrays:
        """One local epoch from `model`."""
        self._load(model)
        self.network.train()
        generator = torch.Generator().manual_seed(1_000_000 * self.seed + 1000 * turn + client)
        parameters = list(self.network.parameters())
        optimizer: torch.optim.Optimizer
        if self.setting.optimizer == "adam":
            optimizer = torch.optim.Adam(parameters, self.setting.lr)
        else:
            optimizer = torch.optim.SGD(parameters, self.setting.lr, foreach=True)
        for inputs, targets in _batches(self.shards[client], self.setting, self.dataset.is_text, generator):
            optimizer.zero_grad()
            logits = self.network(inputs)
            functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
            optimizer.step()
        return self._state()

    @torch.no_grad()
    def accuracy(self, model: Arrays) -> float:
        """Share of the test samples, or of a fixed sample of the test text, that are predicted right."""
        self._load(model)
        self.network.eval()
        right = total = 0
        for inputs, targets in self._tests():
            found = self.network(inputs).argmax(-1)
            right, total = right + int((found == targets).sum()), total + targets.numel()
        return right / total

    def _tests(self) -> Iterator[Any]:
        test = self.dataset.test
        if self.dataset.is_text:
            starts = torch.arange(0, len(test.inputs) - CONTEXT, CONTEXT)[:320, None] + torch.arange(CONTEXT)
            for which in starts.split(64):
                yield test.inputs[which], test.targets[which]
            return
        yield from zip(test.inputs.split(_TEST_BATCH), test.targets.split(_TEST_BATCH), strict=True)

    def run(self, link: Link) -> dict[str, Any]:
        """All rounds over a link: accuracy of the model that clients hold, bits per parameter of each message, seconds.

        The first message down is the whole model whatever the link, and is not counted.
        """
        setting, rng = self.setting, np.random.default_rng(self.seed)
        n_each = max(1, round(setting.taking_part * setting.clients))
        weights = [float(len(shard.inputs)) for shard in self.shards]
        link.start(self._first, setting.clients)
        seen: set[int] = set()
        accuracies, up, down, kept = [], [], [], []
        coding = 0.0
        for turn in range(setting.rounds):
            nodes = sorted(rng.choice(setting.clients, n_each, replace=False).tolist())
            if turn in _AWAY:
                nodes = [node for node in nodes if node >= setting.away]
            if setting.restarts and turn % setting.restarts == setting.restarts - 1:
                link.restart()
            for node in rng.choice(nodes, setting.resets, replace=False).tolist() if setting.resets and turn else ():
                link.reset(node)
            arrived = {}
            for node in nodes:
                begin = time.process_time()
                n_bytes, model = link.down(node)
                coding += time.process_time() - begin
                if node in seen:
                    down.append(n_bytes)
                seen.add(node)
                trained = self.trained(model, node, turn)
                is_lost = rng.random() < setting.lost
                begin = time.process_time()
                up.append(link.up(node, trained, is_lost))
                coding += time.process_time() - begin
                if not is_lost:
                    arrived[node] = weights[node]
            if arrived:
                link.average(arrived)
            accuracies.append(round(self.accuracy(link.model()), 4))
            kept.append(link.residual_bytes())
        n_messages = len(up) + len(down)
        coding += link.seconds_elsewhere()
        bits = 8 / self.n_parameters
        return {
            "accuracy": accuracies,
            "bits_up": bits * float(np.mean(up)), "bits_down": bits * float(np.mean(down)) if down else None,
            "residual_bytes": float(np.mean(kept[1:] or kept)), "coding_seconds": coding / max(1, n_messages),
        }  # fmt: skip
