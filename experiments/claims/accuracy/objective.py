"""Training for correctness: pruned networks, fine-tuned with `nearzip.correctness.Objective` and without.

Both arms start from the same zeros, see the same batches in the same order and use the same optimizer; the plain arm
minimises cross entropy. Measured on test images against the network before pruning.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab import behaviour, data, record, trace_sets, traces
from experiments.lab.networks import NETWORKS, data_of
from nearzip.correctness import Attribution, Boundary, Cost, Objective
from nearzip.torch import evaluator, finetune

KEPT = 0.1
LIMITS = {"kl": 0.02, "cost": 0.02, "flips/worse": 0.02, "attribution/saliency": 0.3, "boundary/random": 0.05}
_BATCH, _ROWS, _CLASSES = 128, 16, 10
#: Steps between updates of the multipliers.
_EVERY = 10


def batches(images: Tensor, labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Shuffled; pictures in colour mirrored half of the time."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    found = []
    for rows in order.split(_BATCH):
        x = images[rows].clone()
        flipped = torch.rand(len(rows), generator=generator) < 0.5
        if images.shape[1] == 3:
            x[flipped] = x[flipped].flip(-1)
        found.append((x, labels[rows]))
    return [each for each in found if len(each[0]) == _BATCH]


def measured(network: nn.Module, student: nn.Module, name: str, test: Any, n: int) -> dict[str, Any]:
    """What is left of the network's behaviour."""
    rows = list(zip(test.inputs.split(250), test.targets.split(250), strict=True))
    cost = Cost(behaviour.costs(name, _CLASSES)[1].d)
    judges = {
        "outputs": evaluator(network, rows, ["top1", "flips", "agreement", cost, "kl"]),
        "deep": evaluator(network, behaviour.first(rows, n), [Attribution(n=n), Boundary(n=n), Boundary("worst", n=n)]),
    }
    return behaviour.behaviour(judges, student.state_dict())


def arm(
    network: nn.Module, name: str, train: Any, seed: int, epochs: int, limits: dict[str, float] | None
) -> dict[str, Any]:
    """One fine-tuning; `limits`: None for plain cross entropy."""
    torch.manual_seed(seed)
    student = copy.deepcopy(network)
    objective = None
    if limits is not None:
        cost = Cost(behaviour.costs(name, _CLASSES)[1].d)
        checked = [cost, Attribution(n=64), Boundary(n=64)]
        objective = Objective(network, limits, measures=checked, rows=_ROWS, rate=0.3)
    optimizer = torch.optim.SGD(student.parameters(), 0.02, 0.9, weight_decay=5e-4)
    epoch = 0

    def train_epoch(module: nn.Module) -> None:
        nonlocal epoch
        module.train()
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - epoch / epochs)
        for i, (x, y) in enumerate(batches(*train, 1000 * seed + epoch), 1):
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(x), y) if objective is None else objective(module, (x, y))
            loss.backward()
            optimizer.step()
            if objective is not None and i % _EVERY == 0:
                print(f"seed {seed}, epoch {epoch}, step {i}: {objective.update(module)}", flush=True)
        epoch += 1

    begin = time.process_time()
    finetune(student, train_epoch, epochs=epochs, keep=KEPT)
    seconds = time.process_time() - begin
    student.eval()
    row: dict[str, Any] = {"seconds": round(seconds, 1), "student": student}
    if objective is not None:
        row["multipliers"] = {name: round(value, 3) for name, value in objective.multipliers.items()}
    return row


def trained(name: str, where: Path) -> nn.Module:
    """The network before pruning: the shared small VGG, or the last version of the cached trace."""
    file = where / "vgg-small" / "008.safetensors"
    if name != "vgg-small":
        file = trace_sets.version_files(trace_sets.traces_folder() / "quick" / name)[-1]
    network = NETWORKS[name]()
    network.load_state_dict(load_file(file))
    return network.eval()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench objective", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", nargs="+", default=["lenet-5", "vgg-small"])
    parser.add_argument("--images", type=int, default=5_120)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--measured", type=int, default=250, help="test images of attributions and boundary")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("objective: the shared traces are not there; give --data DIR")
    rows = []
    for name in options.networks:
        network, dataset = trained(name, where), data.load(data_of(name), options.data).limited(options.images)
        for seed in range(options.seeds):
            row: dict[str, Any] = {"network": name, "seed": seed}
            for kind, limits in (("plain", None), ("objective", LIMITS)):
                train = dataset.train.inputs, dataset.train.targets
                found = arm(network, dataset.name, train, seed, options.epochs, limits)
                student = found.pop("student")
                measures = measured(network, student, dataset.name, dataset.test[: options.test], options.measured)
                row[kind] = {**found, **measures}
                print(name, seed, kind, row[kind], flush=True)
            rows.append(row)
            # Some hours on two busy cores: what is done is kept.
            record.save("objective", {
                "kept": KEPT, "limits": LIMITS, "images": options.images, "epochs": options.epochs, "batch": _BATCH,
                "rows_of_a_batch": _ROWS, "measured": options.measured, "test_images": options.test, "rows": rows,
            }, ("nearzip", "numpy", "torch", "captum"))  # fmt: skip
