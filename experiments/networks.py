"""The networks that are measured, a few readable lines each. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.l1, self.l2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.f, self.p = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, time, width = x.shape
        heads = self.qkv(self.l1(x)).view(n, time, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).reshape(n, time, width))
        return x + self.p(functional.gelu(self.f(self.l2(x))))


class Transformer(nn.Module):
    """Character-level causal language model: (n, time <= context) int64 -> logits (n, time, vocabulary)."""

    def __init__(self, vocabulary: int = 65, width: int = 192, layers: int = 4, heads: int = 4, context: int = 128):
        super().__init__()
        self.e, self.pe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.b = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(width)
        self.h = nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.e(x) + self.pe(torch.arange(x.shape[1], device=x.device))
        for block in self.b:
            y = block(y)
        logits: Tensor = self.h(self.ln(y))
        return logits


def _conv_bn_relu(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


def vgg_small() -> nn.Module:
    """A small VGG with batch norm for CIFAR-10: (n, 3, 32, 32) -> logits (n, 10); 0.8 M parameters."""
    return nn.Sequential(
        _conv_bn_relu(3, 32), nn.MaxPool2d(2),
        _conv_bn_relu(32, 64), nn.MaxPool2d(2),
        _conv_bn_relu(64, 128), _conv_bn_relu(128, 128), nn.MaxPool2d(2),
        _conv_bn_relu(128, 256), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {"transformer": Transformer, "vgg-small": vgg_small}
