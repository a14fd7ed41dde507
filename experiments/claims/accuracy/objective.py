"""Training for correctness: a pruned small VGG, fine-tuned with `nearzip.correctness.Objective` and without.

Both arms start from the same zeros, see the same batches in the same order and use the same optimizer; the plain arm
minimises cross entropy. Measured on test images against the network before pruning.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab import data, record, traces
from experiments.lab.networks import NETWORKS
from nearzip.correctness import Attribution, Boundary, Cost, Objective
from nearzip.torch import evaluator, finetune

KEPT = 0.1
#: CIFAR-10's classes by what they are.
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARENTS = {
    **dict.fromkeys(("airplane", "automobile", "ship", "truck"), "vehicle"),
    **dict.fromkeys(("cat", "deer", "dog", "horse"), "mammal"),
    "mammal": "animal", "bird": "animal", "frog": "animal",
}  # fmt: skip
LIMITS = {"kl": 0.02, "cost": 0.02, "flips/worse": 0.02, "attribution/saliency": 0.3, "boundary/random": 0.05}
_BATCH, _ROWS = 128, 16
#: Steps between updates of the multipliers.
_EVERY = 26


def batches(images: Tensor, labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Shuffled, every other image mirrored."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    found = []
    for rows in order.split(_BATCH):
        x = images[rows].clone()
        flipped = torch.rand(len(rows), generator=generator) < 0.5
        x[flipped] = x[flipped].flip(-1)
        found.append((x, labels[rows]))
    return [each for each in found if len(each[0]) == _BATCH]


def measured(network: nn.Module, student: nn.Module, test: Any, n: int) -> dict[str, Any]:
    """What is left of the network's behaviour."""
    x, y = test
    rows = list(zip(x.split(250), y.split(250), strict=True))
    cost = Cost.from_tree(PARENTS, CLASSES)
    whole = evaluator(network, rows, ["top1", "flips", "agreement", cost, "kl"]).evaluation(student.state_dict())
    some = rows[: n // 250]
    deep = [Attribution(n=n), Boundary(n=n), Boundary("worst", n=n)]
    found = evaluator(network, some, deep).evaluation(student.state_dict())
    return {
        "metrics": {name: round(value, 5) for name, value in {**whole.metrics, **found.metrics}.items()},
        "yardsticks": {name: round(value, 5) for name, value in found.yardsticks.items()},
    }


def arm(network: nn.Module, train: Any, seed: int, epochs: int, limits: dict[str, float] | None) -> dict[str, Any]:
    """One fine-tuning; `limits`: None for plain cross entropy."""
    torch.manual_seed(seed)
    student = copy.deepcopy(network)
    objective = None
    if limits is not None:
        cost = Cost.from_tree(PARENTS, CLASSES)
        checked = [cost, Attribution(n=64), Boundary(n=64)]
        objective = Objective(network, limits, measures=checked, rows=_ROWS)
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


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench objective", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--measured", type=int, default=500, help="test images of attributions and boundary")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("objective: the shared traces are not there; give --data DIR")
    network = NETWORKS["vgg-small"]()
    network.load_state_dict(load_file(where / "vgg-small" / "008.safetensors"))
    network.eval()
    images = data.load("cifar-10", options.data).limited(options.images)
    train, test = ((split.inputs, split.targets) for split in (images.train, images.test[: options.test]))
    rows = []
    for seed in range(options.seeds):
        row: dict[str, Any] = {"seed": seed}
        for name, limits in (("plain", None), ("objective", LIMITS)):
            found = arm(network, train, seed, options.epochs, limits)
            row[name] = {**found, **measured(network, found.pop("student"), test, options.measured)}
            row[name].pop("student", None)
            print(seed, name, row[name], flush=True)
        rows.append(row)
    result = {
        "kept": KEPT, "limits": LIMITS, "images": options.images, "epochs": options.epochs, "batch": _BATCH,
        "rows_of_a_batch": _ROWS, "measured": options.measured, "test_images": len(test[0]), "rows": rows,
    }  # fmt: skip
    record.save("objective", result, ("nearzip", "numpy", "torch", "captum"))
