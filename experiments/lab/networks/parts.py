"""Layers shared by the convolutional networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def conv_bn(n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size (but for the stride), and batch norm."""
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


def conv_bn_relu(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """The same, and ReLU."""
    return nn.Sequential(*conv_bn(n_in, n_out, kernel, stride, groups), nn.ReLU(inplace=True))


def biased_conv_bn_relu(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    """A convolution with a bias, which batch norm makes redundant; the papers' VGG-16 and GoogLeNet have it."""
    conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """`after(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, after: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.body, self.shortcut, self.after = body, shortcut, after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.shortcut(x)
        return y if self.after is None else self.after(y)


class Concat(nn.Module):
    """Branches side by side along the channels."""

    def __init__(self, *branches: nn.Module):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GlobalMean(nn.Module):
    """(n, c, h, w) -> (n, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))
