"""What a restored network still does: divergence, loss, accuracy and agreement with the original on held-out data.

Needs PyTorch. Held-out data are as the README of the traces says: the last tenth of tinyshakespeare, the test images
of CIFAR-10.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.cache import cache_folder
from experiments.networks import NETWORKS
from experiments.traces import Tensors

#: Predictions per forward pass of the images.
_BATCH = 500
_MEAN = (0.4914, 0.4822, 0.4465)
_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class HeldOut:
    """Batches of inputs and of the class that each prediction should name."""

    inputs: list[Tensor]
    targets: list[Tensor]


@dataclass(frozen=True)
class Fidelity:
    """How near a restored network is to its original.

    `kl` is KL(original || restored) in nats per prediction; `agreement` the share of predictions whose most likely
    class is the same; the changes are restored minus original.
    """

    kl: float
    loss: float
    accuracy: float
    agreement: float
    loss_change: float
    accuracy_change: float


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


def images(records: np.ndarray) -> HeldOut:
    """CIFAR-10 records of 3 073 bytes, normalised per channel."""
    records = records.reshape(-1, 3073)
    pixels = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255)
    pixels = (pixels - torch.tensor(_MEAN).view(3, 1, 1)) / torch.tensor(_STD).view(3, 1, 1)
    classes = torch.from_numpy(records[:, 0].astype(np.int64))
    return HeldOut(list(pixels.split(_BATCH)), list(classes.split(_BATCH)))


def _cifar10(data: Path) -> Path:
    folder = cache_folder() / "cifar-10-batches-bin"
    if not (folder / "batches.meta.txt").is_file():
        subprocess.run([sys.executable, data / "unpack_cifar10.py", folder.parent], check=True)
    return folder


def held_out(network: str, data: Path, share: float = 1.0) -> HeldOut:
    """Held-out data of a network; `data` is the folder with `tinyshakespeare/` and `cifar-10.xz`.

    `share`: how much of it to use, the first batches.
    """
    if network == "transformer":
        whole = characters((data / "tinyshakespeare" / "input.txt").read_text())
    else:
        whole = images(np.fromfile(_cifar10(data) / "test_batch.bin", np.uint8))
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
