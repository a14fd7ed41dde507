"""Networks without shortcuts: LeNet, AlexNet, VGG, MobileNet's first version."""

from __future__ import annotations

from torch import nn

from experiments.lab.networks.parts import GlobalMean, biased_conv_bn_relu, conv_bn_relu


def lenet_300_100() -> nn.Module:
    """LeCun et al. 1998: (n, 1, 28, 28) -> logits (n, 10); 266 610 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )


def lenet_5() -> nn.Module:
    """Caffe's LeNet-5, 20-50-500-10: (n, 1, 28, 28) -> logits (n, 10); 431 080 parameters, 1620 KB fully connected."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


def alexnet() -> nn.Module:
    """Krizhevsky et al. 2012, cut down to 32 x 32 images: (n, 3, 32, 32) -> logits (n, 10)."""

    def conv(n_in: int, n_out: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 3, stride, 1), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *conv(3, 64, 2), nn.MaxPool2d(2), *conv(64, 192), nn.MaxPool2d(2),
        *conv(192, 384), *conv(384, 256), *conv(256, 256), nn.MaxPool2d(2), nn.Flatten(),
        nn.Dropout(), nn.Linear(1024, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(),
        nn.Linear(4096, 10),
    )  # fmt: skip


def vgg_small() -> nn.Module:
    """A small VGG with batch norm for CIFAR-10: (n, 3, 32, 32) -> logits (n, 10); 0.8 M parameters."""
    return nn.Sequential(
        conv_bn_relu(3, 32), nn.MaxPool2d(2),
        conv_bn_relu(32, 64), nn.MaxPool2d(2),
        conv_bn_relu(64, 128), conv_bn_relu(128, 128), nn.MaxPool2d(2),
        conv_bn_relu(128, 256), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 10),
    )  # fmt: skip


def strided_small() -> nn.Module:
    """Three strided convolutions for CIFAR-10, small enough for one core: (n, 3, 32, 32) -> logits (n, 10)."""
    return nn.Sequential(
        conv_bn_relu(3, 32, 3, 2), conv_bn_relu(32, 64, 3, 2), conv_bn_relu(64, 128, 3, 2),
        nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def strided_plain() -> nn.Module:
    """`strided_small` without batch norm, with biases in its place."""

    def conv(n_in: int, n_out: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, n_out, 3, 2, 1), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *conv(3, 32), *conv(32, 64), *conv(64, 128),
        nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def _vgg(stages: tuple[tuple[int, int], ...]) -> nn.Module:
    """Stages of (channels, convolutions), each ended by pooling; batch norm, and one linear layer."""
    layers: list[nn.Module] = []
    n_in = 3
    for n_out, n in stages:
        for _ in range(n):
            layers.append(biased_conv_bn_relu(n_in, n_out, 3))
            n_in = n_out
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def vgg_16() -> nn.Module:
    """Simonyan and Zisserman 2015, configuration D with batch norm and one linear layer, as the papers have it."""
    return _vgg(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)))


def vgg_19() -> nn.Module:
    """Configuration E in the same form: Condensa's VGG-19."""
    return _vgg(((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)))


def mobilenet_small() -> nn.Module:
    """In the style of Howard et al. 2017, depthwise and pointwise in turn: (n, 3, 32, 32) -> logits (n, 10)."""

    def separable(n_in: int, n_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(conv_bn_relu(n_in, n_in, 3, stride, n_in), conv_bn_relu(n_in, n_out, 1))

    return nn.Sequential(
        conv_bn_relu(3, 32, 3, 2), separable(32, 64, 1), separable(64, 128, 2), separable(128, 128, 1),
        separable(128, 256, 2), separable(256, 256, 1), GlobalMean(), nn.Linear(256, 10),
    )  # fmt: skip
