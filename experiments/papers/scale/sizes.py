"""QD-Compressor's Table 2, parameters and operations of networks, and Figure 1, ranges of values by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file
from torch.utils.flop_counter import FlopCounterMode

from experiments.lab.networks import NETWORKS, data_of

Row = dict[str, Any]

#: One sample of each data set.
_INPUTS = {"mnist": (1, 1, 28, 28), "cifar-10": (1, 3, 32, 32), "tinyshakespeare": (1, 128)}


def operations(network: str) -> Row:
    """Parameters, and multiplications with addition for one sample; nothing is computed."""
    shape = _INPUTS[data_of(network)]
    with torch.device("meta"):
        module = NETWORKS[network]().eval()
        sample = torch.zeros(shape, dtype=torch.int64 if len(shape) == 2 else torch.float32)
        with FlopCounterMode(display=False) as counter:
            module(sample)
    n = sum(p.numel() for p in module.parameters())
    return {"parameters": n, "multiply_adds": counter.get_total_flops() // 2, "input": list(shape)}


def ranges(version: Path) -> list[Row]:
    """Smallest and largest value and standard deviation of each matrix and filter, in the order of the layers."""
    tensors = load_file(version)
    return [
        {"name": name, "low": float(w.min()), "high": float(w.max()), "deviation": float(w.std())}
        for name, w in tensors.items() if w.ndim > 1
    ]  # fmt: skip
