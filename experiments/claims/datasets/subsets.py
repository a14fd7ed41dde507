"""C_D: subsets of MNIST and of CIFAR-10 by ranking and size, trained from scratch with the same number of steps.

Rankings come from short trainings on the training images. What `select` would choose at each size is decided on
validation images; figures are those of the test images. 10,000 training images of MNIST and a network of 100 hidden
units; 5,000 of CIFAR-10 and three strided convolutions of 16, 32 and 64 channels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab import record
from experiments.lab.data import Split, load
from experiments.lab.networks.parts import conv_bn_relu
from nearzip.datasets.rankings import RANKINGS
from nearzip.datasets.selecting import ALTERNATING, statistics_of, subset_of

SHARES = (0.01, 0.05, 0.2, 0.5)
_VALIDATION, _WATCHED = 2000, 4


def main(arguments: list[str]) -> None:
    """MNIST."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))

    measure(
        "mnist", network, n=10_000, steps=300, batch=128, rate=1e-3, n_test=10_000, rankings=(*RANKINGS, ALTERNATING),
        result="dataset_subsets", arguments=arguments,
    )  # fmt: skip


def main_cifar(arguments: list[str]) -> None:
    """CIFAR-10."""

    def network() -> nn.Module:
        return nn.Sequential(
            conv_bn_relu(3, 16, 3, 2), conv_bn_relu(16, 32, 3, 2), conv_bn_relu(32, 64, 3, 2), nn.Flatten(),
            nn.Linear(1024, 10),
        )  # fmt: skip

    rankings = ("random", "el2n", "forgetting", "sufficient", "coverage-30", "herding", ALTERNATING)
    measure(
        "cifar-10", network, n=5000, steps=150, batch=64, rate=2e-3, n_test=3000, rankings=rankings,
        result="dataset_subsets_cifar", arguments=arguments,
    )  # fmt: skip


def measure(
    name: str, network: Callable[[], nn.Module], *, n: int, steps: int, batch: int, rate: float, n_test: int,
    rankings: Sequence[str], result: str, arguments: list[str],
) -> None:  # fmt: skip
    parser = argparse.ArgumentParser(prog=f"bench {result}", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = load(name, options.data)
    train, validation, test = data.train[:n], data.train[n : n + _VALIDATION], data.test[:n_test]
    labels = train.targets.numpy()

    def fit(indices: np.ndarray, seed: int, watch: Any = None) -> nn.Module:
        return trained(network, train, indices, seed, watch, steps=steps, batch=batch, rate=rate)

    def predict(found: nn.Module) -> np.ndarray:
        return torch.softmax(outputs(found, train.inputs), 1).numpy()

    def accuracy(found: nn.Module, of: Split) -> float:
        return float((outputs(found, of.inputs).argmax(1) == of.targets).float().mean())

    everything = np.arange(n)
    statistics = statistics_of(labels, everything, fit, predict, None)
    whole = [accuracy(fit(everything, seed), test) for seed in range(options.seeds)]
    print("all", whole)
    found: dict[str, Any] = {"n": n, "n_test": len(test), "steps": steps, "all": whole}
    found["rows"] = record.finished_rows(result, **found)
    done = {(row["share"], row["ranking"]) for row in found["rows"]}
    for share in SHARES:
        for ranking in (name for name in rankings if (share, name) not in done):
            trials = [
                fit(subset_of(ranking, statistics, share, seed, fit, predict), seed) for seed in range(options.seeds)
            ]
            row = {"share": share, "ranking": ranking, "accuracy": [accuracy(each, test) for each in trials]}
            found["rows"].append({**row, "validation": [accuracy(each, validation) for each in trials]})
            print(found["rows"][-1], flush=True)
            # After every row: a shared machine may be needed for something else.
            record.save(result, found, ("nearzip", "numpy", "torch"))


def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part) for part in inputs.split(1000)])


def trained(
    make: Callable[[], nn.Module], train: Split, indices: np.ndarray, seed: int, watch: Any, *, steps: int, batch: int,
    rate: float,
) -> nn.Module:  # fmt: skip
    torch.manual_seed(seed)
    network = make()
    optimizer = torch.optim.Adam(network.parameters(), rate)
    generator = torch.Generator().manual_seed(seed)
    own = torch.from_numpy(indices)
    for step in range(steps):
        network.train()
        rows = own[torch.randint(len(own), (batch,), generator=generator)]
        optimizer.zero_grad()
        functional.cross_entropy(network(train.inputs[rows]), train.targets[rows]).backward()
        optimizer.step()
        if watch and (step + 1) % (steps // _WATCHED) == 0:
            watch(network)
    return network
