"""Tiny networks, one for each kind of layer, and batches for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Self- or cross-attention behind an embedding, and a classifier."""

    def __init__(self, cross: bool = False):
        super().__init__()
        self.e = nn.Embedding(20, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.h = nn.Linear(16, 6)
        self.cross = cross

    def forward(self, x: Tensor) -> Tensor:
        y = self.e(x)
        other = y.flip(1).contiguous() if self.cross else y
        return self.h(y + self.attention(y, other, other)[0])


class Tied(nn.Module):
    """One matrix looks up what comes in and scores what goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.Embedding(12, 16)
        self.f = nn.Linear(16, 16)
        self.h = nn.Linear(16, 12, bias=False)
        self.h.weight = self.e.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.tanh(self.f(self.e(x))))


class Turned(nn.Module):
    """Weights as inputs by outputs, and a layer that is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 16) / 3)
        self.b = nn.Parameter(torch.zeros(16))
        self.h = nn.Linear(16, 5)
        self.unused = nn.Linear(7, 7)
        self.product = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,ij->nj", self.h(torch.relu(torch.addmm(self.b, x, self.w))), self.product)


class Pooled(nn.Module):
    """Convolutions of one to three dimensions, grouped or not, and what follows them."""

    def __init__(self, *layers: nn.Module, channels: int, size: int):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.h = nn.Linear(channels, 5)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.h(functional.relu(self.layers(x)).flatten(2).mean(2))


def convolutions() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Networks by name, with the shape of one input."""
    return {
        "conv1d": (Pooled(nn.Conv1d(3, 8, 3, stride=2, padding=1, dilation=2), channels=8, size=1), (3, 17)),
        "conv2d": (Pooled(nn.Conv2d(3, 8, (3, 1), padding="same"), channels=8, size=2), (3, 7, 6)),
        "grouped": (Pooled(nn.Conv2d(4, 8, 3, groups=2, bias=False), channels=8, size=2), (4, 6, 6)),
        "depthwise": (
            Pooled(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), channels=8, size=2),
            (6, 6, 6),
        ),
        "conv3d": (Pooled(nn.Conv3d(2, 6, 2), channels=6, size=3), (2, 4, 4, 4)),
        "reflecting": (Pooled(nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), channels=8, size=2), (3, 6, 6)),
    }


def images(shape: tuple[int, ...], n: int = 4, size: int = 24) -> list[Tensor]:
    """Batches of noise whose neighbours are alike, as in pictures."""
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(size, *shape, generator=generator) for _ in range(n)]
    return [(x + x.roll(1, -1) + x.mean(1, keepdim=True)) / 2 for x in noise]


def words(n: int = 4, rows: int = 12, time: int = 9, vocabulary: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(vocabulary, (rows, time), generator=generator) for _ in range(n)]
