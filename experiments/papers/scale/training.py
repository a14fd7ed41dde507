"""A training as the papers have it, on any device: a version after every epoch, and it goes on where it was stopped.

A folder holds `rows.json` (a row for each epoch), `000.safetensors` and so on (the saved versions), and `state.pt`
(what the next epoch begins with).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn, optim

from experiments.lab.data import Dataset
from experiments.lab.networks import NETWORKS
from experiments.lab.sampling import evaluate, loss_of, steps_per_epoch, training_batches
from experiments.lab.schedules import DeltaDnnRule
from experiments.papers.scale.choosing import algorithm_1
from nearzip.torch import ErrorFeedback

Tensors = dict[str, np.ndarray]
Row = dict[str, Any]

#: Error feedback of a way: b_min, b_max, and what is updated (QD-Compressor's section 4.4, Figure 11).
FEEDBACK: dict[str, tuple[int, int, str]] = {
    "8 bits, M": (8, 8, "original"),
    "8 bits, M*": (8, 8, "restored"),
    "4 bits, M": (4, 4, "original"),
    "4-8 bits, M": (4, 8, "original"),
    "16 bits, M": (16, 16, "original"),
}
#: The way in which a training goes on from what Delta-DNN restores of each saved version (Delta-DNN's Figure 9).
FROM_RESTORED = "from restored"
PLAIN = "full precision"
WAYS = (PLAIN, *FEEDBACK, FROM_RESTORED)


@dataclass(frozen=True)
class Training:
    """SGD with momentum 0.9, as both papers have it.

    Parameters
    ----------
    network, way : str
        `way` is one of `WAYS`.
    weight_decay : float
        5e-4 in QD-Compressor's section 6.1, 1e-4 in Delta-DNN's section 5.1.
    saves : {"all", "improved"}
        Every epoch, or Delta-DNN's rule of section 5.1.
    images, test_images : int or None
        A part of the images.
    """

    network: str
    way: str = PLAIN
    epochs: int = 200
    lr: float = 0.01
    weight_decay: float = 5e-4
    batch: int = 128
    saves: str = "all"
    seed: int = 0
    images: int | None = None
    test_images: int | None = None

    @property
    def label(self) -> str:
        """Name of its folder."""
        words = (self.network, self.way, f"wd{self.weight_decay:g}", self.saves, f"seed{self.seed}")
        return "-".join(word.replace(" ", "_").replace("*", "star").replace(",", "") for word in words)


@dataclass
class _Progress:
    """What the next epoch begins with."""

    rows: list[Row] = field(default_factory=list)
    best: float = -1.0


def run(training: Training, dataset: Dataset, folder: Path, device: torch.device) -> list[Row]:
    """Train what is missing; the rows of all epochs, those of saved versions with their file."""
    folder.mkdir(parents=True, exist_ok=True)
    dataset = _part(training, dataset).to(device)
    torch.manual_seed(training.seed)
    network = NETWORKS[training.network]().to(device)
    optimizer = optim.SGD(network.parameters(), training.lr, 0.9, weight_decay=training.weight_decay)
    generator = torch.Generator().manual_seed(training.seed)
    progress = _resumed(training, folder, network, optimizer, generator)
    if len(progress.rows) >= training.epochs:
        return progress.rows
    feedback = _feedback(training, network, optimizer)
    rule = DeltaDnnRule()
    rule.best = progress.best
    for epoch in range(len(progress.rows) + 1, training.epochs + 1):
        torch.manual_seed(1000 * training.seed + epoch)  # dropout goes on alike in an interrupted training
        row = {"epoch": epoch, "train_loss": _epoch(training, network, optimizer, dataset, generator)}
        row |= evaluate(network, dataset.test)
        if rule(epoch, row["accuracy"]) or training.saves == "all":
            row |= _saved(training, network, dataset, folder, epoch)
        progress.rows.append(row)
        progress.best = rule.best
        _write(training, folder, network, optimizer, generator, progress)
        print(f"{training.label}: {row}", file=sys.stderr, flush=True)
    if feedback is not None:
        feedback.close()
    return progress.rows


def _part(training: Training, dataset: Dataset) -> Dataset:
    dataset = dataset.limited(training.images)
    if training.test_images is None:
        return dataset
    return Dataset(dataset.name, dataset.train, dataset.validation, dataset.test[: training.test_images])


def _feedback(training: Training, network: nn.Module, optimizer: optim.Optimizer) -> ErrorFeedback | None:
    if training.way not in FEEDBACK:
        return None
    b_min, b_max, update = FEEDBACK[training.way]
    options = {"b_min": b_min, "b_max": b_max}
    return ErrorFeedback(network, optimizer, "qd-compressor", options=options, update=update)  # type: ignore[arg-type]


def _epoch(
    training: Training, network: nn.Module, optimizer: optim.Optimizer, dataset: Dataset, generator: torch.Generator
) -> float:
    """One epoch; its mean loss."""
    network.train()
    losses = []
    batches: Iterator[Any] = training_batches(dataset, training.batch, generator)
    for inputs, targets in islice(batches, steps_per_epoch(dataset, training.batch)):
        loss = loss_of(network(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def arrays(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state, on the processor."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in network.state_dict().items()}


def _saved(training: Training, network: nn.Module, dataset: Dataset, folder: Path, epoch: int) -> Row:
    """Save a version; in the way "from restored", what is restored of it becomes the network."""
    name = f"{epoch:03d}.safetensors"
    state = arrays(network)
    found: Row = {"file": name}
    if training.way == FROM_RESTORED:
        base = folder / "base.safetensors"
        if base.is_file():
            new, old = ({k: v.numpy() for k, v in tensors.items()} for tensors in (state, load_file(base)))
            point, restored = algorithm_1(new, old, "relative", scorer(training.network, dataset))
            state = {key: torch.from_numpy(np.array(value)) for key, value in restored.items()}
            network.load_state_dict(state)
            found["delta_dnn"] = point
        save_file(state, base)
    save_file(state, folder / name)
    return found


def scorer(network: str, dataset: Dataset) -> Any:
    """Accuracy on the test images of tensors, on the data's device."""
    module = NETWORKS[network]().to(dataset.test.inputs.device)

    def score(tensors: Tensors) -> float:
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()})
        return float(evaluate(module, dataset.test)["accuracy"])

    return score


def _resumed(
    training: Training, folder: Path, network: nn.Module, optimizer: optim.Optimizer, generator: torch.Generator
) -> _Progress:
    """What an earlier run of the same settings left, put into network, optimizer and generator."""
    path = folder / "rows.json"
    document = json.loads(path.read_text()) if path.is_file() else {}
    if document.get("training") != asdict(training) or not (folder / "state.pt").is_file():
        for old in (*folder.glob("*.safetensors"), *folder.glob("state.pt*")):
            old.unlink()
        return _Progress()
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    rows = document["rows"][: state["epoch"]]
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])
    return _Progress(rows, state["best"])


def _write(
    training: Training,
    folder: Path,
    network: nn.Module,
    optimizer: optim.Optimizer,
    generator: torch.Generator,
    progress: _Progress,
) -> None:
    """Rows first: a state is of an epoch whose row is there."""
    document = {"training": asdict(training), "rows": progress.rows}
    _replace(folder / "rows.json", lambda path: path.write_text(json.dumps(document, indent=1) + "\n"))
    state = {
        "epoch": len(progress.rows), "best": progress.best, "network": network.state_dict(),
        "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
    }  # fmt: skip
    _replace(folder / "state.pt", lambda path: torch.save(state, path))


def _replace(path: Path, write: Any) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
