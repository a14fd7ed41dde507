"""Trains a network and keeps its versions: a trace.

A trace is a folder:

    trace.json              settings, circumstances, and the metrics of every version
    003.safetensors         weights and buffers after epoch 3 (or 00250.safetensors: after step 250)
    state/003.safetensors   the optimizer's state, if asked for: `PARAMETER.exp_avg` and so on
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from experiments.lab import data, record
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import evaluate, loss_of, steps_per_epoch, training_batches
from experiments.lab.schedules import SCHEDULES, make_rule

_SECONDS_BETWEEN_LINES = 20


@dataclass(frozen=True)
class Settings:
    """All that decides which bytes a training writes on one machine.

    `steps` wins over `epochs`; `every` is in steps, 0 for once an epoch; `rule` says which of these are saved;
    `limit` cuts the training split, `n_validation` images are held out from it.
    """

    network: str
    epochs: int = 1
    steps: int | None = None
    every: int = 0
    rule: str = "all"
    optimizer: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 128
    schedule: str = "constant"
    seed: int = 0
    device: str = "cpu"
    state: bool = False
    limit: int | None = None
    n_validation: int = 5000


_LENET = Settings("", epochs=20, lr=0.02, weight_decay=5e-4)
_PAPER = Settings("", epochs=200, rule="delta-dnn")

#: Settings for each network; for the papers' networks, section 5.1 of Delta-DNN.
PRESETS = {
    "lenet-300-100": _LENET,
    "lenet-5": _LENET,
    "vgg-small": Settings("", epochs=12, weight_decay=5e-4),
    "resnet-20": Settings("", epochs=20, lr=0.1, schedule="cosine"),
    "mobilenet-small": Settings("", epochs=20, lr=0.1, schedule="cosine"),
    "transformer": Settings(
        "", steps=1000, every=50, optimizer="adamw", lr=1e-3, weight_decay=0.1, batch=32, schedule="cosine"
    ),
}


def preset(network: str, **changes: Any) -> Settings:
    """The usual settings of a network, with some changed."""
    return replace(PRESETS.get(network, _PAPER), network=network, **changes)


@contextmanager
def _deterministic(seed: int, device: torch.device) -> Iterator[None]:
    """The same bytes in every run on one machine; on a GPU as far as PyTorch can (it warns where it cannot)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def make_optimizer(network: nn.Module, settings: Settings) -> optim.Optimizer:
    """AdamW or SGD, as the settings say."""
    if settings.optimizer == "adamw":
        return optim.AdamW(network.parameters(), settings.lr, weight_decay=settings.weight_decay)
    return optim.SGD(network.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)


def optimizer_tensors(network: nn.Module, optimizer: optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: `fc.weight.momentum_buffer`, `fc.weight.exp_avg`, ..."""
    return {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


@dataclass
class _Writer:
    """Writes versions, and trace.json after every one of them."""

    folder: Path
    document: dict[str, Any]
    begin: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def version(self, name: str, network: nn.Module, optimizer: optim.Optimizer) -> None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        save_file(tensors, self.folder / f"{name}.safetensors")
        if self.document["settings"]["state"]:
            (self.folder / "state").mkdir(exist_ok=True)
            save_file(optimizer_tensors(network, optimizer), self.folder / "state" / f"{name}.safetensors")

    def metrics(self, row: dict[str, Any], saved: bool, complete: bool) -> None:
        self.document["versions" if saved else "not_saved"].append(row)
        self.document["complete"] = complete
        self.document["seconds"] = round(time.perf_counter() - self.begin[0], 1)
        self.document["processor_seconds"] = round(time.process_time() - self.begin[1], 1)
        unfinished = self.folder / "trace.json.part"
        unfinished.write_text(json.dumps(self.document, indent=1) + "\n")
        unfinished.replace(self.folder / "trace.json")


def _document(settings: Settings, network: nn.Module) -> dict[str, Any]:
    return {
        "network": settings.network,
        "data": data_of(settings.network),
        "parameters": sum(p.numel() for p in network.parameters()),
        "settings": asdict(settings),
        "commit": record.commit(),
        "machine": record.machine() | {"threads": torch.get_num_threads(), "device": _device_name(settings.device)},
        "packages": record.versions("torch", "numpy", "safetensors"),
        "complete": False,
        "versions": [],
        "not_saved": [],
    }


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def train(settings: Settings, folder: Path, dataset: data.Dataset) -> dict[str, Any]:
    """Train and write the trace into `folder`; returns what trace.json says.

    Versions are evaluated on the test and validation splits before they are saved; the test accuracy decides what
    Delta-DNN's rule saves.
    """
    device = torch.device(settings.device)
    folder.mkdir(parents=True, exist_ok=True)
    with _deterministic(settings.seed, device):
        network = NETWORKS[settings.network]().to(device)
        writer = _Writer(folder, _document(settings, network))
        _run(settings, network, dataset.limited(settings.limit).to(device), writer)
    return writer.document


def _run(settings: Settings, network: nn.Module, dataset: data.Dataset, writer: _Writer) -> None:
    per_epoch = steps_per_epoch(dataset, settings.batch)
    total = settings.steps or settings.epochs * per_epoch
    every = settings.every or per_epoch
    optimizer, should_save = make_optimizer(network, settings), make_rule(settings.rule)
    batches = training_batches(dataset, settings.batch, torch.Generator().manual_seed(settings.seed))
    losses: list[Tensor] = []
    progress = _Progress(settings.network, total)
    for step in range(1, total + 1):
        rate = settings.lr * SCHEDULES[settings.schedule]((step - 1) / total)
        losses.append(train_step(network, optimizer, rate, *next(batches)))
        progress.step(step)
        if step % every and step != total:
            continue
        epoch = -(-step // per_epoch)
        row: dict[str, Any] = {
            "step": step,
            "epoch": epoch,
            "lr": rate,
            "train_loss": torch.stack(losses).mean().item(),
        }
        row |= {"test": evaluate(network, dataset.test), "validation": evaluate(network, dataset.validation)}
        saved = should_save(epoch, row["test"]["accuracy"])
        if saved:
            row["file"] = f"{step:05d}.safetensors" if settings.every else f"{epoch:03d}.safetensors"
            writer.version(Path(row["file"]).stem, network, optimizer)
        writer.metrics(row, saved, complete=step == total)
        progress.evaluated(row)
        losses.clear()


def train_step(network: nn.Module, optimizer: optim.Optimizer, rate: float, inputs: Tensor, targets: Tensor) -> Tensor:
    """One step at a learning rate; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(network(inputs), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


@dataclass
class _Progress:
    """A line on stderr for every evaluation, and in between not too often."""

    network: str
    total: int
    last: float = field(default_factory=time.perf_counter)

    def step(self, step: int) -> None:
        if time.perf_counter() - self.last > _SECONDS_BETWEEN_LINES:
            self._say(f"step {step} of {self.total}")

    def evaluated(self, row: dict[str, Any]) -> None:
        test, kept = row["test"], "saved" if "file" in row else "not saved"
        self._say(
            f"epoch {row['epoch']}, step {row['step']} of {self.total}: training loss {row['train_loss']:.4f}, "
            f"test loss {test['loss']:.4f}, accuracy {test['accuracy']:.4f}, {kept}"
        )

    def _say(self, text: str) -> None:
        print(f"{self.network}: {text}", file=sys.stderr, flush=True)
        self.last = time.perf_counter()
