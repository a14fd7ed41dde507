"""A character-level transformer."""

from __future__ import annotations

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
        y: Tensor = x + self.p(functional.gelu(self.f(self.l2(x))))
        return y


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
