"""The networks that are measured, a few readable lines each. Needs PyTorch.

`transformer` and `vgg-small` load the shared traces. The papers' CIFAR-10 networks are written from the architectures'
papers in the size that Delta-DNN and QD-Compressor report: 3 x 3 stem, one linear layer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from experiments.lab.networks.branched import googlenet, shufflenet_v2, shufflenet_v2_2x
from experiments.lab.networks.inverted import efficientnet_b0, mobilenet_v2
from experiments.lab.networks.plain import (
    alexnet,
    lenet_5,
    lenet_300_100,
    mobilenet_small,
    strided_plain,
    strided_small,
    vgg_16,
    vgg_19,
    vgg_small,
)
from experiments.lab.networks.residual import resnet_18, resnet_20, resnet_34, resnet_56, resnet_101
from experiments.lab.networks.transformer import Transformer

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "vgg-small": vgg_small,
    "resnet-20": resnet_20,
    "mobilenet-small": mobilenet_small,
    "strided-small": strided_small,
    "strided-plain": strided_plain,
    "transformer": Transformer,
    "transformer-small": partial(Transformer, width=96, layers=3),
    "alexnet": alexnet,
    "vgg-16": vgg_16,
    "vgg-19": vgg_19,
    "resnet-18": resnet_18,
    "resnet-34": resnet_34,
    "resnet-56": resnet_56,
    "resnet-101": resnet_101,
    "googlenet": googlenet,
    "mobilenet-v2": mobilenet_v2,
    "shufflenet-v2": shufflenet_v2,
    "shufflenet-v2-2x": shufflenet_v2_2x,
    "efficientnet-b0": efficientnet_b0,
}

#: The data that a network is for; CIFAR-10 where none is named.
DATA = {"lenet-300-100": "mnist", "lenet-5": "mnist", "transformer": "tinyshakespeare",
        "transformer-small": "tinyshakespeare"}  # fmt: skip


def data_of(network: str) -> str:
    """Name of the data set that a network is trained on."""
    return DATA.get(network, "cifar-10")
