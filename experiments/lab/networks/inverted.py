"""Networks of inverted residuals for CIFAR-10: MobileNetV2 and EfficientNet-B0, (n, 3, 32, 32) -> logits (n, 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.lab.networks.parts import GlobalMean, Residual, conv_bn, conv_bn_relu

_DROP = 0.2


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, Table 2, strides for 32 x 32 images; 2.3 M parameters.

    As in the papers' network, a block of stride 1 that changes the number of channels has a convolution as shortcut.
    """
    layers: list[nn.Module] = [conv_bn_relu(3, 32)]
    n_in = 32
    for expand, n_out, n, first in (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for stride in (first, *[1] * (n - 1)):
            wide = expand * n_in
            body = nn.Sequential(
                conv_bn_relu(n_in, wide, 1), conv_bn_relu(wide, wide, 3, stride, wide), conv_bn(wide, n_out)
            )
            shortcut = nn.Identity() if n_in == n_out else conv_bn(n_in, n_out)
            layers.append(body if stride == 2 else Residual(body, shortcut))
            n_in = n_out
    return nn.Sequential(*layers, conv_bn_relu(320, 1280, 1), GlobalMean(), nn.Linear(1280, 10))


class _Gate(nn.Module):
    """Squeeze and excitation: every channel scaled by what the means of all say."""

    def __init__(self, n: int, n_squeezed: int):
        super().__init__()
        self.squeeze, self.excite = nn.Conv2d(n, n_squeezed, 1), nn.Conv2d(n_squeezed, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(means))))


class _DropSample(nn.Module):
    """Drops a whole branch of a sample with probability `p` in training (stochastic depth)."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.p
        return x * kept / (1 - self.p)


def _mb_conv(n_in: int, n_out: int, expand: int, kernel: int, stride: int, drop: float) -> nn.Module:
    wide = expand * n_in
    widen = [*conv_bn(n_in, wide), nn.SiLU()] if expand > 1 else []
    body = nn.Sequential(
        *widen, *conv_bn(wide, wide, kernel, stride, wide), nn.SiLU(), _Gate(wide, n_in // 4), *conv_bn(wide, n_out)
    )
    if stride > 1 or n_in != n_out:
        return body
    return Residual(body.append(_DropSample(drop)), nn.Identity())


def efficientnet_b0() -> nn.Module:
    """Tan and Le 2019, Table 1 with a stem of stride 1 and no head of 1280 channels; 3.6 M parameters."""
    layers: list[nn.Module] = [*conv_bn(3, 32, 3), nn.SiLU()]
    stages = (
        (1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2), (6, 112, 3, 5, 1), (6, 192, 4, 5, 2),
        (6, 320, 1, 3, 1),
    )  # fmt: skip
    n_in, block, n_blocks = 32, 0, sum(stage[2] for stage in stages)
    for expand, n_out, n, kernel, first in stages:
        for stride in (first, *[1] * (n - 1)):
            layers.append(_mb_conv(n_in, n_out, expand, kernel, stride, _DROP * block / n_blocks))
            n_in, block = n_out, block + 1
    return nn.Sequential(*layers, GlobalMean(), nn.Dropout(_DROP), nn.Linear(320, 10))
