"""The patches that a convolution multiplies its kernels with, as rows of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["patches", "unfolded"]


def _each(value: Any, n: int) -> list[int]:
    return (
        [int(value)] * n if isinstance(value, int) else [int(v) for v in (value if len(value) == n else [*value] * n)]
    )


def _margins(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and after each dimension."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in _each(padding, len(kernel))]


def patches(
    images: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any, at: Tensor | None = None
) -> Tensor:
    """Every position of a convolution's kernel, as one row; or some of the positions only, by their numbers `at`.

    Parameters
    ----------
    images : tensor, shape (n, channels, *size), with one, two or three dimensions of size
    kernel : sequence of int
    stride, padding, dilation : as PyTorch's convolutions take them

    Returns
    -------
    tensor, shape (n * positions, channels * prod(kernel))
        Columns in the order of a kernel's values, (channel, *kernel).

    Examples
    --------
    >>> import torch
    >>> patches(torch.arange(4.0).view(1, 1, 4), (2,), 1, 0, 1).tolist()
    [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]
    """
    by_position = unfolded(images, kernel, stride, padding, dilation)
    n = len(kernel)
    if at is None:
        return by_position.flatten(0, n).flatten(1)
    return by_position[torch.unravel_index(at.to(images.device), by_position.shape[: n + 1])].flatten(1)


def unfolded(images: Tensor, kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> Tensor:
    """A view of the padded images, shape (n, *positions, channels, *kernel)."""
    n = len(kernel)
    steps, gaps = _each(stride, n), _each(dilation, n)
    margins = _margins(padding, kernel, gaps)
    padded = functional.pad(images, [m for pair in reversed(margins) for m in pair])
    for i, (k, step, gap) in enumerate(zip(kernel, steps, gaps, strict=True)):
        padded = padded.unfold(2 + i, gap * (k - 1) + 1, step)[..., ::gap]
    # (n, channels, *positions, *kernel) -> (n, *positions, channels, *kernel)
    return padded.movedim(1, 1 + n)
