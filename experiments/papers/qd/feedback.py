"""Error feedback and recovery after a crash: Tables 3, 6 and 9 and Figure 11 of QD-Compressor's paper.

The paper trains CIFAR-10 networks for 200 epochs on GPUs; here LeNets on MNIST and a small network on CIFAR-10, on a
part of the images, for a few epochs on a processor. Every part is written as it is found: an interrupted run resumes
there. Table 10 is a command of its own, `feedback_time`, since it measures processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import nn, optim

import nearzip as nz
from experiments.lab import data, record
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import evaluate, loss_of, steps_per_epoch, training_batches
from nearzip.stages import Lzma
from nearzip.torch import ErrorFeedback
from nearzip.torch.quantizers import range_quantizer

Weights = dict[str, np.ndarray]

#: How a version is coded against the one before; the paper's settings.
METHODS: dict[str, dict[str, Any]] = {
    "qd-compressor": {"method": "qd-compressor", "options": {"b_min": 8, "b_max": 8}},
    "lc-checkpoint": {"method": "lc-checkpoint"},
    "delta-dnn": {"method": "delta-dnn", "bound": nz.Absolute(1e-3)},
    "nearzip": {"method": "nearzip", "bound": nz.Absolute(1e-3)},
}


#: Tables 3 and 6 and Figure 11: bits (None: full precision) and what the update goes to.
WAYS: dict[str, tuple[int | None, str]] = {
    "full precision": (None, "original"), "8 bits, M": (8, "original"), "8 bits, M*": (8, "restored"),
    "4 bits, M": (4, "original"), "4 bits, M*": (4, "restored"),
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """SGD with momentum, as section 6.1 has it, with a larger rate for fewer epochs; how many images it sees."""

    network: str
    epochs: int = 8
    lr: float = 0.02
    batch: int = 128
    images: int | None = 5_000
    test_images: int = 2_000


SETTINGS = {
    "strided-small": Setting("strided-small", batch=64),
    "lenet-300-100": Setting("lenet-300-100"),
    "lenet-5": Setting("lenet-5", batch=64, images=2_500),
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
    run = Run([], [], 0.0, 0.0)
    for _ in range(epochs):
        network.train()
        begin = time.perf_counter()
        for _ in range(steps_per_epoch(dataset, setting.batch)):
            inputs, targets = next(batches)
            loss = loss_of(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        run.seconds += time.perf_counter() - begin
        run.accuracy.append(evaluate(network, dataset.test)["accuracy"])
        run.versions.append(arrays(network))
        if target is not None and run.accuracy[-1] >= target:
            break
    run.seconds_quantizing = 0.0 if feedback is None else feedback.seconds
    return run


def accuracies(setting: Setting, dataset: data.Dataset, seeds: int, way: str) -> dict[str, Any]:
    """Accuracy of what would be restored, by seed and epoch (Tables 3 and 6, Figure 11)."""
    runs = [train(setting, dataset, seed, setting.epochs, *WAYS[way]) for seed in range(seeds)]
    print(setting.network, way, [run.accuracy[-1] for run in runs], file=sys.stderr)
    return {"accuracy": [run.accuracy for run in runs]}


def periods(epochs: int) -> list[tuple[int, int]]:
    """Table 9's phases, first and last epoch: the quarters of the training, then its halves."""
    cuts = sorted({1 + round(i * epochs / 4) for i in range(5)})
    quarters = [(a, b - 1) for a, b in itertools.pairwise(cuts)]
    halves = [(1, epochs // 2), (epochs // 2 + 1, epochs)] if epochs > 1 else []
    return quarters + [half for half in halves if half not in quarters]


def chain(versions: list[Weights], settings: dict[str, Any]) -> tuple[Weights, list[int]]:
    """The restored last version, and the bytes of each."""
    base, sizes = None, []
    for version in versions:
        archive = nz.compress(version, base, threads=1, **settings)
        base = archive.restored
        sizes.append(archive.nbytes)
    assert base is not None
    return base, sizes


def recovery(setting: Setting, dataset: data.Dataset, most: int = 4) -> dict[str, Any]:
    """Table 9: epochs until the accuracy before the crash is back, by method and phase.

    Snapshots of a phase are one chain; training crashes at its end.
    """
    plain = train(setting, dataset, 0, setting.epochs)
    fed = train(setting, dataset, 0, setting.epochs, 8)
    found: dict[str, Any] = {}
    for name, settings in METHODS.items():
        source, bits = (fed, 8) if name == "qd-compressor" else (plain, None)
        for first, last in periods(setting.epochs):
            restored, sizes = chain(source.versions[first - 1 : last], settings)
            target, after = source.accuracy[last - 1], accuracy_of(setting, dataset, restored)
            # A processor's order of sums is not the method's fault: the target is met to a hundredth of a percent.
            more = [after]
            if after + 1e-4 < target:
                more += train(setting, dataset, 100, most, bits, "original", restored, target).accuracy
            epochs = len(more) - 1 if more[-1] + 1e-4 >= target else None
            row = {"epochs": epochs, "before": target, "restored": after, "bytes": sizes}
            found.setdefault(name, {})[f"{first}-{last}"] = row
            print(setting.network, name, first, last, row, file=sys.stderr)
    return found


def accuracy_of(setting: Setting, dataset: data.Dataset, weights: Weights) -> float:
    network = NETWORKS[setting.network]()
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    return float(evaluate(network, dataset.test)["accuracy"])


def dataset_of(setting: Setting, folder: str | None) -> data.Dataset:
    """The setting's part of the images."""
    whole = data.load(data_of(setting.network), folder).limited(setting.images)
    return replace(whole, test=whole.test[: setting.test_images])


def measure(
    setting: Setting,
    dataset: data.Dataset,
    seeds: int,
    result: dict[str, Any],
    written: Callable[[], object],
    deadline: float = math.inf,
) -> bool:
    """Every part that is not in `result` yet and that is begun in time; whether all of them are there now."""
    result |= {"setting": asdict(setting), "seeds": seeds, "commit": record.commit()}
    found = result.setdefault("accuracy", {})
    for way in WAYS:
        if way not in found:
            if time.perf_counter() > deadline:
                return False
            found[way] = accuracies(setting, dataset, seeds, way)
            written()
    if "recovery" not in result:
        if time.perf_counter() > deadline:
            return False
        result["recovery"] = recovery(setting, dataset)
        written()
    return True


def fresh(result: dict[str, Any], setting: Setting, seeds: int) -> dict[str, Any]:
    """The earlier result, if it has this commit and these settings; else an empty one."""
    same = (result.get("setting"), result.get("seeds"), result.get("commit")) == (
        asdict(setting), seeds, record.commit(),
    )  # fmt: skip
    return result if same else {}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench feedback", description=__doc__)
    parser.add_argument("--data", help="folder with MNIST and CIFAR-10 (or NEARZIP_DATA)")
    parser.add_argument("--networks", default=",".join(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="fewer than usual")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin nothing then; the next run goes on")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    deadline = time.perf_counter() + chosen.seconds
    path = record.RESULTS / "qd_feedback.json"
    before = json.loads(path.read_text())["networks"] if path.exists() else {}
    networks = {name: before[name] for name in SETTINGS if name in before}
    for name in chosen.networks.split(","):
        setting = SETTINGS[name]
        setting = replace(setting, epochs=chosen.epochs or setting.epochs)
        result = networks[name] = fresh(networks.get(name, {}), setting, chosen.seeds)
        if "recovery" in result:
            continue

        def write() -> None:
            record.save("qd_feedback", {"networks": {k: v for k, v in networks.items() if v}}, _PACKAGES)

        if not measure(setting, dataset_of(setting, chosen.data), chosen.seeds, result, write, deadline):
            print(f"feedback: time is over in {name}; run again to go on", file=sys.stderr)
            return


_PACKAGES = ("nearzip", "numpy", "torch")


# ---- Table 10 --------------------------------------------------

_clock = time.process_time


@contextlib.contextmanager
def timed_calls(name: str) -> Iterator[list[float]]:
    """Seconds that calls of one of LZMA's methods take."""
    seconds: list[float] = []
    original = getattr(Lzma, name)

    def call(*arguments: Any) -> Any:
        begin = _clock()
        try:
            return original(*arguments)
        finally:
            seconds.append(_clock() - begin)

    with mock.patch.object(Lzma, name, call):
        yield seconds


def measure_times(setting: Setting, dataset: data.Dataset) -> dict[str, float]:
    """One epoch, and one version's way to disk and back (qd-compressor, 8 bits)."""
    with mock.patch.object(time, "perf_counter", _clock):  # which the training and its quantizer read
        run = train(setting, dataset, 0, 2, 8)
    old, new = run.versions
    settings = METHODS["qd-compressor"]
    base = nz.compress(old, threads=1, **settings).restored
    tensors = {name: torch.from_numpy(value) for name, value in new.items()}
    found = {"Training": (run.seconds - run.seconds_quantizing) / 2, "Quan, all steps": run.seconds_quantizing / 2}
    begin = _clock()
    range_quantizer(8, 8)(tensors)
    found["Quan"] = _clock() - begin
    begin = _clock()
    with timed_calls("encode") as packing:
        archive = nz.compress(new, base, threads=1, **settings)
    found["LZMA Comp."] = sum(packing)
    found["Delta, check"] = _clock() - begin - sum(packing) - found["Quan"]
    with tempfile.TemporaryDirectory() as folder:
        path, begin = Path(folder) / "version.nz", _clock()
        archive.save(path)
        found["Store"] = _clock() - begin
        begin = _clock()
        with timed_calls("decode") as unpacking:
            nz.decompress(path, base, threads=1)
        found["LZMA Decomp."] = sum(unpacking)
        found["Restore"] = _clock() - begin - sum(unpacking)
    return found


def main_times(arguments: list[str]) -> None:
    """Table 10: processor seconds of each part of saving and restoring."""
    parser = argparse.ArgumentParser(prog="bench feedback_time", description=main_times.__doc__)
    parser.add_argument("--data", help="folder with MNIST and CIFAR-10 (or NEARZIP_DATA)")
    parser.add_argument("--networks", default=",".join(SETTINGS), help="those that are not named keep theirs")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    before = record.load("qd_feedback_time").get("networks", {})
    rows = {name: before[name] for name in SETTINGS if name in before}
    for name in chosen.networks.split(","):
        rows[name] = measure_times(SETTINGS[name], dataset_of(SETTINGS[name], chosen.data))
        print(name, rows[name], file=sys.stderr)
        written = {name: rows[name] for name in SETTINGS if name in rows}
        record.save("qd_feedback_time", {"networks": written}, ("nearzip", "numpy", "torch"))
