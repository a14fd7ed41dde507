"""Divergence, loss, accuracy and agreement of a restored network with its original on held-out data; training batches.

Needs PyTorch. Held-out data, as for the shared traces: the last tenth of tinyshakespeare, the test images
of CIFAR-10 and MNIST.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab.data import held_out_images, load
from experiments.lab.networks import NETWORKS, data_of
from experiments.lab.sampling import training_batches
from experiments.lab.traces import Tensors

#: Predictions per forward pass of the images.
_BATCH = 500
#: Training batches of calibration, and their rows. Text is 128 predictions a row, so fewer batches do.
BATCHES = {"tinyshakespeare": (3, 32), "cifar-10": (8, 128), "mnist": (8, 128)}


@dataclass(frozen=True)
class HeldOut:
    """Batches of inputs and of the class that each prediction should name."""

    inputs: list[Tensor]
    targets: list[Tensor]


@dataclass(frozen=True)
class Fidelity:
    """Fidelity of a restored network to its original; NaN where its outputs are no numbers, as those of a batch norm
    whose variance was restored below zero.

    `kl` is KL(original || restored) in nats per prediction; `agreement` the share of predictions whose most likely
    class is the same; the changes are restored minus original.
    """

    kl: float
    loss: float
    accuracy: float
    agreement: float
    loss_change: float
    accuracy_change: float

    def to_json(self) -> dict[str, float | None]:
        """JSON has no NaN: None in its place."""
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def characters(text: str, batches: int = 20, rows: int = 32, time: int = 128) -> HeldOut:
    """Random windows of the last tenth of a text; tokens are its characters in sorted order."""
    order = {c: i for i, c in enumerate(sorted(set(text)))}
    tokens = torch.tensor([order[c] for c in text])[int(0.9 * len(text)) :]
    generator = torch.Generator().manual_seed(1)
    inputs, targets = [], []
    for _ in range(batches):
        starts = torch.randint(len(tokens) - time - 1, (rows,), generator=generator)
        windows = torch.stack([tokens[s : s + time + 1] for s in starts.tolist()])
        inputs.append(windows[:, :-1])
        targets.append(windows[:, 1:].reshape(-1))
    return HeldOut(inputs, targets)


def held_out(network: str, data: Path, share: float = 1.0) -> HeldOut:
    """Held-out data of a network; `data` is the folder that `experiments.lab.data.load` reads.

    `share`: how much of it to use, the first batches.
    """
    if network == "transformer":
        whole = characters((data / "tinyshakespeare" / "input.txt").read_text())
    else:
        split = held_out_images(data_of(network), data)
        whole = HeldOut(list(split.inputs.split(_BATCH)), list(split.targets.split(_BATCH)))
    n = max(1, round(share * len(whole.inputs)))
    return HeldOut(whole.inputs[:n], whole.targets[:n])


class Evaluator:
    """Compares restored networks with one original, whose predictions are kept."""

    def __init__(self, network: str, original: Tensors, data: HeldOut):
        self.network = NETWORKS[network]().eval()
        self.data = data
        self.targets = torch.cat(data.targets)
        self.expected = self._predict(original)
        self.loss, self.accuracy = self._score(self.expected)

    def _predict(self, tensors: Tensors) -> Tensor:
        """Logarithms of the probabilities, (predictions, classes), float64."""
        self.network.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in tensors.items()})
        with torch.inference_mode():
            logits = torch.cat([self.network(x).flatten(0, -2) for x in self.data.inputs])
            return functional.log_softmax(logits.double(), dim=-1)

    def _score(self, predicted: Tensor) -> tuple[float, float]:
        loss = functional.nll_loss(predicted, self.targets)
        return float(loss), float((predicted.argmax(-1) == self.targets).double().mean())

    def compare(self, restored: Tensors) -> Fidelity:
        """Run the restored network on the same data."""
        predicted = self._predict(restored)
        loss, accuracy = self._score(predicted)
        kl = functional.kl_div(predicted, self.expected, reduction="batchmean", log_target=True)
        same = predicted.argmax(-1) == self.expected.argmax(-1)
        return Fidelity(
            float(kl), loss, accuracy, float(same.double().mean()), loss - self.loss, accuracy - self.accuracy
        )


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
