"""Networks of parallel branches for CIFAR-10: GoogLeNet and ShuffleNetV2, (n, 3, 32, 32) -> logits (n, 10)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.lab.networks.parts import Concat, GlobalMean, biased_conv_bn_relu, conv_bn, conv_bn_relu


def _inception(n_in: int, n1: int, reduce3: int, n3: int, reduce5: int, n5: int, n_pool: int) -> nn.Module:
    """Figure 2b; the 5 x 5 branch as two of 3 x 3, as Szegedy et al. write a year later."""
    conv = biased_conv_bn_relu
    return Concat(
        conv(n_in, n1, 1),
        nn.Sequential(conv(n_in, reduce3, 1), conv(reduce3, n3, 3)),
        nn.Sequential(conv(n_in, reduce5, 1), conv(reduce5, n5, 3), conv(n5, n5, 3)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(n_in, n_pool, 1)),
    )


def googlenet() -> nn.Module:
    """Szegedy et al. 2015, Table 1 behind a 3 x 3 stem of 192 channels, no auxiliary classifiers; 6.2 M parameters."""
    return nn.Sequential(
        biased_conv_bn_relu(3, 192, 3),
        _inception(192, 64, 96, 128, 16, 32, 32),
        _inception(256, 128, 128, 192, 32, 96, 64),
        nn.MaxPool2d(3, 2, 1),
        _inception(480, 192, 96, 208, 16, 48, 64),
        _inception(512, 160, 112, 224, 24, 64, 64),
        _inception(512, 128, 128, 256, 24, 64, 64),
        _inception(512, 112, 144, 288, 32, 64, 64),
        _inception(528, 256, 160, 320, 32, 128, 128),
        nn.MaxPool2d(3, 2, 1),
        _inception(832, 256, 160, 320, 32, 128, 128),
        _inception(832, 384, 192, 384, 48, 128, 128),
        GlobalMean(),
        nn.Linear(1024, 10),
    )


class _ShuffleUnit(nn.Module):
    """Ma et al. 2018, Figure 3c (one half passes through) and 3d (stride 2: both halves from all channels)."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.split, half = stride == 1, n_out // 2
        from_channels = n_in // 2 if self.split else n_in
        self.right = nn.Sequential(
            conv_bn_relu(from_channels, half, 1), conv_bn(half, half, 3, stride, half), conv_bn_relu(half, half, 1)
        )
        self.left: nn.Module = nn.Identity()
        if not self.split:
            self.left = nn.Sequential(conv_bn(n_in, n_in, 3, stride, n_in), conv_bn_relu(n_in, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.split else (x, x)
        return functional.channel_shuffle(torch.cat([self.left(left), self.right(right)], 1), 2)


def shufflenet_v2(channels: tuple[int, int, int] = (116, 232, 464), last: int = 1024) -> nn.Module:
    """Ma et al. 2018, Table 5 at 1x with a stem of stride 1; 1.26 M parameters."""
    layers: list[nn.Module] = [conv_bn_relu(3, 24)]
    n_in = 24
    for n_out, n in zip(channels, (4, 8, 4), strict=True):
        for block in range(n):
            layers.append(_ShuffleUnit(n_in, n_out, 1 if block else 2))
            n_in = n_out
    return nn.Sequential(*layers, conv_bn_relu(n_in, last, 1), GlobalMean(), nn.Linear(last, 10))


def shufflenet_v2_2x() -> nn.Module:
    """The same at 2x, as the networks that both papers train have it; 5.3 M parameters."""
    return shufflenet_v2((224, 488, 976), 2048)
