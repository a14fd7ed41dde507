"""C_D: subsets of MNIST by ranking and size, trained from scratch with the same number of steps.

Rankings come from short trainings on the training images; sizes are compared on the test images, which neither rankings
nor trainings see. 10,000 training images, a network of 100 hidden units.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.lab import record
from experiments.lab.data import load
from nearzip.datasets.rankings import RANKINGS, chosen
from nearzip.datasets.selecting import statistics_of

SHARES = (0.01, 0.05, 0.2)
_N, _STEPS, _BATCH, _EPOCH = 10_000, 300, 128, 75


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench dataset_subsets", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = load("mnist", options.data)
    train, test = data.train[:_N], data.test
    inputs, labels = train.inputs.flatten(1), train.targets

    def fit(indices: np.ndarray, seed: int, watch: Any = None) -> nn.Module:
        return trained(inputs, labels, indices, seed, watch)

    def predict(network: nn.Module) -> np.ndarray:
        with torch.no_grad():
            return torch.softmax(network(inputs), 1).numpy()

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(test.inputs.flatten(1)).argmax(1) == test.targets).float().mean())

    everything = np.arange(_N)
    statistics = statistics_of(labels.numpy(), everything, fit, predict, None)
    whole = [accuracy(fit(everything, seed)) for seed in range(options.seeds)]
    print("all", whole)
    rows = []
    for share in SHARES:
        for name, rank in RANKINGS.items():
            found = []
            for seed in range(options.seeds):
                values = rank(statistics, share, np.random.default_rng(seed))
                found.append(accuracy(fit(chosen(values, labels.numpy(), share), seed)))
            rows.append({"share": share, "ranking": name, "accuracy": found})
            print(rows[-1], flush=True)
    record.save("dataset_subsets", {"n": _N, "all": whole, "rows": rows}, ("nearzip", "numpy", "torch"))


def trained(inputs: torch.Tensor, labels: torch.Tensor, indices: np.ndarray, seed: int, watch: Any) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed)
    own = torch.from_numpy(indices)
    for step in range(_STEPS):
        rows = own[torch.randint(len(own), (_BATCH,), generator=generator)]
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        if watch and (step + 1) % _EPOCH == 0:
            watch(network)
    return network
