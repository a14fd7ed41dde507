"""Condensa's own package on one network, in an environment of its own: `python -m ...condensa_peer REQUEST`.

The request (JSON) names the network, its weights and the data (.npz), the share, the L-C settings, and where the
condensed weights go. Nothing of nearzip is imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.lab.networks import NETWORKS

#: Condensa needs a version of PyTorch; tqdm and Pillow it imports without saying so.
NEEDS = ("torch", "condensa==0.5.0b0", "tqdm", "pillow")


class Batches:
    """An epoch of batches, in a new order each time; `n` images of them if given."""

    def __init__(self, inputs: Tensor, targets: Tensor, size: int, shuffled: bool):
        self._inputs, self._targets, self._size, self._shuffled = inputs, targets, size, shuffled

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self._inputs)
        order = torch.randperm(n) if self._shuffled else torch.arange(n)
        for rows in order.split(self._size):
            if len(rows) == self._size or not self._shuffled:
                yield self._inputs[rows], self._targets[rows]

    def __len__(self) -> int:
        return -(-len(self._inputs) // self._size)


def condensed(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """Condensa's L-C optimizer with magnitude pruning."""
    import condensa

    torch.manual_seed(request["seed"])
    module = NETWORKS[request["network"]]()
    with np.load(request["weights"]) as weights:
        module.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    with np.load(request["data"]) as images:
        split = {name: torch.from_numpy(images[name]) for name in images}
    size = request["batch"]
    train = Batches(split["train_inputs"], split["train_targets"], size, shuffled=True)
    validation = Batches(split["inputs"], split["targets"], 500, shuffled=False)
    optimizer = condensa.opt.LC(
        steps=request["steps"] + 1, l_optimizer=condensa.opt.lc.SGD,
        l_optimizer_params={"momentum": request["momentum"]}, lr=request["lr"], lr_end=request["lr_end"],
        mb_iterations_per_l=request["per_step"], mb_iterations_first_l=request["per_step"],
        mu_init=request["mu"], mu_multiplier=request["growth"], mu_cap=10_000,
        debugging_flags={"disable_train_stats": True},
    )  # fmt: skip
    scheme = condensa.schemes.Prune(request["keep"])
    loss = torch.nn.CrossEntropyLoss()
    found, _ = optimizer.compress(module, scheme.pi, scheme.delta, train, None, validation, loss)
    return {name: value.detach().numpy() for name, value in found.state_dict().items()}


def main(path: Path) -> None:
    request = json.loads(path.read_text())
    torch.set_num_threads(1)
    np.savez(request["out"], **condensed(request))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
