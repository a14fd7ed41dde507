"""A network of ours for tensors that are named like its own, and batches of its training data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.lab.data import load
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import training_batches
from experiments.lab.traces import Tensors

#: Text is 128 predictions a row, so fewer batches do.
BATCHES = {"tinyshakespeare": (3, 32), "cifar-10": (8, 128), "mnist": (8, 128)}


def network_of(tensors: Tensors) -> str | None:
    """Name of the network whose state has these names and shapes."""
    shapes = {name: w.shape for name, w in tensors.items()}
    for name, make in NETWORKS.items():
        with torch.device("meta"):
            state = make().state_dict()
        if {n: tuple(w.shape) for n, w in state.items()} == shapes:
            return name
    return None


def loaded(name: str, tensors: Tensors) -> nn.Module:
    """The network with these weights."""
    network = NETWORKS[name]()
    network.load_state_dict({n: torch.from_numpy(w.copy()) for n, w in tensors.items()})
    return network.eval()


def batches_of(name: str, data: Path | None = None, n: int | None = None) -> list[Tensor]:
    """Inputs from the training split, the same ones every time; NEARZIP_DATA if `data` is not given."""
    dataset = load(data_of(name), data)
    usual, size = BATCHES[dataset.name]
    batches = training_batches(dataset, size, torch.Generator().manual_seed(5))
    return [next(batches)[0] for _ in range(n or usual)]
