"""Error feedback and recovery after a crash: Tables 3, 6, 9 and 10 and Figure 11 of QD-Compressor's paper.

The paper trains CIFAR-10 networks for 200 epochs on GPUs; here LeNets on MNIST, a few epochs on a processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn, optim

import nearzip as nz
from experiments import data, record
from experiments.networks import NETWORKS
from experiments.sampling import evaluate, loss_of, steps_per_epoch, training_batches
from nearzip.torch import ErrorFeedback

Weights = dict[str, np.ndarray]

#: How a version is coded against the one before; the paper's settings.
METHODS: dict[str, dict[str, Any]] = {
    "qd-compressor": {"method": "qd-compressor", "options": {"b_min": 8, "b_max": 8}},
    "lc-checkpoint": {"method": "lc-checkpoint"},
    "delta-dnn": {"method": "delta-dnn", "bound": nz.Absolute(1e-3)},
    "nearzip": {"method": "nearzip", "bound": nz.Absolute(1e-3)},
}


@dataclass(frozen=True)
class Setting:
    """SGD with momentum, as section 6.1 has it, with a larger rate for fewer epochs."""

    network: str
    epochs: int = 6
    lr: float = 0.02
    batch: int = 128
    images: int | None = None


SETTINGS = {
    "lenet-300-100": Setting("lenet-300-100", epochs=5, images=5_000),
    "lenet-5": Setting("lenet-5", epochs=4, images=5_000),
}


@dataclass
class Run:
    """A training: accuracy after each epoch (of what would be restored), versions, seconds."""

    accuracy: list[float]
    versions: list[Weights]
    seconds: float
    seconds_quantizing: float


def arrays(network: nn.Module) -> Weights:
    return {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}


def train(
    setting: Setting,
    dataset: data.Dataset,
    seed: int,
    epochs: int,
    bits: int | None = None,
    update: str = "original",
    start: Weights | None = None,
    target: float | None = None,
) -> Run:
    """`bits`: error feedback with that fixed width. `start`: from these weights. `target`: end once it is reached."""
    torch.manual_seed(seed)
    network = NETWORKS[setting.network]()
    if start is not None:
        network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in start.items()})
    optimizer = optim.SGD(network.parameters(), setting.lr, 0.9, weight_decay=5e-4)
    options = {"b_min": bits, "b_max": bits}
    feedback = None if bits is None else ErrorFeedback(network, optimizer, options=options, update=update)  # type: ignore[arg-type]
    batches = training_batches(dataset, setting.batch, torch.Generator().manual_seed(seed))
    run, begin = Run([], [], 0.0, 0.0), time.perf_counter()
    for _ in range(epochs):
        network.train()
        for _ in range(steps_per_epoch(dataset, setting.batch)):
            inputs, targets = next(batches)
            loss = loss_of(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        run.seconds = time.perf_counter() - begin
        run.accuracy.append(evaluate(network, dataset.test)["accuracy"])
        run.versions.append(arrays(network))
        if target is not None and run.accuracy[-1] >= target:
            break
    run.seconds_quantizing = 0.0 if feedback is None else feedback.seconds
    return run


def tables_3_and_6(setting: Setting, dataset: data.Dataset, seeds: int) -> dict[str, Any]:
    """Accuracy by epoch: full precision, 8 and 4 bits updating on M, 8 and 4 bits updating on M*."""
    ways = {"full precision": (None, "original"), "8 bits, M": (8, "original"), "8 bits, M*": (8, "restored"),
            "4 bits, M": (4, "original"), "4 bits, M*": (4, "restored")}  # fmt: skip
    found: dict[str, Any] = {}
    for name, (bits, update) in ways.items():
        runs = [train(setting, dataset, seed, setting.epochs, bits, update) for seed in range(seeds)]
        found[name] = {
            "accuracy": [run.accuracy for run in runs],
            "seconds": [run.seconds for run in runs],
            "seconds_quantizing": [run.seconds_quantizing for run in runs],
        }
        print(setting.network, name, [run.accuracy[-1] for run in runs], file=sys.stderr)
    return found


def chain(versions: list[Weights], settings: dict[str, Any]) -> tuple[Weights, list[int]]:
    """What a reader gets of the last version, and the bytes of each."""
    base, sizes = None, []
    for version in versions:
        archive = nz.compress(version, base, threads=1, **settings)
        base = archive.restored
        sizes.append(archive.nbytes)
    assert base is not None
    return base, sizes


def table_9(setting: Setting, dataset: data.Dataset, most: int = 5) -> dict[str, Any]:
    """Epochs until the accuracy before the crash is back, by method and the epoch of the crash."""
    plain = train(setting, dataset, 0, setting.epochs)
    fed = train(setting, dataset, 0, setting.epochs, 8)
    found: dict[str, Any] = {}
    for name, settings in METHODS.items():
        source = fed if name == "qd-compressor" else plain
        for crash in sorted({1, max(1, setting.epochs // 2), setting.epochs}):
            restored, sizes = chain(source.versions[:crash], settings)
            after = accuracy_of(setting, dataset, restored)
            target = source.accuracy[crash - 1]
            # A processor's order of sums is not the method's fault: the target is met to a hundredth of a percent.
            more = None
            if after + 1e-4 < target:
                more = train(setting, dataset, 100, most, 8 if source is fed else None, "original", restored, target)
            epochs = 0 if more is None else len(more.accuracy) if more.accuracy[-1] >= target else None
            row = {"epochs": epochs, "before": target, "restored": after, "bytes": sizes}
            found.setdefault(name, {})[f"after epoch {crash}"] = row
            print(setting.network, name, crash, row, file=sys.stderr)
    return found


def accuracy_of(setting: Setting, dataset: data.Dataset, weights: Weights) -> float:
    network = NETWORKS[setting.network]()
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    return float(evaluate(network, dataset.test)["accuracy"])


def table_10(setting: Setting, dataset: data.Dataset) -> dict[str, float]:
    """Seconds of one epoch of training, of quantizing in it, and of one version's way to disk and back."""
    run = train(setting, dataset, 0, 2, 8)
    old, new = run.versions
    settings = METHODS["qd-compressor"]
    base = nz.compress(old, threads=1, **settings).restored
    begin = time.perf_counter()
    archive = nz.compress(new, base, threads=1, **settings)
    compress = time.perf_counter() - begin
    begin = time.perf_counter()
    nz.decompress(archive, base, threads=1)
    restore = time.perf_counter() - begin
    return {
        "training": run.seconds / 2 - run.seconds_quantizing / 2,
        "quantizing in training": run.seconds_quantizing / 2,
        "compress, check and all": compress,
        "decompress and restore": restore,
        "bytes": archive.nbytes,
    }


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench feedback", description=__doc__)
    parser.add_argument("--data", help="folder with MNIST (or NEARZIP_DATA)")
    parser.add_argument("--networks", default=",".join(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="fewer than usual")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = record.RESULTS / "feedback.json"
    found = json.loads(path.read_text())["networks"] if path.exists() else {}
    for name in chosen.networks.split(","):
        setting = SETTINGS[name]
        setting = replace(setting, epochs=chosen.epochs or setting.epochs)
        dataset = data.load("mnist", chosen.data).limited(setting.images)
        found[name] = {
            "setting": vars(setting),
            "accuracy": tables_3_and_6(setting, dataset, chosen.seeds),
            "recovery": table_9(setting, dataset),
            "seconds": table_10(setting, dataset),
        }
        record.save("feedback", {"networks": found}, ("nearzip", "numpy", "torch"))
