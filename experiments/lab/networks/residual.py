"""He et al. 2016: residual networks for CIFAR-10, (n, 3, 32, 32) -> logits (n, 10)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from experiments.lab.networks.parts import GlobalMean, Residual, conv_bn, conv_bn_relu


class _PadChannels(nn.Module):
    """Section 4.2's shortcut without parameters: every other pixel, zeros for the new channels."""

    def __init__(self, n_new: int):
        super().__init__()
        self.n_new = n_new

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.n_new))


def _two(n_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv_bn_relu(n_in, width, 3, stride), conv_bn(width, width, 3))


def _bottleneck(n_in: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv_bn_relu(n_in, width, 1), conv_bn_relu(width, width, 3, stride), conv_bn(width, 4 * width))


def _cifar(blocks: int) -> nn.Module:
    """Section 4.2: three stages of 16, 32 and 64 channels."""
    layers: list[nn.Module] = [conv_bn_relu(3, 16)]
    n_in = 16
    for width in (16,) * blocks + (32,) * blocks + (64,) * blocks:
        grows = width != n_in
        shortcut = _PadChannels(width - n_in) if grows else nn.Identity()
        layers.append(Residual(_two(n_in, width, 2 if grows else 1), shortcut, functional.relu))
        n_in = width
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(64, 10))


def resnet_20() -> nn.Module:
    """Three blocks a stage; 0.27 M parameters."""
    return _cifar(3)


def resnet_56() -> nn.Module:
    """Nine blocks a stage; 0.85 M parameters."""
    return _cifar(9)


def _resnet(blocks: tuple[int, int, int, int], bottleneck: bool) -> nn.Module:
    """The ImageNet networks of Table 1 on 32 x 32 images: a 3 x 3 stem, and no pooling behind it."""
    body, expansion = (_bottleneck, 4) if bottleneck else (_two, 1)
    layers: list[nn.Module] = [conv_bn_relu(3, 64)]
    n_in = 64
    for stage, n in enumerate(blocks):
        for block in range(n):
            width, stride = 64 << stage, 2 if stage and not block else 1
            same = stride == 1 and n_in == expansion * width
            shortcut = nn.Identity() if same else conv_bn(n_in, expansion * width, 1, stride)
            layers.append(Residual(body(n_in, width, stride), shortcut, functional.relu))
            n_in = expansion * width
    return nn.Sequential(*layers, GlobalMean(), nn.Linear(n_in, 10))


def resnet_18() -> nn.Module:
    """11.2 M parameters."""
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet_34() -> nn.Module:
    """21.3 M parameters."""
    return _resnet((3, 4, 6, 3), bottleneck=False)


def resnet_101() -> nn.Module:
    """42.5 M parameters."""
    return _resnet((3, 4, 23, 3), bottleneck=True)
