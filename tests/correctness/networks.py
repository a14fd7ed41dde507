"""Small networks and data for the tests of this folder."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

N, CLASSES = 120, 5


class Tokens(nn.Module):
    """A language model: logits of the next token at every position."""

    def __init__(self, vocabulary: int = 7, width: int = 8):
        super().__init__()
        self.embed, self.mix = nn.Embedding(vocabulary, width), nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, vocabulary)

    def forward(self, input_ids):
        return self.out(self.mix(self.embed(input_ids))[0])


def pictures(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(54, CLASSES),
    ).eval()  # fmt: skip


def picture_batches(network, n=N, seed=1, noise=0.3):
    """Random pictures, labelled by the network except for a share."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 8, 8, generator=generator)
    # Spread what the network says over its classes.
    x = x * torch.rand(n, 3, 1, 1, generator=generator)
    with torch.no_grad():
        labels = network(x).argmax(-1)
    wrong = torch.rand(n, generator=generator) < noise
    labels[wrong] = torch.randint(CLASSES, (int(wrong.sum()),), generator=generator)
    return list(zip(x.split(40), labels.split(40), strict=True))


def arrays(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def noisy(module, size=0.1, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (w + rng.normal(0, size, w.shape)).astype(w.dtype) if w.dtype.kind == "f" and "running" not in name else w
        for name, w in arrays(module).items()
    }
