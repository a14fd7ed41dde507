"""Which of a training's processes this one is."""

from __future__ import annotations

import os

import torch.distributed as distributed

__all__ = ["is_first_process"]


def is_first_process() -> bool:
    """Whether this is the only process of its training or the one of rank 0.

    Before `init_process_group`, what torchrun and other launchers put into the environment decides.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return _number("WORLD_SIZE", 1) <= 1 or _number("RANK", 0) == 0


def _number(variable: str, default: int) -> int:
    try:
        return int(os.environ.get(variable, default))
    except ValueError:
        return default
