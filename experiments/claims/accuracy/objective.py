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
_BATCH, _ROWS, _CLASSES, _RATE = 128, 16, 10, 0.05
#: Training images that limits are checked on, and how many of them for attributions and boundary.
_CHECKED, _DEEPLY = 256, 64


def batches(images: Tensor, labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Shuffled; pictures in colour mirrored half of the time and shifted by up to four pixels, as in their training."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    found = []
    for rows in order.split(_BATCH):
        x = images[rows].clone()
        if images.shape[1] == 3:
            flipped = torch.rand(len(rows), generator=generator) < 0.5
            x[flipped] = x[flipped].flip(-1)
            padded = functional.pad(x, (4, 4, 4, 4), mode="reflect")
            down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
            x = padded[..., down : down + x.shape[-2], right : right + x.shape[-1]]
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
    checked, rest = [part[:_CHECKED] for part in train], [part[_CHECKED:] for part in train]
    objective = None
    if limits is not None:
        cost = Cost(behaviour.costs(name, _CLASSES)[1].d)
        measures = [cost, Attribution(n=_DEEPLY), Boundary(n=_DEEPLY)]
        objective = Objective(network, limits, measures=measures, data=[tuple(checked)], rows=_ROWS)
    optimizer = torch.optim.SGD(student.parameters(), _RATE, 0.9, weight_decay=5e-4)
    steps = epochs * (len(rest[0]) // _BATCH)
    epoch = done = 0

    def train_epoch(module: nn.Module) -> None:
        nonlocal epoch, done
        module.train()
        for x, y in batches(*rest, 1000 * seed + epoch):
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - done / steps)
            optimizer.zero_grad()
            loss = functional.cross_entropy(module(x), y) if objective is None else objective(module, (x, y))
            loss.backward()
            optimizer.step()
            done += 1
        epoch += 1
        if objective is not None:
            print(f"seed {seed}, epoch {epoch}: {objective.update(module)}, {objective.multipliers}", flush=True)

    begin = time.process_time()
    finetune(student, train_epoch, epochs=epochs, keep=KEPT)
    seconds = time.process_time() - begin
    student.eval()
    row: dict[str, Any] = {"seconds": round(seconds, 1), "student": student}
    if objective is not None:
        row["multipliers"] = {name: round(value, 3) for name, value in objective.multipliers.items()}
    return row


def trained(name: str, where: Path) -> nn.Module:
    """The network before pruning: the shared small VGG, or the last version of a cached trace."""
    folders = [trace_sets.traces_folder() / which / name for which in ("correctness", "quick")]
    files = [file for folder in folders for file in trace_sets.version_files(folder)[-1:]]
    file = where / "vgg-small" / "008.safetensors" if name == "vgg-small" else next(iter(files), None)
    if file is None:
        raise SystemExit(f"objective: {name} is not trained yet; see python -m experiments traces --set correctness")
    network = NETWORKS[name]()
    network.load_state_dict(load_file(file))
    return network.eval()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench objective", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", nargs="+", default=["strided-small", "vgg-small"])
    parser.add_argument("--images", type=int, default=5_376, help="training images, 256 of which limits are checked on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--measured", type=int, default=250, help="test images of attributions and boundary")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    where = traces.folder(options.data)
    if where is None:
        raise SystemExit("objective: the shared traces are not there; give --data DIR")
    settings = {"kept": KEPT, "limits": LIMITS, "batch": _BATCH, "learning_rate": _RATE, "rows_of_a_batch": _ROWS}
    own = {"images": options.images, "epochs": options.epochs, "measured": options.measured, "test": options.test}
    # One seed takes minutes on two cores: seeds of other networks, or measured with these settings, are kept.
    before = record.load("objective")
    same = all(before.get(name) == value for name, value in settings.items())
    rows: list[dict[str, Any]] = [
        row for row in (before["rows"] if same else [])
        if row["network"] not in options.networks or all(row[name] == value for name, value in own.items())
    ]  # fmt: skip
    for name in options.networks:
        network, dataset = trained(name, where), data.load(data_of(name), options.data).limited(options.images)
        for seed in options.seeds:
            row: dict[str, Any] = {"network": name, **own, "seed": seed, "commit": record.commit()}
            for kind, limits in (("plain", None), ("objective", LIMITS)):
                train = dataset.train.inputs, dataset.train.targets
                found = arm(network, dataset.name, train, seed, options.epochs, limits)
                student = found.pop("student")
                measures = measured(network, student, dataset.name, dataset.test[: options.test], options.measured)
                row[kind] = {**found, **measures}
                print(name, seed, kind, row[kind], flush=True)
            rows = sorted([*(r for r in rows if (r["network"], r["seed"]) != (name, seed)), row],
                          key=lambda r: (r["network"], r["seed"]))  # fmt: skip
            record.save("objective", {**settings, "rows": rows}, ("nearzip", "numpy", "torch", "captum"))
